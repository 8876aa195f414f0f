"""INT8 of networks whose tensors have several readers: sums, concatenations, branches, gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wgap.calibrate.candidate import Calibration, calibrate, prepare
from wgap.calibrate.half import rounded_graph
from wgap.calibrate.images import image_set
from wgap.calibrate.quantise import convolutions
from wgap.export.attest import attest_network
from wgap.runtime.networks.onnxruntime import file_network

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")


def convolution(inside: int, out: int, side: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> object:
    conv = torch.nn.Conv2d(inside, out, side, stride, side // 2, groups=groups, bias=False)
    return torch.nn.Sequential(conv, torch.nn.ReLU6()) if act else conv


class Mixed(torch.nn.Module):
    """One of each: a residual stage with a projection, a linear bottleneck, branches, a dense layer, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8, stride=2)
        self.left = torch.nn.Sequential(convolution(8, 8), convolution(8, 12, act=False))
        self.projection = convolution(8, 12, 1, act=False)
        self.reduce = convolution(12, 8, 1, stride=2, act=False)  # read by a convolution and a sum
        self.bottleneck = torch.nn.Sequential(
            convolution(8, 24, 1), convolution(24, 24, groups=24), convolution(24, 8, 1, act=False)
        )
        self.branches = torch.nn.ModuleList([convolution(8, 8, 1), convolution(8, 8), convolution(8, 8, 1)])
        self.before = torch.nn.BatchNorm2d(24)  # stands before a convolution: nothing to fold it into
        self.dense = convolution(24, 8)
        self.squeeze = torch.nn.Conv2d(32, 4, 1)
        self.excite = torch.nn.Conv2d(4, 32, 1)
        self.last = convolution(32, 16, 1, stride=2)
        self.classifier = torch.nn.Linear(16, 3)

    def forward(self, x: object) -> object:
        x = self.stem(x)
        x = torch.relu(self.left(x) + self.projection(x))
        x = self.reduce(x)
        x = x + self.bottleneck(x)
        pooled = torch.nn.functional.max_pool2d(x, 3, 1, 1)
        x = torch.cat([self.branches[0](x), self.branches[1](x), self.branches[2](pooled)], 1)
        x = torch.cat([x, self.dense(torch.relu(self.before(x)))], 1)
        gate = torch.nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))
        x = self.last(x * torch.sigmoid(self.excite(gate)))
        return self.classifier(x.mean((2, 3)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Iterator[Calibration]:
    from wgap.export.imported import bundle_from_onnx
    from wgap.export.onnx import model_from_module

    folder = tmp_path_factory.mktemp("mixed")
    torch.manual_seed(4)
    model, rng = model_from_module(Mixed(), torch.zeros(2, 3, 64, 64), "x"), np.random.default_rng(4)
    for at, conv in reversed([(at, n) for at, n in enumerate(model.graph.node) if n.op_type == "Conv"]):
        name, result = f"norm_{at}", conv.output[0]
        conv.output[0] = f"{name}/in"
        count = next(t for t in model.graph.initializer if t.name == conv.input[1]).dims[0]
        values = [rng.uniform(0.5, 1.5, count), *rng.normal(0, 0.3, (2, count)), rng.uniform(0.5, 1.5, count)]
        names = [f"{name}/{number}" for number in range(4)]
        model.graph.initializer.extend(map(onnx.numpy_helper.from_array, np.float32(values), names))
        made = onnx.helper.make_node("BatchNormalization", [conv.output[0], *names], [result], name, epsilon=1e-3)
        model.graph.node.insert(at + 1, made)
    onnx.save(model, str(folder / "mixed.onnx"))
    (folder / "classes.txt").write_text("disc\nring\ncross\n")
    bundle = bundle_from_onnx(
        folder / "mixed.onnx", folder / "bundle", classes=folder / "classes.txt", preprocessing="torchvision-rgb"
    )
    with prepare(bundle, image_set(bundle, shapes, split="train")) as prepared:
        yield prepared


def test_every_convolution_runs_in_int8_whoever_else_reads_its_input(source: Calibration, tmp_path: Path) -> None:
    candidate = calibrate(source, "int8", tmp_path / "a.onnx")  # refused, did one run in float
    assert candidate.record.quantisation is not None
    count = len(convolutions(source.graph))
    assert (count, candidate.record.quantisation["attestation"]["ran_int8"]) == (15, 15)
    nodes = onnx.load(str(tmp_path / "a.onnx")).graph.node
    readers = [name for node in nodes for name in node.input]
    quantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    for node in nodes:
        if node.op_type == "Conv":
            assert node.input[0] in quantised
            assert readers.count(node.input[0]) == 1
        if node.op_type == "Add":
            assert all(name not in quantised for name in node.input) or len(set(node.input)) == 2


def test_its_features_are_close_to_float32_s(source: Calibration, tmp_path: Path) -> None:
    calibrate(source, "int8", tmp_path / "a.onnx")
    batch = source.images.batch()
    [float32, int8] = (
        file_network(source.bundle, path, "x").run(batch)["features"] for path in (source.graph, tmp_path / "a.onnx")
    )
    assert float(np.abs(int8 - float32).mean()) < 0.02 * float(float32.max())


def test_normalisation_is_folded_where_a_convolution_stands_before_it(source: Calibration) -> None:
    whole = onnx.load(str(source.bundle.path("onnx", "fp32"))).graph.node
    assert [node.op_type for node in whole].count("BatchNormalization") == 16
    assert [n.op_type for n in onnx.load(str(source.graph)).graph.node].count("BatchNormalization") == 1
    batch = source.images.batch()
    expected, found = (
        file_network(source.bundle, path, "x").run(batch)["features"]
        for path in (source.bundle.path("onnx", "fp32"), source.graph)
    )
    assert float(np.abs(found - expected).max()) < 1e-5 * float(expected.max())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_reaches_from_the_first_convolution_to_the_features(
    source: Calibration, precision: str, tmp_path: Path
) -> None:
    path = calibrate(source, precision, tmp_path / "a.onnx").path
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    for node in model.graph.node:
        if node.op_type in ("Conv", "Clip", "Relu", "Add", "Concat", "MaxPool"):
            assert types[node.output[0]] == half, node.name
        elif node.op_type in ("Sigmoid", "Gemm", "Sub", "ReduceMean"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name
    batch = source.images.batch()
    rounded_graph(path, tmp_path / "rounded.onnx")
    float32, rounded = (
        file_network(source.bundle, each, "x").run(batch)["features"]
        for each in (source.graph, tmp_path / "rounded.onnx")
    )
    apart = float(np.abs(rounded - float32).mean()) / float(float32.max())
    assert 2e-5 < apart < {"fp16": 1e-3, "bf16": 1e-2}[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_tensorrt_rtx_builds_it_in_that_precision(source: Calibration, precision: str, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    path, entry = source.graph, source.bundle.model_file("fp32")
    if precision != "fp32":
        candidate = calibrate(source, precision, tmp_path / "a.onnx")
        path, entry = candidate.path, replace(entry, precision=precision, calibration=candidate.record)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(path))
    assert attest_network(trt, network, convolutions(path), entry)["convolutions"] == {precision: 15}
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("image", *[(count, 64, 64, 3) for count in (1, 2, 4)])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
