# SPDX-License-Identifier: Apache-2.0
"""Notices of alerts: a webhook and mail, when an alert begins, while it lasts, and when it has ended.

A thread looks at the alerts.  A notice that cannot be sent is tried again at the next look, and the daemon's own log says why.
The notice of an alert that ended meanwhile is not sent any more, unless its beginning was.

The webhook gets a POST with JSON:

    {"version": 1, "event": "raised" | "repeated" | "recovered", "host": ..., "time": ISO 8601, "since": ISO 8601,
     "alert": {"code": ..., "subject": ..., "message": ..., "remedy": ...}}
"""

from __future__ import annotations

import dataclasses
import datetime
import email.message
import email.utils
import enum
import http.client
import json
import logging
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable

from target import codec, liveness, messages
from target.configuration import settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
PATIENCE = 20.0
"""Seconds that a webhook or sendmail may take."""


class Event(enum.Enum):
    """The reason of a notice."""

    RAISED = "raised"
    REPEATED = "repeated"
    RECOVERED = "recovered"


class NotSent(Exception):
    """A notice could not be sent; the text says why."""


@dataclasses.dataclass
class _Watched:
    """An alert that lasts."""

    alert: messages.Alert
    since: datetime.datetime
    sent: dict[str, datetime.datetime] = dataclasses.field(default_factory=dict)  # when, for each way


class Notices:
    """The thread, from `start` to `close`.  `alerts` returns the present alerts."""

    def __init__(
        self,
        configured: settings.Notices,
        alerts: Callable[[], Iterable[messages.Alert]],
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._configured = configured
        self._alerts = alerts
        self._clock = clock
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._ended: list[_Watched] = []
        self._trouble: dict[str, str] = {}
        ways: dict[str, Callable[[Event, _Watched], None]] = {}
        if configured.webhook is not None:
            ways["webhook"] = self._post
        if configured.mail:
            ways["mail"] = self._mail
        self._ways = ways
        self.pulse = liveness.Pulse("notices", LOOK_SECONDS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        """Start the thread if there is a way to send notices."""
        if self._ways:
            self._thread.start()

    @property
    def runs(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def trouble(self) -> str:
        """Return why notices cannot be sent; an empty text if they can."""
        return "; ".join(f"{way}: {why}" for way, why in sorted(self._trouble.items()))

    def look(self) -> None:
        """Send what is due."""
        now = self._clock()
        present = {(alert.code, alert.subject): alert for alert in self._alerts()}
        for key, alert in present.items():
            watched = self._watched.setdefault(key, _Watched(alert, now))
            watched.alert = alert
        self._ended += [self._watched.pop(key) for key in list(self._watched) if key not in present]
        repeat = datetime.timedelta(hours=self._configured.repeat)
        for way in self._ways:
            try:
                for watched in self._watched.values():
                    last = watched.sent.get(way)
                    if last is None or (self._configured.repeat and now - last >= repeat):
                        self._ways[way](Event.RAISED if last is None else Event.REPEATED, watched)
                        watched.sent[way] = now
                for watched in self._ended:
                    if way in watched.sent:
                        self._ways[way](Event.RECOVERED, watched)
                        del watched.sent[way]
            except NotSent as error:
                if self._trouble.get(way) != str(error):
                    log.error("notices of alerts cannot be sent by %s: %s", way, error)
                self._trouble[way] = str(error)
            else:
                self._trouble.pop(way, None)
        self._ended = [watched for watched in self._ended if watched.sent]

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.pulse.beat()
            self.look()
            self._stopping.wait(LOOK_SECONDS)

    def _post(self, event: Event, watched: _Watched) -> None:
        body = {
            "version": 1,
            "event": event.value,
            "host": socket.gethostname(),
            "time": self._clock().isoformat(timespec="seconds"),
            "since": watched.since.isoformat(timespec="seconds"),
            "alert": codec.encode(watched.alert),
        }
        assert self._configured.webhook is not None
        request = urllib.request.Request(
            self._configured.webhook, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):
                pass
        except urllib.error.HTTPError as error:
            raise NotSent(f"it answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise NotSent(str(getattr(error, "reason", error))) from error

    def _mail(self, event: Event, watched: _Watched) -> None:
        alert, host = watched.alert, socket.gethostname()
        mail = email.message.EmailMessage()
        mail["From"] = self._configured.mail_from or f"wolun@{socket.getfqdn()}"
        mail["To"] = ", ".join(self._configured.mail)
        mail["Date"] = email.utils.format_datetime(self._clock())
        mail["Message-ID"] = email.utils.make_msgid("wolun")
        mail["Auto-Submitted"] = "auto-generated"
        mail["Subject"] = f"wolun on {host}: {alert.code} {event.value}: {alert.subject}"
        mail.set_content(
            f"{alert.message}\n\n{alert.remedy}\n\nIt began at {watched.since:%Y-%m-%d %H:%M:%S} UTC.  "
            f"`wolun explain {alert.code}` explains it.\n"
        )
        try:
            done = subprocess.run(
                [str(self._configured.sendmail), "-t", "-oi"],
                input=mail.as_bytes(),
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
        except OSError as error:
            raise NotSent(f"{self._configured.sendmail}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise NotSent(f"{self._configured.sendmail} took longer than {PATIENCE:.0f} s") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
            raise NotSent(f"{self._configured.sendmail}: {said}")
