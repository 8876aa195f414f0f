"""Which GPU: by ordinal or UUID, everything of a session lies there, and two work side by side."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.synthetic import DeviceCopy
from tests.gpu.conftest import EMULATED, free_memory, same
from typer.testing import CliRunner

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.cli import app
from wgap.errors import BackendError, EngineError, FeatureError
from wgap.runtime.cuda import driver
from wgap.runtime.cuda.postprocess import CudaPostprocess
from wgap.runtime.engine import Host
from wgap.runtime.library import gpu, gpus
from wgap.runtime.locator import open_locator
from wgap.runtime.postprocess import Classifier, postprocess

UNKNOWN = r"no GPU .* on this machine; expected an ordinal or a UUID of: 0 \(.*GPU-.*\)"
emulated = pytest.mark.skipif(not EMULATED, reason="needs the stand-in for TensorRT")


def test_gpus_are_listed_and_an_unknown_one_is_refused_with_the_list(two_gpus: None) -> None:
    found = gpus()
    assert [one.ordinal for one in found] == list(range(len(found)))
    assert len({one.uuid for one in found}) == len(found)
    assert gpu() == found[0] == gpu(0) == gpu(found[0].uuid)
    assert gpu(1) == found[1] == gpu(found[1].uuid)
    for unknown in (len(found), -1, "GPU-00000000-0000-0000-0000-000000000000"):
        with pytest.raises(BackendError, match=UNKNOWN):
            gpu(unknown)


@pytest.mark.parametrize("by", ["ordinal", "uuid"])
def test_the_kernel_runs_on_the_gpu_that_is_named(two_gpus: None, by: str) -> None:
    rng = np.random.default_rng(2)
    features, logits, weight = (rng.random(s, dtype=np.float32) for s in ((3, 8, 7, 7), (3, 5), (5, 8)))
    first, second = free_memory(0), free_memory(1)
    kernel = CudaPostprocess(weight, device=getattr(gpu(1), by))
    arrays = [DeviceCopy(array, device=1) for array in (logits, features)]
    found = kernel(*arrays, size=(60, 60))
    assert (kernel.device, kernel.context.device) == (1, 1)
    assert (free_memory(0), free_memory(1) < second) == (first, True)
    for [expected], [record] in zip(
        postprocess(logits, features, Classifier(weight), size=(60, 60)), found, strict=True
    ):
        assert same(expected, record)
    with pytest.raises(FeatureError, match="logits are on GPU 0, and this kernel runs on GPU 1"):
        kernel(*[DeviceCopy(array) for array in (logits, features)], size=(60, 60))
    for array in arrays:
        array.close()
    kernel.close()
    assert free_memory(1) == second
    with pytest.raises(BackendError, match=UNKNOWN):
        CudaPostprocess(weight, device=7)


@emulated
@pytest.mark.parametrize("by", ["ordinal", "uuid"])
def test_a_session_lies_on_the_gpu_that_is_named(engine_bundle: Path, images: Any, by: str) -> None:
    with Localizer(engine_bundle, "tensorrt") as plain:
        expected = list(plain(images))
    first, second = free_memory(0), free_memory(1)
    assert Host.here("tensorrt", getattr(gpu(1), by)).compute_capability == gpu(1).compute_capability
    localizer = Localizer(engine_bundle, "tensorrt", device=getattr(gpu(1), by), batch_size=4)
    assert localizer.network.device == localizer.locator.device == 1
    for _ in range(3):
        assert list(localizer(images)) == expected
    guest = DeviceCopy(images, device=1)
    assert [r.box for r in localizer.batch(guest)] == [r.box for r in expected]
    with (
        DeviceCopy(images) as elsewhere,
        pytest.raises(FeatureError, match="images are on GPU 0, and this network runs on GPU 1"),
    ):
        localizer.batch(elsewhere)
    guest.close()
    assert (free_memory(0), free_memory(1) < second) == (first, True)
    localizer.close()
    assert (free_memory(0), free_memory(1)) == (first, second)
    for make in (
        lambda: Localizer(engine_bundle, "tensorrt", device=2),
        lambda: Host.here("tensorrt", "GPU-1"),
        lambda: open_locator(Bundle.open(engine_bundle), device=2),
    ):
        with pytest.raises(BackendError, match=UNKNOWN):
            make()
    assert (free_memory(0), free_memory(1)) == (first, second)


@emulated
def test_two_gpus_work_side_by_side(engine_bundle: Path, images: Any) -> None:
    sessions = [Localizer(engine_bundle, "tensorrt", device=n, batch_size=3) for n in range(2)]
    expected = list(sessions[0](images))
    meeting = threading.Barrier(2, timeout=30)

    def work(n: int) -> bool:
        meeting.wait()
        return all(list(sessions[n](images)) == expected for _ in range(10))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(2)))
    crossed = Localizer(engine_bundle, "tensorrt", device=0, locator=sessions[1].locator)
    with pytest.raises(FeatureError, match="are on GPU 0, and this kernel runs on GPU 1"):
        crossed.one(images[0])
    for made in (crossed, *sessions):
        made.close()


@emulated
@pytest.mark.parametrize(("slots", "together"), [(1, False), (2, True), (None, True)])
def test_slots_are_the_calls_on_the_gpu_at_the_same_time(
    engine_bundle: Path, images: Any, slots: int | None, together: bool
) -> None:
    library: Any = import_module("tensorrt")
    met: list[bool] = []
    meeting = threading.Barrier(2)

    def meet() -> None:  # where a forward pass is queued: a second call can only be there with a slot of its own
        try:
            meeting.wait(10 if together else 0.3)
            met.append(True)
        except threading.BrokenBarrierError:
            met.append(False)

    localizer = Localizer(engine_bundle, "tensorrt", slots=slots)
    expected = [localizer.one(images[0]), localizer.one(images[1])]
    assert isinstance(localizer.network.graphs, bool)  # type: ignore[attr-defined]
    localizer.network.graphs = False  # type: ignore[attr-defined]  (a replayed graph is not queued by the library)
    library.QUEUEING.append(meet)
    try:
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(localizer.one, images[:2])) == expected
    finally:
        library.QUEUEING.clear()
    assert met == [together, together]
    localizer.close()


@emulated
@pytest.mark.parametrize(
    "words",
    [
        ("localize", "BUNDLE", "PICTURE"),
        ("check", "BUNDLE"),
        ("selftest", "BUNDLE"),
        ("bench", "BUNDLE", "--batch", "1", "--iterations", "1", "--warmup", "0"),
        ("inspect", "BUNDLE", "--memory"),
        ("evaluate", "BUNDLE", "SHAPES"),
    ],
    ids=lambda words: words[0],
)
def test_the_command_line_names_the_gpu(
    engine_bundle: Path, shapes: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    make = driver.Context.__init__

    def noted(self: driver.Context, device: int = 0, primary: bool = False) -> None:
        opened.append(device)
        make(self, device, primary)

    monkeypatch.setattr(driver.Context, "__init__", noted)
    places = {"BUNDLE": engine_bundle, "SHAPES": shapes, "PICTURE": shapes / "test" / "disc" / "0.png"}
    command = [*(str(places.get(word, word)) for word in words), "--backend", "tensorrt", "--json"]
    for name in ("1", gpu(1).uuid):
        done = CliRunner().invoke(app, [*command, "--device", name], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert opened == [1, 1], "the network's context, which the kernel shares"
    refused = CliRunner().invoke(app, [*command, "--device", "2"])
    assert refused.exit_code != 0
    assert "no GPU 2 on this machine" in (refused.output + str(refused.exception))


@emulated
def test_an_engine_is_built_on_the_gpu_that_is_named(engine_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_on: list[int] = []

    def builder(*_: Any) -> Any:
        built_on.append(int(driver.call("cuCtxGetDevice")))
        raise EngineError("the stand-in builds nothing")

    monkeypatch.setattr("wgap.export.engine._builder", builder)
    monkeypatch.setattr("wgap.export.engine._require_options", lambda *_: None)
    for name in ("1", gpu(1).uuid):
        done = CliRunner().invoke(app, ["build", str(engine_bundle), "--flavor", "tensorrt", "--device", name])
        assert "builds nothing" in done.output + str(done.exception)
    assert built_on == [1, 1]
    done = CliRunner().invoke(app, ["build", str(engine_bundle), "--flavor", "tensorrt", "--device", "2"])
    assert "no GPU 2 on this machine" in done.output + str(done.exception)
