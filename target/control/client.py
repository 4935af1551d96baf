# SPDX-License-Identifier: Apache-2.0
"""The other end of the control socket: what the commands use to talk to the daemon.

Imports little on purpose: a command should be done before anyone notices that it is Python.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from target import codec, messages, places

TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.25


class Failed(Exception):
    """The daemon did not do it, or could not be asked; `refusal` says why and what to do."""

    def __init__(self, refusal: messages.Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _Connection(http.client.HTTPConnection):
    def __init__(self, state_dir: Path, timeout: float) -> None:
        super().__init__("wolun", timeout=timeout)
        self._state_dir = state_dir

    def connect(self) -> None:
        self.sock = places.connect(self._state_dir, self.timeout)


class Client:
    """Requests to the daemon that serves `state_dir`, one after the other.  Every method raises Failed."""

    def __init__(self, state_dir: Path, timeout: float = TIMEOUT_SECONDS) -> None:
        self._state_dir = state_dir
        self._connection = _Connection(state_dir, timeout)
        self.dry_run = False

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def status(self) -> messages.Status:
        """Everything at a glance."""
        return codec.decode(messages.Status, self._ask("GET", "/v1/status"))

    def snapshots(self, volume: str | None = None) -> list[messages.Snapshot]:
        """The snapshots of one volume, or of all."""
        path = "/v1/snapshots" if volume is None else f"{_volume(volume)}/snapshots"
        return [codec.decode(messages.Snapshot, each) for each in self._ask("GET", path)]

    def snapshot(self, volume: str, name: str) -> messages.SnapshotDetails:
        """One snapshot."""
        return codec.decode(messages.SnapshotDetails, self._ask("GET", _snapshot(volume, name)))

    def changes(self, volume: str, name: str, cells: int) -> messages.Changes:
        """What has changed since a snapshot, in `cells` parts."""
        return codec.decode(messages.Changes, self._ask("GET", f"{_snapshot(volume, name)}/changes?cells={cells}"))

    def create_snapshot(self, volume: str, name: str, labels: Mapping[str, str] | None = None) -> messages.Taken:
        """Take a snapshot."""
        request = messages.CreateSnapshot(name, dict(labels or {}))
        return codec.decode(messages.Taken, self._ask("POST", f"{_volume(volume)}/snapshots", request))

    def delete_snapshot(self, volume: str, name: str) -> messages.Job:
        """Begin to delete a snapshot."""
        return codec.decode(messages.Job, self._ask("DELETE", _snapshot(volume, name)))

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
    ) -> messages.Job:
        """Begin to export a snapshot."""
        below = None if backing is None else str(backing)
        request = messages.Export(str(path), overwrite, image_format, since, below, backing_format, anyway)
        return codec.decode(messages.Job, self._ask("POST", f"{_snapshot(volume, name)}/export", request))

    def label_snapshot(self, volume: str, name: str, labels: Mapping[str, str | None]) -> messages.Snapshot:
        """Give a snapshot labels, or take away those that are None."""
        request = messages.ChangeLabels(dict(labels))
        return codec.decode(messages.Snapshot, self._ask("PATCH", f"{_snapshot(volume, name)}/labels", request))

    def verify(self, volume: str, name: str) -> messages.Job:
        """Begin to verify a snapshot; its `result` is a Verification."""
        return codec.decode(messages.Job, self._ask("POST", f"{_snapshot(volume, name)}/verify"))

    def diff(self, volume: str, name: str, request: messages.FindChanges) -> messages.Job:
        """Begin to find out what changed since a snapshot; its `result` is a Difference."""
        return codec.decode(messages.Job, self._ask("POST", f"{_snapshot(volume, name)}/diff", request))

    def result(self, kind: type[codec.T], job: messages.Job) -> codec.T:
        """What a job that is done found out."""
        return codec.decode(kind, self._ask("GET", f"/v1/jobs/{job.id}/result"))

    def create_group(self, name: str, volumes: Sequence[str], labels: Mapping[str, str]) -> list[messages.Taken]:
        """Take snapshots of several volumes at one moment."""
        request = messages.CreateGroup(name, tuple(volumes), dict(labels))
        return [codec.decode(messages.Taken, each) for each in self._ask("POST", "/v1/groups", request)]

    def restore_snapshot(self, volume: str, name: str, *, force: bool) -> messages.Job:
        """Begin to roll a volume back to a snapshot."""
        path = f"{_snapshot(volume, name)}/restore?force={force}"
        return codec.decode(messages.Job, self._ask("POST", path))

    def resize_volume(self, name: str, size: int) -> messages.Volume:
        """Make a volume larger."""
        request = messages.ResizeVolume(size)
        return codec.decode(messages.Volume, self._ask("POST", f"{_volume(name)}/resize", request))

    def watch(self, job: messages.Job) -> Iterator[messages.Job]:
        """The job as it goes on, until it has ended."""
        yield job
        while job.state == "running":
            job = codec.decode(messages.Job, self._ask("GET", f"/v1/jobs/{job.id}?wait={POLL_SECONDS}"))
            yield job

    def cancel(self, job: messages.Job) -> None:
        """Ask a job to stop."""
        self._ask("DELETE", f"/v1/jobs/{job.id}")

    # -- administration: what changes is only checked, and not changed, when `dry_run` is set ----------------------

    def create_volume(self, request: messages.CreateVolume) -> None:
        """Make a volume and serve it."""
        self._change("POST", "/v1/volumes", request)

    def volumes(self) -> list[messages.Volume]:
        """All volumes, as they are served."""
        return [codec.decode(messages.Volume, each) for each in self._ask("GET", "/v1/volumes")]

    def volume(self, name: str) -> messages.Volume:
        """One volume, as it is served."""
        return codec.decode(messages.Volume, self._ask("GET", _volume(name)))

    def change_volume(self, name: str, request: messages.ChangeVolume, *, force: bool) -> None:
        """Change a volume."""
        self._change("PATCH", _volume(name), request, force=force)

    def delete_volume(self, name: str, *, force: bool, data: bool) -> None:
        """Serve a volume no more."""
        self._change("DELETE", _volume(name), force=force, data=data)

    def luns(self) -> list[messages.Lun]:
        """The logical units of the target."""
        return [codec.decode(messages.Lun, each) for each in self._ask("GET", "/v1/luns")]

    def create_portal(self, address: str) -> None:
        """Let initiators connect there, too."""
        self._change("POST", "/v1/portals", messages.Portal(address))

    def delete_portal(self, address: str, *, force: bool) -> None:
        """Let initiators connect there no more."""
        self._change("DELETE", f"/v1/portals/{_part(address)}", force=force)

    def alerts(self) -> list[messages.Alert]:
        """What needs somebody's attention."""
        return [codec.decode(messages.Alert, each) for each in self._ask("GET", "/v1/alerts")]

    def jobs(self) -> list[messages.Job]:
        """The jobs that run, and the last ones that ended."""
        return [codec.decode(messages.Job, each) for each in self._ask("GET", "/v1/jobs")]

    def access(self) -> messages.Access:
        """Who may log in."""
        return codec.decode(messages.Access, self._ask("GET", "/v1/access"))

    def change_access(self, request: messages.ChangeAccess, *, force: bool) -> None:
        """Change what holds for all initiators."""
        self._change("PATCH", "/v1/access", request, force=force)

    def create_initiator(self, request: messages.Initiator, *, force: bool) -> None:
        """Let an initiator log in."""
        self._change("POST", "/v1/access/initiators", request, force=force)

    def change_initiator(self, request: messages.Initiator, *, force: bool) -> None:
        """Change an initiator's entry."""
        self._change("PUT", _initiator(request.name), request, force=force)

    def delete_initiator(self, name: str, *, force: bool) -> None:
        """Take an initiator's entry away."""
        self._change("DELETE", _initiator(name), force=force)

    def set_auth(self, name: str, request: messages.SetAuth | None) -> None:
        """Have an initiator prove itself; None: no more."""
        self._change("DELETE" if request is None else "PUT", f"{_initiator(name)}/auth", request)

    def text_of_volume(self, name: str) -> str:
        """The volume as it would stand in a configuration file."""
        return codec.decode(messages.Text, self._ask("GET", f"{_volume(name)}/configuration")).text

    def text_of_initiator(self, name: str) -> str:
        """The initiator's entry as it would stand in a configuration file."""
        return codec.decode(messages.Text, self._ask("GET", f"{_initiator(name)}/configuration")).text

    def save_configuration(self, file: str | None, *, dry_run: bool = False) -> messages.Saved:
        """Write the configuration."""
        path = f"/v1/configuration/save?dry_run={dry_run or self.dry_run}"
        return codec.decode(messages.Saved, self._ask("POST", path, messages.ConfigurationFile(file)))

    def restore_configuration(self, file: str | None, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        """Make the system what a file says."""
        path = f"/v1/configuration/restore?force={force}&dry_run={dry_run or self.dry_run}"
        answer = self._ask("POST", path, messages.ConfigurationFile(file))
        return [codec.decode(messages.Outcome, each) for each in answer]

    def clear_configuration(self, *, force: bool, dry_run: bool) -> list[messages.Outcome]:
        """Serve nothing to nobody."""
        path = f"/v1/configuration/clear?force={force}&dry_run={dry_run or self.dry_run}"
        return [codec.decode(messages.Outcome, each) for each in self._ask("POST", path)]

    def _change(self, method: str, path: str, request: Any = None, **options: bool) -> None:
        chosen = {**options, "dry_run": self.dry_run}
        self._ask(method, f"{path}?{urllib.parse.urlencode(chosen)}", request)

    def _ask(self, method: str, path: str, request: Any = None) -> Any:
        sent = None if request is None else json.dumps(codec.encode(request))
        headers = {} if sent is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, path, sent, headers)
            response = self._connection.getresponse()
            body = response.read()
            answer = json.loads(body) if body else None
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError) as error:
            self.close()
            raise Failed(_not_running(self._state_dir)) from error
        except PermissionError as error:
            self.close()
            raise Failed(_not_allowed(self._state_dir)) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Failed(_gone(error)) from error
        if response.status >= 400:
            raise Failed(codec.decode(messages.Refusal, answer))
        return answer


def _volume(volume: str) -> str:
    return f"/v1/volumes/{_part(volume)}"


def _initiator(name: str) -> str:
    return f"/v1/access/initiators/{_part(name)}"


def _snapshot(volume: str, name: str) -> str:
    return f"{_volume(volume)}/snapshots/{_part(name)}"


def _part(name: str) -> str:
    """A name as a part of a path; the daemon would take one with a slash for two parts.  Raises Failed."""
    if "/" in name or not name:
        raise Failed(
            messages.Refusal("no-such-name", f"there is nothing of the name '{name}'", "no name has a slash in it")
        )
    return urllib.parse.quote(name, safe="")


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
