# SPDX-License-Identifier: Apache-2.0
"""The requests for access."""

from __future__ import annotations

from target.control.client import Client
from target.messages import ChangeAccess, Initiator, MappedLun, SetAuth

ANN = "iqn.2026-11.org.example:ann"


def test_initiator_is_created_changed_and_deleted(client: Client) -> None:
    client.create_initiator(Initiator(ANN), force=True)
    client.change_initiator(Initiator(ANN, luns=(MappedLun(0, "vol0", False),)), force=True)
    initiators = client.access().initiators
    assert initiators is not None
    assert [(entry.name, entry.luns) for entry in initiators] == [(ANN, (MappedLun(0, "vol0", False),))]
    assert ANN in client.text_of_initiator(ANN)
    client.delete_initiator(ANN, force=True)
    assert client.access().initiators == ()
    client.change_access(ChangeAccess(anybody=True), force=True)
    assert client.access().initiators is None


def test_chap_is_set_and_cleared(client: Client) -> None:
    client.create_initiator(Initiator(ANN), force=True)
    client.set_auth(ANN, SetAuth("ann", "twelve bytes"))
    (entry,) = client.access().initiators or ()
    assert entry.chap is not None
    assert entry.chap.name == "ann"
    client.set_auth(ANN, None)
    (entry,) = client.access().initiators or ()
    assert entry.chap is None


def test_networks_are_changed(client: Client) -> None:
    client.change_access(ChangeAccess(networks=("127.0.0.0/8", "10.0.0.0/8")), force=True)
    assert client.access().networks == ("127.0.0.0/8", "10.0.0.0/8")
