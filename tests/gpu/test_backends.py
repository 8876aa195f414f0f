"""Whole sessions on the device: image bytes in; out the boxes that the CPU's kernel gives on their own features."""

from __future__ import annotations

import gc
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.synthetic import DeviceCopy as OnDevice
from tests.gpu.conftest import EMULATED, emulated, enter_plan, free_memory

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.errors import BackendError, BundleError, FeatureError, WgapError
from wgap.runtime.cuda.driver import call
from wgap.runtime.localizer import Failure
from wgap.runtime.locator import CpuLocator, Request, open_locator
from wgap.runtime.postprocess import Classifier

BACKENDS = ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_tensorrt")


@pytest.fixture(scope="module")
def root(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick bundle, with an engine of each flavor that builds here."""
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("gpu") / "tiny"))


@pytest.fixture(scope="module")
def patched() -> Any:
    """A MonkeyPatch for the module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, root: Path, patched: pytest.MonkeyPatch) -> str:
    """The name of a backend that runs here."""
    name: str = request.param
    if EMULATED:
        if name not in ("tensorrt", "onnxruntime_cuda"):
            pytest.skip(f"{name} needs a real driver")
        import onnxruntime

        patched.setattr(onnxruntime, "InferenceSession", import_module("onnxruntime_cuda").session)
        patched.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        enter_plan(root, root / Bundle.open(root).model_file("fp32").path)
    elif not name.startswith("onnxruntime"):
        from wgap.export.engine import BuildOptions, engine_from_bundle

        try:
            engine_from_bundle(Bundle.open(root), name, "fp32", BuildOptions(batch=(1, 2, 4)))
        except WgapError as error:
            pytest.skip(f"{name}: {error}")
    try:
        Localizer(root, backend=name).close()
    except WgapError as error:
        if EMULATED:
            raise
        pytest.skip(f"{name}: {error}")
    return name


@pytest.fixture
def localizer(root: Path, backend: str) -> Any:
    made = Localizer(root, backend=backend, batch_size=3, rule="fixed:0.7")
    yield made
    made.close()


def on_cpu(localizer: Localizer, images: Any, request: Request | None = None) -> list[list[Any]]:
    """What the CPU's kernel makes of the session's own features."""
    kernel = CpuLocator(Classifier(localizer.bundle.classifier()[0]), (64, 64), localizer.rule)
    return kernel.locate(localizer.network.run(images), request)


def boxes_of(localizer: Localizer, images: Any) -> list[tuple[int, ...]]:
    return [row[0].box for row in on_cpu(localizer, images)]


def test_host_images_device_images_and_borrowed_streams_give_the_kernel_s_boxes(
    localizer: Localizer, images: Any
) -> None:
    assert localizer.network.device == localizer.locator.device == 0
    expected = boxes_of(localizer, images)
    assert len(set(expected)) > 3
    for _ in range(3):  # plainly, captured, replayed
        assert [r.box for r in localizer(images)] == expected
    on_device = OnDevice(images)
    for stream in (None, 1, None):  # its own stream; the legacy default stream
        assert [r.box for r in localizer.batch(on_device, stream=stream)] == expected
    classes = [n % 3 for n in range(len(images))]
    for given in (classes, classes[::-1], classes):  # one graph, whose class ids change under it
        told = [(row[0].class_id, row[0].box) for row in on_cpu(localizer, images, Request(given))]
        assert [(r.class_id, r.box) for r in localizer.batch(on_device, given)] == told
    assert localizer.batch(OnDevice(images[:0])) == []
    with pytest.raises(FeatureError, match="images: expected uint8"):
        localizer.batch(OnDevice(images[:, :32]))
    for wrong in (images[:, :32], images.astype(np.float32), images[0]):
        with pytest.raises(FeatureError, match="images: expected uint8"):
            localizer.network.run(wrong)
    on_device.close()


def test_the_network_s_outputs_are_the_cpu_s_within_float32(localizer: Localizer, root: Path, images: Any) -> None:
    plain, ours = Localizer(root).network.run(images), localizer.network.run(images)
    for name, theirs in plain.items():
        assert np.abs(ours[name] - theirs).max() <= 2e-3 * np.abs(theirs).max()


def test_many_threads_share_one_localizer(localizer: Localizer, images: Any) -> None:
    expected = boxes_of(localizer, images)

    def work(n: int) -> bool:
        return [r.box for r in localizer(images[n % 8 : n % 8 + 3])] == expected[n % 8 : n % 8 + 3]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


def test_an_exception_in_the_middle_of_a_batch_leaks_nothing_and_blocks_nobody(
    localizer: Localizer, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wgap.runtime.cuda.postprocess import Launch

    expected = boxes_of(localizer, images)
    list(localizer(images))
    before = free_memory()
    whole = Launch.records
    calls = 0

    def tired(self: Launch) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise BackendError("the device is tired")
        return whole(self)

    monkeypatch.setattr(Launch, "records", tired)
    for _ in range(40):  # more often than there are slots
        with pytest.raises(BackendError, match="tired"):
            list(localizer(images))
    monkeypatch.undo()
    assert [r.box for r in localizer(images)] == expected
    assert before - free_memory() <= (0 if EMULATED else 2 << 20)


@pytest.mark.parametrize("closed", [True, False])
def test_two_hundred_sessions_leave_no_memory_behind(root: Path, backend: str, images: Any, closed: bool) -> None:
    def once() -> None:
        made = Localizer(root, backend=backend, verify=False)
        list(made(images[:2]))
        if closed:
            made.close()

    for _ in range(5):
        once()
    gc.collect()
    before, owners = free_memory(), emulated("owners") if EMULATED else 0
    gc.disable()  # what is dropped goes at once
    try:
        for _ in range(200 if EMULATED or backend.startswith("tensorrt") else 20):
            once()
        after = free_memory()
        assert not EMULATED or emulated("owners") == owners
    finally:
        gc.enable()
    assert before - after <= (0 if EMULATED else 8 << 20)


@pytest.mark.skipif(not EMULATED, reason="asks the stand-in what it was given")
def test_onnx_runtime_is_bounded_and_on_the_gpu_that_is_named(root: Path, backend: str, two_gpus: None) -> None:
    if backend != "onnxruntime_cuda":
        pytest.skip("of ONNX Runtime")
    given: list[Any] = import_module("onnxruntime_cuda").SESSIONS
    for asked, bound in ((None, 4 << 30), (1 << 20, 1 << 20)):
        with Localizer(root, backend, device=1, memory_limit=asked) as made:
            [(name, options)] = given[-1][1]
            assert (name, options["device_id"], options["gpu_mem_limit"]) == ("CUDAExecutionProvider", 1, bound)
            assert made.network.device == made.locator.device == 1
            made.one(np.zeros((64, 64, 3), np.uint8))
            told = made.memory()
            assert told["device_limit"] == bound
            assert told["device"] > 0, "of the kernel"


@pytest.mark.skipif(not EMULATED, reason="needs the stand-in for TensorRT")
def test_one_image_without_a_box_costs_no_second_forward_pass(glass_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(glass_bundle, tmp_path / "glass"))
    enter_plan(root, root / "model.onnx")
    runs: list[int] = import_module("tensorrt").RUNS
    batch = np.random.default_rng(5).integers(1, 255, (4, 64, 64, 3), dtype=np.uint8)
    batch[2] = 0  # black: the network divides by zero
    with Localizer(root) as plain, Localizer(root, "tensorrt", batch_size=4) as made:
        expected = [plain.one(batch[n], heatmap=True) for n in (0, 1, 3)]
        for _ in range(3):  # plainly, captured, replayed
            runs.clear()
            found = list(made(batch, heatmap=True, on_error="yield"))
            assert runs == [4]
            failed = found.pop(2)
            assert isinstance(failed, Failure)
            assert str(failed.error).startswith("image 2: ")
            assert "NaN" in str(failed.error)
            for one, other in zip(expected, found, strict=True):
                assert (one.box, one.level, one.class_id) == (other.box, other.level, other.class_id)
                assert other.heatmap is not None
        runs.clear()
        with pytest.raises(FeatureError, match=r"image 2: .*NaN"):
            list(made(batch))
        guest = OnDevice(batch)
        with pytest.raises(FeatureError, match=r"image 2: .*NaN"):
            made.batch(guest)
        *_, failed, last = made.batch(guest, on_error="yield")
        assert runs == [4, 4, 4]
        assert isinstance(failed, Failure)
        assert last.box == expected[2].box
        guest.close()


@pytest.mark.skipif(not EMULATED, reason="needs a library that gives plans without weights")
def test_a_stripped_engine_gets_its_weights_back(tiny_bundle: Path, tmp_path: Path, images: Any) -> None:
    own = Path(shutil.copytree(tiny_bundle, tmp_path / "stripped"))
    enter_plan(own, b"stripped of its weights", strip_weights=True)
    made = Localizer(own, backend="tensorrt")
    assert [r.box for r in made(images)] == boxes_of(made, images)
    made.close()


@pytest.mark.skipif(not EMULATED, reason="makes the library fail on purpose")
def test_failures_of_the_library_are_told(root: Path, backend: str, images: Any) -> None:
    if backend != "tensorrt":
        pytest.skip("the stand-in for TensorRT fails on purpose")
    library: Any = import_module("tensorrt")
    made = Localizer(root, backend=backend, batch_size=4)
    network: Any = made.network
    network.graphs = False
    library.FAIL_AT[:] = [library.Context.runs + 2]
    list(made(images[:4]))
    with pytest.raises(BackendError, match=r"failed on a batch of shape \(4, 64, 64, 3\): the device is tired"):
        list(made(images[:4]))
    network.graphs, network.failures = True, 0
    first = library.Context.runs + 1  # each call tries to capture, which fails, and does without
    library.FAIL_AT[:] = [first, first + 2, first + 4]
    list(made(images[:4]))
    list(made(images[:4]))
    assert network.graphs
    with pytest.warns(RuntimeWarning, match="cannot be captured into a CUDA graph .*goes on without graphs"):
        list(made(images[:4]))
    assert not network.graphs
    assert emulated("graphs") == 0, "what was captured until it failed is destroyed"
    made.close()


def test_a_closed_session_says_so(root: Path, backend: str, images: Any) -> None:
    made = Localizer(root, backend=backend)
    made.close()
    with pytest.raises(BackendError, match=f"this {backend} session was closed; open another"):
        made.one(images[0])


def test_a_locator_on_the_cpu_refuses_outputs_on_a_gpu(root: Path, backend: str, images: Any) -> None:
    locator = open_locator(Bundle.open(root))
    with (
        Localizer(root, backend=backend, locator=locator) as made,
        pytest.raises(FeatureError, match="logits are on a GPU, this locator is on the CPU"),
    ):
        made.one(images[0])


@pytest.mark.skipif(not EMULATED, reason="makes the library fail on purpose")
def test_what_cannot_be_opened_or_was_closed_leaves_nothing(tiny_bundle: Path, tmp_path: Path, images: Any) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "rubbish"))
    enter_plan(root, b"rubbish")
    gc.collect()
    before, owners = free_memory(), emulated("owners")
    with pytest.raises(BackendError, match=r"tensorrt .* refuses .*model\.fp32\.plan: not a plan"):
        Localizer(root, backend="tensorrt")
    gc.collect()
    assert (free_memory(), emulated("owners")) == (before, owners)
    enter_plan(root, root / "model.onnx")
    made = Localizer(root, backend="tensorrt")
    with made.network.forward(images[:2]) as outputs:
        kept = dict(outputs)
    made.close()
    made.close()
    with pytest.raises(BackendError, match="this tensorrt session was closed"):
        made.one(images[0])
    assert set(kept) == {"logits", "features"}
    assert (free_memory(), emulated("owners")) == (before, owners), "outputs that are kept hold no memory"


@pytest.mark.skipif(not EMULATED, reason="makes the library fail on purpose")
def test_a_slot_is_given_back_with_nothing_under_way_in_it(
    engine_bundle: Path, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wgap.runtime.cuda.postprocess import Launch
    from wgap.runtime.networks import tensorrt

    told: list[Any] = []

    def noted(name: str, *arguments: Any) -> Any:
        told.append((name, *arguments))
        return call(name, *arguments)

    def refused(*_: Any) -> None:
        raise BackendError("no launch")

    guest = OnDevice(images[:1])
    with Localizer(engine_bundle, "tensorrt") as made:
        made.batch(guest)
        monkeypatch.setattr(tensorrt, "call", noted)
        monkeypatch.setattr(Launch, "enqueue", refused)
        made.network.graphs = False  # type: ignore[attr-defined]
        with pytest.raises(BackendError, match="no launch"):
            made.batch(guest, stream=1)
        assert [name for name, *_ in told] == ["cuMemcpyDtoDAsync", "cuStreamSynchronize"]
        assert told[-1][1] == 1, "the stream that was borrowed"
    guest.close()


@pytest.mark.skipif(not EMULATED, reason="needs the stand-in for TensorRT")
def test_a_changed_plan_is_refused(engine_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(engine_bundle, tmp_path / "changed"))
    plan = next(e for e in Bundle.open(root).manifest.files if e.role == "engine")
    (root / plan.path).write_bytes(b"\0" * plan.size)
    with pytest.raises(BundleError, match="sha256"):
        Localizer(root, backend="tensorrt")
