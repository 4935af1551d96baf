# SPDX-License-Identifier: Apache-2.0
"""The configuration's group `access`: who may log in, how they prove who they are, and what they see."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated

import pydantic

from target.configuration import values
from target.configuration.rate import NO_RATE, Rate
from target.configuration.values import ChapAlgorithm, Problems, Where


class Chap(values.Group):
    """CHAP: an initiator proves who it is. With the two `target_` keys the target proves itself, too (mutual CHAP)."""

    name: values.ChapName
    """The CHAP name that the initiator sends."""

    secret_file: values.FilePath
    """The file that holds the initiator's secret, 12 to 255 bytes on one line. Relative paths start at the state
    directory. It must belong to the daemon's user or root, and no other user may read it (mode 0600 or 0400)."""

    target_name: values.ChapName | None = None
    """The CHAP name that the target sends, for mutual CHAP."""

    target_secret_file: values.FilePath | None = None
    """The file that holds the target's secret, for mutual CHAP. The two secrets must differ."""

    algorithms: Annotated[tuple[ChapAlgorithm, ...], pydantic.Field(min_length=1)] = (
        ChapAlgorithm.SHA256,
        ChapAlgorithm.MD5,
    )
    """The algorithms that may be used. The first that the initiator knows, too, is used."""


class MappedLun(values.Group):
    """The unit that an initiator sees under one number."""

    lun: values.Lun
    """The LUN under which this initiator sees it."""

    unit: values.UnitName
    """VOLUME, VOLUME@SNAPSHOT (the volume as it was then), or VOLUME@SNAPSHOT/write-once."""

    read_only: bool = False
    """Whether this initiator's writes are refused, even if others may write."""


class Initiator(values.Group):
    """Initiators that may log in, and the LUNs that they see."""

    name: values.InitiatorName
    """The initiator's iSCSI name, or a pattern of names (`*`, `?`, `[...]`). A name that is listed in full
    goes before the patterns. Among patterns, the first that fits counts."""

    networks: tuple[values.Network, ...] = ()
    """The networks that these initiators may come from. Empty: all that `access.networks` allows."""

    chap: Chap | None = None
    """How these initiators prove who they are. Left out: they need no proof."""

    read_only: bool = False
    """Whether all their writes are refused."""

    luns: tuple[MappedLun, ...] | None = None
    """The units that they see, and under which numbers. Left out: every LUN, under its own number."""

    rate: Rate | None = None
    """How many commands and bytes per second each of these initiators may have, in all its sessions; needs `fabric: portal`. Left out:
    any number."""

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        problems: dict[Where, str] = {}
        if self.rate is not None:
            problems.update(values.below(("rate",), self.rate.problems()))
        if self.chap is not None:
            if (self.chap.target_name is None) is not (self.chap.target_secret_file is None):
                problems["chap",] = "target_name and target_secret_file belong together: write both or neither"
            elif self.chap.target_secret_file == self.chap.secret_file:
                problems["chap", "target_secret_file"] = "the two directions must not have the same secret"
        seen: dict[int, str] = {}
        for index, mapped in enumerate(self.luns or ()):
            if mapped.lun in seen:
                problems["luns", index, "lun"] = f"LUN {mapped.lun} is {seen[mapped.lun]} already"
            seen.setdefault(mapped.lun, mapped.unit)
        return problems


class Access(values.Group):
    """The initiators that may log in. All others are refused at login, and learn nothing."""

    networks: tuple[values.Network, ...] = ()
    """The networks that initiators may come from, like 127.0.0.0/8 or 10.1.2.3/32. Empty, without `initiators`: no
    initiator may log in. Empty, with `initiators`: those may log in from anywhere."""

    initiators: tuple[Initiator, ...] | None = None
    """The initiators that may log in. Left out: all that come from one of `networks`. An empty list: none."""

    discovery_chap: bool = False
    """Whether initiators that have CHAP must use it for discovery, too. With or without it, discovery shows an
    initiator only the targets that it may log in to."""

    def admits(self, address: str) -> bool:
        """Return whether the address alone lets an initiator at this IP address log in."""
        if not self.networks:
            return bool(self.initiators)
        return within(address, self.networks)

    def problems(self) -> Problems:
        """Return the problems of values beside their neighbours."""
        problems: dict[Where, str] = {}
        names: dict[str, int] = {}
        for index, initiator in enumerate(self.initiators or ()):
            name = initiator.name.lower()
            if name in names:
                problems["initiators", index, "name"] = f"initiators[{names[name]}] has this name already"
            names.setdefault(name, index)
            problems.update(values.below(("initiators", index), initiator.problems()))
        return problems

    def kernel_problems(self) -> Problems:
        """Return the rules that the kernel's target cannot keep: it would let in initiators that they keep out."""
        problems: dict[Where, str] = {}
        if any(network.prefixlen for network in self.networks):
            problems["networks",] = (
                "the kernel's target cannot distinguish networks: allow 0.0.0.0/0, listen on an address that only the "
                "right initiators reach, and name them in access.initiators"
            )
        if self.discovery_chap:
            problems["discovery_chap",] = "discovery belongs to all of the kernel's targets: set it with targetcli"
        for index, initiator in enumerate(self.initiators or ()):
            if values.is_pattern(initiator.name):
                problems["initiators", index, "name"] = "the kernel's target takes whole names only, no patterns"
            if initiator.rate is not None:
                problems["initiators", index, "rate"] = NO_RATE
            if initiator.networks:
                problems["initiators", index, "networks"] = "the kernel's target cannot distinguish networks"
        return problems


def within(address: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Return whether an IP address is in one of the networks.

    The address may have a zone, and may be an IPv4 address in IPv6's notation.
    """
    peer: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        peer = peer.ipv4_mapped
    return any(peer in network for network in networks)
