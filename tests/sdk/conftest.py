"""The C++ runtime, built once into build/sdk; WGAP_REQUIRE_SDK=1 turns what is missing for that into a failure."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _environment() -> dict[str, str]:
    """A build started from a Python build must not inherit its generator or flags."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_"))}


def call(*command: str | Path, **more: Any) -> str:
    done = subprocess.run([*command], env=_environment(), capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build_runtime(folder: Path, *options: str, targets: tuple[str, ...] = ("all",)) -> Path:
    """The runtime in that folder, configured with these options; tests that need it skip where it cannot be built."""
    fetched = subprocess.run([ROOT / "cmake" / "fetch-headers.sh"], capture_output=True, text=True, check=False)
    needed = {"cmake": shutil.which("cmake"), fetched.stderr.strip(): not fetched.returncode}
    if absent := [name for name, there in needed.items() if not there]:
        reason = f"the C++ runtime cannot be built here: {', '.join(absent)}"
        (pytest.fail if os.environ.get("WGAP_REQUIRE_SDK") == "1" else pytest.skip)(reason)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    openvino = importlib.util.find_spec("openvino")
    if openvino is not None and openvino.origin is not None:
        options = (f"-DOpenVINO_DIR={Path(openvino.origin).parent / 'cmake'}", *options)
    call("cmake", "-S", ROOT, "-B", folder, *generator, "-DWGAP_RUNTIME=ON", "-DWGAP_WERROR=ON", *options)
    call("cmake", "--build", folder, "--parallel", "2", "--target", *targets)
    return folder


@pytest.fixture(scope="session")
def sdk() -> Path:
    """The build folder: libraries, modules and programs."""
    folder = ROOT / "build" / "sdk"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_runtime(folder)


@pytest.fixture(scope="session")
def example() -> ModuleType:
    """examples/ctypes_boxes.py, through which tests call the C interface."""
    spec = importlib.util.spec_from_file_location("ctypes_boxes", ROOT / "examples" / "ctypes_boxes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def library() -> Path:
    """ONNX Runtime's library of the Python that runs this: the very one that the Python package uses."""
    onnxruntime = pytest.importorskip("onnxruntime")
    [found] = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    return found


@pytest.fixture
def runtime(sdk: Path, example: ModuleType, library: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library behind ctypes, with the same ONNX Runtime as Python's."""
    monkeypatch.setenv("WGAP_ONNXRUNTIME", str(library))
    return example.Runtime(str(sdk / "libwgap_runtime.so"))
