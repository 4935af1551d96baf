# SPDX-License-Identifier: Apache-2.0
"""CHAP, the target's side (RFC 7143 12.1.3; RFC 1994), without sockets or files.

| state    | the initiator sends                     | the target answers                    | then     |
| -------- | --------------------------------------- | ------------------------------------- | -------- |
| OFFERED  | `CHAP_A`: algorithms it can do          | `CHAP_A`, `CHAP_I`, `CHAP_C`          | ASKED    |
| ASKED    | `CHAP_N`, `CHAP_R`                      | nothing                               | FINISHED |
| ASKED    | the same with `CHAP_I`, `CHAP_C`        | `CHAP_N`, `CHAP_R` (mutual CHAP)      | FINISHED |

Anything else that the initiator sends ends the login with AUTHENTICATION FAILURE, and the initiator learns nothing
more.

* Every exchange has a challenge of its own from the operating system's random source, and takes one answer.  So a
  recorded answer fits no later challenge.
* If an initiator sends the target's own challenge back, the target refuses it and computes no answer.  It answers the
  challenge of an initiator only after that initiator has answered correctly.  The two directions have different secrets
  (`Credentials` refuses equal ones), so an answer of one direction is worthless in the other.
* A wrong name and a wrong answer take the same time and get the same refusal.
* Secrets live in `Secret`, which never shows its value: not in a repr, a log, JSON or a pickle.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from target.iscsi import errors
from target.iscsi.errors import LoginRefused, LoginStatus

METHOD = "CHAP"
SECRET_MINIMUM = 12
"""Bytes: RFC 7143 9.2.1 asks for 96 random bits if IPsec does not protect the connection."""
SECRET_MAXIMUM = 255
CHALLENGE_MAXIMUM = 1024
"""Bytes of a binary value (RFC 7143 6.1)."""

Pairs = list[tuple[str, str]]


class Algorithm(enum.IntEnum):
    """The codes that IANA registered for PPP's CHAP and that are still safe to use; SHA-1 is not among them."""

    MD5 = 5
    SHA_256 = 7

    @property
    def challenge_length(self) -> int:
        """The length of a challenge in bytes.  It is that of the digest, because initiators expect at least this length."""
        return 32 if self is Algorithm.SHA_256 else 16


class SecretRefused(Exception):
    """A secret may not be used; the message says why, and never contains the secret."""


class Secret:
    """A CHAP secret, which answers challenges and does not show its value.

    Raise SecretRefused if it is too short or too long.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if not SECRET_MINIMUM <= len(value) <= SECRET_MAXIMUM:
            raise SecretRefused(f"a secret has {SECRET_MINIMUM} to {SECRET_MAXIMUM} bytes, this one has {len(value)}")
        self._value = value

    def answer(self, algorithm: Algorithm, identifier: int, challenge: bytes) -> bytes:
        """Return the response to a challenge (RFC 1994 4.1)."""
        data = bytes((identifier,)) + self._value + challenge
        return (hashlib.md5 if algorithm is Algorithm.MD5 else hashlib.sha256)(data).digest()

    def reveal(self) -> bytes:
        """Return the secret itself, for the kernel's target, which does CHAP in our place."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a hash would reveal something about it

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The name and secret of an initiator; with `target_name` and `target_secret` also those of the target (mutual CHAP)."""

    name: str
    secret: Secret
    target_name: str | None = None
    target_secret: Secret | None = None
    algorithms: Sequence[Algorithm] = (Algorithm.SHA_256, Algorithm.MD5)  # by preference

    def __post_init__(self) -> None:
        if (self.target_name is None) is not (self.target_secret is None):
            raise SecretRefused("a target's name and its secret belong together")
        if self.target_secret == self.secret:
            raise SecretRefused("both directions have the same secret (RFC 7143 9.2.1 forbids it)")


class ChapAuthenticator:
    """The authenticator of an initiator with these credentials; with `optional`, it may also enter without (discovery)."""

    def __init__(self, credentials: Credentials, *, optional: bool = False) -> None:
        self._credentials = credentials
        self.methods: Sequence[str] = (METHOD, "None") if optional else (METHOD,)

    def begin(self, method: str) -> Exchange:
        """Return a new exchange with a fresh challenge."""
        if method != METHOD:
            raise errors.UsageError(f"{method} was never offered")
        return Exchange(self._credentials)


class _State(enum.Enum):
    OFFERED = "offered"
    ASKED = "asked"
    FINISHED = "finished"


class Exchange:
    """One run of CHAP; see the module's docstring."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._state = _State.OFFERED
        self._algorithm = Algorithm.MD5
        self._identifier = secrets.randbelow(256)
        self._challenge = b""

    def step(self, pairs: Pairs) -> tuple[Pairs, bool]:
        """Return the answer to the initiator's keys, and whether it is authenticated.  Raises LoginRefused."""
        state, self._state = self._state, _State.FINISHED
        pairs_sent = dict(pairs)
        if state is _State.OFFERED:
            answer = self._ask(pairs_sent)
            self._state = _State.ASKED
            return answer, False
        if state is _State.ASKED:
            return self._check(pairs_sent), True
        raise errors.UsageError("this exchange is over")

    def _ask(self, spoken: dict[str, str]) -> Pairs:
        if set(spoken) != {"CHAP_A"}:
            raise _refused("CHAP begins with CHAP_A")
        offered = spoken["CHAP_A"].split(",")
        algorithm = next((known for known in self._credentials.algorithms if str(int(known)) in offered), None)
        if algorithm is None:
            raise _refused("no CHAP algorithm both sides would use")
        self._algorithm = algorithm
        self._challenge = secrets.token_bytes(algorithm.challenge_length)
        return [
            ("CHAP_A", str(int(algorithm))),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", encode(self._challenge)),
        ]

    def _check(self, spoken: dict[str, str]) -> Pairs:
        mutual = "CHAP_C" in spoken or "CHAP_I" in spoken
        if set(spoken) != ({"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"} if mutual else {"CHAP_N", "CHAP_R"}):
            raise _refused("CHAP goes on with CHAP_N and CHAP_R, and CHAP_I and CHAP_C for mutual CHAP")
        mine = self._credentials
        theirs = decode(spoken["CHAP_C"]) if mutual else b""
        if mutual and hmac.compare_digest(theirs, self._challenge):
            raise _refused("the target's own challenge was sent back")
        right = mine.secret.answer(self._algorithm, self._identifier, self._challenge)
        answered = hmac.compare_digest(decode(spoken["CHAP_R"]), right)
        named = hmac.compare_digest(spoken["CHAP_N"].encode(), mine.name.encode())
        if not (answered and named):
            raise _refused("wrong CHAP name or secret")
        if not mutual:
            return []
        if mine.target_name is None or mine.target_secret is None:
            raise _refused("mutual CHAP is asked for, and the target has no secret for this initiator")
        answer = mine.target_secret.answer(self._algorithm, _identifier(spoken["CHAP_I"]), theirs)
        return [("CHAP_N", mine.target_name), ("CHAP_R", encode(answer))]


def _refused(why: str) -> LoginRefused:
    return LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, why)


def _identifier(value: str) -> int:
    base = 16 if value[:2] in ("0x", "0X") else 10
    if not value.isascii() or not value[base == 16 and 2 :].isalnum() or len(value) > 5:
        raise _refused("CHAP_I is no number")
    try:
        number = int(value, base)
    except ValueError:
        raise _refused("CHAP_I is no number") from None
    if number > 255:
        raise _refused("CHAP_I is no byte")
    return number


def encode(value: bytes) -> str:
    """Return a binary value as text (RFC 7143 6.1): in hexadecimal, which every initiator understands."""
    return "0x" + value.hex()


def decode(value: str) -> bytes:
    """Return the bytes of a binary value, hexadecimal or Base64 (RFC 7143 6.1).  Raises LoginRefused."""
    kind, digits = value[:2], value[2:]
    try:
        if kind in ("0x", "0X"):
            decoded = binascii.unhexlify(digits.rjust(len(digits) + len(digits) % 2, "0"))
        elif kind in ("0b", "0B"):
            decoded = base64.b64decode(digits, validate=True)
        else:
            raise _refused("a binary value that is neither 0x nor 0b")
    except ValueError:  # binascii.Error is one; so is text that is not ASCII
        raise _refused("a binary value that cannot be read") from None
    if not 0 < len(decoded) <= CHALLENGE_MAXIMUM:
        raise _refused(f"a binary value of {len(decoded)} bytes")
    return decoded
