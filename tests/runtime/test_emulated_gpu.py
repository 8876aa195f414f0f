"""The GPU tests without a GPU: Python's side of the device path for real, on a driver that works in host memory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "gpu" / "emulator"


pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build the emulated driver"),
    pytest.mark.skipif(not (ROOT / "runtime" / "src").is_dir(), reason="needs the sources (installed wheel)"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables that make the emulated driver the machine's."""
    pytest.importorskip("cuda.bindings")
    from wgap.runtime.cuda.compiler import compile_kernel

    folder = tmp_path_factory.mktemp("driver")
    for threads in (256, 512):  # NVRTC would ask the emulated driver for more than it can do
        compile_kernel("sm_86", folder / "cache", threads)
    includes = ["-I", ROOT / "runtime" / "include", "-I", ROOT / "runtime" / "src" / "kernel"]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = ["g++", *flags, *includes, EMULATOR / "libcuda.cpp", "-o", folder / "libcuda.so.1"]
    subprocess.run(list(map(str, command)), check=True)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "WGAP_CACHE": str(folder / "cache"),
        "WGAP_EMULATED_GPU": "1",
        "WGAP_EMULATED_GPUS": "2",
        "PYTHONPATH": str(EMULATOR),
    }


def test_the_gpu_tests_pass_on_the_emulated_driver(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "tests/gpu"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    told = re.search(r"(\d+) passed, (\d+) skipped", done.stdout)
    assert told is not None, done.stdout
    assert int(told[1]) >= 61


def test_two_emulated_devices_have_memory_of_their_own(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, EMULATOR / "devices.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_gpu_check_reports_each_part_and_goes_on(
    environment: dict[str, str], tmp_path: Path, tiny_bundle: Path
) -> None:
    check = [sys.executable, "-m", "benchmarks.gpu_check", "--out", tmp_path, "--batches", "1,2", "--rounds", "2"]
    only = ["--bundle", tiny_bundle, "--data", tmp_path / "none", "--only", "parity", "kernel"]
    done = subprocess.run(
        list(map(str, check + only)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-emulated.json").read_text())
    assert found["environment"]["device"] == "emulated"
    assert found["parity"] == {**found["parity"], "state": "absent"}
    assert "needs --bundle and --data" in found["parity"]["reason"]
    rules = ("adaptive", "foreground", "foreground+colour")
    assert [(row["images"], row["threads"], row["rule"]) for row in found["kernel"]["rows"]] == [
        (images, threads, rule) for images in (1, 2) for threads in (256, 512) for rule in rules
    ]
    assert all(row["p25"] <= row["p50"] <= row["p75"] for row in found["kernel"]["rows"])
    text = (tmp_path / "gpu-emulated.md").read_text()
    assert "| parity | absent | needs --bundle" in text
    assert "## kernel, us" in text


def test_gpu_check_without_a_gpu_says_so(tmp_path: Path) -> None:
    from wgap.runtime.library import gpus

    if gpus():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path), "--only", "kernel"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "no NVIDIA driver or GPU on this machine" in done.stdout
    assert json.loads((tmp_path / "gpu-none.json").read_text())["kernel"]["state"] == "absent"
