# SPDX-License-Identifier: Apache-2.0
"""Power cuts, tried by the thousand.

A workload runs on a volume whose every change to a file passes a recorder (`recorder`).  From the record a model of the
disk (`disk`) knows, at every point, what is durable and what is only on its way, and builds the states that a power cut
there could leave.  Each is laid out as real files, opened with the real code, and held against what the workload had been
promised by then (`promises`, `check`).  `python -m tests.powercut --help` runs as many as wanted.
"""
