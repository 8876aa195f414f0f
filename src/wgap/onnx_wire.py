"""ONNX files by their wire format, as far as it takes to know that a file is all there is to it, and what it computes.

The runtime has no onnx package. What it has to know before ONNX Runtime or TensorRT see a file is whether some tensor
says that its values lie in another file: nobody has hashed that one, and its path may lead anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from wgap.errors import BundleError

__all__ = ["Node", "graph_nodes", "require_self_contained"]

_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Of each message the fields, by number, in which a tensor may lie (onnx.proto)."""

_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_DEEPEST = 64


class Node(NamedTuple):
    """One operation of a graph: type, name, the tensors it reads and makes, the shape of its largest constant."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: tuple[int, ...]


def graph_nodes(content: bytes, where: Path | str) -> list[Node]:
    """The nodes of an ONNX file's main graph, in its order; constants are left out of their inputs.

    Raises:
        BundleError: the bytes are no such file.
    """
    data = memoryview(content)
    try:
        [graph] = [place for number, wire, *place in _fields(data, 0, len(data)) if (number, wire) == (7, 2)]
        messages = [(number, first, last) for number, wire, first, last in _fields(data, *graph) if wire == 2]
        shapes = dict(_constant(data, first, last) for number, first, last in messages if number == 5)
        nodes = [_node(data, first, last, shapes) for number, first, last in messages if number == 1]
    except (ValueError, IndexError) as error:
        raise BundleError(f"{where} is not an ONNX file ({error}); copy the bundle again or export it again") from error
    return nodes


def _constant(data: memoryview, start: int, end: int) -> tuple[str, tuple[int, ...]]:
    """Name and shape of a tensor."""
    name, shape = "", []
    for number, wire, first, last in _fields(data, start, end):
        if (number, wire) == (_NAME, 2):
            name = _text(data, first, last)
        elif (number, wire) == (1, 0):
            shape.append(first)
        elif (number, wire) == (1, 2):
            at = first
            while at < last:
                extent, at = _number(data, at, last)
                shape.append(extent)
    return name, tuple(shape)


def _node(data: memoryview, start: int, end: int, shapes: dict[str, tuple[int, ...]]) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}
    for number, wire, first, last in _fields(data, start, end):
        if wire == 2 and number in texts:
            texts[number].append(_text(data, first, last))
    weights = [shapes[name] for name in texts[1] if name in shapes]
    inputs = tuple(name for name in texts[1] if name and name not in shapes)
    return Node(
        "".join(texts[4]), "".join(texts[3]), inputs, tuple(filter(None, texts[2])),
        max(weights, key=lambda shape: (len(shape), shape), default=()),
    )  # fmt: skip


def _text(data: memoryview, first: int, last: int) -> str:
    return bytes(data[first:last]).decode("utf-8", "replace")


def require_self_contained(content: bytes, where: Path | str) -> None:
    """Refuse an ONNX file some of whose values lie in another file.

    Args:
        content: of the file.
        where: what messages call it.

    Raises:
        BundleError: naming the tensor; or the bytes are no such file.
    """
    data, todo = memoryview(content), [("model", 0, len(content), 0)]
    try:
        while todo:
            kind, start, end, depth = todo.pop()
            if depth > _DEEPEST:
                raise ValueError("graphs lie too deep within each other")
            name, elsewhere = "", False
            for number, wire, first, last in _fields(data, start, end):
                if kind == "tensor":
                    elsewhere |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and (wire, first) != (0, 0))
                    if (number, wire) == (_NAME, 2):
                        name = _text(data, first, last)
                elif wire == 2 and number in _INSIDE[kind]:
                    todo.append((_INSIDE[kind][number], first, last, depth + 1))
            if elsewhere:
                raise BundleError(
                    f"{where}: the values of the tensor {name[:80]!a} lie in another file, which no hash covers; save "
                    "the model with its values inside (onnx.save without save_as_external_data) and export it again"
                )
    except (ValueError, IndexError) as error:
        raise BundleError(f"{where} is not an ONNX file ({error}); copy the bundle again or export it again") from error


def _fields(data: memoryview, at: int, end: int) -> list[tuple[int, int, int, int]]:
    """Number, wire type and place of each field of a message; of a number its value and 0."""
    found = []
    while at < end:
        key, at = _number(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _number(data, at, end)
            found.append((number, wire, value, 0))
            continue
        size = {1: 8, 5: 4}.get(wire, 0)
        if wire == 2:
            size, at = _number(data, at, end)
        elif not size:
            raise ValueError(f"wire type {wire}")
        if size > end - at:
            raise ValueError("cut short")
        found.append((number, wire, at, at + size))
        at += size
    return found


def _number(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without end")
