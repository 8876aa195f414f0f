"""The foreground rules behind a network on the device: the CPU's boxes, and only what they read."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from benchmarks.synthetic import DeviceCopy
from tests.gpu.conftest import EMULATED, enter_plan

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.errors import EngineMismatchError, FeatureError
from wgap.rule import Rule
from wgap.runtime.cuda.postprocess import CudaPostprocess

RULES = [("foreground", "none"), ("foreground+colour", "none"), ("foreground+colour", "recombined")]
BACKENDS = ["onnxruntime_cuda", "tensorrt"]


@pytest.fixture(scope="session")
def engine(scored_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with scores and an engine that has every output."""
    if not EMULATED:
        pytest.skip("needs the stand-in for TensorRT")
    root = Path(shutil.copytree(scored_bundle, tmp_path_factory.mktemp("gpu") / "scored"))
    enter_plan(root, root / Bundle.open(root).model_file("fp32").path)
    return root


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulated driver's ONNX Runtime."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", import_module("onnxruntime_cuda").session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8) // 90 * 90


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(("kind", "map_"), RULES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_are_the_cpu_s(engine: Path, images: np.ndarray, backend: str, kind: str, map_: str) -> None:
    rule = Rule.parse(kind, map_)
    expected = list(Localizer(engine, rule=rule, max_boxes=3)(images))
    with Localizer(engine, backend, rule=rule, max_boxes=3, batch_size=4) as localizer:
        from_host = list(localizer(images))
        again = list(localizer(images))  # as a graph, where the backend makes one
        with DeviceCopy(images) as there:
            from_device = localizer.batch(there)
    assert len({result.boxes for result in expected}) > 1
    for found in (from_host, again, from_device):
        assert [result.boxes for result in found] == [result.boxes for result in expected]
        assert [result.class_id for result in found] == [result.class_id for result in expected]


def test_an_engine_without_features_serves_foreground_rules_alone(
    engine: Path, images: np.ndarray, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    root = Path(shutil.copytree(engine, tmp_path / "few"))
    bundle = Bundle.open(root)
    model = onnx.load(str(bundle.path("onnx", "fp32")))
    model.graph.output.remove(next(value for value in model.graph.output if value.name == "features"))
    enter_plan(root, model.SerializeToString(), outputs=["logits", "foreground"])
    expected = [result.boxes for result in Localizer(root)(images)]
    with Localizer(root, "tensorrt", batch_size=4) as localizer:
        assert localizer.network.outputs == ("logits", "foreground")
        assert [result.boxes for result in localizer(images)] == expected
        with localizer.network.forward(images) as outputs:
            assert set(outputs) == {"logits", "foreground"}
    with pytest.raises(
        EngineMismatchError, match=r"outputs, for the rule adaptive +logits, features +logits, foreground"
    ):
        Localizer(root, "tensorrt", rule="adaptive")


def test_what_a_rule_reads_must_be_there_and_fit() -> None:
    rng = np.random.default_rng(0)
    logits, scores = rng.random((2, 3), np.float32), rng.random((2, 1, 5, 6), np.float32)
    pictures = rng.integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    kernel, colour = CudaPostprocess(rng.random((3, 4), np.float32)), Rule("foreground+colour")
    given = [DeviceCopy(array) for array in (logits, scores, pictures, pictures[:, :10], scores[:1])]
    l, s, p, short, few = given  # noqa: E741
    for options, message in (
        ({"scores": s}, "picture is missing"),
        ({"pictures": p}, "foreground is missing"),
        (
            {"scores": s, "pictures": short},
            r"picture: expected uint8\[2, 20, 30, 3\], the map's size, got uint8\[2, 10",
        ),
        ({"scores": few, "pictures": p}, "foreground: expected those of 2 images, as the logits, got 1"),
        ({"scores": p, "pictures": p}, "foreground: expected .*float32"),
    ):
        with pytest.raises(FeatureError, match=message):
            kernel(l, None, size=(20, 30), rule=colour, **options)
    scores[1, 0, 2, 2] = np.nan
    with DeviceCopy(scores) as bad, pytest.raises(FeatureError, match="image 1 of the batch: scores hold NaN"):
        kernel(l, None, size=(20, 30), rule=colour, scores=bad, pictures=p)
    for array in given:
        array.close()
    kernel.close()
