# SPDX-License-Identifier: Apache-2.0
"""Saving a configuration: the file has the new settings, and keeps the comments and the layout of its author."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import ruamel.yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from target import units
from target.configuration import reader, settings, values, writer

ROOT = Path(__file__).parents[3]
FILE = "wolun.yaml"
OLD = textwrap.dedent("""\
    # about the whole
    target: iqn.2026-11.io.wolun:t   # the name
    access:
      networks: [ 127.0.0.0/8 ]      # spaced
      initiators:
      # about ann
      - name: iqn.2026-11.org.example:ann
        read_only:  false
      # about bob

      # more about bob
      - name: 'iqn.2026-11.org.example:bob'
        luns:
        - {lun: 0, unit: one}
        - {lun: 1, unit: two}

    # about the volumes
    volumes:
    # about one
    - name: one
      lun: 0          # its number
      size: 1024 KiB  # not 1MiB
      # the last word about one
    # about two
    - name: two
      lun: 1
      size: 2MiB
    # the end
    """)


def parsed(text: str = OLD) -> settings.Settings:
    return reader.parse(text, FILE)


def changed(volumes: object = None, access: object = None) -> str:
    """Return OLD, changed to these settings."""
    updates = {key: value for key, value in (("volumes", volumes), ("access", access)) if value is not None}
    return writer.render(parsed().model_copy(update=updates), OLD, FILE)


def lines_changed(new: str, old: str = OLD) -> list[str]:
    lines = writer.difference(old, new, FILE).splitlines()[2:]
    return [line for line in lines if line[0] in "+-"]


def volume(name: str, lun: int, **more: object) -> settings.Volume:
    return settings.Volume(name=name, lun=lun, size=1 << 20, **more)  # type: ignore[arg-type]  # checked by pydantic


def test_a_file_with_the_same_settings_is_not_changed() -> None:
    assert writer.render(parsed(), OLD, FILE) == OLD
    for name in ("quickstart.yaml", "full.yaml", "storage-host.yaml", "node.yaml"):
        text = (ROOT / "config" / name).read_text()
        assert writer.render(parsed(text), text, FILE) == text


def test_one_value_changes_one_line() -> None:
    one, two = parsed().volumes
    new = changed(volumes=(one.model_copy(update={"lun": 9}), two))
    assert lines_changed(new) == ["-  lun: 0          # its number", "+  lun: 9          # its number"]


def test_a_new_volume_only_adds_its_lines() -> None:
    new = changed(volumes=(*parsed().volumes, volume("three", 3)))
    assert sorted(lines_changed(new)) == ["+  lun: 3", "+  size: 1MiB", "+- name: three"]


def test_a_removed_volume_removes_its_own_lines_only() -> None:
    one, two = parsed().volumes
    assert lines_changed(changed(volumes=(two,))) == [
        "-# about one", "-- name: one", "-  lun: 0          # its number", "-  size: 1024 KiB  # not 1MiB",
    ]  # fmt: skip
    gone = changed(volumes=(one,))
    assert "# about two" not in gone
    assert "# the last word about one" in gone
    assert "# the end" in gone


def test_a_removed_initiator_leaves_the_comments_of_the_next_one() -> None:
    access = parsed().access
    assert access.initiators is not None
    new = changed(access=access.model_copy(update={"initiators": access.initiators[1:]}))
    assert "about ann" not in new
    for comment in ("# about bob", "# more about bob", "# about the volumes", "# spaced"):
        assert comment in new


def test_the_last_removed_initiator_leaves_an_empty_list() -> None:
    access = parsed().access.model_copy(update={"initiators": ()})
    assert parsed(changed(access=access)).access.initiators == ()


def test_a_key_that_becomes_none_is_left_out() -> None:
    access = parsed().access.model_copy(update={"initiators": None})
    assert parsed(changed(access=access)).access.initiators is None


def test_mapped_luns_in_braces_are_changed() -> None:
    access = parsed().access
    assert access.initiators is not None
    ann, bob = access.initiators
    bob = bob.model_copy(update={"luns": (settings.MappedLun(lun=1, unit="two", read_only=True),)})
    new = changed(access=access.model_copy(update={"initiators": (ann, bob)}))
    initiators = parsed(new).access.initiators
    assert initiators is not None
    assert initiators[1] == bob


def test_a_new_file_has_no_defaults() -> None:
    text = writer.render(parsed(), None, FILE)
    assert text.startswith("# ")
    assert parsed(text) == parsed()
    assert "durability" not in text  # a default


def test_an_invalid_file_is_not_overwritten() -> None:
    with pytest.raises(reader.ConfigurationError, match=r"wolun\.yaml:2: volums: unknown key"):
        writer.render(parsed(), "target: iqn.2026-11.io.wolun:t\nvolums: []\n", FILE)


def test_a_section_that_cannot_be_merged_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_merge", lambda *_: None)
    new = changed(volumes=(volume("other", 5),))
    assert [volume.name for volume in parsed(new).volumes] == ["other"]
    assert "# about bob" in new


def test_a_text_that_disagrees_with_the_settings_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_says", lambda *_: False)
    with pytest.raises(writer.CannotSave):
        changed(volumes=(volume("other", 5),))


class TestWriting:
    """The file on disk."""

    def test_backups_are_kept_and_the_mode_stays(self, tmp_path: Path) -> None:
        path = tmp_path / FILE
        assert writer.read(path) is None
        assert writer.write(path, "0") is None
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o640)
        backups = [writer.write(path, str(number)) for number in range(1, writer.BACKUPS + 3)]
        assert path.read_text() == str(writer.BACKUPS + 2)
        assert path.stat().st_mode & 0o777 == 0o640
        kept = sorted(tmp_path.glob("*.bak"))
        assert kept == sorted(backups[-writer.BACKUPS :])  # type: ignore[type-var]  # none of them is None
        assert [backup.read_text() for backup in kept] == [str(n) for n in range(2, writer.BACKUPS + 2)]
        assert not list(tmp_path.glob(".*"))

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / FILE).write_text("old")
        (tmp_path / FILE).symlink_to("real/" + FILE)
        writer.write(tmp_path / FILE, "new")
        assert (tmp_path / FILE).is_symlink()
        assert (tmp_path / "real" / FILE).read_text() == "new"


NAMES = st.text("abcdefgh0123.-", min_size=1, max_size=6).map(lambda text: "v" + text)
IQNS = st.text("abc:.-*?", max_size=6).map(lambda text: "iqn.2026-11.org.example:x" + text)
NETWORKS = st.sampled_from(["127.0.0.0/8", "10.1.2.0/24", "::1/128", "0.0.0.0/0"])
LUNS = st.integers(0, 40)

CHAPS = st.builds(
    settings.Chap,
    name=st.sampled_from(["ann", "a@b", "0x12", "no", "1.5", "#x"]),
    secret_file=st.sampled_from([Path("s"), Path("/etc/wolun/s"), Path("null")]),
    algorithms=st.sampled_from([("sha256", "md5"), ("md5",)]),
)
UNITS = NAMES.flatmap(lambda name: st.sampled_from([name, f"{name}@then", f"{name}@then/write-once"]))
MAPPED = st.lists(
    st.builds(settings.MappedLun, lun=LUNS, unit=UNITS, read_only=st.booleans()),
    unique_by=lambda mapped: mapped.lun,
    max_size=3,
)
INITIATORS = st.builds(
    settings.Initiator,
    name=IQNS,
    networks=st.lists(NETWORKS, max_size=2, unique=True),
    chap=st.none() | CHAPS,
    read_only=st.booleans(),
    luns=st.none() | MAPPED,
)
ACCESS = st.builds(
    settings.Access,
    networks=st.lists(NETWORKS, max_size=2, unique=True),
    initiators=st.none() | st.lists(INITIATORS, max_size=3, unique_by=lambda initiator: initiator.name.lower()),
    discovery_chap=st.booleans(),
)
VOLUMES = st.lists(
    st.builds(
        settings.Volume,
        name=NAMES,
        lun=LUNS | st.none().map(lambda _: values.NO_LUN),
        size=st.none() | st.integers(1, 1 << 30).map(lambda blocks: blocks * 4096),
        block_size=st.sampled_from([512, 4096]),
        chunk_size=st.sampled_from([4096, 65536, 1 << 20]),
        durability=st.sampled_from(["power-loss", "process-crash"]),
        snapshots=st.lists(NAMES, max_size=2, unique=True),
    ),
    min_size=1, max_size=4, unique_by=(lambda volume: volume.name, lambda volume: volume.lun),
)  # fmt: skip
SETTINGS = st.builds(
    settings.Settings,
    target=st.sampled_from(["iqn.2026-11.io.wolun:a", "iqn.2026-11.io.wolun:b"]),
    portal=st.builds(
        settings.Portal,
        listen=st.lists(st.sampled_from(["127.0.0.1:3260", "[::1]:0", "host:1"]), min_size=1, unique=True),
    ),
    access=ACCESS,
    volumes=VOLUMES,
)


def written_by_hand(value: settings.Settings, choices: st.DataObject) -> str:
    """Return a file with these settings in some layout, with a comment on each line."""
    defaults = choices.draw(st.booleans(), "defaults")
    yaml = ruamel.yaml.YAML()
    offset = choices.draw(st.sampled_from([0, 2]), "offset")
    yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    plain = writer.plain(value, defaults=defaults)
    text = writer._dump(yaml, {key: item for key, item in plain.items() if key != "lio"})
    lines = [f"{line}  # {number}\n" for number, line in enumerate(text.splitlines())]
    above = choices.draw(st.lists(st.integers(0, len(lines) - 1), max_size=3), "above")
    for number in sorted(above, reverse=True):
        indent = len(lines[number]) - len(lines[number].lstrip())
        lines.insert(number, " " * indent + f"# above {number}\n")
    return "".join(lines)


@hypothesis_settings(deadline=None, max_examples=100)
@given(SETTINGS)
def test_any_settings_survive_a_save(value: settings.Settings) -> None:
    assert not value.problems()
    assert parsed(writer.render(value, None, FILE)) == value


@hypothesis_settings(deadline=None, max_examples=100)
@given(SETTINGS, SETTINGS, st.data())
def test_any_file_can_be_changed_to_any_settings(
    old: settings.Settings, new: settings.Settings, choices: st.DataObject
) -> None:
    text = written_by_hand(old, choices)
    assert parsed(text) == old
    assert writer.render(old, text, FILE) == text
    result = writer.render(new, text, FILE)
    assert parsed(result) == new
    assert writer.render(new, result, FILE) == result


@hypothesis_settings(deadline=None, max_examples=30)
@given(SETTINGS, st.data())
def test_changing_numbers_keeps_every_comment(old: settings.Settings, choices: st.DataObject) -> None:
    text = written_by_hand(old, choices)
    shifted = tuple(volume.model_copy(update={"lun": 100 + number}) for number, volume in enumerate(old.volumes))
    result = writer.render(old.model_copy(update={"volumes": shifted}), text, FILE)
    assert re.findall("#.*", result) == re.findall("#.*", text)


def test_sizes_are_written_exactly() -> None:
    text = writer.text_of(volume("a", 1, chunk_size=4096))
    assert f"size: {units.exact_size(1 << 20)}\n" in text
    assert "chunk_size: 4KiB\n" in text
