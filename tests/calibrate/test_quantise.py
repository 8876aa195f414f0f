"""The Q/DQ file: what is in it, what it runs as, and that a broken one is found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wgap.bundle import Bundle
from wgap.calibrate.attest import attest_int8
from wgap.calibrate.candidate import Calibration, GateRun, calibrate, prepare
from wgap.calibrate.gate import Limits, Observation, verdict
from wgap.calibrate.half import FP16_LARGEST, fp16_graph, headroom, rounded_graph
from wgap.calibrate.images import ImageSet, image_set
from wgap.calibrate.quantise import convolutions, float_graph, int8_graph, scales
from wgap.errors import CalibrationError, CheckFailedError
from wgap.runtime.networks.onnxruntime import file_network

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def source(tiny_bundle: Path, shapes: Path) -> Iterator[Calibration]:
    bundle = Bundle.open(tiny_bundle)
    with prepare(bundle, image_set(bundle, shapes, split="train")) as prepared:
        yield prepared


def forward(bundle: Bundle, path: Path, images: ImageSet) -> np.ndarray:
    return file_network(bundle, path, "x").run(images.batch())["features"]


def test_pooling_before_relu_changes_no_bit(source: Calibration) -> None:
    assert [n.op_type for n in onnx.load(str(source.graph)).graph.node].count("MaxPool") == 4
    expected = forward(source.bundle, source.bundle.path("onnx", "fp32"), source.images)
    assert np.array_equal(forward(source.bundle, source.graph, source.images), expected)


def test_every_convolution_stands_between_q_and_dq_with_symmetric_int8(source: Calibration, tmp_path: Path) -> None:
    int8_graph(source.graph, source.ranges, tmp_path / "a.onnx")
    graph = onnx.load(str(tmp_path / "a.onnx")).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    makers = {o: n for n in graph.node for o in n.output}
    nodes = [n for n in graph.node if n.op_type == "Conv"]
    assert len(nodes) == 13
    for node in nodes:
        data, weight = makers[node.input[0]], makers[node.input[1]]
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == (constants[weight.input[0]].shape[0],)  # per channel
        assert all(constants[bias].dtype == np.float32 for bias in node.input[2:])  # TensorRT takes no int32 bias
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()  # TensorRT takes no zero point


def test_a_convolution_shares_its_scale_with_its_relu(source: Calibration, tmp_path: Path) -> None:
    int8_graph(source.graph, source.ranges, tmp_path / "a.onnx")
    chosen = scales(tmp_path / "a.onnx")
    relu = {n.input[0]: n.output[0] for n in onnx.load(str(source.graph)).graph.node if n.op_type == "Relu"}
    compared = 0
    for before, after in relu.items():
        if before in chosen and after in chosen:
            assert chosen[before] == chosen[after]
            assert chosen[after] == pytest.approx(source.ranges[after][1] / 127, rel=0.01)
            compared += 1
    assert compared >= 8


def test_ranges_are_those_of_the_activations(source: Calibration) -> None:
    import onnxruntime

    model = onnx.load(str(source.graph))
    names = ["sub", "relu", "relu_5"]
    first = next(n for n in model.graph.node if n.op_type == "Conv").input[0]
    names[0] = first
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, value in zip(names, session.run(names, {"image": source.images.batch()}), strict=True):
        assert source.ranges[name] == pytest.approx((float(value.min()), float(value.max())), rel=1e-5)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_methods_choose_narrower_ranges(source: Calibration, method: str) -> None:
    with prepare(source.bundle, source.images, method) as other:
        assert other.ranges.keys() == source.ranges.keys()
        tops = [(other.ranges[n][1], source.ranges[n][1]) for n in source.ranges if n.startswith("relu")]
        assert all(narrow <= wide * 1.02 for narrow, wide in tops)
        assert any(narrow < wide * 0.999 for narrow, wide in tops)


def test_layers_kept_in_float_stay_there_and_the_attestation_counts_them(source: Calibration, tmp_path: Path) -> None:
    names = convolutions(source.graph)
    candidate = calibrate(source, "int8", tmp_path / "a.onnx", keep_float=[names[4], names[0]])
    assert candidate.record.keep_float == (names[0], names[4])
    assert candidate.record.quantisation is not None
    attested = candidate.record.quantisation["attestation"]
    assert (attested["meant_int8"], attested["meant_float"]) == (11, 2)
    assert (attested["ran_int8"], attested["ran_float"]) == (11, 2)
    with pytest.raises(CalibrationError, match="every convolution would stay in float32"):
        calibrate(source, "int8", tmp_path / "b.onnx", keep_float=names)


def test_a_convolution_that_would_run_in_float_fails_the_attestation(source: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    int8_graph(source.graph, source.ranges, path)
    attest_int8(path)
    model = onnx.load(str(path))
    users = {name: node for node in model.graph.node for name in node.input}
    conv = [n for n in model.graph.node if n.op_type == "Conv"][3]
    quantize = users[conv.output[0]]
    dequantize = users[quantize.output[0]]
    users[dequantize.output[0]].input[0] = conv.output[0]  # its output is no longer quantised
    for node in (quantize, dequantize):
        model.graph.node.remove(node)
    onnx.save(model, str(path))
    with pytest.raises(CheckFailedError, match=r"expected 13 of 13 convolutions in INT8, onnxruntime .* runs 12"):
        attest_int8(path)


def test_fp16_leaves_what_would_overflow_in_float32(source: Calibration, tmp_path: Path) -> None:
    assert fp16_graph(source.graph, source.ranges, tmp_path / "a.onnx") == []
    ranges = {**source.ranges, "relu_3": (0.0, 50_000.0)}
    kept = fp16_graph(source.graph, ranges, tmp_path / "b.onnx")
    graph = onnx.load(str(tmp_path / "b.onnx")).graph
    half = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    touching = {n.name for n in onnx.load(str(source.graph)).graph.node if "relu_3" in (*n.input, *n.output)}
    assert set(kept) == touching
    for node in graph.node:
        if node.op_type == "Conv":
            assert (node.input[1] in half) == (node.name not in kept)
    assert headroom(source.graph, ranges)[0].factor == pytest.approx(FP16_LARGEST / 50_000)
    assert {o.type.tensor_type.elem_type for o in graph.output} == {onnx.TensorProto.FLOAT}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_pooling_and_classifier_see_no_float16(source: Calibration, tmp_path: Path) -> None:
    fp16_graph(source.graph, source.ranges, tmp_path / "a.onnx")
    model = onnx.shape_inference.infer_shapes(onnx.load(str(tmp_path / "a.onnx")))
    types = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.output]}
    seen = {n.op_type: types[n.output[0]] for n in model.graph.node}
    for name in ("Softmax", "Mul", "ReduceMean", "Gemm", "Sub"):
        assert seen[name] == onnx.TensorProto.FLOAT, name
    for name in ("Conv", "MaxPool"):
        assert seen[name] == onnx.TensorProto.FLOAT16, name


def test_emulated_float16_overflows_like_float16(source: Calibration, tmp_path: Path) -> None:
    """A network whose activations do not fit is refused by the gate, although float32 runs it without complaint."""
    path = tmp_path / "a.onnx"
    fp16_graph(source.graph, source.ranges, path)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16 and len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array((values * np.float16(30)).astype(np.float16), tensor.name))
    onnx.save(model, str(path))
    assert np.isfinite(forward(source.bundle, path, source.images)).all()
    rounded_graph(path, tmp_path / "rounded.onnx")
    assert not np.isfinite(forward(source.bundle, tmp_path / "rounded.onnx", source.images)).all()
    run = GateRun(source.bundle, source.images)
    judged = run.judge(path, "fp16", [])
    assert not judged.passed
    assert "not finite" in judged.reasons[0]


def test_the_verdict_counts_as_it_says(source: Calibration) -> None:
    """Worked by hand: four images, one flip of class, one box halved, one not finite."""
    pictures = tuple(replace(p, label=0, boxes=((0, 0, p.size[1], p.size[0]),)) for p in source.images.pictures[:4])
    images = replace(source.images, pictures=pictures)
    whole, half = (0.0, 0.0, 64.0, 64.0), (0.0, 0.0, 64.0, 30.0)
    same = Observation(True, 0, whole, whole, 2, whole)
    found = verdict(
        (64, 64),
        images,
        [same] * 4,
        [
            same,
            Observation(True, 1, whole, whole, 2, whole),
            Observation(True, 0, half, half, 5, half),
            Observation(False, -1, None, None, -1, None),
        ],
        Limits(max_drop=0.6, min_iou=0.5, min_agreement=0.5),
    )
    figures = found.figures
    assert figures["top1_agreement"] == 0.5
    assert figures["box_iou"]["mean"] == pytest.approx((1 + 1 + 30 / 64 + 0) / 4)
    assert figures["box_iou"]["share_below_0.9"] == 0.5
    assert figures["level_flips"] == 2
    assert figures["not_finite"] == 1
    assert figures["gt_known"]["change"] == -0.5
    assert figures["gt_known"]["images_lost"] == 2
    assert figures["top1_loc"]["change"] == -0.75
    assert figures["gt_known"]["interval"][0] >= -1
    assert [reason.split(",")[0][:20] for reason in found.reasons] == ["features or logits a", "Top-1 localization d"]
    assert not found.passed


def test_the_float_graph_leaves_other_graphs_alone(tmp_path: Path, source: Calibration) -> None:
    float_graph(source.graph.read_bytes(), source.graph, tmp_path / "again.onnx")  # nothing left to move
    assert (tmp_path / "again.onnx").read_bytes() == source.graph.read_bytes()
