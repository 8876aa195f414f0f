"""INT8 as Q/DQ on the convolutions: one file that runs in INT8 on the CPU and parses in TensorRT 10, 11 and RTX."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from wgap.calibrate.ranges import Ranges, silence, toolkit
from wgap.errors import CalibrationError
from wgap.export.attest import convolution_nodes as convolutions
from wgap.manifest import HEAD

__all__ = ["convolutions", "float_graph", "head_nodes", "int8_graph", "scales"]


def float_graph(content: bytes, source: Path, out: Path) -> None:
    """The float32 graph, each batch normalisation behind a convolution folded into it, each ReLU behind max pooling.

    Libraries fold the former themselves, but not across a quantisation. A ReLU that feeds one max pooling changes
    places with it: the outputs are the same, since both take the larger of values. The ReLU, which ONNX Runtime runs in
    float between two INT8 operators, then has a quarter of the work, and pooling runs in INT8.

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
    outputs = {value.name for value in model.graph.output}
    _fold_normalisations(model.graph, outputs)
    readers = _readers(nodes)
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


def _readers(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    """Tensor name to the nodes that read it; a node that reads it twice is there twice."""
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _fold_normalisations(graph: Any, outputs: Collection[str]) -> None:
    """Put each BatchNormalization of constants that alone reads a convolution's result into its weights and bias."""
    import numpy as np
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph.node)
    for conv in [node for node in graph.node if node.op_type == "Conv"]:
        [*after] = readers.get(conv.output[0], [])
        if len(after) != 1 or after[0].op_type != "BatchNormalization" or conv.output[0] in outputs:
            continue
        normalisation = after[0]
        names = [*conv.input[1:], *normalisation.input[1:]]
        if any(name not in constants for name in names) or len(readers[conv.input[1]]) > 1:
            continue
        weight, *bias = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in conv.input[1:])
        gain, shift, mean, variance = (
            numpy_helper.to_array(constants[name]).astype(np.float64) for name in normalisation.input[1:]
        )
        epsilon = next((a.f for a in normalisation.attribute if a.name == "epsilon"), 1e-5)
        factor = gain / np.sqrt(variance + epsilon)
        folded = {
            "weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
            "bias": ((bias[0] if bias else 0) - mean) * factor + shift,
        }
        made = [f"{conv.output[0]}/{name}" for name in folded]
        graph.initializer.extend(
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in zip(made, folded.values(), strict=True)
        )
        conv.input[1:] = made
        conv.output[0] = normalisation.output[0]
        graph.node.remove(normalisation)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def head_nodes(model: Any) -> list[str]:
    """Nodes of a foreground head, which stay in float32 at every precision."""
    return [node.name for node in model.graph.node if node.name.startswith(HEAD)]


def int8_graph(graph: Path, ranges: Ranges, out: Path, keep_float: Collection[str] = ()) -> None:
    """Write the Q/DQ graph: symmetric INT8, per channel for weights, per tensor for activations, biases left float32.

    A convolution's output and the output of its ReLU (or Clip) share one scale: what is below zero is cut by the ReLU
    anyway, so the range is spent on what remains, and a value is rounded once instead of twice. Sums of residual
    networks stay in float32.

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
    _give_each_its_own(quantizer.model.model.graph)
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


def _give_each_its_own(graph: Any) -> None:
    """Where a quantised value has several readers, a quantisation for each convolution among them alone.

    On x86 ONNX Runtime computes in unsigned bytes, and turns INT8 into them only where one DequantizeLinear follows a
    QuantizeLinear; with several, neither the convolution before nor those behind run in INT8. So each convolution
    quantises for itself, by a scale one float32 step from the next one's, since equal ones would be merged again; sums
    and other readers take the value itself. Where that value is a convolution's, which has to be quantised at once, a
    LeakyRelu of slope 1, an identity that no optimiser removes, stands for it.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers, readers = {name: node for node in graph.node for name in node.output}, _readers(graph.node)
    for quantise in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        [dequantise] = readers[quantise.output[0]]
        every = readers[dequantise.output[0]]
        own = [node for node in every if node.op_type == "Conv" and not node.name.startswith(HEAD)]
        value, scale = quantise.input[0], numpy_helper.to_array(constants[quantise.input[1]])
        of_convolution = value in makers and makers[value].op_type == "Conv"
        if len(every) < 2 or not (own or of_convolution):
            continue
        if of_convolution:
            value = f"{dequantise.output[0]}/same"
            graph.node.append(helper.make_node("LeakyRelu", dequantise.output[:1], [value], value, alpha=1.0))
        else:
            graph.node.remove(quantise)
            graph.node.remove(dequantise)
        for node in every:
            node.input[:] = [value if name == dequantise.output[0] else name for name in node.input]
        for node in own:
            name = f"{value}/{node.name}"
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
            pair = [f"{name}/scale", quantise.input[2]]
            graph.node.append(helper.make_node("QuantizeLinear", [value, *pair], [f"{name}/q"], f"{name}/q"))
            graph.node.append(helper.make_node("DequantizeLinear", [f"{name}/q", *pair], [f"{name}/dq"], f"{name}/dq"))
            node.input[0] = f"{name}/dq"
            scale = np.nextafter(scale, np.float32(np.inf))


def _shared(graph: Path, ranges: Ranges) -> Ranges:
    """Ranges with each convolution's output (and its pooled output) given that of the ReLU or Clip behind it alone."""
    import onnx

    nodes = onnx.load(str(graph)).graph.node
    source, readers = {node.output[0]: node for node in nodes}, _readers(nodes)
    shared = dict(ranges)
    for cut in (node for node in nodes if node.op_type in ("Relu", "Clip")):
        name, result = cut.input[0], ranges[cut.output[0]]
        while name in source and source[name].op_type in ("MaxPool", "Conv") and len(readers[name]) == 1:
            shared[name] = result
            if source[name].op_type == "Conv":
                break
            name = source[name].input[0]
    return shared


def _f32(value: float) -> Any:
    import numpy as np

    return np.array(value, np.float32)
