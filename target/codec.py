# SPDX-License-Identifier: Apache-2.0
"""Conversion between messages and JSON; `decode` checks the types of what it reads."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def decode(cls: type[T], value: object) -> T:
    """Return an instance of the dataclass `cls`, made from decoded JSON.

    Keys that this version does not know are ignored, so an older command understands a newer daemon.  Raises TypeError,
    KeyError or ValueError if `value` does not fit.
    """
    return typing.cast(T, _decode(cls, value))


def fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, as arguments for a larger dataclass."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def encode(value: DataclassInstance) -> Any:
    """Return `value` as the dictionaries, lists and scalars that `decode` reads."""
    return dataclasses.asdict(value)


def _decode(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(
            **{
                field.name: _decode(hints[field.name], value[field.name])
                for field in dataclasses.fields(hint)
                if field.name in value or field.default is dataclasses.MISSING
            }
        )
    if isinstance(hint, types.UnionType):
        others = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if value is None else _decode(others[0], value)
    if typing.get_origin(hint) is tuple:
        return tuple(_decode(typing.get_args(hint)[0], item) for item in value)
    if typing.get_origin(hint) is dict:
        _, kind = typing.get_args(hint)
        return {str(key): _decode(kind, item) for key, item in value.items()}
    if hint is float:
        return float(value)
    if not isinstance(value, hint):
        raise TypeError(f"{value!r} is not of type {hint.__name__}")
    return value
