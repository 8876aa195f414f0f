"""The C++ side stands without Python: presets build, test and install it, and an outside project finds it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import wgap
from wgap.runtime.postprocess import Classifier, postprocess

ROOT = Path(__file__).resolve().parents[2]
EMBEDDING = (ROOT / "docs" / "embedding-cpp.md").read_text()
pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake and a C++ compiler")


def call(*command: str | Path, cwd: Path = ROOT) -> str:
    # A build started from a Python build must not inherit its generator or flags.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_"))}
    done = subprocess.run([*command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def missing(*programs: str) -> pytest.MarkDecorator:
    absent = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def build(preset: str, folder: Path) -> Path:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    call("cmake", "--preset", preset, "-B", folder, *generator)
    call("cmake", "--build", folder, "--parallel", "2")
    return folder


def checked(preset: str, folder: Path) -> Path:
    build(preset, folder)
    call("ctest", "--test-dir", folder, "--output-on-failure", "-j", "2")
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release preset's folder, built and tested."""
    return checked("release", tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def installed(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the release preset was installed."""
    prefix = tmp_path_factory.mktemp("prefix")
    call("cmake", "--install", release, "--prefix", prefix)
    return prefix


def test_the_package_is_complete_and_exports_only_its_interface(installed: Path) -> None:
    assert (installed / "include" / "wgap" / "wgap.h").is_file()
    [library] = [path for path in installed.rglob("libwgap.so") if path.is_symlink()]
    assert (library.parent / "libwgap.a").is_file()
    assert (library.parent / f"libwgap.so.{wgap.__version__.rpartition('.')[0]}").is_symlink()
    version_file = library.parent / "cmake" / "wgap" / "wgapConfigVersion.cmake"
    assert f'set(PACKAGE_VERSION "{wgap.__version__}")' in version_file.read_text()
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


@missing("pkg-config")
def test_pkg_config_serves_a_moved_prefix(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path / "moved", symlinks=True)
    [folder] = [path.parent for path in (tmp_path / "moved").rglob("wgap.pc")]

    def asked(*flags: str) -> list[str]:
        return call("env", f"PKG_CONFIG_PATH={folder}", "pkg-config", *flags, "wgap").split()

    assert asked("--modversion") == [wgap.__version__]
    source = ROOT / "tests/kernel/c_header.c"
    call("cc", source, *asked("--cflags", "--libs"), f"-Wl,-rpath,{folder.parent}", "-o", tmp_path / "shared")
    assert str(folder.parent) in call("ldd", tmp_path / "shared")
    call(tmp_path / "shared")
    flags = asked("--static", "--cflags", "--libs")
    flags[flags.index("-lwgap")] = "-l:libwgap.a"
    call("cc", source, *flags, "-o", tmp_path / "static")
    call(tmp_path / "static")
    assert "libwgap" not in call("ldd", tmp_path / "static")


def test_a_program_in_c_alone_links_either_library(installed: Path, tmp_path: Path) -> None:
    [archive] = installed.rglob("libwgap.a")
    source = shutil.copy(ROOT / "tests/kernel/c_header.c", tmp_path)
    libraries = ("-lstdc++", "-lpthread", "-lm")
    assert f"/libwgap.a {' '.join(libraries)} -o app" in EMBEDDING, "the command as it is documented"
    call("cc", f"-I{installed / 'include'}", source, archive, *libraries, "-o", tmp_path / "by_hand")
    call(tmp_path / "by_hand")
    names = ("wgap", "wgap_shared", "wgap_static")
    programs = "".join(
        f"add_executable({name} c_header.c)\ntarget_link_libraries({name} PRIVATE wgap::{name})\n" for name in names
    )
    project = "cmake_minimum_required(VERSION 3.24)\nproject(app LANGUAGES C)\nfind_package(wgap REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(project + programs)
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    call("cmake", "--build", tmp_path / "build")
    for name in names:
        call(tmp_path / "build" / name)


def snippet(containing: str) -> str:
    """The one CMake example of docs/embedding-cpp.md that has these words."""
    [found] = [text for text in re.findall(r"```cmake\n(.*?)```", EMBEDDING, flags=re.S) if containing in text]
    return str(found)


PARENT = f"""
cmake_minimum_required(VERSION 3.24)
project(parent VERSION 7.8 LANGUAGES C CXX)
if(WITH_WGAP)
  add_executable(app app.c)
  {snippet("FetchContent_MakeAvailable(wgap)" + chr(10) + "target_link_libraries(app PRIVATE wgap::wgap)")}
  install(TARGETS app RUNTIME DESTINATION bin)
endif()
"""


def cache_of(folder: Path) -> dict[str, str]:
    """What a user of the folder sees and sets."""
    lines = (folder / "CMakeCache.txt").read_text().replace(str(folder), "FOLDER").splitlines()
    entries = (line.split("=", 1) for line in lines if "=" in line and not line.startswith(("#", "//")))
    return {key: value for key, value in entries if not key.endswith(":INTERNAL")}


@pytest.mark.parametrize("shared", ["ON", "OFF", None])
def test_a_parent_project_keeps_its_cache_and_its_prefix(shared: str | None, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PARENT)
    (tmp_path / "third_party").mkdir()
    (tmp_path / "third_party" / "wgap").symlink_to(ROOT)
    shutil.copy(ROOT / "tests/kernel/c_header.c", tmp_path / "app.c")
    caches = {}
    for name, with_wgap in (("alone", "OFF"), ("both", "ON")):
        flags = [f"-DWITH_WGAP={with_wgap}", *([f"-DBUILD_SHARED_LIBS={shared}"] if shared else [])]
        call("cmake", "-S", tmp_path, "-B", tmp_path / name, *flags)
        caches[name] = cache_of(tmp_path / name)
    differing = {key for key, value in caches["both"].items() if caches["alone"].get(key) != value}
    foreign = {key.split(":")[0] for key in differing if not key.lower().startswith(("wgap_", "fetchcontent_"))}
    assert foreign == {"WITH_WGAP"}

    call("cmake", "--build", tmp_path / "both", "--parallel", "2")
    built = {path.name.split(".")[1] for path in (tmp_path / "both").rglob("libwgap.*") if not path.is_symlink()}
    assert built == ({"so"} if shared == "ON" else {"a"}), "only what is linked is built"
    call(tmp_path / "both" / "app")
    call("cmake", "--install", tmp_path / "both", "--prefix", tmp_path / "prefix")
    assert [path.name for path in (tmp_path / "prefix").rglob("*") if path.is_file()] == ["app"]


def test_a_static_package_is_asked_for_with_build_shared_libs(tmp_path: Path) -> None:
    call("cmake", "-S", ROOT, "-B", tmp_path / "wgap", "-DBUILD_SHARED_LIBS=OFF")
    call("cmake", "--build", tmp_path / "wgap", "--parallel", "2")
    call("cmake", "--install", tmp_path / "wgap", "--prefix", tmp_path / "prefix")
    example = (ROOT / "examples" / "cpp", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
    call("cmake", "-S", *example)
    call("cmake", "--build", tmp_path / "build")
    assert "libwgap.so" not in call("ldd", tmp_path / "build" / "boxes")
    assert json.loads(call(tmp_path / "build" / "boxes"))["class_id"] == 1


@pytest.mark.parametrize("preset", ["tsan", "asan"])
def test_sanitizers_find_nothing(preset: str, tmp_path: Path) -> None:
    checked(preset, tmp_path)


RECORDS = "tests/kernel/records"  # prints a hash of what the library answers to each of many random problems


def test_fast_math_around_it_changes_no_bit(release: Path, tmp_path: Path) -> None:
    """A parent project's flags reach the sources of wgap: NaN must stay one, and sums in their order."""
    call("cmake", "--preset", "release", "-B", tmp_path, "-DCMAKE_CXX_FLAGS=-ffast-math -ffinite-math-only")
    call("cmake", "--build", tmp_path, "--parallel", "2", "--target", "records", "test_c_api")
    assert call(tmp_path / RECORDS) == call(release / RECORDS) != ""
    call(tmp_path / "tests/kernel/test_c_api")


@missing("clang", "clang++")
def test_clang_s_library_gives_the_same_bits(release: Path, tmp_path: Path) -> None:
    assert call(checked("clang", tmp_path) / RECORDS) == call(release / RECORDS) != ""


@missing("aarch64-linux-gnu-g++", "qemu-aarch64")
def test_64_bit_arm_gives_the_same_bits(release: Path, tmp_path: Path) -> None:
    folder = checked("aarch64", tmp_path)
    assert (folder / RECORDS).read_bytes()[18:20] == b"\xb7\0", "EM_AARCH64 in the ELF header"
    assert call("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", folder / RECORDS) == call(release / RECORDS) != ""


def test_the_benchmark_of_stages_runs(tmp_path: Path) -> None:
    told = json.loads(call(build("benchmark", tmp_path) / "kernel_stages", "--repeats", "3"))
    assert sum(told["stages_us"].values()) > told["read_once_us"] > 0
    assert told["whole_us"] > 0


def test_kernel_headers_include_nothing() -> None:
    """NVRTC, which compiles them for GPUs at run time, has no standard library."""
    headers = {path.name: path.read_text() for path in (ROOT / "runtime/include/wgap/kernel").glob("*.h")}
    for host in ("cuda_launch.h", "logs.h"):  # with the standard library, on the host alone
        del headers[host]
    for name, text in headers.items():
        included = [line.split()[1].strip('"') for line in text.splitlines() if line.startswith("#include")]
        assert all(line.removeprefix("wgap/kernel/") in headers for line in included), name
