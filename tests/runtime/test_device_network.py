"""What a localizer does with a network whose outputs lie on a device: told with one that keeps them on the CPU.

The networks on GPUs are tested in tests/gpu; here are the ways to them that need none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wgap import Localizer
from wgap.errors import BackendError, DataError, EngineError, FeatureError, MissingDependencyError, WgapError
from wgap.runtime.localizer import Failure
from wgap.runtime.locator import CpuLocator, Request
from wgap.runtime.network import Network
from wgap.runtime.networks import BACKENDS
from wgap.runtime.networks.onnxruntime_gpu import MEMORY_LIMIT, _providers
from wgap.runtime.postprocess import Classifier


class Device(Network):
    """A real network that says it is on a GPU, takes three images at once and spoils those it is told to."""

    name, version, device, largest = "device", "1", 0, 3

    def __init__(self, inner: Network) -> None:
        self.inner, self.precision = inner, inner.precision
        self.poisoned: set[int] = set()
        self.runs: list[int] = []
        self.streams: list[int | None] = []
        self.closed = 0

    @contextmanager
    def forward(self, images: Any, stream: int | None = None, outputs: Any = None) -> Iterator[Any]:
        self.runs.append(len(images))
        self.streams.append(stream)
        made = self.inner.run(images)
        for image, features in zip(images, made["features"], strict=True):
            if int(image.sum()) in self.poisoned:
                features[0, 0, 0] = np.nan
        yield made

    def close(self) -> None:
        self.closed += 1


class Kernel(CpuLocator):
    """The kernel on the CPU, which says it is on a GPU and counts."""

    device = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requests: list[Request | None] = []
        self.closed = 0

    def locate(self, outputs: Any, request: Request | None = None) -> Any:
        self.requests.append(request)
        return super().locate(outputs, request)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def pair(tiny_bundle: Path) -> tuple[Localizer, Any]:
    """A localizer on the CPU and the same one over a device."""
    plain = Localizer(tiny_bundle, batch_size=3, top_k=2, rule="fixed:0.7")
    kernel = Kernel(Classifier(plain.bundle.classifier()[0]), (64, 64), plain.rule)
    device = Localizer(
        plain.bundle, batch_size=3, top_k=2, rule="fixed:0.7", network=Device(plain.network), locator=kernel
    )
    return plain, device


@pytest.fixture
def pictures() -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (50 + 10 * n, 90, 3), dtype=np.uint8) for n in range(5)]


@pytest.fixture
def exact() -> Any:
    """uint8[4, 64, 64, 3]: at the input size, so that nothing is resized."""
    return np.random.default_rng(4).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def test_the_results_are_those_of_the_kernel_on_the_cpu(pair: tuple[Localizer, Any], pictures: list[Any]) -> None:
    plain, device = pair
    for classes in (None, [0, 2, 1, 1, 0]):
        for expected, found in zip(plain(pictures, classes), device(pictures, classes), strict=True):
            assert found.to_json() == expected.to_json()
    expected, found = plain.one(pictures[0], heatmap=True), device.one(pictures[0], heatmap=True)
    assert np.array_equal(found.heatmap, expected.heatmap)
    assert len(device.locator.requests) == len(device.network.runs) == 5


def test_one_image_that_fails_costs_no_second_run(pair: tuple[Localizer, Any], exact: Any) -> None:
    plain, device = pair
    device.network.poisoned.add(int(exact[1].sum()))
    found = list(device(exact[:3], on_error="yield"))
    assert device.network.runs == [3]
    assert isinstance(found[1], Failure)
    assert "image 1: features hold NaN" in str(found[1].error)
    for n in (0, 2):
        assert found[n].to_json() == plain.one(exact[n]).to_json()
    with pytest.raises(FeatureError, match="image 1: features hold NaN"):
        list(device(exact[:3]))
    assert device.network.runs == [3, 3]


def test_one_image_that_fails_on_the_cpu_costs_no_second_run(glass_bundle: Path) -> None:
    batch = np.random.default_rng(5).integers(1, 255, (4, 64, 64, 3), dtype=np.uint8)
    batch[2] = 0  # black: the network divides by zero
    with Localizer(glass_bundle, batch_size=4) as plain:
        network = Device(plain.network)
        network.device, network.largest = None, None  # type: ignore[assignment]
        found = list(Localizer(glass_bundle, batch_size=4, network=network)(batch, on_error="yield"))
        assert network.runs == [4]
        assert [isinstance(result, Failure) for result in found] == [False, False, True, False]
        assert [found[n] for n in (0, 1, 3)] == [plain.one(batch[n]) for n in (0, 1, 3)]


def test_a_batch_on_the_device_gives_boxes_in_its_own_pixels(pair: tuple[Localizer, Any], exact: Any) -> None:
    plain, device = pair
    found = device.batch(exact, stream=5)
    assert device.network.runs == [3, 1], "three images at most"
    assert device.network.streams == [5, 5]
    assert [f.box for f in found] == [f.box for f in plain(exact)]
    assert [f.class_id for f in device.batch(exact, classes=[1, 0, 1, 2])] == [1, 0, 1, 2]
    device.network.poisoned.add(int(exact[3].sum()))
    with pytest.raises(FeatureError, match="image 3: features hold NaN"):
        device.batch(exact)
    told = device.batch(exact, on_error="yield")
    assert isinstance(told[3], Failure)
    assert told[:3] == found[:3]
    with pytest.raises(DataError, match="expected one class per image, got 2 classes"):
        device.batch(exact, classes=[1, 0])
    with pytest.raises(DataError, match="on_error must be 'raise' or 'yield'"):
        device.batch(exact, on_error="skip")
    with pytest.raises(FeatureError, match=r"expected an array .* got list"):
        device.batch(list(exact))
    with pytest.raises(DataError, match="onnxruntime takes images in host memory"):
        plain.batch(exact)
    device.close()
    plain.close()
    assert (device.network.closed, device.locator.closed) == (1, 1)


@pytest.mark.parametrize(
    ("backend", "option", "takes"),
    [
        ("onnxruntime", "device", "threads="),
        ("onnxruntime", "slots", "threads="),
        ("onnxruntime", "memory_limit", "threads="),
        ("onnxruntime_cuda", "threads", "device= and memory_limit="),
        ("onnxruntime_cuda", "slots", "device= and memory_limit="),
        ("onnxruntime_tensorrt", "threads", "device= and memory_limit="),
        ("tensorrt", "threads", "device= and slots="),
        ("tensorrt_rtx", "memory_limit", "device= and slots="),
    ],
)
def test_an_option_without_meaning_for_the_backend_is_refused(
    tiny_bundle: Path, backend: str, option: str, takes: str
) -> None:
    with pytest.raises(DataError, match=f"the backend {backend} has no {option}=; it takes {takes}"):
        Localizer(tiny_bundle, backend, **{option: 1})


def test_a_network_of_ones_own_takes_no_option_of_a_backend(pair: tuple[Localizer, Any]) -> None:
    plain, _ = pair
    with pytest.raises(DataError, match=r"of your own .* has no device="):
        Localizer(plain.bundle, network=plain.network, device=0)
    with pytest.raises(DataError, match="memory_limit must be a whole number in 1"):
        Localizer(plain.bundle, memory_limit=0)


def test_onnx_runtime_on_a_gpu_is_given_a_bound() -> None:
    name, cuda = _providers("onnxruntime_cuda", 1, MEMORY_LIMIT)[0]
    assert name == "CUDAExecutionProvider"
    assert (cuda["device_id"], cuda["gpu_mem_limit"]) == (1, 4 << 30)
    (name, tensorrt), (_, cuda) = _providers("onnxruntime_tensorrt", 0, 1 << 20)
    assert name == "TensorrtExecutionProvider"
    assert tensorrt["trt_max_workspace_size"] == cuda["gpu_mem_limit"] == 1 << 20


@pytest.mark.parametrize("backend", sorted(BACKENDS.keys() - {"auto", "onnxruntime", "openvino"}))
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
    from wgap.runtime.library import gpus

    if gpus():
        pytest.skip("there is a GPU: tests/gpu runs the engine")
    from typer.testing import CliRunner

    own = Path(shutil.copytree(tiny_bundle, tmp_path / "own"))
    built = CliRunner().invoke(app, ["build", str(own), "--flavor", "tensorrt_rtx", "--batch", "1,2,4"])
    assert built.exit_code == 0, built.output
    with pytest.raises(BackendError, match="use the onnxruntime backend"):
        Localizer(own, backend="tensorrt_rtx")
    with pytest.raises(BackendError, match="use the onnxruntime backend"):
        Localizer(own, backend="tensorrt_rtx", device=1)


def test_the_cpu_way_loads_nothing_of_cuda(tiny_bundle: Path) -> None:
    code = (
        f"import sys; from wgap import Localizer; Localizer({str(tiny_bundle)!r}); "
        "print([m for m in sys.modules if m.split('.')[0] == 'cuda'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
