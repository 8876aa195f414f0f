"""Families of published classifiers, with random weights: imported, proven and selftested, or refused by their node."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wgap import Localizer
from wgap.bundle import Bundle, sha256_of
from wgap.errors import CheckpointError
from wgap.export.imported import bundle_from_onnx
from wgap.rule import Rule
from wgap.runtime.selftest import selftest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
from tests.export import families  # noqa: E402
from tests.export.families import CLASSES  # noqa: E402
from tests.export.test_import import Maker  # noqa: E402

from wgap.export.onnx import model_from_module  # noqa: E402

SIDE = 96
MEMORY = Path(__file__).resolve().parents[2] / "benchmarks" / "import_memory.py"
STEPS = {"channel_order": "rgb", "scale": 0.017, "mean": [2.1, 2.0, 1.8], "std": [1.0, 1.0, 1.0]}


def wgap_vgg16() -> Any:
    from wgap.train.model import WgapVgg16

    return families.Wgap(WgapVgg16(CLASSES, width=0.05, input_size=SIDE))


def large() -> Any:
    """Half of its values lie in large tensors, which go into a file of their own."""
    return families.resnet(bottleneck=False, depths=[1, 1, 1, 1], width=16)


ACCEPTED: dict[str, tuple[Callable[[], Any], str, tuple[int, int, int]]] = {
    "resnet18": (functools.partial(families.resnet, False, [2, 2, 2, 2]), "dynamo", (64, 3, 3)),
    "resnet18, older exporter": (functools.partial(families.resnet, False, [2, 2, 2, 2]), "script", (64, 3, 3)),
    "resnet50": (functools.partial(families.resnet, True, [1, 2, 2, 1]), "script", (256, 3, 3)),
    "densenet121": (functools.partial(families.densenet, [2, 3, 4, 2]), "script", (21, 3, 3)),
    "regnet_y_400mf": (functools.partial(families.regnet, True, [1, 1, 2, 1], [16, 24, 32, 48]), "dynamo", (48, 3, 3)),
    "regnet_x_400mf": (functools.partial(families.regnet, False, [1, 1, 2, 2], [16, 24, 32, 48]), "script", (48, 3, 3)),
    "mobilenet_v2": (families.mobilenet_v2, "dynamo", (64, 3, 3)),
    "efficientnet_b0": (families.efficientnet_b0, "dynamo", (64, 3, 3)),
    "inception_v3": (families.inception_v3, "script", (48, 3, 3)),
    "resnet18 NHWC": (lambda: families.ChannelsLast(families.resnet(False, [2, 2, 2, 2])), "dynamo", (64, 3, 3)),
    "VGG16 with WGAP": (wgap_vgg16, "dynamo", (26, 6, 6)),
    "fp16": (large, "half", (128, 3, 3)),
    "external data": (large, "external", (128, 3, 3)),
}  # fmt: skip

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "mobilenet_v3": (families.mobilenet_v3, r"got the node \S+ \(HardSwish\) between the pooling and the classifier"),
    "convnext": (families.convnext, r"got the node \S+ \(LayerNormalization\) between the pooling and the classifier"),
    "vit": (functools.partial(families.VisionTransformer, SIDE), r"got the node \S+ \(Gather\) between the pooling"),
    "a detector": (
        families.Detector, r"expected a classifier .*, got the node \S+ \(Concat\) before .*; .*\(Concat\) before"
    ),
}  # fmt: skip


def settled(make: Callable[[], Any], side: int, nhwc: bool) -> Any:
    """A network of fixed random weights whose batch normalisation has seen noise, so that nothing fades with depth."""
    torch.manual_seed(5)
    network = make()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(4, side, side, 3) if nhwc else torch.randn(4, 3, side, side))
    return network.eval()


def side_of(name: str) -> int:
    return 160 if name == "inception_v3" else SIDE


def written(network: Any, how: str, side: int, path: Path) -> Path:
    """The network as an ONNX file of that kind."""
    nhwc = isinstance(network, families.ChannelsLast)
    example = torch.zeros((2, side, side, 3) if nhwc else (2, 3, side, side))
    if how == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                network, (example,), str(path), input_names=["x"], dynamic_axes={"x": {0: "N"}}, opset_version=17,
                dynamo=False,
            )  # fmt: skip
        return path
    if how == "half":
        network, example = network.half(), example.half()
    proto = model_from_module(network, example, "x")
    beside = {"save_as_external_data": True, "location": "weights.bin"} if how == "external" else {}
    onnx.save(proto, str(path), **beside)
    return path


def imported(path: Path) -> Bundle:
    (path.parent / "classes.txt").write_text("".join(f"class {n}\n" for n in range(CLASSES)))
    (path.parent / "steps.json").write_text(json.dumps(STEPS))
    return bundle_from_onnx(
        path, path.parent / "bundle", classes=path.parent / "classes.txt",
        preprocessing=str(path.parent / "steps.json"),
    )  # fmt: skip


def images(side: int) -> Any:
    return np.random.default_rng(3).integers(0, 256, (3, side, side, 3), dtype=np.uint8)


def normalised(side: int) -> Any:
    return images(side).astype(np.float32) * np.float32(STEPS["scale"]) - np.array(STEPS["mean"], np.float32)


def require_imported(path: Path, expected: Any, features: tuple[int, int, int], side: int, tolerance: float) -> Bundle:
    """The bundle says of a batch what the network said, is linear in its features, and passes its selftest."""
    bundle = imported(path)
    assert bundle.manifest.model.feature_shape == features
    made = bundle.file("onnx").import_
    assert made is not None
    assert made.figures["linearity"] <= 1e-5
    assert made.figures["parity"] <= tolerance
    session = onnxruntime.InferenceSession(str(bundle.path("onnx")))
    logits, maps = session.run(["logits", "features"], {"image": images(side)})
    largest = float(np.abs(logits).max())
    weight, bias = (np.asarray(value, np.float64) for value in bundle.classifier())
    pooled = maps.mean(axis=(2, 3))
    if made.pooling == "wgap":
        shares = np.exp(maps - maps.max(axis=(2, 3), keepdims=True))
        pooled = (maps * shares / shares.sum(axis=(2, 3), keepdims=True)).mean(axis=(2, 3))
    np.testing.assert_allclose(pooled @ weight.T + bias, logits, atol=1e-5 * largest, rtol=0)
    if (expected >= 0).all() and np.allclose(expected.sum(axis=1), 1, atol=1e-5):
        expected = np.log(expected)
        logits = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(logits, expected, atol=10 * tolerance * largest, rtol=0)
    assert np.ptp(expected, axis=0).max() > 1e-3, "pictures differ in their logits, else nothing was compared"
    assert selftest(Localizer(bundle.root)).ok
    return bundle


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_family_is_imported_proven_and_selftested(name: str, tmp_path: Path) -> None:
    make, how, features = ACCEPTED[name]
    side, nhwc = side_of(name), "NHWC" in name
    network = settled(make, side, nhwc)
    x = images(side).astype(np.float32) * np.float32(STEPS["scale"]) - np.array(STEPS["mean"], np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x if nhwc else x.transpose(0, 3, 1, 2).copy())).numpy()
    path = written(network, how, side, tmp_path / "m.onnx")
    bundle = require_imported(path, expected, features, side, 2e-2 if how == "half" else 1e-5)
    made = bundle.file("onnx").import_
    assert made is not None
    signed = name == "efficientnet_b0"
    assert (made.features_min < -0.1) == signed
    assert bundle.manifest.rule == (Rule.parse("fixed:0.2", "signed") if signed else Rule())
    assert made.pooling == ("wgap" if "WGAP" in name else "gap")
    beside = (sha256_of(tmp_path / "weights.bin"),) if how == "external" else ()
    assert made.external_sha256 == beside


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_not_linear_is_refused_by_its_node(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    torch.manual_seed(5)
    path = written(make().eval(), "dynamo", SIDE, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=message):
        imported(path)
    assert not (tmp_path / "bundle").exists()


def test_a_graph_as_tf2onnx_writes_keras_s_is_imported(tmp_path: Path) -> None:
    """NHWC, SAME by pads and by name, Pad, Clip, Mul and Add left of a normalisation, one that is whole, Squeeze."""
    m = Maker(nhwc=True, size=SIDE, seed=4)

    def conv(x: str, *shape: int, **more: Any) -> str:
        return m.add("Conv", x, m.weights(*shape), m.weights(shape[0]), kernel_shape=[*shape[2:]], **more)

    low, high = m.constant(np.float32(0)), m.constant(np.float32(6))
    x = conv(m.add("Transpose", "x", perm=[0, 3, 1, 2]), 8, 3, 3, 3, strides=[2, 2], pads=[0, 0, 1, 1])
    x = m.add("Clip", x, low, high)
    x = m.add("MaxPool", m.add("Pad", x, m.constant([0, 0, 1, 1, 0, 0, 1, 1])), kernel_shape=[3, 3], strides=[2, 2])
    x = m.add("Conv", x, m.weights(8, 1, 3, 3), group=8, auto_pad="SAME_UPPER", strides=[2, 2])
    scale, shift = (m.constant(m.rng.uniform(0.5, 2, (1, 8, 1, 1)).astype(np.float32)) for _ in range(2))
    x = m.add("Clip", m.add("Add", m.add("Mul", x, scale), shift), low, high)
    x = m.add("Transpose", m.add("Transpose", x, perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2])
    y = conv(x, 8, 8, 1, 1)
    scales = [m.constant(m.rng.uniform(0.5, 2, 8).astype(np.float32)) for _ in range(4)]
    y = m.add("Relu", m.add("Add", m.add("BatchNormalization", y, *scales, epsilon=0.001), x))
    y = m.add("Squeeze", m.add("GlobalAveragePool", y), m.constant([2, 3]))
    logits = m.add("Add", m.add("MatMul", y, m.weights(8, CLASSES)), m.weights(CLASSES))
    path = m.save(tmp_path / "m.onnx", m.add("Softmax", logits, axis=-1))
    expected = np.concatenate([
        onnxruntime.InferenceSession(str(path)).run(None, {"x": x[None]})[0] for x in normalised(SIDE)
    ])  # fmt: skip
    require_imported(path, expected, (8, 12, 12), SIDE, 1e-5)


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_a_quantised_model_is_refused_by_its_first_node(how: str, tmp_path: Path) -> None:
    from onnxruntime import quantization

    network = settled(functools.partial(families.resnet, False, [1, 1, 1, 1]), SIDE, False)
    path = written(network, "script", SIDE, tmp_path / "m.onnx")
    if how == "static":

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            pictures = iter(normalised(SIDE).transpose(0, 3, 1, 2))

            def get_next(self) -> Any:
                return next(({"x": x[None]} for x in self.pictures), None)

        quantization.quantize_static(str(path), str(path), Reader())
    else:
        quantization.quantize_dynamic(str(path), str(path))
    node = {"static": "(Deq|Q)uantizeLinear", "dynamic": "DynamicQuantizeLinear"}[how]
    with pytest.raises(CheckpointError, match=rf"the model is quantised, its first such node is \S+ \({node}\)"):
        imported(path)


@pytest.mark.skipif(not MEMORY.exists(), reason="benchmarks are not beside the tests (installed wheel)")
def test_an_import_takes_at_most_three_times_the_file_s_memory() -> None:
    done = subprocess.run(
        [sys.executable, MEMORY, "--channels", "384", "--last", "softmax"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.split(" times the file")[0].rpartition(" ")[2]) <= 3
