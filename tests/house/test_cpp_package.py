"""The C and C++ package that comes with the Python one."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import wgap

SOURCE = Path(__file__).parents[1] / "kernel" / "c_header.c"


def call(*command: str | Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_"))}
    done = subprocess.run([*command], env=environment, capture_output=True, text=True, check=False)
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
