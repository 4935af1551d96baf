# SPDX-License-Identifier: Apache-2.0
"""libiscsi's conformance suite, `iscsi-test-cu --dataloss`, against every kind of LUN, and beside tgtd."""
