"""TensorRT from C++: the module, built against its headers, on the emulated driver with a stand-in for the library."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.conftest import IN_ONE_PIECE, ROOT, build_runtime, call
from tests.sdk.test_engines import with_engines

from wgap.bundle import Bundle

HERE = Path(__file__).parent
VERSION = "10.14.1.48"


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """TensorRT 10.14's headers, out of a package that brings them, and CUDA's."""
    folder = tmp_path_factory.mktemp("headers")
    asked = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "kernel-lens==2.0.1")
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    cuda = importlib.util.find_spec("nvidia.cu13")
    roots = [Path(place) / "include" for place in (cuda.submodule_search_locations or [] if cuda else [])]
    cuda_roots = [root for root in roots if (root / "cuda_runtime_api.h").is_file()]
    if done.returncode or not cuda_roots:
        reason = f"TensorRT's and CUDA's headers were not found: {done.stderr.strip()[-200:]}"
        (pytest.fail if os.environ.get("WGAP_REQUIRE_SDK") == "1" else pytest.skip)(reason)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    [found] = folder.rglob("NvInferRuntime.h")
    return [found.parent, cuda_roots[0]]


@pytest.fixture(scope="module")
def built(headers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime with the module, beside the emulated driver and the stand-in library."""
    folder = tmp_path_factory.mktemp("built")
    options = (
        f"-DTENSORRT_ROOT={headers[0]}", f"-DCUDAToolkit_ROOT={headers[1].parent}", "-DWGAP_CUDA_ARCHITECTURES=80",
        "-DWGAP_TESTS=ON", *IN_ONE_PIECE,
    )  # fmt: skip
    build_runtime(
        folder, *options, targets=("wgap_tensorrt", "test_sdk_tensorrt", "wgap-localize", "wgap_runtime_shared")
    )
    kernel = ("-I", ROOT / "runtime/include", "-I", ROOT / "runtime/src/kernel")
    library = ("g++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC")
    call(*library, *kernel, ROOT / "tests/gpu/emulator/libcuda.cpp", "-o", folder / "libcuda.so.1")
    made = call(sys.executable, HERE / "stand_in" / "defaults.py", headers[0] / "NvInferImpl.h")
    (folder / "defaults.h").write_text(made)
    for name, flags in (("libnvinfer.so.10", ()), ("libnvinfer-11.so", ("-DSTAND_IN_VERSION=110400",))):
        call(
            *library, "-fvisibility=hidden", *flags, *kernel, "-isystem", headers[0], "-isystem", headers[1],
            "-I", folder, HERE / "stand_in" / "nvinfer.cpp", f"-L{folder}", "-lwgap_runtime", "-lwgap", "-o",
            folder / name,
        )  # fmt: skip
    return folder


@pytest.fixture
def own(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def with_plan(root: Path, words: str = "", **engine: Any) -> Path:
    """A bundle whose engine the stand-in runs."""
    model = Bundle.open(root).manifest.model
    foreground = model.signature()["foreground"].extents[1:] if "foreground" in model.signature() else (0, 0)
    sizes = (len(model.classes), *model.feature_shape, *model.input_size, *foreground)
    record = {
        "flavor": "tensorrt", "version": VERSION, "architecture": "8.6+",
        "profile": {"min": 1, "opt": 2, "max": 4}, **engine,
    }  # fmt: skip
    with_engines(root, record)
    raw = json.loads((root / "wgap.json").read_text())
    content = f"plan {' '.join(map(str, sizes))} {words}".encode()
    (root / "engines" / "0.plan").write_bytes(content)
    raw["files"][-1].update(sha256=sha256(content).hexdigest(), size=len(content))
    (root / "wgap.json").write_text(json.dumps(raw))
    return root


def run(program: Path, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = program.parent if program.name.startswith("wgap") else program.parents[2]
    own = {
        "LD_LIBRARY_PATH": str(folder), "WGAP_MODULES": str(folder), "WGAP_TENSORRT": str(folder / "libnvinfer.so.10"),
    }  # fmt: skip
    clean = {**os.environ, **own, **environment}
    return subprocess.run([program, *map(str, arguments)], env=clean, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("rule", "boxes"),
    [("adaptive", 1), ("fixed:0.3", 2), ("foreground", 1), ("foreground+colour", 3)],
)
def test_its_boxes_are_those_of_the_same_engine_behind_the_interface(
    built: Path, tiny_bundle: Path, scored_bundle: Path, tmp_path: Path, rule: str, boxes: int
) -> None:
    """The CUDA kernel behind the network against the CPU's behind the same outputs: pixels, batches, on the device."""
    bundle = scored_bundle if rule.startswith("foreground") else tiny_bundle
    own = with_plan(Path(shutil.copytree(bundle, tmp_path / "bundle")))
    done = run(built / "tests/sdk/test_sdk_tensorrt", own, rule, boxes, WGAP_EMULATED_GPUS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    report, last = done.stdout.splitlines()
    assert last == "passed"
    checks = json.loads(report)["checks"]
    kernel = [check for check in checks if check["stage"].startswith("kernel")]
    assert all(check["ok"] for check in kernel)
    assert {check["stage"] for check in kernel} >= {"kernel box", "kernel map"}
    assert {check["stage"] for check in checks} >= {"logits", "end to end box"}


@pytest.mark.parametrize(
    ("words", "engine", "arguments", "environment", "message"),
    [
        ("", {"version": "10.13.0.1"}, (), {}, "does not fit and was not loaded:"),
        ("", {"architecture": "8.9"}, (), {}, "GPU architecture  "),
        ("", {"platform": "linux aarch64"}, (), {}, "platform  "),
        ("", {"options": {"strip_weights": True}}, (), {}, "was built without its weights"),
        ("", {}, ("--precision", "int8"), {}, "holds no tensorrt engine of precision int8; its engines: tensorrt fp32"),
        ("", {}, ("--device", "7"), {}, "no GPU '7' on this machine; expected an ordinal or a UUID of: 0 (GPU-"),
        ("", {}, ("--threads", "2"), {}, "the backend tensorrt has no threads; it takes device and slots"),
        ("", {}, ("--slots", "-1"), {}, "slots must be at least 1, got -1"),
        ("half", {}, (), {}, "the manifest promises logits of rank 2, got type 1 of rank 2; build the engine again"),
        ("contextless", {}, (), {}, "TensorRT 10.14.1.48 makes no execution context: it gives no reason"),
        ("", {}, (), {"WGAP_TENSORRT": "gone.so"}, "needs TensorRT, which was not found (looked for gone.so)"),
        ("", {}, (), {"WGAP_TENSORRT": "libcuda.so.1"}, "it has no createInferRuntime_INTERNAL"),
        ("", {}, (), {"WGAP_TENSORRT": "libnvinfer-11.so"}, "is TensorRT 11.4.0.48; this module was built for"),
        ("", {}, (), {"LD_LIBRARY_PATH": "/nowhere"}, "no NVIDIA driver for CUDA 12 or newer on this machine"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(
    built: Path, own: Path, tmp_path: Path, words: str, engine: dict[str, Any], arguments: tuple[str, ...],
    environment: dict[str, str], message: str,
) -> None:  # fmt: skip
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "it.png"), np.zeros((20, 30, 3), np.uint8))
    if environment.get("WGAP_TENSORRT", "gone.so") != "gone.so":
        environment = {"WGAP_TENSORRT": str(built / environment["WGAP_TENSORRT"])}
    asked = (with_plan(own, words, **engine), tmp_path / "it.png", "--backend", "tensorrt", *arguments)
    done = run(built / "wgap-localize", *asked, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_a_device_that_fails_is_told_and_leaves_nothing_running(built: Path, own: Path, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((20, 30, 3), number, np.uint8))
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    done = run(built / "wgap-localize", with_plan(own, "tired"), *pictures, "--backend", "tensorrt")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    assert done.stderr == "error: TensorRT 10.14.1.48 failed on a batch: the device is tired\n"


def test_options_of_a_gpu_are_refused_elsewhere(built: Path, own: Path, tmp_path: Path) -> None:
    for option in (("--device", "0"), ("--slots", "2")):
        done = run(built / "wgap-localize", own, "x.jpg", *option)
        assert done.stderr == "error: the backend onnxruntime has no device and no slots; it takes threads\n"
