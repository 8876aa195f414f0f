"""Damaged manifests without end, each from a number, and what every verb makes of them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer

from wgap import Localizer
from wgap.bundle import MANIFEST, Bundle
from wgap.cli import app
from wgap.errors import WgapError

WGAP = typer.main.get_command(app)

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 255, 65536, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"),
    float("inf"), "", " ", "x", "0", "N", "x" * 300, "a\0b", "\ud800", "\n", "\x1b[31m", "é", "e\u0301", "🦉",
    "../x", "/etc/passwd", ".", "./model.onnx", "golden", "wgap.json", "fixed:0.5", "nan", "float32", "uint8", "onnx",
    "fp32", "engine", [], {}, [[]], [None], {"": None}, {"a\0": 1}, ["x", "x"], [1, 2, 3], {"kind": "adaptive"},
)  # fmt: skip
"""What takes the place of a value."""


class _Nested(str):
    """A value within so many lists, which no encoder could write: a mark until it is text."""

    def __new__(cls, value: Any, levels: int) -> _Nested:
        made = super().__new__(cls, f"nested-{levels}")
        made.text = "[" * levels + json.dumps(value) + "]" * levels
        return made

    text: str

    def __deepcopy__(self, memo: Any) -> _Nested:
        return self


def _written(raw: Any) -> bytes:
    marks = [c[k] for c, k in _places(raw) if isinstance(c[k], _Nested)] if isinstance(raw, dict | list) else []
    text = json.dumps(raw)
    for mark in marks:
        text = text.replace(json.dumps(str(mark)), mark.text, 1)
    return text.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _mutated(raw: Any, chance: random.Random) -> None:
    container, key = chance.choice(list(_places(raw)))
    kind = chance.randrange(7)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(chance.randrange(len(container) + 1), container[key])
    elif kind == 2:
        other, its = chance.choice(list(_places(raw)))
        container[key] = copy.deepcopy(other[its])
    elif kind == 3 and isinstance(container, dict):
        container[chance.choice(["", "x", "schema", "path", "rule", "a\0"])] = container.pop(key)
    elif kind == 4 and type(container[key]) in (int, float):
        container[key] += chance.choice([-1, 1, 0.5, 10**6])
    elif kind == 5:
        container[key] = _Nested(container[key], chance.choice([1, 20, 40, 900, 5000]))
    else:
        container[key] = copy.deepcopy(chance.choice(STRANGE))  # they are changed in their turn


def damaged(text: str, number: int) -> bytes:
    """The manifest with one to three faults; the same for the same number."""
    chance = random.Random(number)
    if chance.random() < 0.8:
        raw = json.loads(text)
        for _ in range(chance.choice([1, 1, 2, 3])):
            if raw:
                _mutated(raw, chance)
        return _written(raw)
    data = bytearray(text.encode())
    for _ in range(chance.choice([1, 1, 2, 8])):
        if not data:
            break
        at = chance.randrange(len(data))
        kind = chance.randrange(5)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.choice([1, 2, 30])]
        elif kind == 2:
            data[at:at] = chance.choice([b"\0", b"\xff\xfe", b"[", b"}", b'"', b"9", b"1e999", b"\\ud800", b"{}", b","])
        elif kind == 3:
            end = min(len(data), at + chance.choice([5, 80]))
            data[at:at] = data[at:end]
        else:
            del data[at + 1 :]
    return bytes(data)


def survived(root: Path, manifest: bytes) -> str:
    """What came of it: ``ok``, or the name of the error of ours that every verb ended with.

    Raises:
        Exception: whatever else a verb ended with.
    """
    (root / MANIFEST).write_bytes(manifest)
    try:
        outcome = "ok"
        with Localizer(Bundle.open(root)) as localizer:
            blank = np.zeros((*localizer.bundle.manifest.model.input_size, 3), np.uint8)
            localizer.one(blank)
    except WgapError as error:
        outcome = type(error).__name__
        if not str(error).replace("\n", "").isprintable():
            raise ValueError(f"a message that no terminal should get: {str(error)!a}") from error
    if outcome != "ManifestError":
        for more in ([], ["--json"]) if len(manifest) % 4 == 0 else (["--json"],):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(WgapError):
                WGAP.main(["inspect", str(root), *more], standalone_mode=False)
    return outcome


def attack(bundle: Path, folder: Path, numbers: range) -> tuple[dict[str, int], list[str]]:
    """Outcomes by name with their counts, and a line for each number whose manifest a verb could not judge."""
    root = Path(shutil.copytree(bundle, folder / "attacked"))
    text = Bundle.open(root).manifest.to_json() if numbers.start % 2 else (root / MANIFEST).read_text()
    outcomes: dict[str, int] = {}
    found = []
    for number in numbers:
        try:
            outcome = survived(root, damaged(text, number))
        except Exception as error:
            outcome = "finding"
            found.append(f"{number}: {type(error).__name__}: {error}")
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes, found
