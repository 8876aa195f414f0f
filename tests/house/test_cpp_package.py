"""The C and C++ package that comes with the Python one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wgap

SOURCE = Path(__file__).parents[1] / "kernel" / "c_header.c"
TEN_LINES = Path(__file__).parents[1] / "sdk" / "ten_lines.cpp"
ELSEWHERE = (
    "WGAP_",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "LD_LIBRARY_PATH",
)  # where engines and modules are found without the wheel


def call(*command: str | Path, without: tuple[str, ...] = ()) -> str:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_", *without))}
    done = subprocess.run([*command], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake and a C++ compiler")
def test_cmake_finds_it_by_the_path_that_python_tells(tmp_path: Path) -> None:
    names = ("wgap", "wgap_shared", "wgap_static")
    programs = "".join(
        f"add_executable({name} c_header.c)\ntarget_link_libraries({name} PRIVATE wgap::{name})\n" for name in names
    )
    version = wgap.__version__
    project = f"cmake_minimum_required(VERSION 3.24)\nproject(app C)\nfind_package(wgap {version} EXACT REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(project + programs)
    shutil.copy(SOURCE, tmp_path)
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-Dwgap_DIR={wgap.get_cmake_path()}")
    call("cmake", "--build", tmp_path / "build")
    for name in names:
        call(tmp_path / "build" / name)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_compiler_and_pkg_config_find_it(tmp_path: Path) -> None:
    [library] = Path(wgap.get_cmake_path()).parents[1].glob("libwgap.so")
    call("cc", SOURCE, f"-I{wgap.get_include()}", library, f"-Wl,-rpath,{library.parent}", "-o", tmp_path / "by_hand")
    call(tmp_path / "by_hand")
    if shutil.which("pkg-config"):
        asked = ("env", f"PKG_CONFIG_PATH={library.parent / 'pkgconfig'}", "pkg-config", "--cflags", "--libs", "wgap")
        call("cc", SOURCE, *shlex.split(call(*asked)), f"-Wl,-rpath,{library.parent}", "-o", tmp_path / "asked")
        call(tmp_path / "asked")


def test_a_package_without_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from wgap import _native
    from wgap.errors import MissingDependencyError

    monkeypatch.setattr(_native, "__file__", str(tmp_path / "_native.so"))
    for told in (wgap.get_include, wgap.get_cmake_path):
        with pytest.raises(MissingDependencyError, match=r"expected the C\+\+ package there.*pip install"):
            told()


def has_runtime() -> bool:
    """Whether the package was built with the runtime; one that has to be is not let pass."""
    there = (Path(wgap.get_cmake_path()) / "wgapRuntimeTargets.cmake").is_file()
    assert there or "WGAP_EXPECT_RUNTIME" not in os.environ, "the wheel was to hold the C++ runtime"
    return there


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    import cv2
    import numpy as np

    made = np.random.default_rng(3).integers(0, 80, (60, 90, 3), dtype=np.uint8)
    cv2.circle(made, (30, 25), 14, (60, 200, 240), -1)
    cv2.imwrite(str(tmp_path / "picture.jpg"), made)
    return tmp_path / "picture.jpg"


USER = """
cmake_minimum_required(VERSION 3.24)
project(user CXX)
set(CMAKE_CXX_STANDARD 17)
find_package(wgap {version} EXACT REQUIRED COMPONENTS {components})
add_executable(shared "{source}")
target_link_libraries(shared PRIVATE wgap::runtime)
add_executable(static "{source}")
target_link_libraries(static PRIVATE wgap::wgap_runtime_static)
wgap_copy_modules(static)
"""


def test_its_runtime_gives_python_s_boxes_with_the_engine_installed_beside_it(
    request: pytest.FixtureRequest, picture: Path, tmp_path: Path
) -> None:
    """No variable says where anything is: `pip install` of wgap and of an engine is all."""
    if not has_runtime():
        pytest.skip("the installed package holds the kernel alone; `make test-wheel` has one with the runtime")
    bundle = request.getfixturevalue("tiny_bundle")
    programs = Path(sys.executable).parent
    [expected] = call(programs / "wgap", "localize", bundle, picture, "--json").splitlines()
    for backend in ("onnxruntime", "openvino"):
        asked = (bundle, picture, "--json", "--backend", backend)
        found, named = json.loads(call(programs / "wgap-localize", *asked, without=ELSEWHERE)), json.loads(expected)
        assert found.pop("score") == pytest.approx(named.pop("score"), abs=1e-5)
        assert found == named
    assert json.loads(call(programs / "wgap-selftest", bundle, without=ELSEWHERE))["ok"] is True

    text = USER.format(version=wgap.__version__, components="runtime onnxruntime openvino", source=TEN_LINES)
    (tmp_path / "CMakeLists.txt").write_text(text)
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-Dwgap_DIR={wgap.get_cmake_path()}")
    call("cmake", "--build", tmp_path / "build", "--parallel", "2")
    box = " ".join(f"{edge:g}" for edge in json.loads(expected)["box"])
    sentence = f"{json.loads(expected)['class_name']} {json.loads(expected)['score']:.3f} at {box}\n"
    assert call(tmp_path / "build" / "shared", bundle, picture, without=ELSEWHERE) == sentence
    # A module that was copied lies in no environment: one that is active has the engine.
    environment = f"VIRTUAL_ENV={Path(sys.executable).parents[1]}"
    assert call("env", environment, tmp_path / "build" / "static", bundle, picture, without=ELSEWHERE) == sentence
    if shutil.which("pkg-config"):
        folder = Path(wgap.get_cmake_path()).parents[1]
        asked_for = (
            "env",
            f"PKG_CONFIG_PATH={folder / 'pkgconfig'}",
            "pkg-config",
            "--cflags",
            "--libs",
            "wgap-runtime",
        )
        flags = (*shlex.split(call(*asked_for)), f"-Wl,-rpath,{folder}")
        call("c++", "-std=c++17", TEN_LINES, *flags, "-o", tmp_path / "asked")
        assert call(tmp_path / "asked", bundle, picture, without=ELSEWHERE) == sentence


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake and a C++ compiler")
def test_what_is_not_in_it_is_said_with_what_to_do(tmp_path: Path) -> None:
    component, hint = (
        ("tvm", "engine were not found") if has_runtime() else ("runtime", "cmake.define.WGAP_RUNTIME=ON .")
    )
    text = USER.format(version=wgap.__version__, components=component, source=TEN_LINES)
    (tmp_path / "CMakeLists.txt").write_text(text)
    asked = ("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-Dwgap_DIR={wgap.get_cmake_path()}")
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    said = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert f"this installation has no component {component}; " in said
    assert hint in said


def test_the_licence_of_what_the_runtime_holds_comes_along() -> None:
    from importlib import metadata

    names = {file.name for file in metadata.files("wgap") or [] if file.parent.name == "licenses"}
    assert ("nlohmann_json-LICENSE" in names) == has_runtime()
