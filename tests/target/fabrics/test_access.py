# SPDX-License-Identifier: Apache-2.0
"""The rules of `access`: by name, pattern and network, with secrets from files, and the LUNs that an initiator sees."""

from __future__ import annotations

import os
import re
import textwrap
import uuid
from pathlib import Path

import pytest

from target.configuration import reader, settings, values
from target.fabrics import access
from target.fabrics.access import Rules, SecretFileRefused
from target.iscsi import login
from target.iscsi.chap import Algorithm, ChapAuthenticator, Secret
from target.iscsi.errors import LoginRefused, LoginStatus
from target.scsi.commands import table
from target.scsi.logical_unit import LogicalUnit, UnitKind
from target.scsi.nexus import Reach
from tests import peers
from tests.memory_device import MemoryDevice

SECRET = "twelve bytes"
ANN, BOB = "iqn.2026-11.org.example:ann", "iqn.2026-11.org.example:bob"
HERE, THERE = "192.0.2.7", "198.51.100.7"
TARGET = "iqn.2026-11.io.wolun:t"


def settings_of(text: str) -> settings.Settings:
    """Return the settings of a file whose `access` is `text`."""
    volumes = "volumes: [{name: vol0, lun: 0, size: 1MiB}]\n"
    head = f"target: {TARGET}\n{volumes}"
    return reader.parse(head + "access:\n" + textwrap.indent(textwrap.dedent(text), "  "), "f.yaml")


def access_of(text: str, state_dir: Path = Path("/nonexistent")) -> access.Access:
    return access.Access(Rules.read(settings_of(text).access, state_dir))


def admitted(policy: access.Access, initiator: str = ANN, address: str = HERE) -> bool:
    return policy.allows(initiator, address, TARGET)


def secret_file(path: Path, content: str = SECRET + "\n", mode: int = 0o600) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def problems_of(text: str) -> str:
    with pytest.raises(reader.ConfigurationError) as caught:
        settings_of(text)
    return str(caught.value)


class TestAdmission:
    """The table of access.py."""

    def test_default_admits_no_initiator(self) -> None:
        assert not admitted(access.Access(Rules.read(settings.Access(), Path())))

    def test_networks_alone_admit_any_initiator_from_there(self) -> None:
        policy = access_of("networks: [192.0.2.0/24]")
        assert admitted(policy)
        assert admitted(policy, BOB)
        assert not admitted(policy, address=THERE)
        assert admitted(policy, address="::ffff:192.0.2.9")

    def test_empty_list_admits_no_initiator(self) -> None:
        assert not admitted(access_of("networks: [192.0.2.0/24]\ninitiators: []"))
        assert not admitted(access_of("initiators: []"))

    def test_listed_initiator_may_come_from_any_network(self) -> None:
        policy = access_of(f"initiators: [{{name: '{ANN}'}}]")
        assert admitted(policy)
        assert admitted(policy, address=THERE)
        assert not admitted(policy, BOB)

    def test_network_and_list_must_both_admit(self) -> None:
        policy = access_of(f"networks: [192.0.2.0/24]\ninitiators: [{{name: '{ANN}'}}]")
        assert admitted(policy)
        assert not admitted(policy, address=THERE)
        assert not admitted(policy, BOB)

    def test_own_networks_of_an_initiator_restrict_it_further(self) -> None:
        policy = access_of(
            f"networks: [192.0.2.0/24]\ninitiators: [{{name: '{ANN}', networks: [192.0.2.7/32, 198.51.100.0/24]}}]"
        )
        assert admitted(policy)
        assert not admitted(policy, address="192.0.2.8")
        assert not admitted(policy, address=THERE)

    @pytest.mark.parametrize(
        ("pattern", "fits"),
        [
            ("iqn.2026-11.org.example:*", True),
            ("iqn.2026-11.org.example:a?n", True),
            ("iqn.2026-11.org.example:[a-c]nn", True),
            ("iqn.2026-11.org.example:[!a]nn", False),
            ("*", True),
            ("iqn.2026-11.org.example:an", False),
            ("iqn.2026-11.org.example", False),
            ("IQN.2026-11.ORG.example:ANN", True),
            ("iqn*2026-11+org.example:ann", None),
        ],
    )
    def test_pattern_fits_names_like_a_shell(self, pattern: str, fits: bool | None) -> None:
        text = f"initiators: [{{name: '{pattern}'}}]"
        if fits is None:
            assert "is not an initiator's name" in problems_of(text)
        else:
            assert admitted(access_of(text)) is fits

    def test_name_is_not_a_regular_expression(self) -> None:
        policy = access_of("initiators: [{name: 'iqn.2026-11.org.example:an*'}]")
        assert not admitted(policy, "iqnX2026-11.org.example:ann")

    def test_case_of_a_name_does_not_matter(self) -> None:
        assert admitted(access_of(f"initiators: [{{name: '{ANN}'}}]"), ANN.upper().replace("IQN", "iqn"))

    def test_full_name_goes_before_patterns_and_the_first_pattern_counts(self) -> None:
        text = f"""
            initiators:
              - {{name: "*:b*", read_only: true}}
              - {{name: "*"}}
              - {{name: "{ANN}", networks: [198.51.100.0/24]}}
              - {{name: "*:bob", networks: [198.51.100.0/24]}}
            """
        rules = access_of(text).rules
        chosen = {name: rules.find(name) for name in (ANN, BOB, "iqn.2026-11.org.example:carl")}
        assert [rule.name for rule in chosen.values() if rule] == [ANN, "*:b*", "*"]
        assert not admitted(access.Access(rules), ANN, HERE)  # does not fall through to `*`

    def test_new_rules_replace_the_old_ones(self) -> None:
        policy = access_of(f"initiators: [{{name: '{ANN}'}}]")
        policy.rules = Rules.read(settings_of(f"initiators: [{{name: '{BOB}'}}]").access, Path())
        assert not admitted(policy, ANN)
        assert admitted(policy, BOB)


class TestReach:
    """The addresses from which any initiator at all may log in."""

    @pytest.mark.parametrize(
        ("text", "near", "far"),
        [
            ("networks: [10.0.0.0/8]", True, False),
            ("networks: []", False, False),
            ("networks: []\n  initiators: []", False, False),
            (f"initiators: [{{name: {ANN}}}]", True, True),
            (f"initiators: [{{name: {ANN}, networks: [10.0.0.0/8]}}]", True, False),
            (f"networks: [10.0.0.0/8]\n  initiators: [{{name: {ANN}, networks: [192.0.2.0/24]}}]", False, False),
            (f"initiators: [{{name: {ANN}, chap: {{name: a, secret_file: nowhere}}}}]", True, True),
        ],
    )
    def test_address_reaches_the_target(self, text: str, near: bool, far: bool) -> None:
        policy = access_of("  " + text + "\n")
        assert (policy.reaches("10.1.2.3"), policy.reaches("192.0.2.9")) == (near, far)


class TestProof:
    """The authentication that the configuration asks for."""

    TEXT = f"""
        initiators:
          - name: {ANN}
            chap: {{name: ann, secret_file: ann.secret}}
          - name: {BOB}
        """

    def test_initiator_without_chap_needs_no_authentication(self, tmp_path: Path) -> None:
        secret_file(tmp_path / "ann.secret")
        policy = access_of(self.TEXT, tmp_path)
        for target in (TARGET, None):
            assert isinstance(policy.authenticator(BOB, target), login.NoAuthentication)

    def test_initiator_with_chap_must_use_it(self, tmp_path: Path) -> None:
        secret_file(tmp_path / "ann.secret")
        authenticator = access_of(self.TEXT, tmp_path).authenticator(ANN, TARGET)
        assert isinstance(authenticator, ChapAuthenticator)
        assert list(authenticator.methods) == ["CHAP"]

    def test_discovery_accepts_chap_and_requires_it_on_demand(self, tmp_path: Path) -> None:
        secret_file(tmp_path / "ann.secret")
        policy = access_of(self.TEXT, tmp_path)
        assert list(policy.authenticator(ANN, None).methods) == ["CHAP", "None"]
        policy = access_of("discovery_chap: true\n" + textwrap.dedent(self.TEXT), tmp_path)
        assert list(policy.authenticator(ANN, None).methods) == ["CHAP"]

    def test_initiator_that_may_not_log_in_may_not_discover(self) -> None:
        policy = access_of("networks: [192.0.2.0/24]")
        assert policy.admits(ANN, HERE)
        assert not policy.admits(ANN, THERE)

    @pytest.mark.parametrize("name", [ANN, BOB])
    def test_initiator_admitted_by_replaced_rules_is_refused(self, name: str) -> None:
        policy = access_of(f"initiators: [{{name: '{ANN}', chap: {{name: a, secret_file: none}}}}]")
        with pytest.raises(LoginRefused) as caught:
            policy.authenticator(name, TARGET)
        assert caught.value.status is LoginStatus.AUTHORIZATION_FAILURE

    def test_broken_entry_admits_no_initiator_and_is_named(self, tmp_path: Path) -> None:
        policy = access_of(self.TEXT.replace("- name: iqn.2026-11.org.example:bob", "- name: '*'"), tmp_path)
        assert not admitted(policy, ANN)
        assert admitted(policy, BOB)
        (broken,) = policy.rules.broken()
        assert (broken.name, broken.broken) == (ANN, f"{tmp_path}/ann.secret cannot be read: No such file or directory")

    def test_credentials_have_the_algorithms_and_the_secret_of_the_target(self, tmp_path: Path) -> None:
        secret_file(tmp_path / "a")
        secret_file(tmp_path / "b", "another secret")
        chap = settings.Chap(
            name="ann",
            secret_file=Path("a"),
            target_name="wolun",
            target_secret_file=Path("b"),
            algorithms=(values.ChapAlgorithm.SHA256,),
        )
        proof = access.credentials(chap, tmp_path)
        assert (proof.name, proof.target_name, proof.algorithms) == ("ann", "wolun", (Algorithm.SHA_256,))
        assert (proof.secret, proof.target_secret) == (Secret(b"twelve bytes"), Secret(b"another secret"))

    def test_same_secret_for_both_sides_is_refused(self, tmp_path: Path) -> None:
        secret_file(tmp_path / "a")
        secret_file(tmp_path / "b")
        chap = settings.Chap(name="ann", secret_file=Path("a"), target_name="w", target_secret_file=Path("b"))
        with pytest.raises(SecretFileRefused, match="same secret"):
            access.credentials(chap, tmp_path)

    def test_secret_that_another_initiator_knows_breaks_its_entry(self, tmp_path: Path) -> None:
        """An older version could store the target's secret for one initiator in the secret file of another."""
        secret_file(tmp_path / "ann")
        secret_file(tmp_path / "target", "another secret")
        policy = access_of(
            f"""
        initiators:
          - {{name: '{ANN}', chap: {{name: a, secret_file: ann, target_name: w, target_secret_file: target}}}}
          - {{name: '{BOB}', chap: {{name: b, secret_file: target}}}}
        """,
            tmp_path,
        )
        assert admitted(policy, ANN)
        assert not admitted(policy, BOB)
        (broken,) = policy.rules.broken()
        assert broken.broken.startswith(f"its secret is the one by which the target proves itself to {ANN}")


class TestSecretFiles:
    """A secret file must be closed to other users."""

    @pytest.mark.parametrize("mode", [0o600, 0o400])
    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_secret_is_the_one_line_of_its_file(self, tmp_path: Path, mode: int, end: str) -> None:
        assert access.read_secret(secret_file(tmp_path / "s", SECRET + end, mode)) == Secret(SECRET.encode())

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o620])
    def test_file_that_is_open_to_others_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = secret_file(tmp_path / "s", mode=mode)
        with pytest.raises(
            SecretFileRefused, match=re.escape(f"is open to others (mode {mode:04o}): chmod 600 {path}")
        ):
            access.read_secret(path)

    def test_file_of_another_user_is_refused(self, tmp_path: Path) -> None:
        peers.need_root("giving a file away")
        path = secret_file(tmp_path / "s")
        os.chown(path, 12345, -1)
        with pytest.raises(SecretFileRefused, match="belongs to another user"):
            access.read_secret(path)

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            ("", "12 to 255 bytes, this one has 0"),
            ("eleven byte\n", "this one has 11"),
            ("s" * 256, "this one has 256"),
            ("two\nlines of it\n", "more than one line"),
            (SECRET + "\n\n", "more than one line"),
            ("nul\0" + SECRET, "more than one line"),
        ],
    )
    def test_content_that_is_no_secret_is_refused_and_not_shown(self, tmp_path: Path, content: str, why: str) -> None:
        with pytest.raises(SecretFileRefused, match=why) as caught:
            access.read_secret(secret_file(tmp_path / "s", content))
        assert SECRET not in str(caught.value)

    def test_other_kinds_of_files_are_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo", 0o600)
        for path, why in (
            (tmp_path, "not a regular file"),
            (tmp_path / "fifo", "not a regular"),
            (tmp_path / "x", "No such"),
        ):
            with pytest.raises(SecretFileRefused, match=why):
                access.read_secret(path)


class TestView:
    """The LUNs that an initiator sees."""

    @staticmethod
    def unit(name: str, kind: UnitKind = UnitKind.PRIMARY) -> LogicalUnit:
        return LogicalUnit(MemoryDevice(), uuid=uuid.uuid4(), kind=kind, name=name, commands=table.for_unit)

    def test_all_units_have_their_own_luns_without_a_mapping(self) -> None:
        view = access_of(f"initiators: [{{name: '{ANN}'}}]").view(ANN, HERE, TARGET)
        assert list(view(5, self.unit("vol0"))) == [Reach(5)]

    def test_all_units_are_read_only_for_a_reader(self) -> None:
        view = access_of(f"initiators: [{{name: '{ANN}', read_only: true}}]").view(ANN, HERE, TARGET)
        assert list(view(5, self.unit("vol0"))) == [Reach(5, read_only=True)]

    def test_mapped_units_are_read_only_for_a_reader(self) -> None:
        text = f"initiators: [{{name: '{ANN}', read_only: true, luns: [{{lun: 4, unit: vol0}}]}}]"
        view = access_of(text).view(ANN, HERE, TARGET)
        assert list(view(0, self.unit("vol0"))) == [Reach(4, read_only=True)]

    def test_mapping_chooses_units_luns_and_read_only(self) -> None:
        view = access_of(f"""
            initiators:
              - name: {ANN}
                luns:
                  - {{lun: 0, unit: vol1}}
                  - {{lun: 1, unit: vol1, read_only: true}}
                  - {{lun: 2, unit: vol1@then}}
                  - {{lun: 3, unit: vol1@then/write-once}}
            """).view(ANN, HERE, TARGET)
        assert list(view(0, self.unit("vol0"))) == []
        assert list(view(1, self.unit("vol1"))) == [Reach(0), Reach(1, read_only=True)]
        assert list(view(2, self.unit("vol1@then", UnitKind.SNAPSHOT_VIEW))) == [Reach(2)]
        assert list(view(3, self.unit("vol1@then (write-once)", UnitKind.WRITE_ONCE))) == [Reach(3)]

    def test_empty_mapping_and_unknown_initiator_see_no_unit(self) -> None:
        policy = access_of(f"initiators: [{{name: '{ANN}', luns: []}}]")
        assert list(policy.view(ANN, HERE, TARGET)(0, self.unit("vol0"))) == []
        assert list(policy.view(BOB, HERE, TARGET)(0, self.unit("vol0"))) == []
