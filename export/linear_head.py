"""Where an ONNX classifier is linear in its pooled features: found from the logits backwards.

What is found is a guess with names and numbers. :mod:`wgap.export.imported` proves it on pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from wgap.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LinearHead", "linear_head", "printable", "shown"]

_PASSED = frozenset({"Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})
"""Operators that keep a picture's values and their order, once there is one position left."""

_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})

_SPATIAL_SOFTMAX = frozenset({"Softmax", "Sub", "ReduceMax", "Reshape", "Flatten", "Identity"})
"""Operators of a softmax over positions: the maps made flat, their maximum subtracted, and back."""

_FOLDED = frozenset({"Constant", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})
"""Operators that exporters put between a weight and its use."""


@dataclass(frozen=True)
class LinearHead:
    """``logits = weight . pool(features) + bias``, as the graph has it.

    Attributes:
        logits: tensor; before a softmax where the graph ends with one.
        features: tensor, the pooling's input.
        layout: of the features.
        shape: (C, h, w) of the features; 0 where the graph computes an extent, or an operator hides it.
        weight: float32 [K, C].
        bias: float32 [K].
        flat: whether the logits are [N, K]; else they have further extents of 1.
        pooling: ``gap``, or ``wgap`` where what is averaged are the features times their own spatial softmax; None: not
            found.
        nodes: names of the nodes: ``classifier`` and, where it was found, ``pooling``.
    """

    logits: str
    features: str
    layout: Literal["NCHW", "NHWC"]
    shape: tuple[int, int, int]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    flat: bool
    pooling: Literal["gap", "wgap"] | None
    nodes: dict[str, str]


class _RefusedError(Exception):
    """Why an output is no linear classifier on pooled features."""


def linear_head(model: Any, logits: str | None, features: str | None) -> LinearHead:
    """The classifier of a graph whose shapes are inferred.

    Args:
        model: an ONNX model of opset 13 or higher in float32.
        logits: tensor to start from; None: the graph's outputs, of which one must fit.
        features: tensor that is pooled, where the search does not find it; None: the input of the pooling.

    Raises:
        CheckpointError: naming the node that does not fit, or the several heads that do.
    """
    graph = _Graph(model)
    for name in (logits, features):
        if name is not None and name not in graph.producers:
            raise CheckpointError(
                f"no node of the graph makes a tensor {name!r}; its outputs are {', '.join(graph.outputs)}"
            )
    found, reasons = [], []
    for name in [logits] if logits else graph.outputs:
        try:
            found.append(_head_from(graph, name, features))
        except _RefusedError as error:
            reasons.append(str(error))
    if len(found) > 1:
        raise CheckpointError(
            f"the graph has several heads, {', '.join(head.logits for head in found)}: name one with --logits"
        )
    if not found:
        raise CheckpointError(f"no linear classifier on pooled features: {'; '.join(reasons[:3])}")
    return found[0]


@dataclass
class _Graph:
    """Nodes by what they make, and constants."""

    model: Any
    producers: dict[str, Any] = field(init=False)
    initializers: dict[str, Any] = field(init=False)
    shapes: dict[str, list[int | None]] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.producers = {name: node for node in graph.node for name in node.output}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = [value.name for value in graph.output]
        self.shapes = {
            value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
            for value in (*graph.value_info, *graph.input, *graph.output)
        }

    def constant(self, name: str) -> Any:
        """The value of a tensor that depends on no input, as an array; None where it does."""
        from onnx import numpy_helper
        from onnx.reference import ReferenceEvaluator

        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producers.get(name)
        if node is None or node.op_type not in _FOLDED:
            return None
        inputs = {source: self.constant(source) for source in node.input if source}
        if any(value is None for value in inputs.values()):
            return None
        evaluated: Any = ReferenceEvaluator(node).run(None, inputs)
        return evaluated[0]


def shown(node: Any) -> str:
    """A node as messages and records name it: printable ASCII."""
    return f"{printable(node.name or node.output[0])} ({node.op_type})"


def printable(name: str) -> str:
    """A name as messages and manifests can hold it."""
    return ascii(name)[1:-1]


def _head_from(graph: _Graph, start: str, given: str | None) -> LinearHead:
    tensor = logits = start
    weight: Any = None
    biases: list[Any] = []
    nodes: dict[str, str] = {}
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    while weight is None or ("pooling" not in nodes and tensor != given):
        node = graph.producers.get(tensor)
        if node is None:
            raise _RefusedError(f"from {start} back to the input {tensor} there is no {_missing(weight, nodes)}")
        if not node.input:
            raise _RefusedError(f"{start} is made by the node {shown(node)}, of no input")
        kind, following = node.op_type, node.input[0]
        pooled = None if "pooling" in nodes else _pooling(graph, node)
        if kind in _SOFTMAX and weight is None and not biases and "pooling" not in nodes:
            logits = following
        elif pooled and not _pooled_already(graph, node, pooled):
            nodes["pooling"], layout = shown(node), pooled
        elif pooled:
            pass  # an average of one position is that
        elif weight is None and kind == "Add":
            following = _summand(graph, node, biases)
        elif weight is None and kind in ("Gemm", "MatMul", "Conv"):
            weight = _weight(graph, node, biases)
            nodes["classifier"] = shown(node)
        elif kind not in _PASSED and weight is not None and given is not None and "pooling" not in nodes:
            following = given  # the proof says whether that is so
        elif kind not in _PASSED:
            where = "between the pooling and the classifier" if weight is not None else f"before {start}"
            where = where if "pooling" not in nodes else "between the classifier and the pooling"
            raise _RefusedError(f"expected {_missing(weight, nodes)}, got the node {shown(node)} {where}")
        tensor = following
    pooling: Literal["gap", "wgap"] | None = "gap" if "pooling" in nodes else None
    if pooling and tensor != given and (weighted := _softmax_weighted(graph, tensor)):
        tensor, pooling = weighted, "wgap"
    if given not in (None, tensor):
        raise _RefusedError(f"the pooling {nodes['pooling']} reads {tensor}, --features says {given}")
    above = graph.producers.get(tensor)
    if layout == "NHWC" and above is not None and above.op_type == "Transpose" and _permutation(above) == [0, 2, 3, 1]:
        tensor, layout = above.input[0], "NCHW"
    if tensor not in graph.producers:
        raise _RefusedError(f"what is pooled is the input {tensor} itself")
    shape = _feature_shape(graph, tensor, layout)
    if shape[1:] == (1, 1):
        raise _RefusedError(f"the features {tensor} have one position, 1x1: there is nowhere to localize")
    return LinearHead(
        logits, tensor, layout, shape, weight, _bias(biases, len(weight), nodes),
        len(graph.shapes.get(logits, [])) == 2, pooling, nodes,
    )  # fmt: skip


def _missing(weight: Any, nodes: dict[str, str]) -> str:
    if weight is None:
        return "a classifier (Gemm, MatMul or 1x1 Conv with constant weights)"
    return f"a pooling over height and width (GlobalAveragePool, ReduceMean) before {nodes['classifier']}"


def _pooling(graph: _Graph, node: Any) -> Literal["NCHW", "NHWC"] | None:
    """The layout of what a node averages over height and width; None where it does not."""
    from onnx import helper

    shape = graph.shapes.get(node.input[0], []) if node.input else []
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "GlobalAveragePool" and len(shape) in (0, 4):  # unknown behind an operator of another domain
        return "NCHW"
    if node.op_type == "AveragePool" and list(attributes["kernel_shape"]) == shape[2:]:
        return "NCHW" if not any(attributes.get("pads", [0])) else None
    if node.op_type != "ReduceMean" or len(shape) != 4:
        return None
    axes = graph.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else attributes.get("axes")
    over = sorted(int(axis) % 4 for axis in axes) if axes is not None else []
    return "NCHW" if over == [2, 3] else "NHWC" if over == [1, 2] else None


def _softmax_weighted(graph: _Graph, tensor: str) -> str | None:
    """F, where a tensor is F times the softmax over its own positions; the proof says whether it is."""
    node = graph.producers.get(tensor)
    if node is None or node.op_type != "Mul":
        return None
    for features, weights in (node.input, reversed(node.input)):
        waiting, seen, kinds = [weights], {features}, set()
        while waiting:
            if (name := waiting.pop()) in seen:
                continue
            above = graph.producers.get(name)
            if above is None or above.op_type not in _SPATIAL_SOFTMAX:
                break
            seen.add(name)
            kinds.add(above.op_type)
            waiting += above.input if above.op_type == "Sub" else above.input[:1]
        else:
            if "Softmax" in kinds:
                return str(features)
    return None


def _pooled_already(graph: _Graph, node: Any, layout: str) -> bool:
    """Whether what a node averages has one position only."""
    shape = graph.shapes.get(node.input[0], [])
    return (shape[2:] if layout == "NCHW" else shape[1:3]) == [1, 1]


def _summand(graph: _Graph, node: Any, biases: list[Any]) -> str:
    """The tensor to which a node adds a bias, which is kept."""
    for this, other in ((0, 1), (1, 0)):
        if (bias := graph.constant(node.input[this])) is not None:
            biases.append(bias)
            return str(node.input[other])
    raise _RefusedError(f"the node {shown(node)} adds two branches where one classifier was expected")


def _weight(graph: _Graph, node: Any, biases: list[Any]) -> Any:
    """float32 [K, C] of a Gemm, MatMul or 1x1 convolution; its own bias is kept."""
    import numpy as np
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weight = graph.constant(node.input[1])
    if weight is None:
        raise _RefusedError(f"the weights of {shown(node)} are no constants")
    scale = attributes.get("beta", 1.0)
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constant(node.input[2])
        if bias is None:
            raise _RefusedError(f"the bias of {shown(node)} is no constant")
        biases.append(np.asarray(bias, np.float32) * np.float32(scale))
    if node.op_type == "Conv":
        plain = weight.ndim == 4 and weight.shape[2:] == (1, 1) and attributes.get("group", 1) == 1
        if not plain or {*attributes.get("strides", [1])} != {1} or any(attributes.get("pads", [0])):
            raise _RefusedError(
                f"expected a 1x1 convolution as classifier, got {shown(node)} with weights {list(weight.shape)}"
            )
        return np.array(weight[:, :, 0, 0], np.float32, order="C")  # a copy: the tensor's own values are read-only
    if weight.ndim != 2 or attributes.get("transA", 0):
        raise _RefusedError(f"expected a matrix of weights in {shown(node)}, got {list(weight.shape)}")
    turned = weight if attributes.get("transB", 0) else weight.T
    return np.ascontiguousarray(turned, np.float32) * np.float32(attributes.get("alpha", 1.0))


def _bias(biases: list[Any], count: int, nodes: dict[str, str]) -> Any:
    import numpy as np

    total = np.zeros(count, np.float32)
    for bias in biases:
        if bias.size not in (1, count):
            raise _RefusedError(f"the bias of {nodes['classifier']} has {bias.size} values for {count} classes")
        total = total + np.ravel(bias).astype(np.float32)
    return total


def _permutation(node: Any) -> list[int]:
    return [number for attribute in node.attribute if attribute.name == "perm" for number in attribute.ints]


def _feature_shape(graph: _Graph, tensor: str, layout: str) -> tuple[int, int, int]:
    shape = graph.shapes.get(tensor, [])
    if not shape:
        return 0, 0, 0
    if len(shape) != 4:
        raise _RefusedError(f"expected features of four extents, got {tensor} {shape}")
    _, a, b, c = (extent or 0 for extent in shape)
    return (a, b, c) if layout == "NCHW" else (c, a, b)
