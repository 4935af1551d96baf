# SPDX-License-Identifier: Apache-2.0
"""The configuration's group `access`: who may log in, how they prove who they are, and what they see."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import pydantic

from target.configuration import values
from target.configuration.values import ChapAlgorithm, Problems, Where


class Chap(values.Group):
    """How an initiator proves who it is, and the target to it: CHAP, and with the two `target_` keys mutual CHAP."""

    name: values.ChapName
    """The CHAP name the initiator gives."""

    secret_file: Path
    """The file that holds the initiator's secret, 12 to 255 bytes on one line. Relative paths start at the state
    directory. It must belong to the daemon's user or root, and be readable by nobody else (mode 0600 or 0400)."""

    target_name: values.ChapName | None = None
    """The CHAP name the target gives, for mutual CHAP."""

    target_secret_file: Path | None = None
    """The file that holds the target's secret, which must be another one; for mutual CHAP."""

    algorithms: Annotated[tuple[ChapAlgorithm, ...], pydantic.Field(min_length=1)] = (
        ChapAlgorithm.SHA256,
        ChapAlgorithm.MD5,
    )
    """What may be used: the first of them that the initiator knows, too."""


class MappedLun(values.Group):
    """What an initiator sees under one number."""

    lun: values.Lun
    """The LUN under which this initiator sees it."""

    unit: values.UnitName
    """What it sees: VOLUME, VOLUME@SNAPSHOT (as it was then), or VOLUME@SNAPSHOT/write-once."""

    read_only: bool = False
    """Whether its writes are refused, whatever others may do."""


class Initiator(values.Group):
    """Initiators that may log in, and what they see."""

    name: values.InitiatorName
    """The initiator's iSCSI name, or a pattern of names (`*`, `?`, `[...]`). A name that is listed in full goes before
    the patterns; of those, the first that fits counts."""

    networks: tuple[values.Network, ...] = ()
    """Networks these initiators may come from. Empty: from any that `access.networks` allows."""

    chap: Chap | None = None
    """How they prove who they are. Left out: they need not."""

    read_only: bool = False
    """Whether all their writes are refused."""

    luns: tuple[MappedLun, ...] | None = None
    """What they see, under which numbers. Left out: every LUN, under its own number."""

    def problems(self) -> Problems:
        """What is wrong with values beside their neighbours."""
        found: dict[Where, str] = {}
        if self.chap is not None:
            if (self.chap.target_name is None) is not (self.chap.target_secret_file is None):
                found["chap",] = "target_name and target_secret_file belong together: give both or neither"
            elif self.chap.target_secret_file == self.chap.secret_file:
                found["chap", "target_secret_file"] = "both directions must not have the same secret"
        seen: dict[int, str] = {}
        for index, mapped in enumerate(self.luns or ()):
            if mapped.lun in seen:
                found["luns", index, "lun"] = f"LUN {mapped.lun} is {seen[mapped.lun]} already"
            seen.setdefault(mapped.lun, mapped.unit)
        return found


class Access(values.Group):
    """Who may log in. Everybody else is refused at login, and told nothing."""

    networks: tuple[values.Network, ...] = ()
    """Networks that initiators may come from, like 127.0.0.0/8 or 10.1.2.3/32. Empty, and no `initiators`: nobody may
    log in. Empty, with `initiators`: those may, from anywhere."""

    initiators: tuple[Initiator, ...] | None = None
    """Which initiators may log in. Left out: any that comes from one of `networks`. An empty list: none."""

    discovery_chap: bool = False
    """Whether initiators that have CHAP must use it for discovery, too. Discovery tells an initiator only of targets
    that it may log in to, in any case."""

    def admits(self, address: str) -> bool:
        """Whether an initiator at this IP address may log in, as far as the address goes."""
        if not self.networks:
            return bool(self.initiators)
        return within(address, self.networks)

    def problems(self) -> Problems:
        """What is wrong with values beside their neighbours."""
        found: dict[Where, str] = {}
        names: dict[str, int] = {}
        for index, initiator in enumerate(self.initiators or ()):
            name = initiator.name.lower()
            if name in names:
                found["initiators", index, "name"] = f"initiators[{names[name]}] has this name already"
            names.setdefault(name, index)
            found.update(values.below(("initiators", index), initiator.problems()))
        return found

    def kernel_problems(self) -> Problems:
        """What the kernel's target cannot do: it would let in whom this keeps out."""
        found: dict[Where, str] = {}
        if any(network.prefixlen for network in self.networks):
            found["networks",] = (
                "the kernel's target cannot tell networks apart: allow 0.0.0.0/0, listen where only the right "
                "initiators get to, and name them in access.initiators"
            )
        if self.discovery_chap:
            found["discovery_chap",] = "discovery belongs to all of the kernel's targets: set it with targetcli"
        for index, initiator in enumerate(self.initiators or ()):
            if re.search(r"[*?\[]", initiator.name):
                found["initiators", index, "name"] = "the kernel's target takes whole names, no patterns"
            if initiator.networks:
                found["initiators", index, "networks"] = "the kernel's target cannot tell networks apart"
        return found


def within(address: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether an IP address, perhaps with a zone, or an IPv4 address as IPv6 has it, is in one of the networks."""
    peer: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        peer = peer.ipv4_mapped
    return any(peer in network for network in networks)
