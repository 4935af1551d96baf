# SPDX-License-Identifier: Apache-2.0
"""The configuration's groups `notices` and `status`: how people and programs learn of the daemon's state."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

import pydantic

from target.configuration import values
from target.configuration.values import Problems, Where


class StatusPage(values.Group):
    """The status page: a web page, JSON and metrics over TCP. It is off unless it has an address."""

    listen: values.Listens | None = None
    """HOST:PORT, or a list of several, with numeric addresses. Left out: there is no status page."""

    names: tuple[str, ...] = ()
    """The names of this host in URLs, beside its own and localhost. Requests for other names are refused."""

    token_file: values.FilePath | None = None
    """The file with the token, 12 to 255 bytes on one line, that clients need to look. It must belong to the daemon's user or
    root, and no other user may read it. Left out: none is needed, and only clients of this host may connect."""

    admin_token_file: values.FilePath | None = None
    """The file with the token that clients need to take, hold, export or delete a snapshot. Left out: nobody can."""

    certificate: values.FilePath | None = None
    """The file with the certificate (PEM), for HTTPS. Left out: HTTP."""

    key: values.FilePath | None = None
    """The file with the certificate's private key (PEM)."""

    clients: values.FilePath | None = None
    """The file with the certificate authorities (PEM) of clients. Then each client needs a certificate of one of them."""

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        if self.listen is None:
            given = next((key for key, value in self if value), None)
            return {} if given is None else {(given,): "it does nothing without listen"}
        if (self.certificate is None) is not (self.key is None):
            return {("certificate",): "certificate and key belong together: write both or neither"}
        if self.clients is not None and self.certificate is None:
            return {("clients",): "certificates of clients need HTTPS: write certificate and key"}
        problems: dict[Where, str] = {}
        for index, listen in enumerate(self.listen):
            host = listen.rpartition(":")[0].strip("[]")
            try:
                own = ipaddress.ip_address(host).is_loopback
            except ValueError:
                problems["listen", index] = f"the status page takes numeric addresses, not {host}"
                continue
            if not own and self.token_file is None and self.clients is None:
                problems["listen", index] = "others can reach it: write token_file, or clients, or a loopback address"
            elif not own and self.certificate is None and self.token_file is not None:
                problems["listen", index] = "a token would cross the network in the clear: write certificate and key"
        return problems


class Notices(values.Group):
    """The notices of alerts: when one begins, while it lasts, and when it has ended."""

    webhook: Annotated[str, pydantic.Field(pattern=r"^https?://[^\s]+$")] | None = None
    """The URL that gets a POST with JSON for each notice. Left out: none."""

    mail: tuple[Annotated[str, pydantic.Field(pattern=r"^[^\s@,]+@[^\s@,]+$")], ...] = ()
    """The addresses that get a mail for each notice, through `sendmail`."""

    mail_from: Annotated[str, pydantic.Field(pattern=r"^[^\s@,]+@[^\s@,]+$")] | None = None
    """The sender of these mails. Left out: wolun@ and the name of this host."""

    sendmail: values.FilePath = Path("/usr/sbin/sendmail")
    """The program that takes a mail on its standard input, called with -t -oi."""

    repeat: Annotated[int, pydantic.Field(ge=0, le=8760)] = 24
    """Hours after which the notice of an alert that lasts is repeated; 0: never."""
