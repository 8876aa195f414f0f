"""Frozen dataclasses to plain JSON values and back, every field's type checked on the way in."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import reprlib
import types
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["PlainError", "from_plain", "read_json", "require_distinct", "to_plain"]

T = TypeVar("T")

_DEEPEST = 32
"""Lists and objects within each other."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
"""Strings, closed or not, and brackets outside of them."""

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


def read_json(text: str) -> Any:
    """JSON that a reader in another language takes for the same.

    No key comes twice in one object, it is nested to 32 levels at most, its texts are of whole characters and without
    control characters, its numbers are finite, its integers have 64 bits.

    Raises:
        PlainError: it is not that.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise PlainError(f"the key {next(k for k in keys if keys.count(k) > 1)!a} stands twice in one object")
        return found

    # Before it is parsed, whose own limit is another one in each version of Python.
    if _depth(text) > _DEEPEST:
        raise PlainError(f"lists and objects lie deeper than {_DEEPEST} levels within each other")
    value = json.loads(text, object_pairs_hook=once)
    _require_plain(value, "")
    return value


def _depth(text: str) -> int:
    """How many brackets of a JSON text are open at once at most; those within strings do not count."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(bracket, 0)
        deepest = max(deepest, depth)
    return deepest


def to_plain(value: Any) -> Any:
    """Dataclasses as objects without the fields that are None, tuples as lists; a type's own ``to_json`` first.

    A field ``import_`` is the key ``import``, which Python keeps for itself.
    """
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name.removesuffix("_"): to_plain(item) for name, item in fields if item is not None}
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
    if kind is float and type(value) is int:
        return value
    return value if type(value) is kind else _refuse(path, _NAMES[kind], value)


def _read_fields(kind: Any, value: object, path: str) -> Any:
    given = value if isinstance(value, dict) else _refuse(path, "an object", value)
    below = f"{path}." if path else ""
    hints, fields = _hints(kind), {f.name.removesuffix("_"): f for f in dataclasses.fields(kind)}
    if unknown := sorted(given.keys() - fields.keys()):
        raise PlainError(f"{below}{ascii(unknown[0][:60])[1:-1]}: no such field; expected some of {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise PlainError(f"{below}{name}: missing")
    own = {name: fields[name].name for name in given}
    return kind(**{own[name]: _read(hints[own[name]], item, below + name) for name, item in given.items()})


_hints = functools.cache(get_type_hints)


def _require_plain(value: object, path: str) -> None:
    """Refuse what JSON can spell and a file, a terminal or a number elsewhere cannot hold."""
    if isinstance(value, str):
        kinds = set() if value.isprintable() else {unicodedata.category(letter) for letter in value}
        if "Cs" in kinds:
            _refuse(path, "text of whole characters", value)
        if "Cc" in kinds:
            _refuse(path, "text without control characters", value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            _refuse(path, "a finite number", value)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            _refuse(path, "a whole number of 64 bits", value)
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_plain(key, path)
            _require_plain(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _require_plain(item, f"{path}[{number}]")


def require_distinct(path: str, names: Sequence[str]) -> None:
    """Refuse an empty name, and one that comes twice."""
    twice = [name for name, count in Counter(names).items() if count > 1 or not name.strip()]
    if twice or not names:
        raise PlainError(f"{path}: expected names, none of them empty, each once; got {reprlib.repr(twice)}")


def _refuse(path: str, expected: str, value: object) -> Any:
    raise PlainError(f"{path or 'the whole'}: expected {expected}, got {reprlib.repr(value)}")
