"""Frozen dataclasses to plain JSON values and back, every field's type checked on the way in."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["PlainError", "from_plain", "to_plain"]

T = TypeVar("T")

_LARGEST = sys.float_info.max

_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


class PlainError(ValueError):
    """A value is not of its field's type; the message starts with the field's path."""


def to_plain(value: Any) -> Any:
    """Dataclasses as objects without the fields that are None, tuples as lists; a type's own ``to_json`` first."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: to_plain(item) for name, item in fields if item is not None}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(kind: type[T], value: object, path: str = "") -> T:
    """A dataclass whose fields are str, int, float, bool, dicts, tuples, dataclasses, or have a ``from_json``.

    Args:
        kind: the dataclass.
        value: a JSON object.
        path: of the object, for messages.

    Raises:
        PlainError: naming the field, what was expected, and what came.
    """
    _require_text(value, path)
    made: T = _read_fields(kind, value, path)
    return made


def _read(kind: Any, value: object, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if type(value) in arguments:
            return value
        return _read(next(a for a in arguments if a is not type(None)), value, path)
    if origin is Literal:
        return value if value in arguments else _refuse(path, f"one of {', '.join(map(str, arguments))}", value)
    if origin is tuple:
        items = value if isinstance(value, list) else _refuse(path, "a list", value)
        if len(arguments) == 2 and arguments[1] is ...:
            return tuple(_read(arguments[0], item, f"{path}[{n}]") for n, item in enumerate(items))
        if len(items) != len(arguments):
            _refuse(path, f"{len(arguments)} values", value)
        return tuple(_read(a, item, f"{path}[{n}]") for n, (a, item) in enumerate(zip(arguments, items, strict=True)))
    if origin is dict:
        entries = value if isinstance(value, dict) else _refuse(path, "an object", value)
        return {key: _read(arguments[1], item, f"{path}.{key}") for key, item in entries.items()}
    if hasattr(kind, "from_json"):
        try:
            return kind.from_json(value)
        except ValueError as error:
            raise PlainError(f"{path}: {error}") from error
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, path)
    if kind is float and type(value) in (int, float) and not -_LARGEST <= value <= _LARGEST:  # type: ignore[operator]
        _refuse(path, "a finite number", value)
    if kind is float and type(value) is int:
        return value
    return value if type(value) is kind else _refuse(path, _NAMES[kind], value)


def _read_fields(kind: Any, value: object, path: str) -> Any:
    given = value if isinstance(value, dict) else _refuse(path, "an object", value)
    below = f"{path}." if path else ""
    hints, fields = get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(given.keys() - fields.keys()):
        raise PlainError(f"{below}{unknown[0][:60]}: no such field; expected some of {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise PlainError(f"{below}{name}: missing")
    return kind(**{name: _read(hints[name], item, below + name) for name, item in given.items()})


def _require_text(value: object, path: str) -> None:
    """Refuse half a character, which JSON can spell and no file or terminal can hold."""
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            _refuse(path, "text of whole characters", value)
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_text(key, path)
            _require_text(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _require_text(item, f"{path}[{number}]")


def _refuse(path: str, expected: str, value: object) -> Any:
    raise PlainError(f"{path or 'the whole'}: expected {expected}, got {reprlib.repr(value)}")
