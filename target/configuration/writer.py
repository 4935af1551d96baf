# SPDX-License-Identifier: Apache-2.0
"""The writer of configuration files: it keeps what their authors wrote.

The writer changes an existing file only where the file and the settings disagree.  Comments, order, quotes, units and
keys that merely repeat a default stay.  It distinguishes volumes, initiators and mapped LUNs by their names (LUNs), so
the removal of one removes its own lines and no others.  The result is read back and compared before it is used.

A save replaces the file as a whole: it writes the new file beside the old one, syncs it, renames it over, and syncs the
directory.  The old file stays as `FILE.TIME.bak`; the last `BACKUPS` of these are kept.  A symbolic link stays one.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ruamel.yaml
from ruamel.yaml import comments

from lun_backends.files import small_file
from target import units
from target.configuration import reader, settings

BACKUPS = 10
HEADER = "# The configuration of this wolun, written by `saveconfig`.  Later saves keep comments and order.\n"

_SIZES = frozenset({"size", "chunk_size", "physical_block_size", "limit", "memory", "speed", "bandwidth"})
_IDENTITIES: Mapping[str, str] = {"volumes": "name", "initiators": "name", "luns": "lun"}
"""Lists of groups of keys, and the key that distinguishes the groups."""
_LAID_OUT = re.compile(r"^( *)[^\s#-][^\n]*:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*( *)- ", re.MULTILINE)


class CannotSave(Exception):
    """A configuration file that cannot be made to agree with the settings, and why."""


def plain(value: settings.Settings | settings.Initiator | settings.Volume, *, defaults: bool) -> dict[str, Any]:
    """Return the settings as plain values for YAML, with units on sizes, and default values only with `defaults`."""
    dumped: dict[str, Any] = _spell(value.model_dump(mode="json", exclude_defaults=not defaults))
    return dumped


def _spell(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: units.exact_size(item) if key in _SIZES and isinstance(item, int) else _spell(item)
            for key, item in value.items()
        }
    return [_spell(item) for item in value] if isinstance(value, list) else value


def text_of(value: settings.Initiator | settings.Volume) -> str:
    """Return one group of keys as it would stand in a list of the configuration file."""
    return _dump(_yaml(""), [plain(value, defaults=False)])


def render(wanted: settings.Settings, old: str | None, file: str) -> str:
    """Return the text of a configuration file that says `wanted` and keeps as much as it can of the text `old`.

    Raise ConfigurationError if `old` is not valid, and CannotSave if no text says `wanted`.
    """
    if old is None or not old.strip():
        text = HEADER + _dump(_yaml(""), plain(wanted, defaults=False))
    else:
        said = reader.parse(old, file)
        if said == wanted:
            return old
        cut = _cut(old, wanted)
        with contextlib.suppress(
            reader.ConfigurationError
        ):  # if this fails, the lines stay, and the merge removes them
            said, old = reader.parse(cut, file), cut
        complete, brief = plain(wanted, defaults=True), plain(wanted, defaults=False)
        yaml = _yaml(old)
        document = yaml.load(old)
        layout = _dump(yaml, document)
        _merge(document, plain(said, defaults=True), complete, brief)
        text = _dump(yaml, document)
        grafted = _graft(old, layout, text)
        if _comments(grafted) == _comments(text) and _says(grafted, wanted, file):
            return grafted
        if not _says(text, wanted, file):
            # Comments in odd places can mislead the YAML library.  Then whole sections are written anew, without them.
            document = yaml.load(old)
            for key, value in plain(said, defaults=True).items():
                if complete[key] != value:
                    document.pop(key, None)
                    if key in brief:
                        document[key] = brief[key]
            text = _dump(yaml, document)
    if not _says(text, wanted, file):
        raise CannotSave("the new file would not agree with the settings in force: save to another file and compare")
    return text


def _cut(text: str, wanted: settings.Settings) -> str:
    """Return `text` without the lines of removed volumes, initiators and mapped LUNs, and the comment right above each.

    (The YAML library would remove the comment above the next one instead.)  Lists in brackets are left alone.
    """
    lines = text.splitlines(keepends=True)
    document = _yaml(text).load(text)
    said = plain(wanted, defaults=True)
    gone: list[tuple[int, int]] = []
    initiators = (document.get("access") or {}).get("initiators") or ()
    kept = {initiator["name"]: initiator for initiator in said["access"]["initiators"] or ()}
    lists: list[tuple[Any, str, str, list[Any] | None]] = [(document, "volumes", "name", said["volumes"])]
    if isinstance(document.get("access"), dict):
        lists.append((document["access"], "initiators", "name", said["access"]["initiators"]))
    lists += [
        (initiator, "luns", "lun", kept[initiator["name"]]["luns"])
        for initiator in initiators
        if initiator["name"] in kept
    ]
    for parent, key, identity, left in lists:
        node = parent.get(key)
        if left is None or not isinstance(node, comments.CommentedSeq) or node.fa.flow_style():
            continue
        names = {group[identity] for group in left}
        going = [index for index, group in enumerate(node) if group[identity] not in names]
        gone += [_lines_of(lines, node.lc.item(index)[0], node.lc.col) for index in going]
        if len(going) == len(node):  # without its items the key would mean "left out"
            line = parent.lc.key(key)[0]
            lines[line] = re.sub(rf"({key}['\"]?\s*:)", r"\1 []", lines[line], count=1)
    for start, end in sorted(gone, reverse=True):
        del lines[start:end]
    return "".join(lines)


def _lines_of(lines: list[str], line: int, column: int) -> tuple[int, int]:
    """Return the lines [start, end) of a list's item.

    `line` is one of these lines, and `column` is the column of the list's dashes.
    """
    start = line
    while not lines[start].startswith(" " * column + "-"):
        start -= 1
    end = line + 1
    for position in range(line + 1, len(lines)):
        body = lines[position].strip()
        if body and not body.startswith("#"):
            if len(lines[position]) - len(lines[position].lstrip()) <= column:
                break
            end = position + 1
    while start and lines[start - 1].startswith(" " * column + "#"):
        start -= 1
    return start, end


def _says(text: str, wanted: settings.Settings, file: str) -> bool:
    try:
        return reader.parse(text, file) == wanted
    except reader.ConfigurationError:
        return False


def _graft(old: str, layout: str, new: str) -> str:
    """Return `old` with those lines changed in which `new` differs from `layout`.

    `layout` is `old` as the YAML library lays it out.  So only lines with new content get the library's layout.
    """
    base = layout.splitlines(keepends=True)
    changes = _edits(base, new.splitlines(keepends=True))
    edits = changes + [
        habit
        for habit in _edits(base, old.splitlines(keepends=True))
        if not any(habit[0] <= change[1] and change[0] <= habit[1] for change in changes)
    ]
    for start, end, lines in sorted(edits, reverse=True):
        base[start:end] = lines
    return "".join(base)


def _edits(base: list[str], other: list[str]) -> list[tuple[int, int, list[str]]]:
    matcher = difflib.SequenceMatcher(None, base, other, autojunk=False)
    return [(i1, i2, other[j1:j2]) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal"]


def _comments(text: str) -> list[str]:
    return sorted(re.findall(r"(?:^|\s)(#.*)", text))


def difference(old: str | None, new: str, file: str) -> str:
    """Return the changes that a save would make, as a unified diff; empty if there are none."""
    lines = difflib.unified_diff(
        (old or "").splitlines(keepends=True), new.splitlines(keepends=True), f"{file} (saved)", f"{file} (running)"
    )
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def read(path: Path) -> str | None:
    """Return the text of the file, or None if there is no file.  Raise OSError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def write(path: Path, text: str) -> Path | None:
    """Replace the file durably, and return the path of its backup, or None if there was no file.  Raise OSError."""
    path = path.resolve()
    mode = 0o600
    backup = None
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode & 0o777
        backup = _keep(path)
    small_file.replace(path, text.encode(), mode)
    return backup


def _keep(path: Path) -> Path:
    """Keep a copy of the file under a name with the time, by hard link where that works, and remove the oldest."""
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    backup = path.with_name(f"{path.name}.{moment}.bak")
    try:
        backup.hardlink_to(path)
    except PermissionError:  # file systems without hard links
        backup.write_bytes(path.read_bytes())
    kept = sorted(path.parent.glob(f"{path.name}.*Z.bak"))
    for old in kept[:-BACKUPS]:
        old.unlink(missing_ok=True)
    return backup


def _yaml(old: str) -> ruamel.yaml.YAML:
    """Return a round-trip YAML that indents lists as `old` does."""
    yaml = ruamel.yaml.YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    yaml.allow_unicode = True
    list_start = _LAID_OUT.search(old)
    offset = 2 if list_start is None else max(0, len(list_start[2]) - len(list_start[1]))
    yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    return yaml


def _dump(yaml: ruamel.yaml.YAML, document: Any) -> str:
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _merge(node: comments.CommentedMap, old: dict[str, Any], new: dict[str, Any], brief: dict[str, Any]) -> None:
    """Make a group of keys say `new` instead of `old`.  Both are complete; `brief` is `new` without default values."""
    for key, value in new.items():
        if key not in node:
            if key in brief and value != old.get(key):
                node[key] = brief[key]
        elif value == old[key]:
            continue
        elif value is None:
            del node[key]
        elif isinstance(node[key], comments.CommentedMap) and isinstance(value, dict):
            _merge(node[key], old[key], value, brief.get(key, {}))
            if not node[key]:
                del node[key]
        elif key in _IDENTITIES and isinstance(node[key], comments.CommentedSeq) and isinstance(old[key], list):
            _merge_list(node[key], old[key], value, brief.get(key, []), _IDENTITIES[key])
        else:
            node[key] = brief.get(key, value)


def _merge_list(node: comments.CommentedSeq, old: list[Any], new: list[Any], brief: list[Any], identity: str) -> None:
    before = {group[identity]: group for group in old}
    wanted = {group[identity]: (group, short) for group, short in zip(new, brief, strict=True)}
    for index in reversed(range(len(old))):  # node and old have the same items
        name = old[index][identity]
        if name in wanted:
            _merge(node[index], before[name], *wanted[name])
        else:
            del node[index]
    kept = [group[identity] for group in old if group[identity] in wanted]
    for index, name in enumerate(wanted):
        if name not in before:
            node.append(wanted[name][1])
            kept.append(name)
        elif kept[index] != name:  # the order of patterns matters
            break
    if kept != list(wanted):
        position = {name: index for index, name in enumerate(kept)}
        node[:] = [node[position[name]] if name in position else wanted[name][1] for name in wanted]
