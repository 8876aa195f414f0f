"""Networks on GPUs from C++: the modules of TensorRT and of ONNX Runtime's CUDA provider, on the emulated driver.

A stand-in takes the place of TensorRT; ONNX Runtime's is its CPU provider on the emulated memory. WGAP_REQUIRE_GPU=1
runs them on the machine's own driver and GPU instead, as ``make gpu-check`` does; TENSORRT_ROOT names headers.
"""

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

import cv2
import numpy as np
import pytest
from tests.sdk.conftest import IN_ONE_PIECE, ROOT, build_runtime, call, lacking
from tests.sdk.test_engines import with_engines

from wgap.bundle import Bundle

HERE = Path(__file__).parent
VERSION = "10.14.1.48"
EMULATED = os.environ.get("WGAP_REQUIRE_GPU") != "1"
on_the_emulator = pytest.mark.skipif(not EMULATED, reason="stands on the emulated driver's memory")
STRIPPED = {"options": {"strip_weights": True}}


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """TensorRT 10.14's headers, out of a package that brings them, and CUDA's."""
    folder = tmp_path_factory.mktemp("headers")
    cuda = importlib.util.find_spec("nvidia.cu13")
    roots = [Path(place) for place in (cuda.submodule_search_locations or [] if cuda else [])]
    if nvcc := shutil.which("nvcc"):
        roots.append(Path(nvcc).resolve().parents[1])
    cuda_roots = [root / "include" for root in roots if (root / "include" / "cuda_runtime_api.h").is_file()]
    if cuda_roots and (given := os.environ.get("TENSORRT_ROOT")):
        return [Path(given), cuda_roots[0]]
    asked = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "kernel-lens==2.0.1")
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode or not cuda_roots:
        lacking(f"TensorRT's and CUDA's headers were not found: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    [found] = folder.rglob("NvInferRuntime.h")
    shutil.copy(HERE / "stand_in" / "NvOnnxParser.h", found.parent)  # which that package leaves out
    return [found.parent, cuda_roots[0]]


@pytest.fixture(scope="module")
def built(headers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime with the module, beside the emulated driver and the stand-in library."""
    folder = tmp_path_factory.mktemp("built")
    options = [
        f"-DTENSORRT_ROOT={headers[0]}",
        f"-DCUDAToolkit_ROOT={headers[1].parent}",
        "-DWGAP_TESTS=ON",
        *IN_ONE_PIECE,
    ]
    if EMULATED:
        options.append("-DWGAP_CUDA_ARCHITECTURES=80")  # which nothing runs
    modules = ("wgap_onnxruntime", "wgap_onnxruntime_cuda", "wgap_tensorrt")
    programs = ("test_sdk_gpu", "test_sdk_slots", "wgap-bench", "wgap-localize")
    build_runtime(folder, *options, targets=(*modules, *programs, "wgap_runtime_shared"))
    kernel = ("-I", ROOT / "runtime/include", "-I", ROOT / "runtime/src/kernel")
    library = ("g++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC")
    if EMULATED:
        call(*library, *kernel, ROOT / "tests/gpu/emulator/libcuda.cpp", "-o", folder / "libcuda.so.1")
    made = call(sys.executable, HERE / "stand_in" / "defaults.py", headers[0] / "NvInferImpl.h")
    (folder / "defaults.h").write_text(made)
    for name, source, flags in (
        ("libnvinfer.so.10", "nvinfer.cpp", ()),
        ("libnvinfer-11.so", "nvinfer.cpp", ("-DSTAND_IN_VERSION=110400",)),
        ("libnvonnxparser.so.10", "nvonnxparser.cpp", ()),
    ):
        call(
            *library, "-fvisibility=hidden", *flags, *kernel, "-isystem", headers[0], "-isystem", headers[1],
            "-I", folder, HERE / "stand_in" / source, f"-L{folder}", "-lwgap_runtime", "-lwgap", "-o", folder / name,
        )  # fmt: skip
    fetched = ("-isystem", ROOT / "build/headers/usr/include/onnxruntime", "-isystem", "/usr/include/onnxruntime")
    call(*library, *fetched, HERE / "stand_in" / "onnxruntime.cpp", "-ldl", "-o", folder / "libonnxruntime-cuda.so")
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
    if not EMULATED:
        own["LD_LIBRARY_PATH"] += f":{os.environ.get('LD_LIBRARY_PATH', '')}"
    clean = {**os.environ, **own, **environment}
    command = [program, *map(str, arguments)]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=False, timeout=300)


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
    done = run(built / "tests/sdk/test_sdk_gpu", own, rule, boxes, "tensorrt", WGAP_EMULATED_GPUS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    report, last = done.stdout.splitlines()
    assert last == "passed"
    checks = json.loads(report)["checks"]
    kernel = [check for check in checks if check["stage"].startswith("kernel")]
    assert all(check["ok"] for check in kernel)
    assert {check["stage"] for check in kernel} >= {"kernel box", "kernel map"}
    assert {check["stage"] for check in checks} >= {"logits", "end to end box"}


@on_the_emulator
def test_a_slot_that_cannot_be_made_leaves_nothing_and_the_second_gpu_is_the_second(built: Path, own: Path) -> None:
    done = run(built / "tests" / "sdk" / "test_sdk_slots", with_plan(own), WGAP_EMULATED_GPUS="2")
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr


@on_the_emulator
def test_auto_takes_an_engine_that_fits_and_passes_over_one_that_does_not(
    built: Path, own: Path, tmp_path: Path, library: Path
) -> None:
    cv2.imwrite(str(tmp_path / "it.png"), np.zeros((20, 30, 3), np.uint8))
    asked = (built / "wgap-localize", with_plan(own), tmp_path / "it.png", "--backend", "auto")
    there = {"WGAP_ONNXRUNTIME": str(library)}
    assert run(*asked, **there).stderr == "auto: tensorrt 10.14.1.48\n"
    for options, environment in (((), {"LD_LIBRARY_PATH": "/nowhere"}), (("--threads", "1"), {})):
        done = run(*asked, *options, **there, **environment)
        assert (done.returncode, done.stderr.partition(" 1.")[0]) == (0, "auto: onnxruntime")
    for options, environment, message in (
        (("--device", "7"), {}, "no GPU '7' on this machine"),
        ((), {"WGAP_TENSORRT": str(built / "libnvinfer-11.so")}, "this module was built for TensorRT 10"),
    ):
        done = run(*asked, *options, **there, **environment)
        assert done.returncode == 1
        assert message in done.stderr
    raw = json.loads((own / "wgap.json").read_text())
    raw["files"][-1]["engine"]["architecture"] = "9.0"
    (own / "wgap.json").write_text(json.dumps(raw))
    assert run(*asked, **there).stderr.startswith("auto: onnxruntime 1.")


@pytest.fixture
def on_cuda(built: Path, library: Path) -> dict[str, str]:
    """The environment in which ONNX Runtime has a CUDA provider."""
    return {
        "WGAP_ONNXRUNTIME": str(built / "libonnxruntime-cuda.so"), "WGAP_REAL_ONNXRUNTIME": str(library),
        "STAND_IN_DEVICE": "0", "STAND_IN_LIMIT": str(4 << 30),
    }  # fmt: skip


@on_the_emulator
@pytest.mark.parametrize(("rule", "boxes"), [("adaptive", 1), ("foreground+colour", 3)])
def test_onnxruntime_s_providers_agree(
    built: Path, tiny_bundle: Path, scored_bundle: Path, on_cuda: dict[str, str], rule: str, boxes: int
) -> None:
    bundle = scored_bundle if rule.startswith("foreground") else tiny_bundle
    program = built / "tests/sdk/test_sdk_gpu"
    done = run(program, bundle, rule, boxes, "onnxruntime_cuda", WGAP_EMULATED_GPUS="2", **on_cuda)
    assert (done.returncode, done.stderr) == (0, "")
    report, last = done.stdout.splitlines()
    assert last == "passed"
    assert json.loads(report)["ok"]  # the bundle's own network, its kernel and the GPU's


@on_the_emulator
def test_onnxruntime_on_cuda_is_told_its_device_and_what_fails(
    built: Path, own: Path, tmp_path: Path, on_cuda: dict[str, str]
) -> None:
    cv2.imwrite(str(tmp_path / "it.png"), np.zeros((20, 30, 3), np.uint8))
    asked = (built / "wgap-localize", own, tmp_path / "it.png", "--json", "--backend")
    cpu = run(*asked, "onnxruntime", WGAP_ONNXRUNTIME=on_cuda["WGAP_REAL_ONNXRUNTIME"])
    there = {**on_cuda, "WGAP_EMULATED_GPUS": "2", "STAND_IN_DEVICE": "1"}
    limited = {**there, "STAND_IN_LIMIT": "123456789"}
    for environment, options in ((there, ()), (limited, ("--memory-limit", "123456789"))):
        done = run(*asked, "onnxruntime_cuda", "--device", "1", *options, **environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, cpu.stdout, "")
    for options, more, message in (
        (("--device", "2"), there, "no GPU '2' on this machine"),
        (("--threads", "1"), on_cuda, "the backend onnxruntime_cuda has no threads"),
        (("--memory-limit", "-1"), on_cuda, "memory-limit must be at least 1, got -1"),
        ((), {**on_cuda, "STAND_IN_NO_CUDA": "1"}, "Failed to load library libonnxruntime_providers_cuda.so"),
        ((), {**on_cuda, "WGAP_ONNXRUNTIME": on_cuda["WGAP_REAL_ONNXRUNTIME"]}, "CUDA execution provider is not"),
        ((), {**on_cuda, "LD_LIBRARY_PATH": "/nowhere"}, "no NVIDIA driver for CUDA 12 or newer on this machine"),
    ):  # fmt: skip
        done = run(*asked, "onnxruntime_cuda", *options, **more)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert message in done.stderr


@on_the_emulator
def test_gpu_check_has_a_part_for_cpp(built: Path, own: Path, tmp_path: Path, on_cuda: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), rng.integers(0, 256, (60, 50, 3), np.uint8))
    environment = {
        **os.environ, **on_cuda, "LD_LIBRARY_PATH": str(built), "WGAP_MODULES": str(built),
        "WGAP_CPP_BUILD": str(built), "WGAP_TENSORRT": str(built / "libnvinfer.so.10"),
    }  # fmt: skip
    asked = ("--out", tmp_path / "out", "--bundle", own, "--data", tmp_path, "--only", "cpp")
    command = [sys.executable, "-m", "benchmarks.gpu_check", *map(str, asked)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "gpu-emulated.json").read_text())["cpp"]
    assert (found["state"], list(found["absent"])) == ("ran", ["tensorrt"])
    assert "holds no tensorrt engine" in found["absent"]["tensorrt"]
    [row] = found["rows"]
    assert (row["backend"], row["pictures"], row["boxes equal to the CPU's"]) == ("onnxruntime_cuda", 3, 3)
    assert row["total ms"] > 0


@pytest.mark.skipif(EMULATED, reason="needs a GPU and onnxruntime-gpu")
def test_onnxruntime_on_cuda_finds_the_boxes_of_the_cpu(built: Path, tiny_bundle: Path, pictures: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    asked = (built / "wgap-localize", tiny_bundle, pictures, "--json", "--backend")
    cpu, gpu = (run(*asked, backend).stdout.splitlines() for backend in ("onnxruntime", "onnxruntime_cuda"))
    pairs = [(json.loads(a), json.loads(b)) for a, b in zip(cpu, gpu, strict=True)]
    assert pairs
    assert all(a.get("box") == b.get("box") and a.get("code") == b.get("code") for a, b in pairs)


@on_the_emulator
@pytest.mark.parametrize(
    ("words", "engine", "arguments", "environment", "message"),
    [
        ("", {"version": "10.13.0.1"}, (), {}, "does not fit and was not loaded:"),
        ("", {"architecture": "8.9"}, (), {}, "GPU architecture  "),
        ("", {"platform": "linux aarch64"}, (), {}, "platform  "),
        ("stripped of model 9;", STRIPPED, (), {}, "/model.onnx: the weights do not fit"),
        ("stripped", STRIPPED, (), {"WGAP_TENSORRT_PARSER": "gone.so"}, "could not be loaded: gone.so: cannot open"),
        ("stripped", STRIPPED, (), {"WGAP_TENSORRT_PARSER": "libcuda.so.1"}, "is no ONNX parser of TensorRT's: it has"),
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
    cv2.imwrite(str(tmp_path / "it.png"), np.zeros((20, 30, 3), np.uint8))
    if environment.get("WGAP_TENSORRT", "gone.so") != "gone.so":
        environment = {"WGAP_TENSORRT": str(built / environment["WGAP_TENSORRT"])}
    asked = (with_plan(own, words, **engine), tmp_path / "it.png", "--backend", "tensorrt", *arguments)
    done = run(built / "wgap-localize", *asked, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_an_engine_without_weights_gets_those_of_its_model(built: Path, own: Path, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / "it.png"), np.full((20, 30, 3), 90, np.uint8))
    size = (own / "model.onnx").stat().st_size
    made = []
    for words, engine in (("", {}), (f"stripped of model {size};", STRIPPED)):
        root = with_plan(Path(shutil.copytree(own, tmp_path / f"bundle{len(made)}")), words, **engine)
        made.append(run(built / "wgap-localize", root, tmp_path / "it.png", "--backend", "tensorrt", "--json"))
    whole, refitted = made
    assert (refitted.returncode, refitted.stderr) == (0, "")
    assert refitted.stdout == whole.stdout != ""


def test_a_module_without_the_parser_s_header_says_so(
    built: Path, headers: list[Path], own: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "include"
    shutil.copytree(headers[0], bare, ignore=shutil.ignore_patterns("NvOnnxParser.h"))
    rest = [o for o in (built / "CMakeFiles" / "wgap_tensorrt.dir").rglob("*.o") if o.name != "refit.cpp.o"]
    call(
        "g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden",
        "-I", ROOT / "runtime/include", "-isystem", bare, "-isystem", headers[1],
        ROOT / "runtime/src/sdk/networks/refit.cpp", *rest, "-o", tmp_path / "libwgap_tensorrt.so",
    )  # fmt: skip
    asked = (with_plan(own, "stripped", **STRIPPED), "x.png", "--backend", "tensorrt")
    done = run(built / "wgap-localize", *asked, WGAP_MODULES=str(tmp_path))
    assert "was built without its weights, and this module without NvOnnxParser.h" in done.stderr


def test_tensorrt_rtx_is_not_taken_for_tensorrt(built: Path, own: Path) -> None:
    """Its tables of functions are TensorRT 11's where they were looked at, and not 10's: a call would crash."""
    [rtx] = Path(pytest.importorskip("tensorrt_rtx_libs").__file__).parent.glob("libtensorrt_rtx.so.*")
    done = run(built / "wgap-localize", with_plan(own), "x.png", "--backend", "tensorrt", WGAP_TENSORRT=str(rtx))
    assert f"{rtx} is TensorRT 1." in done.stderr
    assert done.stderr.endswith("this module was built for TensorRT 10, and knows no other\n")


def test_a_device_that_fails_is_told_and_leaves_nothing_running(built: Path, own: Path, tmp_path: Path) -> None:
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
