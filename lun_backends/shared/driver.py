# SPDX-License-Identifier: Apache-2.0
"""The driver of the cluster protocol: a thread that runs `cluster.node.Node` and carries its actions out at real devices.

The node decides, the driver obeys.  It opens the admission when the node is ARMED and closes it when it is not:

| the node's step      | the driver, before it carries the next action out                            |
| -------------------- | ---------------------------------------------------------------------------- |
| becomes ARMED        | `follower.arm(epoch)`: copy-on-write and views take over; admission opens     |
| is no longer ARMED   | admission closes, so `Drain` comes to an end                                  |
| has read the log     | `follower.read(history)`                                                      |

Other threads report a RESERVATION CONFLICT with `refused`, and ask for records with `ask`.  Both wake the node.  A
report counts only for the registration that it was about: `life` counts these.

Errors of devices are part of the protocol.  Any other error ends the thread, and `target.ending` then ends the process.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from lun_backends import block_device, refused
from lun_backends.cluster import access, actions, history, records
from lun_backends.cluster.actions import Conflict, Unreachable
from lun_backends.cluster.history import Epoch, History
from lun_backends.cluster.node import Node, Request, State
from lun_backends.files import backing_file, os_error
from lun_backends.shared.admission import Admission, NotAdmitted
from lun_backends.shared.devices import Devices, WriteOnceLun

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Follower(Protocol):
    """The part of the volume that follows the node; the driver calls it on its own thread."""

    def arm(self, epoch: Epoch, lun: WriteOnceLun | None) -> None:
        """Preserve into `lun` from now on.  No command is at the primary."""
        ...

    def joined(self) -> None:
        """Go on: commands are admitted now."""
        ...

    def read(self, log: History) -> None:
        """Look at the log, which has grown."""
        ...


class Driver:
    """Runs a node.  `changed` protects the node and its history, and is notified of every change."""

    def __init__(self, node: Node, devices: Devices, follower: Follower, patience: float) -> None:
        """Prepare to run; `start` begins.  `patience`: seconds that a command waits for the node to be ARMED."""
        self.node = node
        self.admission = Admission()
        self.patience = patience
        self.changed = threading.Condition()
        self.life = 0  # how often the node was ARMED
        self.held_seconds = 0.0  # how long the admission was closed last time
        self.read_at = 0.0  # when the last look at the log began, by time.monotonic()
        self._devices = devices
        self._follower = follower
        self._luns: dict[uuid.UUID, WriteOnceLun] = {}
        self._thread = threading.Thread(target=self._run, name=f"cluster {node.name}", daemon=True)
        self._events = self._seen_events = 0
        self._read_to = 0
        self._reading_since = 0.0
        self._closed_at = time.monotonic()
        self._stopping = False
        self._ended = False

    # For other threads ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run the node."""
        self._thread.start()

    def stop(self) -> None:
        """End the node's thread.  The node stays registered."""
        with self.changed:
            self._stopping = True
            self.admission.open = False
            self.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for lun in self._luns.values():
            lun.device.close()

    @property
    def stopped(self) -> bool:
        """Whether the node has ended, or is about to."""
        return self._stopping or self._ended

    def refused(self, life: int) -> None:
        """Close the admission: a command that began in `life` met RESERVATION CONFLICT, or got no answer."""
        with self.changed:
            if life == self.life and self.admission.open:
                self.node.refuse()
                self._close_admission()
                self._events += 1
                self.changed.notify_all()

    def look(self) -> None:
        """Let the node read its log soon."""
        with self.changed:
            self._events += 1
            self.changed.notify_all()

    def ask(self, request: Request, timeout: float) -> None:
        """Put a record into the log.  Raise Refused; TimeoutError, whose text says whether it may be there all the same."""
        with self.changed:
            self.node.ask(request)
            self._events += 1
            self.changed.notify_all()
            self.changed.wait_for(lambda: request.done or self.stopped, timeout)
            if request.done and not request.refused:
                return
            if request.refused:
                raise history.Refused(request.refused)
            if self.node.withdraw(request):
                raise TimeoutError(f"nothing was changed: {self._why()}")
        raise TimeoutError(f"it may still take effect: {self._why()}")

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Return whether the condition came true within `timeout` seconds; it is looked at within `changed`."""
        with self.changed:
            return self.changed.wait_for(lambda: condition() or self.stopped, timeout) and condition()

    def again(self, command: Callable[[], T]) -> T:
        """Run a command of an initiator, and again each time that the fence refused it, once the node is ARMED.

        Raise NotReady if that takes more than `patience`, NoAnswer, DeviceClosed, and the command's own errors.
        """
        began = time.monotonic()
        while True:
            life = self.life
            try:
                return command()
            except NotAdmitted:
                pass
            except block_device.ReservationConflict:
                self.refused(life)
            except block_device.NoAnswer:
                if time.monotonic() - began > self.patience:
                    raise
                self.refused(life)
            except block_device.PreserveFailed as failure:
                late = isinstance(failure.cause, block_device.NoAnswer) and time.monotonic() - began <= self.patience
                if not (late or isinstance(failure.cause, block_device.ReservationConflict) or self._needs_no_copy()):
                    raise
            self.wait_until_armed()

    def _needs_no_copy(self) -> bool:
        """Return whether the snapshot is given up, once its loss is fenced: only then a write goes on without its copy."""
        log = self.node.history
        with self.changed:
            epoch = self.node.epoch
            return log.is_given_up(epoch) and self.changed.wait_for(
                lambda: log.target(epoch) is None or self.stopped, self.patience
            )

    def wait_until_armed(self) -> None:
        """Return when the admission is open.  Raise NotReady after `patience`, DeviceClosed."""
        with self.changed:
            self.changed.wait_for(lambda: self.admission.open or self.stopped or self._expelled(), self.patience)
            if self.stopped:
                raise block_device.DeviceClosed
            if not self.admission.open:
                raise block_device.NotReady(self._why(), for_good=self._expelled())

    def lun(self, identity: uuid.UUID) -> WriteOnceLun | None:
        """Return a write-once LUN, open; None if this node does not see it.  Raise BlockDeviceError."""
        with self.changed:
            lun = self._luns.get(identity)
        if lun is None:
            lun = self._devices.pool.find(identity)
            if lun is not None:
                with self.changed:
                    kept = self._luns.setdefault(identity, lun)
                if kept is not lun:
                    lun.device.close()
                    lun = kept
        return lun

    def forget_lun(self, identity: uuid.UUID) -> None:
        """Close a write-once LUN that no chain holds any longer, and that will not come back."""
        with self.changed:
            lun = self._luns.pop(identity, None)
        if lun is not None:
            with contextlib.suppress(block_device.BlockDeviceError):
                lun.device.close()
        self._devices.pool.forget(identity)

    def look_at_pool(self) -> None:
        """Learn which LUNs the pool has.  Raise the errors of `lun`."""
        self._devices.pool.look()

    def newer(self) -> bool:
        """Look at the log for 7h: return whether it has a newer epoch than the node's.  Raise BlockDeviceError."""
        steps = access.is_newer(self.node)
        with self.changed:
            action = next(steps)
        assert isinstance(action, actions.ReadLog)
        blocks = self._devices.log.read(action.position)
        try:
            with self.changed:
                steps.send(blocks)
        except StopIteration as stop:
            return bool(stop.value)
        except records.RecordDamaged:
            return True  # it may have been an EPOCH record
        raise AssertionError(action)

    def _expelled(self) -> bool:
        return self.node.name in self.node.history.expelled

    def _why(self) -> str:
        node = self.node
        if self.stopped:
            return "the volume is closed"
        if self._expelled():
            return f"node {node.name} is expelled from the volume"
        if node.problem:
            return node.problem
        if node.history.fence_is_due:
            return "a fence is under way"
        return f"the node is {node.state.value}"

    # The thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        steps = self.node.run()
        resume: Callable[[], actions.Action] = functools.partial(next, steps)
        try:
            while True:
                with self.changed:
                    if self._stopping:
                        return
                    self._seen_events = self._events
                    action = resume()
                    self.read_at = self._reading_since  # what was read is in the history now
                    if self.node.state is not State.ARMED:
                        self._close_admission()
                    self.changed.notify_all()
                self._follow()
                try:
                    resume = functools.partial(steps.send, self._carry_out(action))
                except (Conflict, Unreachable) as answer:
                    resume = functools.partial(steps.throw, answer)
        finally:
            with self.changed:
                self._ended = True
                self.admission.open = False
                self.changed.notify_all()

    def _follow(self) -> None:
        """Let the volume follow what the node's last step decided."""
        node = self.node
        if node.history.end != self._read_to:
            self._read_to = node.history.end
            self._follower.read(node.history)
        if node.state is State.ARMED and not self.admission.open:
            epoch = node.epoch
            target = node.history.target(epoch)
            self._follower.arm(epoch, None if target is None else self._luns[target])
            with self.changed:
                if self._stopping:
                    return
                self.life += 1
                self.admission.open = True
                self.held_seconds = time.monotonic() - self._closed_at
                self.changed.notify_all()
            self._follower.joined()

    def _close_admission(self) -> None:
        if self.admission.open:
            self.admission.open = False
            self._closed_at = time.monotonic()

    def _carry_out(self, action: actions.Action) -> Any:
        """Carry an action out.  Raise Conflict, Unreachable."""
        match action:
            case actions.Wait(seconds):
                with self.changed:
                    self.changed.wait_for(lambda: self._events != self._seen_events or self._stopping, seconds)
                return None
            case actions.Drain():
                self.admission.drain(lambda: self._stopping)
                return None
        try:
            return self._command(action)
        except block_device.ReservationConflict as conflict:
            if isinstance(action, actions.ReadLog | actions.Append | actions.FindLun | actions.FindBlank):
                raise Unreachable(
                    "a write-once LUN is reserved by another initiator: end that reservation"
                ) from conflict
            raise Conflict from conflict
        except (block_device.BlockDeviceError, backing_file.CannotOpen, refused.Refused) as error:
            raise Unreachable(str(error)) from error
        except OSError as error:
            raise Unreachable(os_error.reason(error)) from error

    def _blank(self) -> tuple[uuid.UUID, ...]:
        """Return the first LUN of the pool that is blank, that no record names, and that is large enough, opened."""
        for identity in self._devices.pool.blank(self.node.epoch.number + 1):
            if self.node.history.names_lun(identity):
                continue
            lun = self.lun(identity)
            if lun is None:
                continue
            if lun.device.size >= self._devices.primary.size:
                return (identity,)
            sizes = f"{lun.device.size} bytes, and the primary {self._devices.primary.size}"
            logger.warning("write-once LUN %s is too small for a snapshot: it has %s", identity, sizes)
        return ()

    def _command(self, action: actions.Action) -> Any:
        fence, log, exclusive = self._devices.fence, self._devices.log, self.node.exclusive
        match action:
            case actions.ReadLog(position):
                began = time.monotonic()
                blocks = log.read(position)
                self._reading_since = began
                return blocks
            case actions.Append(position, block):
                return log.append(position, block)
            case actions.FindLun(identity):
                return self.lun(identity) is not None
            case actions.FindBlank():
                return self._blank()
            case actions.OwnKey():
                return fence.own_key()
            case actions.Register(new, old):
                return fence.register(new, old)
            case actions.ReadReservation():
                return fence.reservation(exclusive=exclusive)
            case actions.Reserve(own):
                return fence.reserve(own, exclusive=exclusive)
            case actions.Preempt(own):
                return fence.preempt(own, exclusive=exclusive)
            case actions.ResetLogicalUnit():
                return fence.reset_logical_unit()
            case actions.Flush():
                return self._devices.primary.flush()
        raise AssertionError(action)
