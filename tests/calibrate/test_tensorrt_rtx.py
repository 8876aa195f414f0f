"""The same files build into TensorRT-RTX engines, ahead of time and without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wgap.bundle import Bundle
from wgap.calibrate.candidate import Calibration, calibrate

trt = pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def builder() -> Any:
    return trt.Builder(trt.Logger(trt.Logger.ERROR))


def parsed(builder: Any, path: Path) -> tuple[Any, Any]:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    problems = [] if parser.parse_from_file(str(path)) else [parser.get_error(n) for n in range(parser.num_errors)]
    assert not problems, [f"{p.node_name()}: {p.desc()}" for p in problems]
    return network, parser  # which owns the weights


def engine(builder: Any, network: Any) -> Any:
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("image", (1, 224, 224, 3), (8, 224, 224, 3), (16, 224, 224, 3))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return plan


def kinds(network: Any) -> list[str]:
    return [network.get_layer(n).type.name for n in range(network.num_layers)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_precision_parses_strongly_typed_and_builds(
    builder: Any, cub10_source: Calibration, cub10_bundle: Path, tmp_path: Path, precision: str
) -> None:
    path = cub10_bundle / Bundle.open(cub10_bundle).model_file("fp32").path
    if precision != "fp32":
        path = calibrate(cub10_source, precision, tmp_path / f"{precision}.onnx").path
    network, _parser = parsed(builder, path)
    assert network.get_input(0).dtype == trt.DataType.UINT8
    outputs = {network.get_output(n).name: network.get_output(n).dtype for n in range(network.num_outputs)}
    assert outputs == {"logits": trt.DataType.FLOAT, "features": trt.DataType.FLOAT}
    layers = [network.get_layer(n) for n in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    assert len(convolutions) == 13
    expected = {"fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16}.get(precision, trt.DataType.FLOAT)
    assert {layer.get_output(0).dtype for layer in convolutions} == {expected}
    if precision == "int8":  # every convolution reads what was dequantised: activations and weights
        assert kinds(network).count("DEQUANTIZE") >= 26
        made = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
        assert all(layer.get_input(0).name in made for layer in convolutions)
    plan = engine(builder, network)
    assert 0.2 * path.stat().st_size < plan.nbytes < 1.5 * path.stat().st_size
