"""The C++ side stands without Python: presets build, test and install it, and an outside project finds it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from wgap.runtime.postprocess import Classifier, postprocess

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake and a C++ compiler")


def call(*command: str | Path, cwd: Path = ROOT) -> str:
    # A build started from a Python build must not inherit its generator or flags.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_"))}
    done = subprocess.run([*command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build(preset: str, folder: Path) -> Path:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    call("cmake", "--preset", preset, "-B", folder, *generator)
    call("cmake", "--build", folder, "--parallel", "2")
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release preset, built, tested and installed."""
    folder = build("release", tmp_path_factory.mktemp("release"))
    call("ctest", "--test-dir", folder, "--output-on-failure", "-j", "2")
    prefix = tmp_path_factory.mktemp("prefix")
    call("cmake", "--install", folder, "--prefix", prefix)
    return prefix


def test_the_package_is_complete_and_exports_only_its_interface(installed: Path) -> None:
    assert (installed / "include" / "wgap" / "wgap.h").is_file()
    [library] = [path for path in installed.rglob("libwgap.so") if path.is_symlink()]
    assert (library.parent / "libwgap.a").is_file()
    if shutil.which("nm"):
        listed = call("nm", "--dynamic", "--defined-only", "--format=posix", library)
        names = {line.split()[0] for line in listed.splitlines()}
        declared = {
            word.split("(")[0].lstrip("*")
            for line in (ROOT / "runtime/include/wgap/wgap.h").read_text().splitlines()
            if line.startswith("WGAP_API")
            for word in line.split()
            if word.lstrip("*").startswith("wgap_") and "(" in word
        }
        assert {name for name in names if name.startswith("wgap")} == declared
        assert not {name for name in names if "4wgap" in name}, "C++ symbols of ours leak"


def test_an_outside_project_finds_it_and_gets_python_s_boxes(installed: Path, tmp_path: Path) -> None:
    call("cmake", "-S", ROOT / "examples" / "cpp", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    call("cmake", "--build", tmp_path / "build")
    program = tmp_path / "build" / "boxes"
    assert json.loads(call(program))["class_id"] == 1

    rng = np.random.default_rng(4)
    features = np.maximum(rng.standard_normal((3, 16, 7, 9)), 0).astype(np.float32)
    logits, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (5, 16)))
    for name, array in (("features", features), ("logits", logits), ("weight", weight)):
        array.tofile(tmp_path / name)
    files = (tmp_path / name for name in ("features", "logits", "weight"))
    lines = [json.loads(line) for line in call(program, *files, "3", "16", "7", "9", "5", "100").splitlines()]
    for line, [record] in zip(lines, postprocess(logits, features, Classifier(weight), size=(100, 100)), strict=True):
        assert (line["class_id"], tuple(line["box"])) == (record.class_id, record.box)
        assert line["threshold"] == pytest.approx(record.threshold)


@pytest.mark.parametrize("preset", ["tsan", "asan"])
def test_sanitizers_find_nothing(preset: str, tmp_path: Path) -> None:
    folder = build(preset, tmp_path)
    call("ctest", "--test-dir", folder, "--output-on-failure", "-j", "2")


def test_kernel_headers_include_nothing() -> None:
    """NVRTC, which compiles them for GPUs at run time, has no standard library."""
    headers = {path.name: path.read_text() for path in (ROOT / "runtime/include/wgap/kernel").glob("*.h")}
    del headers["cuda_launch.h"]  # nvcc's: with a host and its headers
    for name, text in headers.items():
        included = [line.split()[1].strip('"') for line in text.splitlines() if line.startswith("#include")]
        assert all(line.removeprefix("wgap/kernel/") in headers for line in included), name
