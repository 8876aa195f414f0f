"""Somebody else's ONNX classifier becomes a bundle, proven linear in its pooled features, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.export.test_check import STAGES, rewritten
from typer.testing import CliRunner

from wgap import Localizer
from wgap.bundle import Bundle, sha256_of
from wgap.calibrate.foreground import foreground_bundle
from wgap.cli import app
from wgap.errors import BundleError, CheckFailedError, CheckpointError, OutputExistsError
from wgap.export.check import check_localizer
from wgap.export.imported import bundle_from_onnx, read_preprocessing
from wgap.geometry import iou
from wgap.rule import Rule
from wgap.runtime.selftest import selftest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from wgap.train.reference import foreground_scores  # noqa: E402

SIDE, CLASSES, CHANNELS = 32, 5, 8


@dataclass
class Maker:
    """A small random network, node by node; what is not asked for is as most exporters write it."""

    seed: int = 0
    nhwc: bool = False
    batch: Any = "N"
    size: Any = SIDE
    opset: int = 17
    activation: str = "Relu"
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32))

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [*inputs], [out], f"{operator}_{len(self.nodes)}", **attributes))
        return out

    def features(self, channels: int = CHANNELS) -> str:
        """Two strided convolutions: [N, channels, 8, 8], or channels last."""
        x = self.add("Transpose", "x", perm=[0, 3, 1, 2]) if self.nhwc else "x"
        for width, before in ((6, 3), (channels, 6)):
            x = self.add("Conv", x, self.weights(width, before, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
            x = self.add(self.activation, x)
        return self.add("Transpose", x, perm=[0, 2, 3, 1]) if self.nhwc else x

    def save(self, path: Path, *outputs: str) -> Path:
        shape = [self.batch, self.size, self.size, 3] if self.nhwc else [self.batch, 3, self.size, self.size]
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], self.constants,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.save(model, str(path))
        return path


def pooled(m: Maker, x: str, how: str = "gap") -> str:
    """[N, C, 1, 1] or, of ReduceMean without kept extents, [N, C]."""
    if how == "gap":
        return m.add("GlobalAveragePool", x)
    if how == "average":
        return m.add("AveragePool", x, kernel_shape=[8, 8])
    axes = {"mean": [2, 3], "negative": [-1, -2], "nhwc": [1, 2]}[how.removesuffix("-flat")]
    kept = int(not how.endswith("-flat"))
    if m.opset >= 18:
        return m.add("ReduceMean", x, m.constant(np.array(axes)), keepdims=kept)
    return m.add("ReduceMean", x, axes=axes, keepdims=kept)


def classified(m: Maker, x: str, how: str, channels: int = CHANNELS) -> str:
    """Logits of [N, C]."""
    if how == "gemm":
        return m.add("Gemm", x, m.weights(CLASSES, channels), m.weights(CLASSES), transB=1, alpha=1.5, beta=0.5)
    if how == "gemm without bias":
        return m.add("Gemm", x, m.weights(channels, CLASSES))
    y = m.add("MatMul", x, m.weights(channels, CLASSES))
    return y if how == "matmul" else m.add("Add", m.weights(CLASSES), y)


def plain(m: Maker) -> str:
    return classified(m, m.add("Flatten", pooled(m, m.features())), "gemm")


def conv_head(m: Maker, x: str) -> str:
    return m.add("Conv", x, m.weights(CLASSES, CHANNELS, 1, 1), m.weights(CLASSES))


FORMS: dict[str, tuple[dict[str, Any], Callable[[Maker], str]]] = {
    "GAP, Flatten, Gemm": ({}, plain),
    "ReduceMean, MatMul, Add": ({}, lambda m: classified(m, pooled(m, m.features(), "mean-flat"), "matmul+add")),
    "ReduceMean over negative axes": ({}, lambda m: classified(m, pooled(m, m.features(), "negative-flat"), "matmul")),
    "ReduceMean with axes as an input": (
        {"opset": 18},
        lambda m: classified(m, m.add("Flatten", pooled(m, m.features(), "mean")), "gemm"),
    ),
    "AveragePool of everything": (
        {},
        lambda m: classified(m, m.add("Flatten", pooled(m, m.features(), "average")), "gemm without bias"),
    ),
    "Reshape, Identity, Dropout": (
        {},
        lambda m: classified(
            m,
            m.add("Dropout", m.add("Identity", m.add("Reshape", pooled(m, m.features()), m.constant([0, -1])))),
            "gemm",
        ),
    ),
    "Squeeze": ({}, lambda m: classified(m, m.add("Squeeze", pooled(m, m.features()), m.constant([2, 3])), "gemm")),
    "a 1x1 convolution": ({}, lambda m: m.add("Flatten", conv_head(m, pooled(m, m.features())))),
    "a 1x1 convolution, logits not flat": ({}, lambda m: conv_head(m, pooled(m, m.features()))),
    "a 1x1 convolution before the pooling": ({}, lambda m: m.add("Flatten", pooled(m, conv_head(m, m.features())))),
    "softmax": ({}, lambda m: m.add("Softmax", plain(m), axis=1)),
    "log-softmax": ({}, lambda m: m.add("LogSoftmax", plain(m), axis=1)),
    "NHWC": ({"nhwc": True}, lambda m: classified(m, pooled(m, m.features(), "nhwc-flat"), "matmul+add")),
    "NHWC features, nothing to undo": (
        {"nhwc": True},
        lambda m: classified(m, pooled(m, m.add("Relu", m.features()), "nhwc-flat"), "matmul+add"),
    ),
    "a batch of 1": (
        {"batch": 1},
        lambda m: classified(m, m.add("Reshape", pooled(m, m.features()), m.constant([1, CHANNELS])), "gemm"),
    ),
    "a batch of 4": (
        {"batch": 4},
        lambda m: classified(m, m.add("Reshape", pooled(m, m.features()), m.constant([4, -1])), "gemm"),
    ),
    "opset 11": ({"opset": 11}, lambda m: m.add("Softmax", plain(m), axis=1)),
}


def files(folder: Path) -> tuple[Path, Path]:
    (folder / "classes.txt").write_text("".join(f"class {n}\n" for n in range(CLASSES)))
    steps = {"channel_order": "bgr", "scale": 0.02, "mean": [1.0, 2.0, 3.0], "std": [1.5, 2.5, 0.5]}
    (folder / "steps.json").write_text(json.dumps(steps))
    return folder / "classes.txt", folder / "steps.json"


def imported(model: Path, **more: Any) -> Bundle:
    classes, steps = files(model.parent)
    return bundle_from_onnx(model, model.parent / "bundle", classes=classes, preprocessing=str(steps), **more)


def by_hand(path: Path, images: Any, nhwc: bool = False, batch: int = 1, kind: Any = np.float32) -> Any:
    """The model's own output, fed the ordinary way, one picture at a time."""
    session = onnxruntime.InferenceSession(str(path))
    x = (images[..., ::-1].astype(np.float64) * 0.02 - [1.0, 2.0, 3.0]) / [1.5, 2.5, 0.5]
    x = (x if nhwc else x.transpose(0, 3, 1, 2)).astype(kind)
    return np.concatenate([session.run(None, {"x": np.stack([one] * batch)})[0][:1].reshape(1, -1) for one in x])


def noise(count: int = 3) -> Any:
    return np.random.default_rng(9).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def outputs(bundle: Bundle, images: Any) -> Any:
    session = onnxruntime.InferenceSession(str(bundle.path("onnx", "fp32")))
    return session.run(["logits", "features"], {"image": images})


def require_equal(bundle: Bundle, expected: Any, softmax: str = "") -> None:
    """What the bundle says of any batch is what the model said, and what its classifier makes of its features."""
    images = noise()
    logits, features = outputs(bundle, images)
    weight, bias = (np.asarray(value, np.float64) for value in bundle.classifier())
    np.testing.assert_allclose(
        features.mean(axis=(2, 3)) @ weight.T + bias, logits, atol=1e-4 * float(np.abs(logits).max())
    )
    if softmax:
        logits = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = expected if softmax == "log-softmax" else np.log(expected)
    np.testing.assert_allclose(logits, expected, atol=2e-4 * float(np.abs(logits).max()))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_a_bundle_that_says_what_the_model_says(form: str, tmp_path: Path) -> None:
    given, build = FORMS[form]
    maker = Maker(**given)
    path = maker.save(tmp_path / "m.onnx", build(maker))
    bundle = imported(path)
    batch = maker.batch if isinstance(maker.batch, int) else 1
    last = maker.nodes[-1].op_type
    softmax = {"Softmax": "softmax", "LogSoftmax": "log-softmax"}.get(last, "")
    require_equal(bundle, by_hand(path, noise(), maker.nhwc, batch), softmax)
    info = bundle.manifest.model
    assert (info.input_size, info.feature_shape) == ((SIDE, SIDE), (CHANNELS, 8, 8))
    assert bundle.manifest.rule == Rule()
    made = bundle.file("onnx").import_
    assert made is not None
    assert made.source_sha256 == sha256_of(path)
    assert made.figures["linearity"] <= 1e-4
    assert made.figures["parity"] <= 1e-4
    assert made.features_min == 0
    assert made.nodes["pooling"].split(" ")[-1] in ("(GlobalAveragePool)", "(ReduceMean)", "(AveragePool)")
    assert selftest(Localizer(bundle.root)).ok
    report = check_localizer(Localizer(bundle.root), source=str(path))
    assert report.ok, report
    assert [stage.name for stage in report.stages] == STAGES
    transposes = [n for n in onnx.load(str(bundle.path("onnx"))).graph.node if n.op_type == "Transpose"]
    if form == "NHWC":
        assert transposes[-1].output[0] != "features", "the transposition before the pooling is undone, not doubled"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_graphs_of_every_form(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("random")
    nhwc = data.draw(st.booleans())
    maker = Maker(
        seed=data.draw(st.integers(0, 999)), nhwc=nhwc, batch=data.draw(st.sampled_from(["N", 1, 2])),
        opset=data.draw(st.sampled_from([13, 17, 18, 20])), activation=data.draw(st.sampled_from(["Relu", "Elu"])),
    )  # fmt: skip
    channels = data.draw(st.integers(1, 9))
    x = maker.features(channels)
    how = "nhwc" if nhwc else data.draw(st.sampled_from(["gap", "mean", "negative"]))
    flat = how != "gap" and data.draw(st.booleans())
    x = pooled(maker, x, how + "-flat" * flat)
    between = data.draw(st.sampled_from(["Flatten", "Reshape"])) if not flat else "Identity"
    if between == "Reshape":
        x = maker.add("Reshape", x, maker.constant([maker.batch if isinstance(maker.batch, int) else -1, channels]))
    else:
        x = maker.add(between, x)
    if data.draw(st.booleans()):
        x = maker.add("Dropout", x)
    how = data.draw(st.sampled_from(["gemm", "gemm without bias", "matmul", "matmul+add"]))
    x = classified(maker, x, how, channels)
    softmax = data.draw(st.sampled_from(["", "Softmax"]))
    path = maker.save(tmp_path / "m.onnx", maker.add(softmax, x, axis=-1) if softmax else x)
    bundle = imported(path)
    batch = maker.batch if isinstance(maker.batch, int) else 1
    require_equal(bundle, by_hand(path, noise(), nhwc, batch), softmax.lower())
    assert (bundle.manifest.rule == Rule()) == (maker.activation == "Relu")
    assert selftest(Localizer(bundle.root)).ok


def test_a_float16_file_becomes_float32(tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    maker = Maker()
    whole = maker.save(tmp_path / "whole.onnx", plain(maker))
    for keep, kind in ((True, np.float32), (False, np.float16)):
        half = convert_float_to_float16(onnx.load(str(whole)), keep_io_types=keep)
        onnx.save(half, str(tmp_path / "half.onnx"))
        bundle = imported(tmp_path / "half.onnx", force=True)
        graph = onnx.load(str(bundle.path("onnx"))).graph
        assert TensorProto.FLOAT16 not in {tensor.data_type for tensor in graph.initializer}
        logits, _ = outputs(bundle, noise())
        own = by_hand(tmp_path / "half.onnx", noise(), kind=kind)
        np.testing.assert_allclose(logits, own, atol=2e-2 * float(np.abs(own).max()))
        np.testing.assert_allclose(logits, by_hand(whole, noise()), atol=2e-2 * float(np.abs(own).max()))
        report = check_localizer(Localizer(bundle), source=str(tmp_path / "half.onnx"))
        assert report.ok, report
        assert {stage.limit for stage in report.stages if stage.name in ("features", "logits")} == {2e-2}


def test_values_in_another_file_are_read_once_into_the_bundle(tmp_path: Path) -> None:
    maker = Maker()
    whole = maker.save(tmp_path / "whole.onnx", plain(maker))
    onnx.save(
        onnx.load(str(whole)), str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0
    )
    bundle = imported(tmp_path / "m.onnx")
    require_equal(bundle, by_hand(whole, noise()))
    made = bundle.file("onnx").import_
    assert made is not None
    assert made.external_sha256 == (sha256_of(tmp_path / "m.data"),)
    assert check_localizer(Localizer(bundle), source=str(tmp_path / "m.onnx")).ok
    content = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match="has another one, or its external values have"):
        check_localizer(Localizer(bundle), source=str(tmp_path / "m.onnx"))
    (tmp_path / "m.data").unlink()
    require_equal(bundle, by_hand(whole, noise()))
    with pytest.raises(CheckpointError, match=r"m.onnx: onnx cannot take it .*m.data"):
        imported(tmp_path / "m.onnx", force=True)


def test_tensors_that_are_called_as_ours_are_renamed(tmp_path: Path) -> None:
    maker = Maker()
    x = maker.features()
    names = {maker.nodes[0].output[0]: "logits", maker.nodes[1].output[0]: "foreground/A", "x": "image"}
    last = classified(maker, maker.add("Flatten", pooled(maker, x)), "gemm")
    path = maker.save(tmp_path / "m.onnx", last)
    expected = by_hand(path, noise())
    model = onnx.load(str(path))
    names[last] = "features"
    for node in model.graph.node:
        node.name = f"foreground/{node.name}" if node.op_type == "Relu" else ""
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = "image", "features"
    onnx.save(model, str(path))
    bundle = imported(path)
    require_equal(bundle, expected)
    assert check_localizer(Localizer(bundle), source=str(path)).ok
    nodes = onnx.load(str(bundle.path("onnx"))).graph.node
    assert not [node.name for node in nodes if node.name.startswith("foreground/") or not node.name]


def test_a_free_size_is_asked_for(tmp_path: Path) -> None:
    maker = Maker(size="S")
    path = maker.save(tmp_path / "m.onnx", plain(maker))
    with pytest.raises(CheckpointError, match="height and width free; say which with --input-size"):
        imported(path)
    assert imported(path, input_size=48).manifest.model.feature_shape == (CHANNELS, 12, 12)
    maker = Maker()
    path = maker.save(tmp_path / "m.onnx", plain(maker))
    with pytest.raises(CheckpointError, match="takes pictures of 32x32, --input-size says 48"):
        imported(path, input_size=48, force=True)


def hidden(m: Maker) -> str:
    x = m.add("HardSwish", m.add("Flatten", m.add("Conv", pooled(m, m.features()), m.weights(6, CHANNELS, 1, 1))))
    return classified(m, x, "gemm", 6)


def normalised(m: Maker) -> str:
    x = m.add("Flatten", pooled(m, m.features()))
    return classified(m, m.add("LayerNormalization", x, m.weights(CHANNELS), m.weights(CHANNELS)), "gemm")


def attention(m: Maker) -> str:
    x = m.add("Transpose", m.add("Reshape", m.features(), m.constant([0, CHANNELS, 64])), perm=[0, 2, 1])
    x = m.add("MatMul", m.add("Softmax", m.add("MatMul", x, m.add("Transpose", x, perm=[0, 2, 1])), axis=-1), x)
    return classified(m, m.add("Gather", x, m.constant(0), axis=1), "gemm")


def quantised(m: Maker) -> str:
    x = m.features()
    args = m.constant(np.float32(0.1)), m.constant(np.uint8(0))
    x = m.add("DequantizeLinear", m.add("QuantizeLinear", x, *args), *args)
    return classified(m, m.add("Flatten", pooled(m, x)), "gemm")


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Maker], Any], str]] = {
    "a hidden layer (MobileNetV3)": ({}, hidden, r"got the node HardSwish_7 \(HardSwish\) between the pooling and the"),
    "normalisation (ConvNeXt)": ({}, normalised, r"got the node LayerNormalization_6 \(LayerNormalization\) between"),
    "attention (ViT)": ({}, attention, r"got the node Gather_\d+ \(Gather\) between the pooling and the classifier"),
    "quantised": ({}, quantised, r"quantised, its first such node is QuantizeLinear_4 \(QuantizeLinear\)"),
    "several heads": ({}, lambda m: (plain(m), classified(m, "t5", "matmul")), "several heads, t6, t7: name one with"),
    "a detector": (
        {},
        lambda m: (
            m.add("Reshape", conv_head(m, m.features()), m.constant([0, -1, CLASSES])),
            m.add("Sigmoid", m.add("Conv", "t3", m.weights(4, CHANNELS, 1, 1))),
        ),
        r"expected a pooling over height and width .* before Conv_4 \(Conv\), got the node Relu_3 \(Relu\)",
    ),
    "scores that are no softmax": (
        {}, lambda m: m.add("Sigmoid", plain(m)), r"got the node Sigmoid_7 \(Sigmoid\) before"
    ),
    "weights that are computed": (
        {},
        lambda m: m.add("MatMul", pooled(m, m.features(), "mean-flat"), m.add("Transpose", "t4")),
        r"the weights of MatMul_6 \(MatMul\) are no constants",
    ),
    "two branches": (
        {},
        lambda m: m.add("Add", classified(m, m.add("Flatten", pooled(m, m.features())), "gemm"), "t6"),
        r"the node Add_7 \(Add\) adds two branches",
    ),
    "nothing but the input": (
        {}, lambda m: classified(m, pooled(m, "x", "mean-flat"), "gemm", 3), "what is pooled is the input x itself"
    ),
    "one channel": ({"nhwc": True}, lambda m: m.add("Relu", "x"), "there is no|got the node"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_linear_is_refused_by_its_node(kind: str, tmp_path: Path) -> None:
    given, build, message = REFUSED[kind]
    maker = Maker(**given)
    ends = build(maker)
    path = maker.save(tmp_path / "m.onnx", *([ends] if isinstance(ends, str) else ends))
    with pytest.raises(CheckpointError, match=message):
        imported(path)
    assert not (tmp_path / "bundle").exists()


def test_the_head_that_is_named_is_taken(tmp_path: Path) -> None:
    maker = Maker()
    first, second = plain(maker), classified(maker, "t5", "matmul+add")
    path = maker.save(tmp_path / "m.onnx", first, second)
    require_equal(imported(path, logits=first), by_hand(path, noise()))
    made = imported(path, logits=second, force=True).file("onnx").import_
    assert made is not None
    assert made.nodes["classifier"].endswith("(MatMul)")
    with pytest.raises(CheckpointError, match="no node of the graph makes a tensor 'other'; its outputs are t6, t8"):
        imported(path, logits="other", force=True)


def wgap_pooled(m: Maker, x: str, divisor: float = 64) -> str:
    flat = m.add("Reshape", x, m.constant([0, CHANNELS, 64]))
    weighted = m.add("Mul", flat, m.add("Softmax", flat, axis=2))
    return m.add("Div", m.add("ReduceSum", weighted, m.constant([2]), keepdims=0), m.constant(np.float32(divisor)))


def test_features_that_are_named_are_proven_all_the_same(tmp_path: Path) -> None:
    maker = Maker()
    x = maker.features()
    path = maker.save(tmp_path / "m.onnx", classified(maker, wgap_pooled(maker, x), "gemm"))
    with pytest.raises(CheckpointError, match=r"got the node Div_8 \(Div\)"):
        imported(path)
    made = imported(path, features=x).file("onnx").import_
    assert made is not None
    assert (made.pooling, made.features) == ("wgap", x)
    maker = Maker()
    x = maker.features()
    path = maker.save(tmp_path / "m.onnx", classified(maker, wgap_pooled(maker, x, 1), "gemm"))
    with pytest.raises(CheckFailedError, match=r"W . pool\(t3\) \+ b of Gemm_9 .* from the logits t9 by .* expected"):
        imported(path, features=x, force=True)
    assert Bundle.open(tmp_path / "bundle").file("onnx").import_ == made, "the earlier bundle is as it was"


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    maker = Maker(batch=2)
    x = maker.add("Flatten", pooled(maker, maker.features()))
    x = maker.add("Add", x, maker.constant(np.array([[0.0], [5.0]], np.float32)))  # one row for each picture
    x = maker.add("Sub", x, maker.constant(np.array([[0.0], [5.0]], np.float32)))
    path = maker.save(tmp_path / "m.onnx", classified(maker, x, "gemm"))
    with pytest.raises(CheckFailedError, match="fixed to a batch of 2: export it with a free one"):
        imported(path, features="t3")


def test_a_network_whose_logits_follow_rounding_is_refused(tmp_path: Path) -> None:
    """The proof's pictures are rounded otherwise than in the bundle's graph; another processor's sums would be, too."""
    maker = Maker()
    x = maker.add("Sin", maker.add("Mul", maker.features(), maker.constant(np.float32(1e5))))
    path = maker.save(tmp_path / "m.onnx", classified(maker, maker.add("Flatten", pooled(maker, x)), "gemm"))
    with pytest.raises(CheckFailedError, match=r"differ from the model's own by .* expected at most 1e-04"):
        imported(path)


def test_maps_whose_size_the_graph_computes_are_measured(tmp_path: Path) -> None:
    """As PyTorch's older exporter writes a channel shuffle, or padding that depends on the picture."""
    maker = Maker()
    x = maker.features()
    side = maker.add(
        "Div", maker.add("Slice", maker.add("Shape", x), *map(maker.constant, ([2], [4]))), maker.constant([2])
    )
    pads = maker.add("Concat", maker.constant([0, 0, 0, 0, 0, 0]), maker.add("Mod", side, maker.constant([3])), axis=0)
    x = maker.add("Pad", x, pads)
    path = maker.save(tmp_path / "m.onnx", classified(maker, maker.add("Flatten", pooled(maker, x)), "gemm"))
    bundle = imported(path)
    assert bundle.manifest.model.feature_shape == (CHANNELS, 9, 9)
    require_equal(bundle, by_hand(path, noise()))
    assert selftest(Localizer(bundle.root)).ok


@pytest.mark.parametrize("batch", ["N", 2])
def test_pictures_that_change_each_other_s_logits_are_refused(batch: Any, tmp_path: Path) -> None:
    maker = Maker(batch=batch, opset=18)
    x = maker.features()
    mean = maker.add("ReduceMean", x, maker.constant(np.array([0])), keepdims=1)
    x = maker.add("Add", x, mean)
    path = maker.save(tmp_path / "m.onnx", classified(maker, maker.add("Flatten", pooled(maker, x)), "gemm"))
    fixed = "fixed to a batch of 2" if batch == 2 else "no bundle was written$"
    with pytest.raises(CheckFailedError, match=rf"differ from the model's own by .* expected at most 1e-04 .*{fixed}"):
        imported(path)
    assert not (tmp_path / "bundle").exists()


def test_negative_features_are_measured_and_the_paper_s_rule_is_refused(tmp_path: Path) -> None:
    maker = Maker(activation="Elu")
    path = maker.save(tmp_path / "m.onnx", plain(maker))
    bundle = imported(path)
    assert bundle.manifest.rule == Rule.parse("fixed:0.2", "signed")
    made = bundle.file("onnx").import_
    assert made is not None
    assert made.features_min < 0
    assert selftest(Localizer(bundle.root)).ok
    for rule in (Rule(), Rule.parse("fixed:0.5", "recombined"), Rule.parse("fixed:0.5", "positive")):
        with pytest.raises(BundleError, match=rf"{rule.map} map needs features of 0 or more, .* down to -\d"):
            imported(path, rule=rule, force=True)
        with pytest.raises(BundleError, match=rf"{rule.map} map needs features of 0 or more, .* down to -\d"):
            Localizer(bundle.root, rule=rule)
    with pytest.raises(BundleError, match="reads the output foreground"):
        imported(path, rule=Rule("foreground"), force=True)
    chosen = Rule.parse("fixed:0.5", "signed")
    assert imported(path, rule=chosen, force=True).manifest.rule == chosen


def pictures(folder: Path, count: int = 40) -> Path:
    """A bright disc on a dark ground each."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number in range(count):
        picture = rng.integers(30, 40, (40, 40, 3), dtype=np.uint8)
        centre = tuple(map(int, rng.integers(12, 28, 2)))
        cv2.circle(picture, centre, 9, tuple(map(int, rng.integers(150, 256, 3))), -1)
        cv2.imwrite(str(folder / f"{number:02}.png"), picture)
    return folder


class Small(torch.nn.Module):
    """A residual network of a few channels, as its framework's exporter writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        self.down = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, 2, 1), torch.nn.ReLU())
        self.deep = torch.nn.Conv2d(8, 8, 3, 1, 1)
        self.classifier = torch.nn.Linear(8, CLASSES)

    def forward(self, x: Any) -> Any:
        x = self.down(self.stem(x))
        x = torch.relu(x + self.deep(x))
        return self.classifier(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "small.onnx"
    torch.manual_seed(3)
    network, example = Small().eval(), (torch.zeros(2, 3, SIDE, SIDE),)
    for layer in (network.stem[0], network.down[0], network.deep):
        layer.weight.data.abs_()  # bright is object
    shapes = {"x": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        network, example, str(path), input_names=["x"], dynamic_shapes=shapes, dynamo=True, external_data=False,
        verbose=False,
    )  # fmt: skip
    return path


def test_every_later_verb_takes_an_imported_bundle(exported: Path, tmp_path: Path) -> None:
    classes, steps = files(tmp_path)
    folder, bundle, run = pictures(tmp_path / "pictures"), tmp_path / "bundle", CliRunner()

    def wgap(*words: object) -> str:
        done = run.invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    said = wgap("import", exported, "--classes", classes, "--preprocessing", steps, "--out", bundle, "--images", folder)
    assert "5 classes, input 32x32, features 8x8x8 at" in said
    assert "on 35 pictures" in said
    require_equal(Bundle.open(bundle), by_hand(exported, noise()))
    wgap("selftest", bundle)
    made = Bundle.open(bundle).file("onnx").import_
    lines = [json.loads(line) for line in wgap("localize", bundle, folder, "--json").splitlines()]
    assert len(lines) == 40
    assert all(len(line["box"]) == 4 for line in lines)
    wgap("foreground", bundle, "--images", folder)
    after = Bundle.open(bundle)
    assert after.file("onnx").import_ == made, "the record of the import stays with the new graph"
    assert after.manifest.rule.kind == "foreground+colour"
    wgap("selftest", bundle)
    assert after.file("foreground").foreground.fine is not None  # so that the source's finer activation is compared too
    report = json.loads(wgap("check", bundle, "--source", exported, "--images", folder, "--json"))
    assert report["ok"]
    assert [stage["name"] for stage in report["stages"]] == ["features", "logits", "foreground", *STAGES[2:]]
    wgap("inspect", bundle)


def test_a_module_is_exported_and_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebody.py").write_text(
        "import torch\n"
        "from tests.export.test_import import Small\n"
        "def small():\n    torch.manual_seed(3)\n    return Small().eval()\n"
        "def other():\n    torch.manual_seed(4)\n    return Small().eval()\n"
        "def broken():\n    raise OSError('no weights')\n"
        "def number():\n    return 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    classes, steps = files(tmp_path)
    given: dict[str, Any] = {"out": tmp_path / "b", "classes": classes, "preprocessing": str(steps), "input_size": SIDE}
    bundle = bundle_from_onnx("somebody:small", **given)
    torch.manual_seed(3)
    x = (noise()[..., ::-1].astype(np.float64) * 0.02 - [1.0, 2.0, 3.0]) / [1.5, 2.5, 0.5]
    with torch.no_grad():
        own = Small().eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    require_equal(bundle, own)
    assert bundle.manifest.model.architecture.parameters["source"] == "somebody:small"
    assert check_localizer(Localizer(bundle), source="somebody:small").ok
    failed = {
        stage.name for stage in check_localizer(Localizer(bundle), source="somebody:other").stages if not stage.ok
    }
    assert failed >= {"features", "logits", "map"}
    for name, change, message in (
        ("somebody:small", {"input_size": None}, "say which with --input-size"),
        ("nobody.at:all", {}, r"nobody.at:all: expected an importable .*ModuleNotFoundError"),
        ("somebody:none", {}, "AttributeError"),
        ("somebody:broken", {}, "OSError: no weights"),
        ("somebody:number", {}, "expected a torch.nn.Module, got int"),
    ):
        with pytest.raises(CheckpointError, match=message):
            bundle_from_onnx(name, **{**given, **change}, force=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a JSON object of channel_order"),
        ('["rgb"]', "expected an object"),
        ('{"channel_order": "rgb", "scale": 1, "mean": [0, 0, 0]}', "std: missing"),
        ('{"channel_order": "gbr", "scale": 1, "mean": [0, 0, 0], "std": [1, 1, 1]}', "one of rgb, bgr"),
        ('{"channel_order": "rgb", "scale": 1, "mean": [0, 0], "std": [1, 1, 1]}', "expected 3 values"),
        ('{"channel_order": "rgb", "scale": 1, "mean": [0, 0, 0], "std": [1, 0, 1]}', "std other than 0"),
    ],
)
def test_bad_preprocessing_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_preprocessing(str(tmp_path / "p.json"))


def test_bad_input_is_one_error_of_ours(tmp_path: Path) -> None:
    maker = Maker()
    path = maker.save(tmp_path / "m.onnx", plain(maker))
    classes, steps = files(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"no model at all")
    (tmp_path / "two.txt").write_text("a\nb\n")
    given: dict[str, Any] = {"out": tmp_path / "b", "classes": classes, "preprocessing": str(steps)}
    for model, change, message in (
        (tmp_path / "none.onnx", {}, "none.onnx: expected an .onnx file, found none"),
        (tmp_path / "bad.onnx", {}, "bad.onnx: "),
        (tmp_path / "m.pt", {}, "expected an .onnx file"),
        (path, {"classes": tmp_path / "two.txt"}, "has 5 classes, but 2 class names"),
        (path, {"preprocessing": "mobile"}, "unknown preprocessing 'mobile'"),
        (path, {"preprocessing": str(tmp_path / "no.json")}, "no.json: expected a JSON object"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            bundle_from_onnx(model, **{**given, **change})
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "b").exists()
    bundle_from_onnx(path, **given)
    with pytest.raises(OutputExistsError):
        bundle_from_onnx(path, **given)


def test_check_asks_for_the_source_and_takes_no_other(tmp_path: Path, tiny_bundle: Path) -> None:
    maker = Maker()
    path = maker.save(tmp_path / "m.onnx", plain(maker))
    bundle = imported(path)
    with pytest.raises(BundleError, match=r"was imported from m\.onnx, .*--source"):
        check_localizer(Localizer(bundle))
    with pytest.raises(BundleError, match=r"imported from a file with the SHA-256 \w{64}, .*other\.onnx is not there"):
        check_localizer(Localizer(bundle), source=str(tmp_path / "other.onnx"))
    other = Maker(seed=1)
    with pytest.raises(BundleError, match=r"other\.onnx has another one"):
        check_localizer(Localizer(bundle), source=str(other.save(tmp_path / "other.onnx", plain(other))))
    with pytest.raises(BundleError, match="was not made by `wgap import`; leave --source out"):
        check_localizer(Localizer(tiny_bundle), source=str(path))


def test_check_finds_a_classifier_that_is_not_the_source_s(tmp_path: Path) -> None:
    maker = Maker()
    path = maker.save(tmp_path / "m.onnx", plain(maker))
    bundle = imported(path)
    weight, bias = bundle.classifier()
    own = {"weight": np.ascontiguousarray(np.asarray(weight)[:, ::-1]), "bias": np.asarray(bias)}
    save_file(own, bundle.path("classifier"))
    report = check_localizer(Localizer(rewritten(bundle, bundle.path("classifier"))), source=str(path))
    failed = {stage.name for stage in report.stages if not stage.ok}
    assert "map" in failed
    assert not failed & {"features", "logits"}


class Coarse(torch.nn.Module):
    """Features of 32 pixels a cell, with activations of 16 and 8: brightness, averaged further and further."""

    def __init__(self) -> None:
        super().__init__()
        self.see = torch.nn.Conv2d(3, 6, 1)
        self.see.weight.data.abs_()
        self.classifier = torch.nn.Linear(6, CLASSES)

    def forward(self, x: Any) -> Any:
        x = torch.relu(torch.nn.functional.avg_pool2d(self.see(x), 8))
        for _ in range(2):
            x = torch.relu(torch.nn.functional.avg_pool2d(x, 2))
        return self.classifier(x.mean((2, 3)))


def test_features_of_large_cells_are_scored_at_three_resolutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "coarse.py").write_text(
        "import torch\nfrom tests.export.test_import import Coarse\n"
        "def made():\n    torch.manual_seed(3)\n    return Coarse().eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    classes, steps = files(tmp_path)
    bundle = bundle_from_onnx("coarse:made", tmp_path / "b", classes=classes, preprocessing=str(steps), input_size=128)
    made = foreground_bundle(bundle, pictures(tmp_path / "pictures"), rule=Rule("foreground"), sum_of_channels=True)
    assert made.bundle.manifest.model.signature()["foreground"].shape == ("N", 1, 16, 16)
    assert made.record.finer is not None
    assert {"coarse", "fine", "finer"} <= made.record.separation.keys()
    assert set(load_file(made.bundle.path("foreground"))) == {f"{n}.{w}" for n in "ABC" for w in ("weight", "bias")}
    graph = onnx.load(str(made.bundle.path("onnx", "fp32")))
    graph.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in (made.record.fine or "", made.record.finer)
    )
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    image = cv2.resize(cv2.imread(str(tmp_path / "pictures" / "00.png")), (128, 128))
    scores, *levels = session.run(
        ["foreground", "features", made.record.fine, made.record.finer], {"image": image[None]}
    )
    assert [level.shape[2] for level in levels] == [4, 8, 16]
    head = {name: torch.from_numpy(value) for name, value in load_file(made.bundle.path("foreground")).items()}
    expected = foreground_scores([torch.from_numpy(level[0]) for level in levels], head)
    np.testing.assert_allclose(scores[0, 0], expected, atol=1e-5 * float(np.abs(scores).max()))
    localizer = Localizer(made.bundle)
    assert selftest(localizer).ok
    assert check_localizer(localizer, source="coarse:made").ok
    ys, xs = np.nonzero(image.max(axis=2) > 100)
    truth = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    assert iou(localizer.one(image).box, truth) > 0.7


def test_a_good_bundle_stays_where_the_new_one_cannot_be(tmp_path: Path) -> None:
    maker = Maker()
    path = maker.save(tmp_path / "m.onnx", plain(maker))
    bundle = imported(path)
    before = {file: file.read_bytes() for file in sorted(bundle.root.rglob("*")) if file.is_file()}
    classes, steps = files(tmp_path)
    classes.write_text("a\x07\nb\nc\nd\ne\n")
    with pytest.raises(CheckpointError, match=r"m\.onnx: no bundle can hold it: .*model\.classes\[0\]"):
        bundle_from_onnx(path, bundle.root, classes=classes, preprocessing=str(steps), force=True)
    assert {file: file.read_bytes() for file in sorted(bundle.root.rglob("*")) if file.is_file()} == before
    with pytest.raises(CheckpointError, match="no bundle can hold it"):
        bundle_from_onnx(path, tmp_path / "other", classes=classes, preprocessing=str(steps))
    assert not (tmp_path / "other").exists()


def test_what_a_factory_does_beside_its_work_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sly.py").write_text(
        "import sys\nimport torch\nfrom tests.export.test_import import Small\n"
        "class Dict(Small):\n"
        "    def forward(self, x):\n        return {'aux': x.mean((2, 3)), 'logits': super().forward(x)}\n"
        "def leaves():\n    sys.exit(0)\n"
        "def talks():\n    print('hello')\n    torch.manual_seed(3)\n    return Small()\n"
        "def several():\n    torch.manual_seed(3)\n    return Dict()\n"
        "def flat():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    classes, steps = files(tmp_path)
    given: dict[str, Any] = {"classes": classes, "preprocessing": str(steps), "input_size": SIDE}
    with pytest.raises(CheckpointError, match=r"sly:leaves: expected an importable .* \(SystemExit: 0\)"):
        bundle_from_onnx("sly:leaves", tmp_path / "b", **given)
    assert not (tmp_path / "b").exists()
    bundle = bundle_from_onnx("sly:talks", tmp_path / "b", **given)
    assert "hello" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="sly:leaves: expected"):
        check_localizer(Localizer(bundle), source="sly:leaves")
    with pytest.raises(CheckpointError, match=r"^sly:flat: no .*linear"):
        bundle_from_onnx("sly:flat", tmp_path / "flat", **given)
    several = bundle_from_onnx("sly:several", tmp_path / "several", **given)
    assert check_localizer(Localizer(several), source="sly:several").ok
    with pytest.raises(CheckpointError, match=r"^sly:flat: no "):
        check_localizer(Localizer(several), source="sly:flat")


def test_pictures_that_are_no_squares_are_checked_too(tmp_path: Path) -> None:
    maker = Maker()
    path = maker.save(tmp_path / "m.onnx", plain(maker))
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 2 * SIDE
    onnx.save(model, str(path))
    bundle = imported(path)
    assert bundle.manifest.model.input_size == (SIDE, 2 * SIDE)
    assert check_localizer(Localizer(bundle), source=str(path)).ok


def constant_output(maker: Maker) -> tuple[str, ...]:
    return plain(maker), maker.add("Constant", value_floats=[1.0, 2.0])


def same_names(maker: Maker) -> tuple[str, ...]:
    last = plain(maker)
    maker.nodes[0].name, maker.nodes[2].name = "Conv_2", ""
    return (last,)


def pooled_twice(maker: Maker) -> tuple[str, ...]:
    x = maker.add("GlobalAveragePool", pooled(maker, maker.features(), "average"))
    return (classified(maker, maker.add("Flatten", x), "gemm"),)


@pytest.mark.parametrize("make", [constant_output, same_names, pooled_twice])
def test_odd_but_legal_graphs_are_imported(make: Callable[[Maker], tuple[str, ...]], tmp_path: Path) -> None:
    maker = Maker()
    path = maker.save(tmp_path / "m.onnx", *make(maker))
    bundle = imported(path)
    assert bundle.manifest.model.feature_shape == (CHANNELS, 8, 8)
    require_equal(bundle, by_hand(path, noise()))


def test_features_that_say_nothing_are_refused(tmp_path: Path) -> None:
    maker = Maker()
    x = maker.add("AveragePool", maker.features(), kernel_shape=[8, 8])
    maker.save(tmp_path / "one.onnx", classified(maker, maker.add("Flatten", maker.add("Relu", x)), "gemm"))
    with pytest.raises(CheckpointError, match=r"expected a pooling|one position"):
        imported(tmp_path / "one.onnx")
    maker = Maker()
    dead = maker.add("Mul", maker.features(), maker.constant(np.float32(0)))
    maker.save(tmp_path / "dead.onnx", classified(maker, maker.add("Flatten", pooled(maker, dead)), "gemm"))
    with pytest.raises(CheckFailedError, match="are the same everywhere on all 3 pictures"):
        imported(tmp_path / "dead.onnx")
    maker = Maker()
    mean = maker.add("Flatten", pooled(maker, maker.features()))
    squared = maker.add("Mul", mean, mean)
    far = maker.constant(np.full(CLASSES, 1e5, np.float32))
    last = maker.add("Gemm", squared, maker.weights(CLASSES, CHANNELS), far, transB=1)
    maker.save(tmp_path / "far.onnx", last)
    with pytest.raises(CheckFailedError, match=r"differs from the logits .* of what they are without the bias"):
        imported(tmp_path / "far.onnx", features=maker.nodes[3].output[0])


def test_values_of_a_node_that_lie_in_another_file_count_as_the_source(tmp_path: Path) -> None:
    maker = Maker()
    value = maker.weights(CLASSES, CHANNELS)
    mean = maker.add("Flatten", pooled(maker, maker.features()))
    [held] = [tensor for tensor in maker.constants if tensor.name == value]
    maker.constants.remove(held)
    constant = maker.add("Constant", value=held)
    maker.save(tmp_path / "m.onnx", maker.add("Gemm", mean, constant, transB=1))
    onnx.save(
        onnx.load(str(tmp_path / "m.onnx")), str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data",
        size_threshold=0, convert_attribute=True,
    )  # fmt: skip
    made = imported(tmp_path / "m.onnx").file("onnx").import_
    assert made is not None
    assert made.external_sha256 == (sha256_of(tmp_path / "m.data"),)


def test_an_empty_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty\.onnx: expected an ONNX model, the file is empty"):
        imported(tmp_path / "empty.onnx")
    with pytest.raises(CheckpointError, match=r"none\.onnx: expected an \.onnx file, found none"):
        imported(tmp_path / "none.onnx")
