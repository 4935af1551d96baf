# SPDX-License-Identifier: Apache-2.0
"""The client of the control socket, with which commands and the shell talk to the daemon.

It imports little on purpose, because every command waits for these imports.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from target import codec, messages, places

TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.25
JOB_HEADER = "Wolun-Job"
WAY = "Wolun-Way"
USER = "Wolun-User"
"""Headers for the audit log: `cli` or `shell`, and the user who asks."""
STREAM = "application/vnd.wolun.stream"
"""The type of the content that a request sends to a job."""
_PIECE = 1 << 20


class Failed(Exception):
    """A request that the daemon refused or did not answer; `refusal` says why, and what to do."""

    def __init__(self, refusal: messages.Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _Connection(http.client.HTTPConnection):
    def __init__(self, state_dir: Path, timeout: float | None) -> None:
        super().__init__("wolun", timeout=timeout)
        self._state_dir = state_dir

    def connect(self) -> None:
        self.sock = places.connect(self._state_dir, self.timeout)


class Client:
    """Requests to the daemon that serves `state_dir`, one after the other.

    Every method raises Failed.  With `dry_run`, requests that change something are only checked.
    """

    def __init__(self, state_dir: Path, timeout: float = TIMEOUT_SECONDS) -> None:
        self._state_dir = state_dir
        self._timeout = timeout
        self._connection = _Connection(state_dir, timeout)
        self.dry_run = False
        self.way = "cli"

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def status(self) -> messages.Status:
        """Return volumes, sessions, throughput, space and trouble."""
        return codec.decode(messages.Status, self._ask("GET", "/v1/status"))

    def snapshots(self, volume: str | None = None) -> list[messages.Snapshot]:
        """Return the snapshots of one volume, or of all."""
        path = "/v1/snapshots" if volume is None else f"{_volume(volume)}/snapshots"
        return [codec.decode(messages.Snapshot, item) for item in self._ask("GET", path)]

    def snapshot(self, volume: str, name: str) -> messages.SnapshotDetails:
        """Return one snapshot."""
        return codec.decode(messages.SnapshotDetails, self._ask("GET", _snapshot(volume, name)))

    def changes(self, volume: str, name: str, cells: int) -> messages.Changes:
        """Return the changes since a snapshot, in `cells` parts of the volume."""
        return codec.decode(messages.Changes, self._ask("GET", f"{_snapshot(volume, name)}/changes?cells={cells}"))

    def create_snapshot(
        self,
        volume: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        hold: str = "",
        expires: str | None = None,
        mapped: bool | None = None,
    ) -> messages.Taken:
        """Take a snapshot."""
        request = messages.CreateSnapshot(name, dict(labels or {}), hold, expires, mapped)
        return codec.decode(messages.Taken, self._ask("POST", f"{_volume(volume)}/snapshots", request))

    def delete_snapshot(self, volume: str, name: str, *, damaged: bool = False, force: bool = False) -> messages.Job:
        """Begin to delete a snapshot.

        With `damaged`, the older one may lose blocks that cannot be read; with `force`, initiators may be reading it.
        """
        return codec.decode(
            messages.Job, self._ask("DELETE", f"{_snapshot(volume, name)}?damaged={damaged}&force={force}")
        )

    def create_clone(self, volume: str, name: str, request: messages.CreateClone) -> messages.Clone:
        """Make a writable clone of a snapshot."""
        return codec.decode(messages.Clone, self._ask("POST", f"{_snapshot(volume, name)}/clones", request))

    def clones(self) -> list[messages.Clone]:
        """Return the clones of all snapshots."""
        return [codec.decode(messages.Clone, item) for item in self._ask("GET", "/v1/clones")]

    def clone(self, name: str) -> messages.Clone:
        """Return one clone."""
        return codec.decode(messages.Clone, self._ask("GET", f"/v1/clones/{_part(name)}"))

    def delete_clone(self, name: str, *, force: bool = False) -> None:
        """Delete a clone with its data; with `force`, initiators may be using it."""
        self._ask("DELETE", f"/v1/clones/{_part(name)}?force={force}")

    def export(
        self,
        volume: str,
        name: str,
        path: Path,
        *,
        overwrite: bool,
        image_format: str = "raw",
        since: str | None = None,
        backing: Path | None = None,
        backing_format: str | None = None,
        anyway: bool = False,
        damaged: bool = False,
        any_base: bool = False,
        compress: bool = False,
        limit: int | None = None,
        held: bool = False,
    ) -> messages.Job:
        """Begin to export a snapshot.  A job that is `held` ends unless the caller uses `holding`, here and below."""
        below = None if backing is None else str(backing)
        request = messages.Export(
            str(path),
            overwrite,
            image_format,
            since,
            below,
            backing_format,
            anyway,
            damaged,
            any_base,
            compress,
            limit,
        )
        return codec.decode(messages.Job, self._ask("POST", f"{_snapshot(volume, name)}/export?held={held}", request))

    def label_snapshot(self, volume: str, name: str, labels: Mapping[str, str | None]) -> messages.Snapshot:
        """Set labels of a snapshot, and remove those that are None."""
        request = messages.ChangeLabels(dict(labels))
        return codec.decode(messages.Snapshot, self._ask("PATCH", f"{_snapshot(volume, name)}/labels", request))

    def change_snapshot(self, volume: str, name: str, request: messages.ChangeSnapshot) -> messages.Snapshot:
        """Rename a snapshot, hold or release it, or change when it expires."""
        return codec.decode(messages.Snapshot, self._ask("PATCH", _snapshot(volume, name), request))

    def verify(self, volume: str, name: str, *, held: bool = False) -> messages.Job:
        """Begin to verify a snapshot; the job's `result` is a Verification."""
        return codec.decode(messages.Job, self._ask("POST", f"{_snapshot(volume, name)}/verify?held={held}"))

    def diff(self, volume: str, name: str, request: messages.FindChanges, *, held: bool = False) -> messages.Job:
        """Begin to find the changes since a snapshot; the job's `result` is a Difference."""
        return codec.decode(messages.Job, self._ask("POST", f"{_snapshot(volume, name)}/diff?held={held}", request))

    def result(self, kind: type[codec.T], job: messages.Job) -> codec.T:
        """Return the result of a finished job."""
        return codec.decode(kind, self._ask("GET", f"/v1/jobs/{job.id}/result"))

    def create_group(
        self,
        name: str,
        volumes: Sequence[str],
        labels: Mapping[str, str],
        *,
        hold: str = "",
        expires: str | None = None,
    ) -> list[messages.Taken]:
        """Take snapshots of several volumes at one moment."""
        request = messages.CreateGroup(name, tuple(volumes), dict(labels), hold, expires)
        return [codec.decode(messages.Taken, item) for item in self._ask("POST", "/v1/groups", request)]

    def restore_snapshot(
        self, volume: str, name: str, *, force: bool, damaged: bool = False, outside: bool = False
    ) -> messages.Job:
        """Begin to roll a volume back to a snapshot; with `damaged`, even if some of its blocks are damaged."""
        path = f"{_snapshot(volume, name)}/restore?force={force}&damaged={damaged}&outside={outside}"
        return codec.decode(messages.Job, self._ask("POST", path))

    def resize_volume(self, name: str, size: int) -> messages.Volume:
        """Make a volume larger."""
        request = messages.ResizeVolume(size)
        return codec.decode(messages.Volume, self._ask("POST", f"{_volume(name)}/resize", request))

    def share_volume(self, request: messages.ShareVolume) -> None:
        """Take part in a shared volume."""
        self._change("POST", "/v1/shared", request)

    def unshare_volume(self, name: str, *, force: bool) -> None:
        """Take part in a shared volume no longer."""
        self._change("DELETE", f"/v1/shared/{_part(name)}", force=force)

    def nodes(self, volume: str) -> list[messages.Node]:
        """Return the nodes of a shared volume."""
        return [codec.decode(messages.Node, item) for item in self._ask("GET", f"{_volume(volume)}/nodes")]

    def expel_node(self, volume: str, name: str, *, force: bool) -> list[messages.Node]:
        """Expel a node from a shared volume, for good.  Return the nodes."""
        answer = self._ask("DELETE", f"{_volume(volume)}/nodes/{_part(name)}?force={force}")
        return [codec.decode(messages.Node, item) for item in answer]

    def accept_volume(self, name: str) -> messages.Accepted:
        """Accept the doubtful snapshots of a volume as true."""
        path = f"{_volume(name)}/accept?dry_run={self.dry_run}"
        return codec.decode(messages.Accepted, self._ask("POST", path))

    def relocate_volume(self, name: str, request: messages.Relocate, *, force: bool) -> messages.Volume:
        """Take up the data of a volume under another name, or its primary in another place."""
        path = f"{_volume(name)}/relocate?force={force}&dry_run={self.dry_run}"
        return codec.decode(messages.Volume, self._ask("POST", path, request))

    def watch(self, job: messages.Job) -> Iterator[messages.Job]:
        """Yield the job again and again, until it has ended."""
        yield job
        while job.state == "running":
            job = codec.decode(messages.Job, self._ask("GET", f"/v1/jobs/{job.id}?wait={POLL_SECONDS}"))
            yield job

    @contextlib.contextmanager
    def holding(self, job: messages.Job | int) -> Iterator[None]:
        """Let the daemon cancel the job if this process ends within the context, however it ends.

        The daemon notices that a connection of its own, which waits for the end of the job, is closed.
        """
        number = job if isinstance(job, int) else job.id
        connection = _Connection(self._state_dir, self._timeout)
        try:
            try:
                connection.request("GET", f"/v1/jobs/{number}/hold")
            except OSError as error:
                raise Failed(_gone(error)) from error
            yield
        finally:
            connection.close()

    def stream(
        self,
        volume: str,
        name: str,
        write: Callable[[bytes], object],
        *,
        damaged: bool,
        limit: int | None = None,
        progress: Callable[[int, int], None],
    ) -> messages.Job:
        """Hand the content of a snapshot to `write`, piece by piece.  Return the job that read it, as it ended."""
        path = f"{_snapshot(volume, name)}/stream"
        return self._streamed(path, messages.Stream(damaged, limit), "export", f"{volume}@{name}", write, progress)

    def send(
        self,
        volume: str,
        name: str,
        request: messages.Send,
        write: Callable[[bytes], object],
        *,
        progress: Callable[[int, int], None],
    ) -> messages.Job:
        """Hand the framed stream of a snapshot to `write`, piece by piece.  Return the job, as it ended."""
        return self._streamed(f"{_snapshot(volume, name)}/send", request, "send", f"{volume}@{name}", write, progress)

    def resume(
        self, request: messages.Resume, write: Callable[[bytes], object], *, progress: Callable[[int, int], None]
    ) -> messages.Job:
        """Hand the rest of an interrupted stream to `write`, piece by piece.  Return the job, as it ended."""
        return self._streamed("/v1/resume", request, "send", "the rest", write, progress)

    def _streamed(
        self,
        path: str,
        request: Any,
        kind: str,
        subject: str,
        write: Callable[[bytes], object],
        progress: Callable[[int, int], None],
    ) -> messages.Job:
        response = self._response("POST", path, json.dumps(codec.encode(request)))
        if response.status >= 400:
            raise Failed(codec.decode(messages.Refusal, json.loads(response.read())))
        number, done = int(response.headers[JOB_HEADER]), 0
        size = int(response.headers.get("Content-Length", 0))
        try:
            with self.holding(number):
                while data := self._piece(response):
                    write(data)
                    done += len(data)
                    progress(done, size)
        finally:
            self.close()  # before the end of the content, this tells the daemon to stop
        job = messages.Job(number, kind, subject, "running", done, size, None)
        *_, job = self.watch(job)
        if job.state == "done" and done < size:
            raise Failed(_gone(http.client.IncompleteRead(b"", size - done)))
        return job

    def replica(self, volume: str) -> messages.Replica:
        """Return what a volume, which need not exist, has for streams."""
        return codec.decode(messages.Replica, self._ask("GET", f"{_volume(volume)}/replica"))

    def receive(self, volume: str, request: messages.Receive) -> messages.Job:
        """Begin to receive a stream into a volume; `fill` sends it."""
        return codec.decode(messages.Job, self._ask("POST", f"{_volume(volume)}/receive", request))

    def fill(self, job: messages.Job, content: Iterator[bytes]) -> messages.Job:
        """Send its content to a job that waits for it.  Return the job, as it ended."""
        connection = _Connection(self._state_dir, None)
        headers = {"Content-Type": STREAM, "Transfer-Encoding": "chunked", WAY: self.way, USER: _user()}
        try:
            # The job may end before all is sent; then the answer is lost, and the job itself says why it ended.
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", f"/v1/jobs/{job.id}/content", content, headers, encode_chunked=True)
                connection.getresponse().read()
        finally:
            connection.close()
        *_, job = self.watch(job)
        return job

    def promote_volume(self, name: str) -> messages.Job:
        """Begin to let a replica take writes."""
        return codec.decode(messages.Job, self._ask("POST", f"{_volume(name)}/promote"))

    def set_store(self, name: str, request: messages.ChangeStore) -> messages.Job:
        """Change the store of later snapshots, and begin to convert existing ones; the job's `result` is a Conversion."""
        return codec.decode(messages.Job, self._ask("POST", f"{_volume(name)}/store", request))

    def cancel(self, job: messages.Job) -> None:
        """Ask a job to stop."""
        self._ask("DELETE", f"/v1/jobs/{job.id}")

    # -- administration ----------------------------------------------------------------------------------------------

    def create_volume(self, request: messages.CreateVolume, *, force: bool = False) -> None:
        """Make a volume and serve it."""
        self._change("POST", "/v1/volumes", request, force=force)

    def volumes(self) -> list[messages.Volume]:
        """Return all volumes, as they are served."""
        return [codec.decode(messages.Volume, item) for item in self._ask("GET", "/v1/volumes")]

    def volume(self, name: str) -> messages.Volume:
        """Return one volume, as it is served."""
        return codec.decode(messages.Volume, self._ask("GET", _volume(name)))

    def change_volume(self, name: str, request: messages.ChangeVolume, *, force: bool) -> None:
        """Change a volume."""
        self._change("PATCH", _volume(name), request, force=force)

    def delete_volume(self, name: str, *, force: bool, data: bool) -> None:
        """Stop serving a volume; with `data`, remove its files."""
        self._change("DELETE", _volume(name), force=force, data=data)

    def luns(self) -> list[messages.Lun]:
        """Return the logical units of the target."""
        return [codec.decode(messages.Lun, item) for item in self._ask("GET", "/v1/luns")]

    def reservations(self) -> list[messages.UnitReservations]:
        """Return the reservations of all logical units."""
        return [codec.decode(messages.UnitReservations, item) for item in self._ask("GET", "/v1/reservations")]

    def clear_reservations(self, lun: int, initiator: str | None, *, force: bool) -> None:
        """Remove the reservations of a unit, or only those of an initiator."""
        chosen = {} if initiator is None else {"initiator": initiator}
        self._change("DELETE", f"/v1/luns/{lun}/reservations", force=force, **chosen)

    def create_portal(self, address: str) -> None:
        """Listen on one more address."""
        self._change("POST", "/v1/portals", messages.Portal(address))

    def delete_portal(self, address: str, *, force: bool) -> None:
        """Stop listening on an address."""
        self._change("DELETE", f"/v1/portals/{_part(address)}", force=force)

    def alerts(self) -> list[messages.Alert]:
        """Return the conditions that need the administrator's attention."""
        return [codec.decode(messages.Alert, item) for item in self._ask("GET", "/v1/alerts")]

    def jobs(self) -> list[messages.Job]:
        """Return the jobs that run, and the last ones that ended."""
        return [codec.decode(messages.Job, item) for item in self._ask("GET", "/v1/jobs")]

    def access(self) -> messages.Access:
        """Return who may log in."""
        return codec.decode(messages.Access, self._ask("GET", "/v1/access"))

    def change_access(self, request: messages.ChangeAccess, *, force: bool) -> None:
        """Change the rules that hold for all initiators."""
        self._change("PATCH", "/v1/access", request, force=force)

    def create_initiator(self, request: messages.Initiator, *, force: bool) -> None:
        """Let an initiator log in."""
        self._change("POST", "/v1/access/initiators", request, force=force)

    def change_initiator(self, request: messages.Initiator, *, force: bool) -> None:
        """Change an initiator's entry."""
        self._change("PUT", _initiator(request.name), request, force=force)

    def delete_initiator(self, name: str, *, force: bool) -> None:
        """Remove an initiator's entry."""
        self._change("DELETE", _initiator(name), force=force)

    def set_auth(self, name: str, request: messages.SetAuth | None) -> None:
        """Make an initiator prove itself by CHAP; with None, let it log in without proof."""
        self._change("DELETE" if request is None else "PUT", f"{_initiator(name)}/auth", request)

    def text_of_volume(self, name: str) -> str:
        """Return the volume as it would stand in a configuration file."""
        return codec.decode(messages.Text, self._ask("GET", f"{_volume(name)}/configuration")).text

    def text_of_initiator(self, name: str) -> str:
        """Return the initiator's entry as it would stand in a configuration file."""
        return codec.decode(messages.Text, self._ask("GET", f"{_initiator(name)}/configuration")).text

    def save_configuration(self, file: str | None, *, dry_run: bool = False) -> messages.Saved:
        """Write the configuration in force into a file; None: the file that the daemon was started with."""
        path = f"/v1/configuration/save?dry_run={dry_run or self.dry_run}"
        return codec.decode(messages.Saved, self._ask("POST", path, messages.ConfigurationFile(file)))

    def restore_configuration(self, file: str | None, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        """Put the configuration of a file in force."""
        path = f"/v1/configuration/restore?force={force}&dry_run={dry_run or self.dry_run}"
        answer = self._ask("POST", path, messages.ConfigurationFile(file))
        return [codec.decode(messages.Outcome, item) for item in answer]

    def clear_configuration(self, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        """Stop serving all volumes, and let no initiator log in."""
        path = f"/v1/configuration/clear?force={force}&dry_run={dry_run or self.dry_run}"
        return [codec.decode(messages.Outcome, item) for item in self._ask("POST", path)]

    def _change(self, method: str, path: str, request: Any = None, **options: bool | str) -> None:
        chosen = {**options, "dry_run": self.dry_run}
        self._ask(method, f"{path}?{urllib.parse.urlencode(chosen, errors='surrogateescape')}", request)

    def _ask(self, method: str, path: str, request: Any = None) -> Any:
        sent = None if request is None else json.dumps(codec.encode(request))
        response = self._response(method, path, sent)
        try:
            body = response.read()
            answer = json.loads(body) if body else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Failed(_gone(error)) from error
        if response.status >= 400:
            raise Failed(codec.decode(messages.Refusal, answer))
        return answer

    def _piece(self, response: http.client.HTTPResponse) -> bytes:
        """Return the next bytes of a long answer; none at its end, and none if the connection has broken."""
        try:
            return response.read(_PIECE)
        except (OSError, http.client.HTTPException):
            return b""

    def _response(self, method: str, path: str, sent: str | None) -> http.client.HTTPResponse:
        """Send a request and return the answer, whose body is still to be read."""
        headers = {WAY: self.way, USER: _user()}
        if sent is not None:
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, sent, headers)
            return self._connection.getresponse()
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError) as error:
            self.close()
            raise Failed(_not_running(self._state_dir)) from error
        except PermissionError as error:
            self.close()
            raise Failed(_not_allowed(self._state_dir)) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Failed(_gone(error)) from error


def _volume(volume: str) -> str:
    return f"/v1/volumes/{_part(volume)}"


def _initiator(name: str) -> str:
    return f"/v1/access/initiators/{_part(name)}"


def _snapshot(volume: str, name: str) -> str:
    return f"{_volume(volume)}/snapshots/{_part(name)}"


def _part(name: str) -> str:
    """Return a name as one part of a path.

    Raise Failed for a name with a slash, which the daemon would read as two parts.
    """
    if "/" in name or not name:
        raise Failed(messages.Refusal("no-such-name", f"nothing is called '{name}'", "no name has a slash in it"))
    return urllib.parse.quote(name, safe="", errors="surrogateescape")


def _not_running(state_dir: Path) -> messages.Refusal:
    return messages.Refusal(
        "not-running",
        f"no daemon serves {state_dir}",
        "start one with `wolun serve`, or name its state directory with --state-dir or WOLUN_STATE_DIR",
    )


def _not_allowed(state_dir: Path) -> messages.Refusal:
    return messages.Refusal(
        "not-allowed",
        f"you may not talk to the daemon that serves {state_dir}",
        "run this command as the user that runs the daemon",
    )


def _gone(error: Exception) -> messages.Refusal:
    return messages.Refusal(
        "no-answer", f"the daemon did not answer: {error or type(error).__name__}", "see the daemon's log"
    )


def _user() -> str:
    """Return the user who asks, for the audit log: who called sudo, if it was called."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
