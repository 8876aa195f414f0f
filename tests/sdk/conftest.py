"""The C++ runtime, built once into build/sdk; WGAP_REQUIRE_SDK=1 turns what is missing for that into a failure."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
# For builds beside build/sdk: the sources of a target in one piece, since most of the time goes into JSON's templates.
IN_ONE_PIECE = ("-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0")
GENERATOR = ("-G", "Ninja") if shutil.which("ninja") else ()


def _environment() -> dict[str, str]:
    """A build started from a Python build must not inherit its generator or flags."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_"))}


def call(*command: str | Path, **more: Any) -> str:
    done = subprocess.run([*command], env=_environment(), capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def run(
    program: Path | str, *arguments: Any, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, **environment}
    return subprocess.run(
        [program, *map(str, arguments)], env=own, cwd=cwd, capture_output=True, text=True, check=False
    )


def python(*arguments: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(Path(sys.executable).with_name("wgap"), *arguments, cwd=cwd)


def lacking(reason: str) -> NoReturn:
    """The test cannot be, or not be whole, for what is missing on this machine."""
    (pytest.fail if os.environ.get("WGAP_REQUIRE_SDK") == "1" else pytest.skip)(reason)


def build_runtime(folder: Path, *options: str, targets: tuple[str, ...] = ("all",)) -> Path:
    """The runtime in that folder, configured with these options; tests that need it skip where it cannot be built."""
    fetched = subprocess.run([ROOT / "cmake" / "fetch-headers.sh"], capture_output=True, text=True, check=False)
    needed = {"cmake": shutil.which("cmake"), fetched.stderr.strip(): not fetched.returncode}
    if absent := [name for name, there in needed.items() if not there]:
        lacking(f"the C++ runtime cannot be built here: {', '.join(absent)}")
    openvino = importlib.util.find_spec("openvino")
    if openvino is not None and openvino.origin is not None:
        options = (f"-DOpenVINO_DIR={Path(openvino.origin).parent / 'cmake'}", *options)
    call("cmake", "-S", ROOT, "-B", folder, *GENERATOR, "-DWGAP_RUNTIME=ON", "-DWGAP_WERROR=ON", *options)
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


@pytest.fixture(scope="module")
def installed(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed, and moved since."""
    prefix = tmp_path_factory.mktemp("prefix")
    call("cmake", "--install", sdk, "--prefix", prefix / "first", "--component", "cpp")
    return Path(shutil.move(prefix / "first", prefix / "moved here"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes and kinds, in folders, with some that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    for number in range(6):
        picture = rng.integers(0, 80, (50 + 7 * number, 90 - 5 * number, 3), dtype=np.uint8)
        cv2.circle(picture, (30, 25), 10 + number, (60, 200, 240), -1)
        name = folder / ("a", "b/c", "é")[number % 3] / f"{number}.{('jpg', 'PNG')[number % 2]}"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(cv2.imencode(name.suffix.lower(), picture)[1].tobytes())
    (folder / "a" / "text.jpg").write_text("no picture")
    (folder / "a" / 'quote" and \\ and 🦉.png').write_bytes((folder / "b/c/1.PNG").read_bytes())
    (folder / "b" / ".hidden.jpg").write_bytes((folder / "a/0.jpg").read_bytes())
    (folder / "b" / "notes.txt").write_text("x")
    (folder / "b" / "c" / "back").symlink_to(folder / "b")
    (folder / "linked").symlink_to(folder / "é")
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.jpg"))).write_bytes((folder / "a/0.jpg").read_bytes())
    return folder
