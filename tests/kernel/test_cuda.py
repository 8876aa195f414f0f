"""The kernel for GPUs: what can be proven without one. What cannot is in tests/gpu."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wgap import _native
from wgap.errors import BackendError, FeatureError
from wgap.rule import Rule
from wgap.runtime.cuda.arrays import device_array, on_device
from wgap.runtime.postprocess import require_finite

ROOT = Path(__file__).resolve().parents[2]
compiler = pytest.importorskip("wgap.runtime.cuda.compiler")
pytest.importorskip("cuda.core", reason="needs cuda-core and NVRTC (no GPU): pip install 'wgap[cuda]'")

MOST_REGISTERS = 65536 // compiler.THREADS
"""A multiprocessor has 65536: more, and a block could not start at all."""


def nvcc() -> tuple[Path, Path] | None:
    """nvcc and the folder with its headers and libraries: a toolkit's, or the wheels'."""
    if found := shutil.which("nvcc"):
        return Path(found), Path(found).resolve().parents[1]
    wheel = Path(np.__file__).parents[1] / "nvidia" / "cu13"
    if (wheel / "bin" / "nvcc").exists():
        return wheel / "bin" / "nvcc", wheel
    return None


def resources(log: str) -> SimpleNamespace:
    """What ptxas reports of one kernel: registers, bytes of stack and spilled, static shared memory."""
    patterns = {
        "registers": r"Used (\d+) registers",
        "stack": r"(\d+) bytes stack frame",
        "stores": r"(\d+) bytes spill stores",
        "loads": r"(\d+) bytes spill loads",
    }
    found = {name: re.search(pattern, log) for name, pattern in patterns.items()}
    if missing := [name for name, match in found.items() if match is None]:
        raise LookupError(f"the compiler's log has no {', '.join(missing)}; compile with cache=None")
    values = {name: int(match[1]) for name, match in found.items() if match}
    shared = re.search(r"(\d+) bytes smem", log)
    spilled = values.pop("stores") + values.pop("loads")
    return SimpleNamespace(**values, spilled=spilled, shared=int(shared[1]) if shared else 0)


@pytest.mark.parametrize("arch", compiler.ARCHITECTURES)
def test_it_compiles_for_every_architecture_without_warnings_spills_or_local_memory(arch: str) -> None:
    compiled = compiler.compile_kernel(arch)
    assert compiled.cubin[:4] == b"\x7fELF"
    assert "warning" not in compiled.log.lower()
    found = resources(compiled.log)
    assert (found.spilled, found.stack) == (0, 0), compiled.log
    assert found.registers <= MOST_REGISTERS
    # With static shared memory beside it, what the launch asks for must fit: 64 KiB on sm_75, 99 and more on others.
    room = 64 * 1024 if arch == "sm_75" else 99 * 1024
    classifier = _native.Classifier(np.zeros((1000, 512), np.float32))
    for kind, map_ in (("adaptive", None), ("foreground", None), ("foreground+colour", None), ("foreground", "signed")):
        _, shared, scratch = _native._cuda_layout(
            classifier, [1, 1000], [512, 14, 14], [28, 28], (224, 224), Rule.parse(kind, map_), 1, 3,
            room - found.shared,
        )  # fmt: skip
        assert shared + found.shared <= room
        assert shared > room // 2
        assert scratch < 1 << 20


def test_spills_and_local_memory_would_be_seen() -> None:
    text = "ptxas : 24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\nptxas info : Used 128 registers"
    found = resources(text)
    assert (found.registers, found.stack, found.spilled, found.shared) == (128, 24, 20, 0)
    with pytest.raises(LookupError, match="has no registers"):
        resources("")


def test_a_cache_that_others_may_write_is_refused(tmp_path: Path) -> None:
    import os

    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(BackendError, match=r"shared: code for the GPU is kept there.*mode 777.*WGAP_CACHE"):
        compiler.compile_kernel("sm_90", folder)
    folder.chmod(0o755)
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
        with pytest.raises(BackendError, match="owner 12345"):
            compiler.compile_kernel("sm_90", folder)


def test_the_cache_is_keyed_by_content_and_repairs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.compile_kernel("sm_80", tmp_path)
    assert first.log
    second = compiler.compile_kernel("sm_80", tmp_path)
    assert (second.cubin, second.log) == (first.cubin, "")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert compiler.compile_kernel("sm_80", tmp_path).log  # cut short: compiled again
    assert compiler.compile_kernel("sm_80", tmp_path).cubin == first.cubin
    assert compiler.compile_kernel("sm_80", tmp_path, threads=256).log  # other options: another file
    changed = Path(shutil.copytree(compiler._INCLUDE, tmp_path / "include"))
    header = changed / "wgap" / "kernel" / "component.h"
    header.write_text(header.read_text() + "// another source\n")
    monkeypatch.setattr(compiler, "_INCLUDE", changed)
    assert compiler.compile_kernel("sm_80", tmp_path).log
    assert len(list(tmp_path.glob("*.cubin"))) == 3


def test_an_unknown_architecture_and_a_broken_source_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"NVRTC [\d.]+ cannot compile the kernel for sm_10"):
        compiler.compile_kernel("sm_10")
    broken = Path(shutil.copytree(compiler._INCLUDE, tmp_path / "include"))
    (broken / "wgap" / "kernel" / "component.h").write_text("#error nonsense\n")
    monkeypatch.setattr(compiler, "_INCLUDE", broken)
    with pytest.raises(BackendError, match="nonsense"):
        compiler.compile_kernel("sm_80")


@pytest.mark.skipif(nvcc() is None, reason="needs nvcc (no GPU): pip install 'wgap[nvcc]'")
def test_nvcc_compiles_a_program_that_embeds_it(tmp_path: Path) -> None:
    found = nvcc()
    assert found is not None
    compile_, home = found
    flags = ["-std=c++17", "--fmad=false", "-arch=sm_80", "-Werror", "all-warnings", "-cudart", "static"]
    folders = ["-I", ROOT / "runtime" / "include", "-I", home / "include", "-L", home / "lib"]
    source = ROOT / "examples" / "cuda" / "boxes.cu"
    command = [compile_, *flags, *folders, source, "-o", tmp_path / "boxes"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([tmp_path / "boxes"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 or "cuda_prepare: " in ran.stderr  # without a GPU it says so


def test_the_argument_of_a_launch_is_the_kernel_s() -> None:
    shape = [512, 14, 15, 224, 225, 10, 28, 30, 1]
    names = (
        "logits", "features", "weight", "foreground", "picture", "logs", "class_ids", "heatmaps", "edge_means",
        "records", "scratch",
    )  # fmt: skip
    addresses = {name: 64 * (n + 1) for n, name in enumerate(names)}
    task = _native._cuda_task(shape, 3, 2, Rule.parse("fixed:0.5", "signed"), 4096, 8192, addresses, 5)
    shared, scratch = 4096, 8192
    # CudaTask: shape; rule {kind, map, bound, eta}; tasks, per_image, max_boxes; pointers; sizes
    assert struct.unpack("9i4x3i4xd3i4x11Q2Q", task) == (
        *shape, 1, 2, 10 << 19, 0.5, 6, 2, 5, *range(64, 64 * 12, 64), scratch, shared,
    )  # fmt: skip
    adaptive = _native._cuda_task(shape, 3, 2, None, 4096, 8192, addresses | {"class_ids": 0})
    assert struct.unpack_from("3i4xd", adaptive, 40) == (0, 0, 0, 0.0)
    del addresses["class_ids"]  # one that is not given is null
    assert _native._cuda_task(shape, 3, 2, None, 4096, 8192, addresses) == adaptive


def test_records_are_read_as_the_kernel_writes_them() -> None:
    def record(status: int, class_id: int, level: int = 4) -> bytes:
        size = _native._CUDA_RECORD_BYTES
        return struct.pack("Iiiffiiid4i", size, status, class_id, 0.75, 3.5, level, 0, 1, 0.2, 1, 2, 30, 40)

    means = struct.pack("42d", *(0.1 * n for n in range(42)))
    content = record(0, 7) + record(0, 2, -1)
    assert len(content) == 2 * _native._CUDA_RECORD_BYTES
    [[one], [other]] = _native._cuda_records(content, 2, 1, None, means)
    assert (one.class_id, one.score, one.logit, one.level, one.box) == (7, 0.75, 3.5, 4, (1, 2, 30, 40))
    assert one.error is None
    assert one.edge_means == tuple(0.1 * n for n in range(21))
    assert (other.class_id, other.threshold, other.degenerate, other.edge_means) == (2, 0.2, False, None)
    [[one, other]] = _native._cuda_records(content, 1, 2)
    assert (one.edge_means, one.heatmap, other.class_id) == (None, None, 2)
    [[bad], [good]] = _native._cuda_records(record(6, 0) + record(0, 7), 2, 1)
    assert (bad.error, good.error) == ("logits hold NaN or infinity", None)
    with pytest.raises(FeatureError, match="image 1 of the batch: features hold NaN"):
        require_finite(_native._cuda_records(record(0, 7) + record(5, 0), 2, 1))
    for images, wrong in ((3, means), (2, means[:-8])):
        with pytest.raises(ValueError, match="not as many"):
            _native._cuda_records(content, images, 1, None, wrong)


def guest(shape: tuple[int, ...], kind: str = "<f4", **more: Any) -> SimpleNamespace:
    """What PyTorch, CuPy and PyCUDA arrays say of themselves."""
    return SimpleNamespace(
        __cuda_array_interface__={"shape": shape, "typestr": kind, "data": (4096, False), "version": 3, **more}
    )


def test_arrays_of_any_library_are_read_in_place() -> None:
    found = device_array(guest((2, 3, 4, 5), stream=7, strides=(240, 80, 20, 4)), "float32", "NChw", "features")
    assert (found.pointer, found.shape, found.stream) == (4096, (2, 3, 4, 5), 7)
    assert device_array(guest((2, 3)), "float32", "NK", "logits").stream is None
    one = guest((1, 3), strides=(999, 4))  # the stride of an axis of one place says nothing
    assert device_array(one, "float32", "NK", "logits").shape == (1, 3)
    assert on_device(one)
    assert not on_device(np.zeros(3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 3), np.float32), r"expected float32\[N, K\] in the GPU's memory, got ndarray on the host"),
        (guest((2, 3), "<f2"), r"expected float32\[N, K\], got <f2\[2, 3\]"),
        (guest((2, 3, 1)), r"expected float32\[N, K\], got float32\[2, 3, 1\]"),
        (guest((2, 3), strides=(4, 8)), "logits must be C-contiguous"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(value: Any, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        device_array(value, "float32", "NK", "logits")


def test_without_a_gpu_that_is_what_is_said() -> None:
    from wgap.runtime.library import gpu

    try:
        told = gpu().compute_capability
    except BackendError as error:
        told = str(error)
    assert re.fullmatch(r"\d+\.\d|.*use the onnxruntime backend", told)
