"""OpenVINO from C++: what its module keeps, and how a process with it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.sdk.conftest import ROOT, call, run

HERE = Path(__file__).parent
openvino = pytest.importorskip("openvino")
PACKAGE = Path(openvino.__file__).parent


@pytest.fixture(scope="module")
def library() -> Path:
    [file] = PACKAGE.glob("libs/libopenvino_c.so*")
    return file


@pytest.fixture(scope="module")
def counted(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library behind one that counts compiled models."""
    made = tmp_path_factory.mktemp("counted") / "libopenvino_c.so"
    where = ("-isystem", PACKAGE / "include", "-Wl,--no-as-needed", f"-Wl,-rpath,{library.parent}", library)
    call("c++", "-std=c++17", "-shared", "-fPIC", HERE / "stand_in" / "openvino.cpp", *where, "-o", made)
    return made


def built(installed: Path, name: str, folder: Path) -> Path:
    where = (f"-I{ROOT / 'runtime' / 'include'}", f"-L{installed / 'lib'}", f"-Wl,-rpath,{installed / 'lib'}")
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *where)
    call("c++", *flags, HERE / f"{name}.cpp", "-lwgap_runtime", "-lwgap", "-lpthread", "-ldl", "-o", folder / name)
    return folder / name


def test_compiled_models_of_the_last_four_sizes_of_batch_are_kept(
    installed: Path, counted: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    done = run(built(installed, "openvino", tmp_path), tiny_bundle, counted, WGAP_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_localizer_of_static_lifetime_lets_its_process_end(
    installed: Path, library: Path, tiny_bundle: Path, tmp_path: Path, backend: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    [other] = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    where = {"WGAP_OPENVINO": str(library), "WGAP_ONNXRUNTIME": str(other)}
    done = run(
        built(installed, "early", tmp_path),
        BUNDLE=str(tiny_bundle),
        BACKEND=backend,
        WGAP_CACHE=str(tmp_path / "cache"),
        **where,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{backend} passed\n", "")
