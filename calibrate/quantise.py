"""INT8 as Q/DQ on the convolutions: one file that runs in INT8 on the CPU and parses in TensorRT 10, 11 and RTX."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from wgap.calibrate.ranges import Ranges, silence, toolkit
from wgap.errors import CalibrationError
from wgap.export.attest import convolution_nodes as convolutions
from wgap.manifest import HEAD

__all__ = ["convolutions", "float_graph", "head_nodes", "int8_graph", "scales"]


def float_graph(content: bytes, source: Path, out: Path) -> None:
    """The float32 graph with each ReLU that feeds one max pooling moved behind it.

    The outputs are the same, since both take the larger of values. The ReLU, which ONNX Runtime runs in float between
    two INT8 operators, then has a quarter of the work, and pooling runs in INT8.

    Raises:
        CalibrationError: if the graph is of a lower precision already, or cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise CalibrationError(f"{source} is not an ONNX file ({error}); export the bundle again") from error
    nodes = model.graph.node
    lower = next((node.op_type for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")), None)
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        lower = "float16"
    if lower is not None:
        raise CalibrationError(
            f"{source}: expected the float32 graph of `wgap export`, but it already has {lower} "
            f"{'weights' if lower == 'float16' else 'nodes'}; calibrate a bundle exported from the checkpoint"
        )
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    for relu in [node for node in nodes if node.op_type == "Relu"]:
        after = readers.get(relu.output[0], [])
        if len(after) == 1 and after[0].op_type == "MaxPool" and relu.output[0] not in outputs:
            pool = after[0]
            between = relu.output[0]
            relu.output[0], pool.input[0] = pool.output[0], relu.input[0]
            pool.output[0] = relu.input[0] = between
            nodes.remove(relu)
            nodes.insert(list(nodes).index(pool) + 1, relu)
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    out.write_bytes(model.SerializeToString(deterministic=True))


def head_nodes(model: Any) -> list[str]:
    """Nodes of a foreground head, which stay in float32 at every precision."""
    return [node.name for node in model.graph.node if node.name.startswith(HEAD)]


def int8_graph(graph: Path, ranges: Ranges, out: Path, keep_float: Collection[str] = ()) -> None:
    """Write the Q/DQ graph: symmetric INT8, per channel for weights, per tensor for activations, biases left float32.

    A convolution's output and the output of its ReLU share one scale: what is below zero is cut by the ReLU anyway, so
    the range is spent on what remains, and a value is rounded once instead of twice.

    Args:
        graph: the float32 graph of :func:`float_graph`.
        ranges: of that graph's activations, from :func:`wgap.calibrate.ranges.activation_ranges`.
        out: where to write it.
        keep_float: convolution nodes left in float32.

    Raises:
        CalibrationError: if ``keep_float`` leaves no convolution to quantise.
    """
    quantization = toolkit()
    import onnx
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer  # quantize_static takes no ranges before 1.27

    names = convolutions(graph)
    if set(keep_float) == set(names):
        raise CalibrationError("every convolution would stay in float32; use the float32 file")
    float32 = onnx.load(str(graph))
    known = {n: TensorData(lowest=_f32(low), highest=_f32(high)) for n, (low, high) in _shared(graph, ranges).items()}
    with silence():
        quantizer = QDQQuantizer(
            float32,
            per_channel=True,
            reduce_range=False,
            weight_qType=quantization.QuantType.QInt8,
            activation_qType=quantization.QuantType.QInt8,
            tensors_range=TensorsData(quantization.CalibrationMethod.MinMax, known),
            nodes_to_quantize=[],
            nodes_to_exclude=[*sorted(keep_float), *head_nodes(float32)],
            op_types_to_quantize=["Conv"],
            extra_options={"QuantizeBias": False, "ActivationSymmetric": True},
        )
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    model = quantizer.model.model
    onnx.checker.check_model(model, full_check=True)
    out.write_bytes(model.SerializeToString(deterministic=True))


def scales(graph: Path) -> dict[str, float]:
    """Scale of each quantised activation in a Q/DQ file, by the name of the float tensor."""
    import onnx
    from onnx import numpy_helper

    content = onnx.load(str(graph)).graph
    constants = {tensor.name: tensor for tensor in content.initializer}
    return {
        node.input[0]: float(numpy_helper.to_array(constants[node.input[1]]))
        for node in content.node
        if node.op_type == "QuantizeLinear"
    }


def _shared(graph: Path, ranges: Ranges) -> Ranges:
    """Ranges with each convolution's output (and its pooled output) given that of the ReLU behind it."""
    import onnx

    nodes = onnx.load(str(graph)).graph.node
    source = {node.output[0]: node for node in nodes}
    shared = dict(ranges)
    for relu in (node for node in nodes if node.op_type == "Relu"):
        name, result = relu.input[0], ranges[relu.output[0]]
        while name in source and source[name].op_type in ("MaxPool", "Conv"):
            shared[name] = result
            if source[name].op_type == "Conv":
                break
            name = source[name].input[0]
    return shared


def _f32(value: float) -> Any:
    import numpy as np

    return np.array(value, np.float32)
