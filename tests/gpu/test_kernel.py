"""The kernel on the device gives what it gives on the CPU, bit for bit, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.synthetic import DeviceCopy as OnDevice
from tests.gpu.conftest import EMULATED, free_memory, same

from wgap.errors import BackendError, FeatureError
from wgap.rule import MAPS, Rule
from wgap.runtime.cuda.driver import Context, call, driver
from wgap.runtime.cuda.postprocess import CudaPostprocess
from wgap.runtime.postprocess import Classifier, postprocess

ROOT = Path(__file__).resolve().parents[2]
MOST = int(os.environ.get("WGAP_GPU_MAPS", "300"))


def draw(rng: np.random.Generator, images: int, shape: tuple[int, int, int], classes: int) -> tuple[Any, Any, Any]:
    """Smooth blobs, noise, ties or both signs, by turns."""
    channels, height, width = shape
    features = rng.random((images, channels, height, width), dtype=np.float32)
    y, x = np.mgrid[0:height, 0:width]
    for n, image in enumerate(features):
        if n % 4 == 0:
            cy, cx = rng.uniform(0, height, channels), rng.uniform(0, width, channels)
            spread = 0.5 + rng.uniform(0, (height + width) / 4, channels)
            squared = (y - cy[:, None, None]) ** 2 + (x - cx[:, None, None]) ** 2
            image[:] = 10 * np.exp(-squared / spread[:, None, None])
        elif n % 4 == 1:
            image[:] = np.maximum(image - 0.6, 0)
        elif n % 4 == 2:
            image[:] = np.floor(image * 3)
        else:
            features[n] -= 0.5
    logits, weight = (rng.standard_normal(s).astype(np.float32) for s in ((images, classes), (classes, channels)))
    return features, logits, weight


def test_levels_and_boxes_are_the_cpu_s_on_random_maps() -> None:
    rng = np.random.default_rng(20220527)
    rules = [Rule.parse(kind, map_) for kind in ("adaptive", "fixed:0.3") for map_ in MAPS]
    rules += [Rule.parse(kind, map_) for kind in ("foreground", "foreground+colour") for map_ in ("none", *MAPS)]
    done = 0
    while done < MOST:
        images = int(rng.integers(1, 40))
        shape = tuple(int(n) for n in (rng.integers(1, 60), rng.integers(1, 20), rng.integers(1, 20)))
        classes = int(rng.integers(1, 30))
        size = (int(rng.integers(1, 240)), int(rng.integers(1, 260)))
        features, logits, weight = draw(rng, images, shape, classes)  # type: ignore[arg-type]
        options: dict[str, Any] = {
            "size": size,
            "rule": rules[int(rng.integers(len(rules)))],
            "max_boxes": int(rng.integers(1, 5)),
            "heatmaps": bool(rng.integers(2)),
            "edge_means": bool(rng.integers(2)),
        }
        if rng.integers(2):
            options["classes"] = rng.integers(0, classes, images).tolist()
        else:
            options["top_k"] = int(rng.integers(1, min(classes, 3) + 1))
        small = tuple(int(rng.integers(1, min(n, 30) + 1)) for n in size)
        options["scores"] = (np.round(rng.normal(0, 4, (images, 1, *small))) / (1, 4)[images % 2]).astype(np.float32)
        options["pictures"] = rng.integers(0, 256, (images, *size, 3), dtype=np.uint8) // 70 * 70
        expected = postprocess(logits, features, Classifier(weight), **options)
        kernel = CudaPostprocess(weight, threads=(512, 256)[int(rng.integers(2))] if not EMULATED else 512)
        arrays = OnDevice(logits), OnDevice(features)
        further = {name: OnDevice(options.pop(name)) for name in ("scores", "pictures")}
        found = kernel(*arrays, **options, **further)
        for row, other in zip(expected, found, strict=True):
            for one, two in zip(row, other, strict=True):
                assert same(one, two), (options, one.level, two.level, one.box, two.box)
                if options["heatmaps"]:
                    assert np.array_equal(np.asarray(one.heatmap), np.asarray(two.heatmap))
        for array in (*arrays, *further.values()):
            array.close()
        kernel.close()
        done += images


@pytest.fixture
def batch() -> tuple[Any, Any, Any]:
    return draw(np.random.default_rng(1), 8, (64, 14, 14), 10)


def test_an_image_that_is_not_finite_is_named(batch: tuple[Any, Any, Any]) -> None:
    features, logits, weight = batch
    kernel = CudaPostprocess(weight)
    features[5, 3, 2, 1] = np.nan
    with pytest.raises(FeatureError, match="image 5 of the batch: features hold NaN"):
        kernel(OnDevice(logits), OnDevice(features), size=(224, 224))
    features[5, 3, 2, 1] = 0
    logits[2, 1] = np.inf
    with pytest.raises(FeatureError, match="image 2 of the batch: logits hold NaN"):
        kernel(OnDevice(logits), OnDevice(features), size=(224, 224))
    logits[2, 1] = 0  # and the same memory serves the next call
    found = kernel(OnDevice(logits), OnDevice(features), size=(224, 224))
    expected = postprocess(logits, features, Classifier(weight), size=(224, 224))
    assert all(same(e[0], f[0]) for e, f in zip(expected, found, strict=True))


def test_what_does_not_fit_is_refused(batch: tuple[Any, Any, Any]) -> None:
    features, logits, weight = batch
    kernel = CudaPostprocess(weight)
    f, l = OnDevice(features), OnDevice(logits)  # noqa: E741
    with pytest.raises(FeatureError, match="features: expected those of 7 images, as the logits, got 8"):
        kernel(OnDevice(logits[:7]), f, size=(224, 224))
    with pytest.raises(FeatureError, match="features: expected 64 channels for this classifier"):
        kernel(l, OnDevice(features[:, :3]), size=(224, 224))
    with pytest.raises(FeatureError, match="logits: expected 10 classes for this classifier, got 9"):
        kernel(OnDevice(logits[:, :9]), f, size=(224, 224))
    with pytest.raises(ValueError, match="2\\^20 pixels"):
        kernel(l, f, size=(2048, 2048))
    with pytest.raises(ValueError, match=r"top_k: expected 1\.\.10, got 11"):
        kernel(l, f, size=(224, 224), top_k=11)
    with pytest.raises(ValueError, match="one class id for each of 8 images, got 2"):
        kernel(l, f, size=(224, 224), classes=[1, 2])
    with pytest.raises(ValueError, match=r"classes\[1\] is 10, expected 0\.\.9"):
        kernel(l, f, size=(224, 224), classes=[1, 10, 0, 0, 0, 0, 0, 0])
    assert kernel(OnDevice(logits[:1]), OnDevice(features[:1]), size=(224, 224))
    kernel.close()
    with pytest.raises(BackendError, match="this kernel was closed"):
        kernel(l, f, size=(224, 224))


def test_many_threads_and_borrowed_streams(batch: tuple[Any, Any, Any]) -> None:
    features, logits, weight = batch
    kernel = CudaPostprocess(weight)
    expected = postprocess(logits, features, Classifier(weight), size=(224, 224))
    f, l = OnDevice(features), OnDevice(logits, stream=None)  # noqa: E741

    def work(n: int) -> bool:
        context = Context()
        with context:
            stream = int(call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING)) if n % 2 else None
        found = kernel(l, f, size=(224, 224), stream=stream)
        if stream is not None:
            with context:
                call("cuStreamDestroy", stream)
        context.close()
        return all(same(e[0], g[0]) for e, g in zip(expected, found, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(64)))


def test_two_hundred_kernels_leave_no_memory_behind(batch: tuple[Any, Any, Any]) -> None:
    features, logits, weight = batch
    f, l = OnDevice(features), OnDevice(logits)  # noqa: E741

    def once() -> None:
        kernel = CudaPostprocess(weight)
        kernel(l, f, size=(224, 224), heatmaps=True)
        kernel.close()
        kernel.close()  # once more does no harm

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(20):
        once()
    gc.collect()
    device, host = free_memory(), resident()
    for _ in range(200):
        once()
    gc.collect()
    assert device - free_memory() <= (0 if EMULATED else 2 << 20)
    assert resident() - host < 16 << 20


def test_the_cpp_program_gives_the_same_boxes(batch: tuple[Any, Any, Any], tmp_path: Path, gpu: str) -> None:
    if EMULATED:
        pytest.skip("the CUDA runtime needs a real driver")
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc to compile examples/cuda with")
    features, logits, weight = batch
    arch = f"-arch=sm_{gpu.replace('.', '')}"
    include = ["-I", str(ROOT / "runtime" / "include")]
    program = tmp_path / "boxes"
    source = str(ROOT / "examples" / "cuda" / "boxes.cu")
    subprocess.run([str(nvcc), "-std=c++17", "--fmad=false", arch, *include, source, "-o", str(program)], check=True)
    for name, array in (("f", features), ("l", logits), ("w", weight)):
        array.tofile(tmp_path / name)
    files = [str(tmp_path / name) for name in ("f", "l", "w")]
    told = subprocess.run(
        [str(program), *files, "8", "64", "14", "10", "224"], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    for line, [record] in zip(lines, postprocess(logits, features, Classifier(weight), size=(224, 224)), strict=True):
        assert (line["class_id"], line["level"], tuple(line["box"])) == (record.class_id, record.level, record.box)


@pytest.mark.parametrize("library", ["torch", "cupy", "pycuda"])
def test_arrays_of_the_libraries_people_use(batch: tuple[Any, Any, Any], library: str) -> None:
    if EMULATED:
        pytest.skip(f"{library} needs a real driver")
    features, logits, weight = batch
    if library == "torch":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")
        f, l = (torch.from_numpy(a).cuda() for a in (features, logits))  # noqa: E741
    elif library == "cupy":
        cupy = pytest.importorskip("cupy")
        f, l = cupy.asarray(features), cupy.asarray(logits)  # noqa: E741
    else:
        pytest.importorskip("pycuda.autoinit")
        from pycuda import gpuarray

        f, l = gpuarray.to_gpu(features), gpuarray.to_gpu(logits)  # noqa: E741
    found = CudaPostprocess(weight)(l, f, size=(224, 224))
    expected = postprocess(logits, features, Classifier(weight), size=(224, 224))
    assert all(same(e[0], g[0]) for e, g in zip(expected, found, strict=True))
