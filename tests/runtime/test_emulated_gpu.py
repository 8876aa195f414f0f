"""The GPU tests without a GPU: Python's side of the device path for real, on a driver that works in host memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "gpu" / "emulator"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build the emulated driver")
@pytest.mark.skipif(not (ROOT / "runtime" / "src").is_dir(), reason="needs the kernel's sources (installed wheel)")
def test_the_gpu_tests_pass_on_the_emulated_driver(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings")
    from wgap.runtime.cuda.compiler import compile_kernel

    compile_kernel("sm_86", tmp_path / "cache")  # NVRTC would ask the emulated driver for more than it can do
    includes = ["-I", ROOT / "runtime" / "include", "-I", ROOT / "runtime" / "src"]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = ["g++", *flags, *includes, EMULATOR / "libcuda.cpp", "-o", tmp_path / "libcuda.so.1"]
    subprocess.run(list(map(str, command)), check=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "WGAP_CACHE": str(tmp_path / "cache"),
        "WGAP_EMULATED_GPU": "1",
        "PYTHONPATH": str(EMULATOR),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "tests/gpu"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    told = re.search(r"(\d+) passed, (\d+) skipped", done.stdout)
    assert told is not None, done.stdout
    assert int(told[1]) >= 11
