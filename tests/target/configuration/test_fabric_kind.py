# SPDX-License-Identifier: Apache-2.0
"""The addresses of the fabrics: HOST:PORT is split into its two parts."""

from __future__ import annotations

import pytest

from target.configuration import fabric_kind


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:3260", "127.0.0.1", 3260), ("[::1]:0", "::1", 0), ("storage.example:65535", "storage.example", 65535)],
)
def test_address_is_split_into_host_and_port(listen: str, host: str, port: int) -> None:
    assert fabric_kind.host_and_port(listen) == (host, port)


def test_default_address_is_local() -> None:
    assert [fabric_kind.host_and_port(listen) for listen in fabric_kind.DEFAULT_LISTEN] == [("127.0.0.1", 3260)]
