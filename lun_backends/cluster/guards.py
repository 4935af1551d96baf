# SPDX-License-Identifier: Apache-2.0
"""The guards of the protocol, each of which tests take out to see that its lack is found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Guards:
    """The guards that tests take out one by one.  Everywhere else all of them stand."""

    fenced_first: bool = True  # a node arms only in an epoch with a FENCED record
    look_after_register: bool = True  # J3
    look_at_keys: bool = True  # J4
    drain_before_join: bool = True
    read_again_after_fence: bool = True  # T3: go on at J3
    fence_before_key: bool = True  # F1 before F2
    unchanged_key: bool = True  # F0 keeps a registered key
    reset_in_fence: bool = True  # F1
    fresh_tracker: bool = True
    verify_blank: bool = True  # T1
    reread_lost_race: bool = True  # T1
    look_before_put: bool = True  # 7h
    look_after_view: bool = True  # 7h
    second_look: bool = True  # R
    copy_first: bool = True  # W
    fence_after_loss: bool = True  # INVALID demands a fence before a write goes on without its copy
    answers_what_was_read: bool = True  # FENCED answers the demand that was read before F1
    expelled_stay_out: bool = True
    others_stay_out: bool = True  # of a rollback
    closed_for_rollback: bool = True  # the node that rolls back serves no other write meanwhile
    restore_asks_again: bool = True  # each try of a rollback's write asks whether another node took it over
    rolled_back_names_its_rollback: bool = True
    rollback_keeps_its_source: bool = True  # no DELETE of its snapshot and no INVALID meanwhile
    move_behind_fence: bool = True  # of the epoch after that of the hidden snapshot
    hidden_takes_no_chunks: bool = True  # its own may be moving
    deleted_names_its_target: bool = True  # which must still be the next older one
    every_path_joins: bool = True  # a path that logs in anew registers through J, not by itself
