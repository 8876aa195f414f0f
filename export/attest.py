"""What TensorRT was told to compute: the network's layers by type and precision, convolution by convolution."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from wgap.errors import CheckFailedError, MissingDependencyError
from wgap.manifest import HEAD, BundleFile

__all__ = ["attest_network", "convolution_nodes", "inspect_plan"]

_NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}


def convolution_nodes(graph: Path | bytes) -> list[str]:
    """Names of the ONNX graph's convolutions, in its order; those of a foreground head are no part of the network.

    Raises:
        MissingDependencyError: if onnx is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "building an engine counts the ONNX graph's convolutions and needs onnx, which is not installed: "
            "pip install 'wgap[calibrate]'"
        ) from error
    model = onnx.load_from_string(graph if isinstance(graph, bytes) else graph.read_bytes())
    return [node.name for node in model.graph.node if node.op_type == "Conv" and not node.name.startswith(HEAD)]


def attest_network(library: Any, network: Any, expected: list[str], entry: BundleFile) -> dict[str, Any]:
    """Compare the precision of every convolution with what the bundle says of the file.

    A strongly typed network computes in the types it is given. A convolution counts as ``int8`` if its activations
    and its weights both come out of a dequantisation of INT8, else by the type it reads.

    Args:
        library: TensorRT's module.
        network: the parsed network.
        expected: the ONNX graph's convolutions by name.
        entry: the ONNX file; its ``keep_float`` names convolutions that stay in float32.

    Returns:
        ``convolutions`` (how many of each precision), ``foreground_head`` (how many more, all float32, where there is
        one), ``layers`` (how many of each type and precision).

    Raises:
        CheckFailedError: if convolutions are missing, or compute in another precision; the message names them.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    found = {
        layer.name: _precision(library, layer, makers)
        for layer in layers
        if layer.type == library.LayerType.CONVOLUTION
    }
    head = {name: found.pop(name) for name in list(found) if name.startswith(HEAD)}
    if len(found) != len(expected):
        raise CheckFailedError(
            f"{entry.path}: expected the ONNX graph's {len(expected)} convolutions, {library.__name__}'s network has "
            f"{len(found)}; missing: {', '.join(sorted(set(expected) - set(found))) or 'none by name'}"
        )
    kept = entry.calibration.keep_float if entry.calibration else ()
    wrong = []
    for name, precision in found.items():
        wanted = "fp32" if name in kept else entry.precision
        if precision != wanted:
            wrong.append(f"{name} ({precision}, expected {wanted})")
    wrong += [f"{name} ({precision}, expected fp32)" for name, precision in head.items() if precision != "fp32"]
    if wrong:
        raise CheckFailedError(
            f"{entry.path}: {len(wrong)} of {len(found)} convolutions would not compute in the precision that the "
            f"manifest says: {', '.join(wrong[:8])}{' ...' if len(wrong) > 8 else ''}. Calibrate the bundle again"
        )
    kinds = Counter(f"{layer.type.name.lower()} {_output(layer)}".strip() for layer in layers)
    counted = {"foreground_head": len(head)} if head else {}
    return {
        **counted,
        "convolutions": dict(sorted(Counter(found.values()).items())),
        "layers": dict(sorted(kinds.items())),
    }


def inspect_plan(library: Any, log: Any, plan: bytes) -> dict[str, Any] | None:
    """What the engine inspector lists of the built engine: how many layers, by type; None if it does not load here."""
    runtime = library.Runtime(log)
    if hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True  # a version-compatible plan carries code; this one was built just now
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    text = engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    kinds = Counter(layer.get("LayerType", "unnamed") if isinstance(layer, dict) else "unnamed" for layer in layers)
    return {"layers": len(layers), "types": dict(sorted(kinds.items()))}


def _precision(library: Any, layer: Any, makers: dict[str, Any]) -> str:
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    sources = [makers.get(tensor.name) for tensor in inputs[:2] if tensor is not None]
    if len(sources) == 2 and all(
        source is not None
        and source.type == library.LayerType.DEQUANTIZE
        and source.get_input(0).dtype == library.DataType.INT8
        for source in sources
    ):
        return "int8"
    kind = str(inputs[0].dtype.name)
    return _NAMES.get(kind, kind.lower())


def _output(layer: Any) -> str:
    return layer.get_output(0).dtype.name.lower() if layer.num_outputs else ""
