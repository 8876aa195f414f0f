"""FP16 and BF16, strongly typed: convolutions in half precision; inputs, outputs and softmax pooling in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgap.calibrate.ranges import Ranges, silence, toolkit
from wgap.errors import CalibrationError

__all__ = [
    "FP16_LARGEST", "HALVES", "Headroom", "bf16_graph", "fp16_graph", "headroom", "judgeable", "rounded_graph",
]  # fmt: skip

HALVES = ("fp16", "bf16")

FP16_LARGEST = 65504.0
"""Largest finite float16."""

_HALF = ("Conv", "Relu", "Clip", "MaxPool", "Add", "Concat")
"""Operators that run in float16 where they lie between the picture and the features; preprocessing, pooling, the
classifier and other operators stay float32."""

_ROUNDING = ("Conv", "Add")
"""Those of them that make new values."""

MARGIN = 2.0
"""An activation must stay this many times below the largest float16, or its layer stays float32."""


@dataclass(frozen=True)
class Headroom:
    """How far one activation stays from float16's limit.

    Attributes:
        tensor: its name.
        largest: largest magnitude over the calibration set.
        factor: ``FP16_LARGEST / largest``; below 1 it overflows.
    """

    tensor: str
    largest: float
    factor: float


def headroom(graph: Path, ranges: Ranges) -> list[Headroom]:
    """The range of every activation of the half-precision part, the tightest first.

    Args:
        graph: the float32 graph.
        ranges: min-max ranges of its activations over the calibration set.
    """
    import onnx

    names = {name for node in _body(onnx.load(str(graph))) for name in node.output}
    largest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items() if name in names}
    rows = [Headroom(name, value, FP16_LARGEST / value if value else float("inf")) for name, value in largest.items()]
    return sorted(rows, key=lambda row: (row.factor, row.tensor))


def fp16_graph(graph: Path, ranges: Ranges, out: Path, keep_float: Collection[str] = ()) -> list[str]:
    """Write the FP16 graph.

    Args:
        graph: the float32 graph.
        ranges: min-max ranges of its activations; a layer without ``MARGIN`` headroom stays float32.
        out: where to write it.
        keep_float: further nodes to leave in float32.

    Returns:
        nodes of the half-precision part that stay float32.

    Raises:
        CalibrationError: if a weight does not fit in float16.
    """
    toolkit()
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(graph))
    tight = {row.tensor for row in headroom(graph, ranges) if row.factor < MARGIN}
    kept = [node.name for node in _body(model) if node.name in keep_float or tight & {*node.input, *node.output}]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _body(model):
        for name in node.input[1:] if node.op_type == "Conv" and node.name not in kept else []:
            largest = float(np.abs(numpy_helper.to_array(constants[name])).max(initial=0.0))
            if not largest < FP16_LARGEST:
                raise CalibrationError(f"{name}: {largest:g} does not fit in float16; leave {node.name} in float32")
    lowered = _half(model, kept)
    onnx.checker.check_model(lowered, full_check=True)
    out.write_bytes(lowered.SerializeToString(deterministic=True))
    return kept


def bf16_graph(graph: Path, out: Path, keep_float: Collection[str] = ()) -> list[str]:
    """Write the BF16 graph: float32's range, so that nothing overflows, and 8 bits of mantissa.

    It is of opset 22, the first whose convolutions know bfloat16. TensorRT and TensorRT-RTX run it; ONNX Runtime's CPU
    provider has no such convolution.

    Args:
        graph: the float32 graph.
        out: where to write it.
        keep_float: nodes to leave in float32.

    Returns:
        nodes of the half-precision part that stay float32.
    """
    toolkit()
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter

    model = onnx.load(str(graph))
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept = [node.name for node in _body(model) if node.name in keep_float]
    lowered = version_converter.convert_version(_half(model, kept), 22)
    for tensor in lowered.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:  # from float32: float16 on the way would round twice
            values = exact[tensor.name].astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(
                helper.make_tensor(tensor.name, TensorProto.BFLOAT16, values.shape, values.tobytes(), raw=True)
            )
    for node in lowered.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
    del lowered.graph.value_info[:]
    onnx.checker.check_model(lowered, full_check=True)
    out.write_bytes(lowered.SerializeToString(deterministic=True))
    return kept


def _body(model: Any) -> list[Any]:
    """The nodes of the half-precision part: operators of ``_HALF`` behind a convolution and before the features."""
    behind: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Conv" or behind & {*node.input}:
            behind |= {*node.output}
    before = {"features"}
    for node in reversed(model.graph.node):
        if before & {*node.output}:
            before |= {*node.input}
    return [
        node
        for node in model.graph.node
        if node.op_type in _HALF and behind & {*node.output} and before & {*node.output}
    ]


def _half(model: Any, kept: Collection[str]) -> Any:
    """The model with its half-precision part in float16, except nodes that are kept."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    outside = {node.name for node in model.graph.node} - {node.name for node in _body(model)}
    with silence():
        lowered = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[], node_block_list=sorted({*outside, *kept})
        )
        # Between two float32 nodes the converter goes through float16 and back, which would cost their precision.
        tidy = OnnxModel(lowered)
        tidy.remove_cascaded_cast_nodes()
        tidy.topological_sort(is_deterministic=True)
    return lowered


@contextmanager
def judgeable(path: Path, precision: str) -> Iterator[Path]:
    """A file that ONNX Runtime's CPU provider computes as the given one is meant: itself, or its rounded graph."""
    if precision not in HALVES:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="wgap-rounded-") as folder:
        rounded = Path(folder) / "rounded.onnx"
        rounded_graph(path, rounded)
        yield rounded


def rounded_graph(lowered: Path, out: Path) -> None:
    """Write an FP16 or BF16 file as a float32 graph that rounds every value as that type would.

    ONNX Runtime's CPU provider has no half-precision convolution: it computes an FP16 file in float32 and drops the
    casts in between, so that running the file there shows no rounding at all. Here each convolution's and each sum's
    result, and what enters the half-precision part, goes through the type explicitly: rounded to nearest even, float16
    infinite above 65504, with a convolution's own sums in float32 as tensor cores have them. ReLU, Clip, max pooling
    and concatenation make no new values.

    Args:
        lowered: a file of :func:`fp16_graph` or :func:`bf16_graph`.
        out: where to write the float32 graph; same inputs, outputs and weights.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(lowered))
    graph, halves = model.graph, (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    half = {v.name: v.type.tensor_type.elem_type for v in inferred if v.type.tensor_type.elem_type in halves}
    for tensor in graph.initializer:
        if tensor.data_type in halves:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    del graph.value_info[:]
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        enters = node.op_type == "Cast" and node.attribute[0].i in halves
        if not enters and not (node.op_type in _ROUNDING and node.output[0] in half):
            graph.node.append(node)
            continue
        result = node.output[0]
        exact, rounded = (node.input[0] if enters else f"{result}_exact"), f"{result}_rounded"
        if not enters:
            node.output[0] = exact
            graph.node.append(node)
        kind = half[result]
        graph.node.append(helper.make_node("Cast", [exact], [rounded], f"{result}_round", to=kind))
        graph.node.append(helper.make_node("Cast", [rounded], [result], f"{result}_widen", to=TensorProto.FLOAT))
    onnx.checker.check_model(model, full_check=True)
    out.write_bytes(model.SerializeToString(deterministic=True))
