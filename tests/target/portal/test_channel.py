# SPDX-License-Identifier: Apache-2.0
"""A channel: the memory it holds while it is idle, and its commands when it is dropped."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from target.iscsi.command import Command, private_buffers
from target.portal.channel import RECEIVE_LENGTH, Channel, ReceiveBuffer
from target.portal.workers import Job
from target.scsi.task import Task
from tests.memory_device import MemoryDevice
from tests.target.iscsi.initiator import TARGET, FakePortal, Initiator, make_target


@pytest.fixture
def peer() -> Initiator:
    peer = Initiator(FakePortal({TARGET: make_target(MemoryDevice())}))
    peer.log_in()
    return peer


@pytest.fixture
def channel(peer: Initiator) -> Iterator[Channel]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours, peer.connection, peer.connection.output, "127.0.0.1:3260")


def test_an_idle_channel_holds_no_buffer(channel: Channel) -> None:
    assert (channel.buffer, channel.fill, channel.active, len(channel.pending)) == (None, 0, 0, 0)


def test_a_channel_is_the_lane_of_its_session(channel: Channel, peer: Initiator) -> None:
    assert channel.tasks is peer.connection.tasks


def test_a_dropped_channel_returns_the_commands_that_no_worker_has(channel: Channel, peer: Initiator) -> None:
    commands = [Command(itt, Task(private_buffers), 512, reads=True, writes=False, counted=True) for itt in range(3)]
    channel.pending.extend([Job(peer.nexus, commands[:2]), Job(peer.nexus, commands[2:])])
    assert channel.drop() == commands
    assert not channel.pending
    assert channel.drop() == []


def test_a_receive_buffer_has_no_holders_at_first() -> None:
    buffer = ReceiveBuffer()
    assert (len(buffer.view), buffer.holders, buffer.view.readonly) == (RECEIVE_LENGTH, 0, False)
