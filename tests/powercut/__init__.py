# SPDX-License-Identifier: Apache-2.0
"""Simulated power cuts, by the thousand.

A workload runs on a volume whose every change to a file passes a recorder (`recorder`).  From the record, a model
of the disk (`disk`) knows at every point which changes are durable and which are on their way.  It builds the states that a
power cut there could leave.  Each state is laid out as real files, opened with the real code, and compared with the promises
that the workload had by then (`promises`, `check`).  `python -m tests.powercut --states N` tries N states.
"""
