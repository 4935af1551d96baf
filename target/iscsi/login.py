# SPDX-License-Identifier: Apache-2.0
"""The login phase of one connection (RFC 7143 section 6.3), without sockets.

| stage (CSG)            | is left when                                       | for (NSG)                      |
| ---------------------- | -------------------------------------------------- | ------------------------------ |
| SECURITY_NEGOTIATION   | the initiator asks and authentication is done      | operational or full feature    |
| OPERATIONAL_NEGOTIATION| the initiator asks                                 | full feature                   |
| FULL_FEATURE           |                                                    |                                |

An initiator may start in the operational stage if its access needs no authentication.  The access policy decides as
soon as the names are known, before any other answer, so a refused initiator learns nothing.

Limits: the text of one negotiation step, over all its PDUs, has at most `MAX_TEXT_LENGTH` bytes and `MAX_PAIRS` keys.
The connection limits the number of PDUs and the time.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from target import iscsi_name
from target.iscsi import errors, keys, pdu
from target.iscsi.errors import LoginRefused, LoginStatus
from target.scsi import limits, nexus

MAX_TEXT_LENGTH = 16384
MAX_PAIRS = 64
NAMED_CHARACTERS = 223
"""The part of a value that messages name: as long as a name may be."""
PORTAL_GROUP_TAG = 1

Pairs = list[tuple[str, str]]


def shortened(value: str) -> str:
    """Return a value that an initiator sent, as it can stand in a message."""
    return repr(value if len(value) <= NAMED_CHARACTERS else value[:NAMED_CHARACTERS] + "...")


class Stage(enum.IntEnum):
    """The stages of RFC 7143 11.12.3."""

    SECURITY_NEGOTIATION = 0
    OPERATIONAL_NEGOTIATION = 1
    FULL_FEATURE = 3


class Exchange(Protocol):
    """One run of an authentication method."""

    def step(self, pairs: Pairs) -> tuple[Pairs, bool]:
        """Return the answer to the initiator's keys, and whether it is authenticated.  Raises LoginRefused."""


class Authenticator(Protocol):
    """The authentication of one initiator to one target, as the security stage sees it."""

    @property
    def methods(self) -> Sequence[str]:
        """The accepted methods, by preference; "None" is one if the initiator may enter unauthenticated."""

    def begin(self, method: str) -> Exchange:
        """Start `method`, which is never "None"."""


class NoAuthentication:
    """The authenticator that accepts every initiator under the name it gives."""

    methods: Sequence[str] = ("None",)

    def begin(self, method: str) -> Exchange:
        raise errors.UsageError(f"{method} was never offered")


class AccessPolicy(Protocol):
    """The rules on which initiator may see and log in to which target, and the LUNs it reaches there."""

    def reaches(self, address: str) -> bool:
        """Return whether any initiator may log in from the network address `address`."""

    def admits(self, initiator: str, address: str) -> bool:
        """Return whether `initiator`, from the network address `address`, may log in at all, if only for discovery."""

    def allows(self, initiator: str, address: str, target: str) -> bool:
        """Return whether `initiator`, from the network address `address`, may see `target` and log in to it."""

    def authenticator(self, initiator: str, target: str | None) -> Authenticator:
        """Return the authenticator of `initiator` for `target`, which is None in a discovery session."""

    def limit(self, initiator: str) -> limits.Bucket | None:
        """Return the tokens that all sessions of an initiator share; None if nothing limits it."""

    def view(self, initiator: str, address: str, target: str) -> nexus.View:
        """Return the view of the LUNs in `target` that `initiator`, logged in from `address`, reaches."""


class OpenAccess:
    """The policy under which any initiator may use any target, and all its LUNs."""

    def reaches(self, address: str) -> bool:
        return True

    def admits(self, initiator: str, address: str) -> bool:
        return True

    def allows(self, initiator: str, address: str, target: str) -> bool:
        return True

    def authenticator(self, initiator: str, target: str | None) -> Authenticator:
        return NoAuthentication()

    def limit(self, initiator: str) -> limits.Bucket | None:
        return None

    def view(self, initiator: str, address: str, target: str) -> nexus.View:
        return nexus.sees_all


@dataclass(frozen=True, slots=True)
class Request:
    """A Login Request's header (RFC 7143 11.12)."""

    transit: bool
    more: bool
    current: int
    following: int
    version_min: int
    isid: bytes
    tsih: int
    itt: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int

    @classmethod
    def parse(cls, bhs: memoryview) -> Request:
        _, flags, _, version_min, _, isid_tsih, itt, cid, cmd_sn, exp_stat_sn = pdu.REQUEST.unpack(bhs)
        return cls(
            transit=bool(flags & pdu.LOGIN_TRANSIT),
            more=bool(flags & pdu.TEXT_CONTINUE),
            current=flags >> 2 & 3,
            following=flags & 3,
            version_min=version_min,
            isid=(isid_tsih >> 16).to_bytes(6, "big"),
            tsih=isid_tsih & 0xFFFF,
            itt=itt,
            cid=cid >> 16,
            cmd_sn=cmd_sn,
            exp_stat_sn=exp_stat_sn,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of a Login Response; `done` if the full feature phase begins."""

    flags: int
    text: bytes
    done: bool


@dataclass(slots=True)
class Login:
    """The target's side of one login; `handle` takes each request."""

    targets: Collection[str]
    policy: AccessPolicy
    address: str  # the initiator's
    ours: keys.Parameters = keys.OURS

    initiator: str = ""  # in its normal form
    alias: str = ""
    target: str | None = None  # None in a discovery session
    discovery: bool = False
    isid: bytes = b""
    cid: int = 0
    agreed: keys.Parameters = field(default_factory=keys.Parameters)

    _stage: Stage | None = None
    _itt: int = 0
    _text: bytearray = field(default_factory=bytearray)
    _authenticator: Authenticator = field(default_factory=NoAuthentication)
    _exchange: Exchange | None = None
    _authenticated: bool = False
    _missing: str = ""  # the name of the target that was asked for, if there is none
    _declared: bool = False

    @property
    def proving(self) -> bool:
        """Whether the initiator is to prove its name, and has not done so yet."""
        return self._exchange is not None

    @property
    def port_name(self) -> tuple[str, bytes, str | None]:
        """The initiator's name, its ISID and the target.  A session replaces an earlier one with the same three."""
        return self.initiator, self.isid, self.target

    def handle(self, request: Request, data: bytes) -> Answer:
        """Take one Login Request with its data segment, and return its answer.

        Raise LoginRefused with the status to answer, and PeerError for text that cannot be parsed.
        """
        stage = self._check_stage(request)
        self._text += data
        if len(self._text) > MAX_TEXT_LENGTH:
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, f"more than {MAX_TEXT_LENGTH} bytes of text")
        if request.more:
            return Answer(stage << 2, b"", done=False)
        pairs = keys.parse(bytes(self._text))
        self._text.clear()
        if len(pairs) > MAX_PAIRS:
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, f"more than {MAX_PAIRS} keys at once")
        answers: Pairs = []
        if not self.initiator:
            self._identify(dict(pairs), request)
            if not self.discovery:
                answers.append(("TargetPortalGroupTag", str(PORTAL_GROUP_TAG)))
        self._authenticate(stage, pairs, answers)
        self._check_target()
        self.agreed, negotiated = keys.negotiate(self._operational(pairs), self.agreed, self.ours)
        answers += negotiated
        if stage is Stage.OPERATIONAL_NEGOTIATION and not self._declared:
            self._declared = True
            answers.append(("MaxRecvDataSegmentLength", str(self.ours.max_recv_data_segment_length)))
        return self._advance(stage, request, answers)

    def _check_stage(self, request: Request) -> Stage:
        if request.version_min > 0:
            raise LoginRefused(LoginStatus.UNSUPPORTED_VERSION, f"iSCSI version {request.version_min} asked for")
        if request.current not in (Stage.SECURITY_NEGOTIATION, Stage.OPERATIONAL_NEGOTIATION):
            raise LoginRefused(LoginStatus.INVALID_DURING_LOGIN, f"there is no login stage {request.current}")
        if request.transit and (request.more or request.following <= request.current or request.following == 2):
            raise LoginRefused(
                LoginStatus.INVALID_DURING_LOGIN,
                f"from login stage {request.current} there is no way to stage {request.following}",
            )
        stage = Stage(request.current)
        if self._stage is None:
            self.isid, self.cid, self._itt, self._stage = request.isid, request.cid, request.itt, stage
            if request.tsih:
                # A session has one connection (MaxConnections=1), and at recovery level 0 no connection is taken over.
                raise LoginRefused(
                    LoginStatus.SESSION_DOES_NOT_EXIST,
                    f"a second connection for session {request.tsih}: a session has one",
                )
        elif stage is not self._stage or (request.isid, request.itt) != (self.isid, self._itt):
            changed = "the stage" if stage is not self._stage else "ISID or initiator task tag"
            raise LoginRefused(LoginStatus.INVALID_DURING_LOGIN, f"{changed} changed in the middle of a login")
        return stage

    def _identify(self, pairs: dict[str, str], request: Request) -> None:
        """Take the names of the first request, and check that they may enter (RFC 7143 6.3.1)."""
        initiator = pairs.get("InitiatorName")
        if initiator is None:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, "the key InitiatorName is missing")
        try:
            self.initiator = initiator = iscsi_name.normal_form(initiator)
        except iscsi_name.NotAName as why:
            raise LoginRefused(
                LoginStatus.INITIATOR_ERROR, f"InitiatorName={shortened(initiator)} is not an iSCSI name: {why}"
            ) from None
        self.alias = pairs.get("InitiatorAlias", "")[: keys.MAX_VALUE_LENGTH]
        kind = pairs.get("SessionType", "Normal")
        if kind not in ("Normal", "Discovery"):
            raise LoginRefused(
                LoginStatus.SESSION_TYPE_NOT_SUPPORTED, f"SessionType={shortened(kind)} is neither Normal nor Discovery"
            )
        self.discovery = kind == "Discovery"
        if not self.discovery:
            asked_for = pairs.get("TargetName")
            if asked_for is None:
                raise LoginRefused(LoginStatus.MISSING_PARAMETER, "the key TargetName is missing")
            target = iscsi_name.find(asked_for, self.targets)
            # Whether there is such a target is for those to know who may log in, and have proved that they are who they say.
            if target is None:
                self._missing = asked_for[: iscsi_name.MAXIMUM]
                admitted = self.policy.admits(initiator, self.address)
            else:
                admitted = self.policy.allows(initiator, self.address, target)
            if not admitted:
                raise LoginRefused(
                    LoginStatus.AUTHORIZATION_FAILURE,
                    f"{initiator} from {self.address} may not use {target or repr(self._missing)}: "
                    "no rule of `access` admits it",
                )
            self.target = target
        elif not self.policy.admits(initiator, self.address):
            raise LoginRefused(
                LoginStatus.AUTHORIZATION_FAILURE,
                f"{initiator} from {self.address} may use nothing here: no rule of `access` admits it",
            )
        self._authenticator = self.policy.authenticator(initiator, self._missing or self.target)
        if request.current == Stage.OPERATIONAL_NEGOTIATION:
            self._skip_authentication()

    def _check_target(self) -> None:
        """Refuse a target that does not exist, once the initiator has proved its name."""
        if self._missing and self._authenticated:
            raise LoginRefused(LoginStatus.NOT_FOUND, f"there is no target {self._missing!r}")

    def _skip_authentication(self) -> None:
        if "None" not in self._authenticator.methods:
            methods = " or ".join(self._authenticator.methods)
            raise LoginRefused(
                LoginStatus.AUTHENTICATION_FAILURE,
                f"{self.initiator} must authenticate with {methods}, and went on without",
            )
        self._authenticated = True

    def _authenticate(self, stage: Stage, pairs: Pairs, answers: Pairs) -> None:
        """Handle the security keys of one step (RFC 7143 12)."""
        offered = dict(pairs).get("AuthMethod")
        if stage is not Stage.SECURITY_NEGOTIATION:
            if offered is not None:
                raise LoginRefused(
                    LoginStatus.INVALID_DURING_LOGIN, f"AuthMethod={shortened(offered)} outside the security stage"
                )
            return
        if offered is not None:
            if self._exchange is not None or self._authenticated:
                raise LoginRefused(
                    LoginStatus.INVALID_DURING_LOGIN,
                    f"AuthMethod={shortened(offered)} was offered after an earlier one",
                )
            offers = offered.split(",")
            method = next((method for method in self._authenticator.methods if method in offers), None)
            if method is None:
                raise LoginRefused(
                    LoginStatus.AUTHENTICATION_FAILURE,
                    f"AuthMethod={shortened(offered)} has none of {', '.join(self._authenticator.methods)}",
                )
            answers.append(("AuthMethod", method))
            if method == "None":
                self._authenticated = True
            else:
                self._exchange = self._authenticator.begin(method)
        elif self._exchange is not None:
            spoken, self._authenticated = self._exchange.step([pair for pair in pairs if pair[0] not in keys.TABLE])
            answers += spoken
            if self._authenticated:
                self._exchange = None

    def _operational(self, pairs: Pairs) -> Pairs:
        """Return the pairs that are not the authentication method's own (CHAP_A and the like, RFC 7143 12.1)."""
        methods = tuple(f"{method}_" for method in self._authenticator.methods)
        return [pair for pair in pairs if not pair[0].startswith(methods)]

    def _advance(self, stage: Stage, request: Request, answers: Pairs) -> Answer:
        text = keys.serialise(answers)
        if not request.transit:
            return Answer(stage << 2, text, done=False)
        if not self._authenticated:
            if self._exchange is not None:
                # The initiator asks too early.  The answer stays in the same stage to say so (RFC 7143 6.3.2).
                return Answer(stage << 2, text, done=False)
            self._skip_authentication()
            self._check_target()
        self._stage = Stage(request.following)
        flags = pdu.LOGIN_TRANSIT | stage << 2 | request.following
        return Answer(flags, text, done=self._stage is Stage.FULL_FEATURE)
