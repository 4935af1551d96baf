# SPDX-License-Identifier: Apache-2.0
"""CHAP against an initiator written from RFC 1994 alone: right, wrong, missing, reflected, replayed and mutual answers."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target.iscsi import chap, errors
from target.iscsi.chap import Algorithm, Credentials, Secret, SecretRefused
from target.iscsi.errors import LoginRefused, LoginStatus

SECRET = b"initiator-secret"
OTHER = b"target-secret-1"
ONE_WAY = Credentials("ann", Secret(SECRET))
MUTUAL = Credentials("ann", Secret(SECRET), "wolun", Secret(OTHER))


def ask(credentials: Credentials, offer: str = "5") -> tuple[chap.Exchange, dict[str, str]]:
    """Return an exchange that has sent its challenge."""
    exchange = chap.ChapAuthenticator(credentials).begin("CHAP")
    answer, done = exchange.step([("CHAP_A", offer)])
    assert not done
    return exchange, dict(answer)


def respond(asked: dict[str, str], secret: bytes = SECRET, digest: str = "md5") -> str:
    """Return the response of RFC 1994 4.1, in hexadecimal."""
    data = bytes([int(asked["CHAP_I"])]) + secret + bytes.fromhex(asked["CHAP_C"][2:])
    return "0x" + hashlib.new(digest, data).hexdigest()


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(LoginRefused) as caught:
        action()
    assert caught.value.status is LoginStatus.AUTHENTICATION_FAILURE
    return str(caught.value)


def test_the_right_answer_enters() -> None:
    exchange, asked = ask(ONE_WAY)
    assert asked["CHAP_A"] == "5"
    assert len(asked["CHAP_C"]) == 2 + 32
    assert exchange.step([("CHAP_N", "ann"), ("CHAP_R", respond(asked))]) == ([], True)


@pytest.mark.parametrize("offer", ["7,5", "5,7", "6,8,7"])
def test_sha_256_is_used_where_it_is_offered(offer: str) -> None:
    exchange, asked = ask(ONE_WAY, offer)
    assert asked["CHAP_A"] == "7"
    assert len(asked["CHAP_C"]) == 2 + 64
    assert exchange.step([("CHAP_N", "ann"), ("CHAP_R", respond(asked, digest="sha256"))]) == ([], True)


@pytest.mark.parametrize("offer", ["6", "8", "", "57", "MD5", "5 "])
def test_an_offer_without_a_known_algorithm_is_refused(offer: str) -> None:
    refused(lambda: ask(ONE_WAY, offer))


def test_only_the_algorithms_configured_are_used() -> None:
    refused(lambda: ask(dataclasses.replace(ONE_WAY, algorithms=(Algorithm.SHA_256,)), "5"))


@pytest.mark.parametrize(
    ("name", "secret"),
    [("ann", b"initiator-secreT"), ("Ann", SECRET), ("", SECRET), ("bob", b"x" * 16), ("ann", OTHER)],
)
def test_a_wrong_name_and_a_wrong_secret_get_the_same_refusal(name: str, secret: bytes) -> None:
    exchange, asked = ask(MUTUAL)
    pairs = [("CHAP_N", name), ("CHAP_R", respond(asked, secret))]
    assert refused(lambda: exchange.step(pairs)) == "wrong CHAP name or secret"


def test_an_exchange_takes_one_answer() -> None:
    exchange, asked = ask(ONE_WAY)
    refused(lambda: exchange.step([("CHAP_N", "ann"), ("CHAP_R", respond(asked, OTHER))]))
    with pytest.raises(errors.UsageError):
        exchange.step([("CHAP_N", "ann"), ("CHAP_R", respond(asked))])


def test_a_replayed_answer_fits_no_later_challenge() -> None:
    first, asked = ask(ONE_WAY)
    recorded = [("CHAP_N", "ann"), ("CHAP_R", respond(asked))]
    assert first.step(recorded)[1]
    challenges = set()
    for _ in range(50):
        again, asked = ask(ONE_WAY)
        challenges.add(asked["CHAP_C"])
        refused(lambda again=again: again.step(recorded))  # type: ignore[misc]  # a lambda's default has no type
    assert len(challenges) == 50


def test_the_target_proves_itself_in_mutual_chap() -> None:
    exchange, asked = ask(MUTUAL)
    theirs = {"CHAP_I": "200", "CHAP_C": "0x" + "5a" * 16}
    answer, done = exchange.step([("CHAP_N", "ann"), ("CHAP_R", respond(asked)), *theirs.items()])
    assert done
    assert dict(answer) == {"CHAP_N": "wolun", "CHAP_R": respond(theirs, OTHER)}


def test_the_target_proves_itself_only_to_an_authenticated_initiator() -> None:
    exchange, asked = ask(MUTUAL)
    pairs = [("CHAP_N", "ann"), ("CHAP_R", respond(asked, OTHER)), ("CHAP_I", "1"), ("CHAP_C", "0x1234")]
    refused(lambda: exchange.step(pairs))


def test_mutual_without_a_target_secret_is_refused() -> None:
    exchange, asked = ask(ONE_WAY)
    pairs = [("CHAP_N", "ann"), ("CHAP_R", respond(asked)), ("CHAP_I", "1"), ("CHAP_C", "0x1234")]
    assert "has no secret" in refused(lambda: exchange.step(pairs))


@pytest.mark.parametrize("in_base64", [False, True])
def test_a_reflected_challenge_is_refused(in_base64: bool) -> None:
    exchange, asked = ask(MUTUAL)
    challenge = asked["CHAP_C"]
    if in_base64:
        challenge = "0b" + base64.b64encode(bytes.fromhex(challenge[2:])).decode()
    pairs = [("CHAP_N", "ann"), ("CHAP_R", respond(asked)), ("CHAP_I", asked["CHAP_I"]), ("CHAP_C", challenge)]
    assert "sent back" in refused(lambda: exchange.step(pairs))


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("CHAP_N", "ann")],
        [("CHAP_R", "0x00")],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_I", "1")],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_C", "0x11")],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_A", "5")],
        [("CHAP_N", "ann"), ("CHAP_R", "")],
        [("CHAP_N", "ann"), ("CHAP_R", "0x")],
        [("CHAP_N", "ann"), ("CHAP_R", "0xzz")],
        [("CHAP_N", "ann"), ("CHAP_R", "0b!!")],
        [("CHAP_N", "ann"), ("CHAP_R", "0b\u00e4\u00f6==")],
        [("CHAP_N", "ann"), ("CHAP_R", "0x" + "00" * 1025)],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_I", "256"), ("CHAP_C", "0x11")],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_I", "-1"), ("CHAP_C", "0x11")],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_I", "1_0"), ("CHAP_C", "0x11")],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_I", "\u0663"), ("CHAP_C", "0x11")],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_I", ""), ("CHAP_C", "0x11")],
        [("CHAP_N", "ann"), ("CHAP_R", "RIGHT"), ("CHAP_I", "1"), ("CHAP_C", "0x")],
    ],
)
def test_missing_or_malformed_keys_are_refused(pairs: list[tuple[str, str]]) -> None:
    exchange, asked = ask(MUTUAL)
    refused(lambda: exchange.step([(key, respond(asked) if value == "RIGHT" else value) for key, value in pairs]))


def test_an_identifier_in_hexadecimal_is_read() -> None:
    exchange, asked = ask(MUTUAL)
    theirs = [("CHAP_I", "0xC8"), ("CHAP_C", "0bqqqq")]
    answer, _ = exchange.step([("CHAP_N", "ann"), ("CHAP_R", respond(asked)), *theirs])
    assert dict(answer)["CHAP_R"] == respond({"CHAP_I": "200", "CHAP_C": "0xaaaaaa"}, OTHER)


@given(st.lists(st.tuples(st.sampled_from(["CHAP_A", "CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C", "X"]), st.text())))
def test_arbitrary_text_neither_enters_nor_breaks_the_exchange(pairs: list[tuple[str, str]]) -> None:
    exchange = chap.Exchange(MUTUAL)
    for _ in range(2):
        try:
            assert not exchange.step(pairs)[1]
        except LoginRefused:
            return


@given(st.binary(min_size=1, max_size=1024))
def test_encoded_binary_values_are_decoded(value: bytes) -> None:
    assert chap.decode(chap.encode(value)) == value


@pytest.mark.parametrize("length", [0, 11, 256])
def test_a_secret_that_is_too_short_or_too_long_is_refused(length: int) -> None:
    with pytest.raises(SecretRefused):
        Secret(b"s" * length)


def test_the_secrets_of_both_directions_must_differ() -> None:
    with pytest.raises(SecretRefused, match="same secret"):
        Credentials("ann", Secret(SECRET), "wolun", Secret(SECRET))


def test_a_target_name_without_a_secret_is_refused() -> None:
    with pytest.raises(SecretRefused, match="belong together"):
        Credentials("ann", Secret(SECRET), target_name="wolun")


def test_a_secret_never_shows() -> None:
    shown = SECRET.decode()
    assert shown not in repr(MUTUAL)
    assert shown not in f"{MUTUAL.secret} {MUTUAL!s} {MUTUAL.secret!r}"
    for leak in (pickle.dumps, json.dumps, copy.deepcopy, hash, vars):
        with pytest.raises(TypeError):
            leak(MUTUAL.secret)
