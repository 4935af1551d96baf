# SPDX-License-Identifier: Apache-2.0
"""Three corosyncs: trackers and locks travel, and what a lost corosync or a split costs."""

from __future__ import annotations

from tests.lun_backends.corosync.conftest import Machine, wait


def test_trackers_reach_all_nodes(machines: list[Machine]) -> None:
    for number, machine in enumerate(machines):
        machine.say(f"add {number}")
    wait(lambda: all({0, 1, 2} <= set(machine.say("look")["grains"]) for machine in machines))
    sent = [machine.say("look")["sent"] for machine in machines]
    assert sent == [1, 1, 1]  # what came from others is not sent on


def test_trackers_ride_on_locks_and_one_node_holds_each(machines: list[Machine]) -> None:
    machines[0].say("add 100")
    for machine in machines:
        machine.say("want job")
    wait(lambda: [machine.say("look job")["mine"] for machine in machines].count(True) == 1)
    holder = next(machine for machine in machines if machine.say("look job")["mine"])
    holder.say("release job")
    wait(lambda: not holder.say("look job")["mine"])
    wait(lambda: [machine.say("look job")["mine"] for machine in machines].count(True) == 1)
    assert all(100 in machine.say("look")["grains"] for machine in machines)
    for machine in machines:
        machine.say("release job")


def test_lock_of_a_dead_node_goes_to_the_next(machines: list[Machine]) -> None:
    first, second, third = machines
    first.say("want work")
    wait(lambda: first.say("look work")["mine"] and not second.say("look work")["mine"])
    second.say("want work")
    assert first.member is not None
    first.member.kill()
    first.member.wait()
    wait(lambda: second.say("look work")["mine"])
    first.start_member()  # it has heard nothing, and learns who holds the lock
    wait(lambda: third.say("look")["members"] == 3)
    first.say("want work")
    wait(lambda: not first.say("look work")["mine"])
    assert second.say("look work")["mine"]
    for machine in machines:
        machine.say("release work")


def test_node_without_corosync_goes_on_and_comes_back(machines: list[Machine]) -> None:
    one, two, _ = machines
    one.kill_corosync()
    wait(lambda: "corosync" in one.say("look")["problem"])
    assert one.say("look any")["mine"]  # nobody else says who may do a job
    one.say("add 200")
    two.say("add 201")
    one.start_corosync()
    wait(lambda: one.say("look")["members"] == 3)
    wait(lambda: 200 in two.say("look")["grains"])


def test_split_cluster_works_on_and_joins_again(machines: list[Machine]) -> None:
    one, two, three = machines
    one.link("down")
    wait(lambda: two.say("look")["members"] == 2)
    one.say("add 300")
    two.say("add 301")
    wait(lambda: 301 in three.say("look")["grains"])
    one.link("up")
    wait(lambda: all(machine.say("look")["members"] == 3 for machine in machines))
    one.say("add 302")
    wait(lambda: 302 in three.say("look")["grains"])
