# SPDX-License-Identifier: Apache-2.0
"""Notices of alerts, to a real HTTP server and a real program in the place of sendmail."""

from __future__ import annotations

import datetime
import email
import email.policy
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from target import messages
from target.configuration import settings
from target.service.notices import Notices

FULL = messages.Alert("space-low", "state", "there is little room", "make room")
GONE = messages.Alert("volume-failed", "vol0", "vol0 is not served", "repair it")
HOUR = datetime.timedelta(hours=1)


class Hook(http.server.ThreadingHTTPServer):
    """A webhook that notes what it gets, and answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict[str, Any]] = []
        self.status = 204

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def events(self) -> list[tuple[str, str]]:
        return [(notice["event"], notice["alert"]["code"]) for notice in self.got]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.status < 300:
            self.server.got.append(body)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Clock:
    def __init__(self) -> None:
        self.now = datetime.datetime(2026, 11, 27, 12, tzinfo=datetime.UTC)

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_alert_is_told_when_it_begins_while_it_lasts_and_when_it_ended(hook: Hook) -> None:
    clock, present = Clock(), [FULL]
    notices = Notices(settings.Notices(webhook=hook.url, repeat=2), lambda: list(present), clock)
    for _ in range(4):
        notices.look()
        clock.now += HOUR
    assert hook.events() == [("raised", "space-low"), ("repeated", "space-low")]
    present[:] = [GONE]
    notices.look()
    assert hook.events()[2:] == [("raised", "volume-failed"), ("recovered", "space-low")]
    assert hook.got[-1]["since"] == "2026-11-27T12:00:00+00:00"
    assert hook.got[0]["alert"]["remedy"] == "make room"
    assert hook.got[0]["version"] == 1


def test_notice_that_is_refused_is_sent_later(hook: Hook) -> None:
    present = [FULL]
    notices = Notices(settings.Notices(webhook=hook.url), lambda: list(present), Clock())
    hook.status = 500
    notices.look()
    assert notices.trouble() == "webhook: it answered 500 Internal Server Error"
    hook.status = 204
    notices.look()
    assert (hook.events(), notices.trouble()) == ([("raised", "space-low")], "")
    hook.status = 503
    present.clear()
    notices.look()
    hook.status = 204
    notices.look()
    notices.look()
    assert hook.events() == [("raised", "space-low"), ("recovered", "space-low")]


def test_alert_that_ended_before_its_notice_was_sent_is_not_told(hook: Hook) -> None:
    present = [FULL]
    notices = Notices(settings.Notices(webhook=hook.url), lambda: list(present), Clock())
    hook.status = 500
    notices.look()
    present.clear()
    hook.status = 204
    notices.look()
    assert (hook.events(), notices.trouble()) == ([], "")


def test_mail_goes_through_sendmail(tmp_path: Path) -> None:
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/mail\n')
    program.chmod(0o755)
    configured = settings.Notices(mail=("a@example.org", "b@example.org"), mail_from="w@example.org", sendmail=program)
    Notices(configured, lambda: [FULL], Clock()).look()
    mail = email.message_from_bytes((tmp_path / "mail").read_bytes(), policy=email.policy.default)
    assert (tmp_path / "arguments").read_text() == "-t -oi\n"
    assert (mail["From"], mail["To"]) == ("w@example.org", "a@example.org, b@example.org")
    assert mail["Subject"].endswith(": space-low raised: state")
    body = mail.get_content()
    assert "there is little room\n\nmake room\n" in body
    assert "`wolun explain space-low`" in body


def test_reason_why_no_mail_can_be_sent_is_told(tmp_path: Path) -> None:
    configured = settings.Notices(mail=("a@example.org",), sendmail=tmp_path / "none")
    notices = Notices(configured, lambda: [FULL], Clock())
    notices.look()
    assert notices.trouble() == f"mail: {tmp_path}/none: No such file or directory"
