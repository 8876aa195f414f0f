"""What a localizer does with a backend that runs the kernel itself: told with one that does so on the CPU.

The backends on GPUs are tested in tests/gpu; here are the ways to them that need none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wgap import Localizer
from wgap.errors import BackendError, DataError, EngineError, MissingDependencyError, WgapError
from wgap.runtime.backends import BACKENDS, Backend, DeviceBackend
from wgap.runtime.cuda.postprocess import Options, class_ids
from wgap.runtime.postprocess import Classifier, postprocess


class Device:
    """A real network and the real kernel behind one ``records``, as on a GPU."""

    def __init__(self, inner: Backend, weight: Any) -> None:
        self.inner, self.classifier = inner, Classifier(weight)
        self.name, self.precision, self.version = "device", inner.precision, inner.version
        self.poisoned: set[int] = set()
        self.closed, self.streams = 0, []

    def run(self, images: Any) -> Any:
        return self.inner.run(np.asarray(images))

    def records(self, images: Any, options: Options, stream: int | None = None) -> Any:
        self.streams.append(stream)
        logits, features = self.run(images)
        for n in range(len(features)):
            if int(np.asarray(images)[n].sum()) in self.poisoned:
                features[n, 0, 0, 0] = np.nan
        return postprocess(
            features, logits, self.classifier, size=options.size, classes=options.classes, top_k=options.top_k,
            map=options.map, threshold=options.threshold, heatmaps=options.heatmaps,
        )  # fmt: skip

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def pair(tiny_bundle: Path) -> tuple[Localizer, Localizer]:
    """A localizer on the CPU and the same one over a device."""
    plain, device = (Localizer(tiny_bundle, batch_size=3, top_k=2, threshold="fixed:0.7") for _ in range(2))
    device.backend = Device(device.backend, device.bundle.classifier()[0])
    return plain, device


@pytest.fixture
def pictures() -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (50 + 10 * n, 90, 3), dtype=np.uint8) for n in range(5)]


def test_the_results_are_those_of_the_kernel_on_the_cpu(pair: tuple[Localizer, Localizer], pictures: list[Any]) -> None:
    plain, device = pair
    assert isinstance(device.backend, DeviceBackend)
    assert not isinstance(plain.backend, DeviceBackend)
    for classes in (None, [0, 2, 1, 1, 0]):
        for expected, found in zip(plain(pictures, classes), device(pictures, classes), strict=True):
            assert found.to_json() == expected.to_json()
    expected, found = plain.one(pictures[0], heatmap=True), device.one(pictures[0], heatmap=True)
    assert np.array_equal(found.heatmap, expected.heatmap)


def test_an_image_that_fails_on_the_device_fails_alone(pair: tuple[Localizer, Localizer], pictures: list[Any]) -> None:
    plain, device = pair
    same = [p[:64, :64].copy() for p in pictures if p.shape[0] >= 64]  # at the input size: not resized
    device.backend.poisoned.add(int(same[1].sum()))
    found = list(device(same, on_error="yield"))
    assert "image 1: features hold NaN" in str(found[1].error)
    for n in (0, 2):
        assert found[n].to_json() == plain.one(same[n]).to_json()


def test_a_batch_on_the_device_gives_boxes_in_its_own_pixels(pair: tuple[Localizer, Localizer]) -> None:
    plain, device = pair
    images = np.random.default_rng(4).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    found = device.batch(images, stream=5)
    assert device.backend.streams[-1] == 5
    assert [f.box for f in found] == [f.box for f in plain(images)]
    assert [f.class_id for f in device.batch(images, classes=[1, 0, 1, 2])] == [1, 0, 1, 2]
    with pytest.raises(DataError, match="expected one class per image, got 2 classes"):
        device.batch(images, classes=[1, 0])
    with pytest.raises(DataError, match="onnxruntime takes images in host memory"):
        plain.batch(images)
    device.close()
    plain.close()
    assert device.backend.closed == 1


def test_class_ids_are_checked_before_anything_is_launched() -> None:
    assert class_ids(None, 3, 5) is None
    assert class_ids(4, 3, 5) == [4, 4, 4]
    assert class_ids(np.array([1, 2]), 2, 5) == [1, 2]
    with pytest.raises(ValueError, match="one class id for each of 3 images, got 2"):
        class_ids([1, 2], 3, 5)
    with pytest.raises(ValueError, match=r"classes\[1\] is 5, expected 0..4"):
        class_ids([1, 5], 2, 5)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "onnxruntime"])
def test_what_a_gpu_backend_lacks_is_told_by_name_and_nothing_runs_instead(tiny_bundle: Path, backend: str) -> None:
    with pytest.raises(WgapError) as told:
        Localizer(tiny_bundle, backend=backend)
    # in this order: the library is not there; the bundle has no engine; the build or the machine has no GPU
    assert isinstance(told.value, MissingDependencyError | EngineError | BackendError)
    assert any(word in str(told.value) for word in ("pip install", "wgap build", "GPU"))


def test_an_engine_without_a_gpu_is_refused_by_name(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnx")
    from wgap.cli import app
    from wgap.runtime.library import running_gpu

    if running_gpu() is not None:
        pytest.skip("there is a GPU: tests/gpu runs the engine")
    from typer.testing import CliRunner

    own = Path(shutil.copytree(tiny_bundle, tmp_path / "own"))
    built = CliRunner().invoke(app, ["build", str(own), "--flavor", "tensorrt_rtx", "--batch", "1,2,4"])
    assert built.exit_code == 0, built.output
    with pytest.raises(BackendError, match="use the onnxruntime backend"):
        Localizer(own, backend="tensorrt_rtx")


def test_the_cpu_way_loads_nothing_of_cuda(tiny_bundle: Path) -> None:

    code = (
        f"import sys; from wgap import Localizer; Localizer({str(tiny_bundle)!r}); "
        "print([m for m in sys.modules if m.split('.')[0] == 'cuda'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
