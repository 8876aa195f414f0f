"""Every way to get the C++ runtime, used by a small project outside; its programs beside the Python commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.conftest import IN_ONE_PIECE, ROOT, build_runtime, call, python, run

import wgap
from wgap.evaluate.comparison import compare
from wgap.evaluate.latency import read_report
from wgap.evaluate.statistics import summary

HERE = Path(__file__).parent
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wconversion", "-Wshadow")


@pytest.mark.parametrize(
    "options",
    [
        (), ("--rule", "adaptive"), ("--rule", "fixed:0.4", "--map", "signed"), ("--rule", "foreground"),
        ("--top-k", "3", "--max-boxes", "4", "--batch-size", "4"), ("--class", "ring"), ("--class", "2"),
        ("--threads", "2"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_lines_are_python_s(
    installed: Path, library: Path, scored_bundle: Path, pictures: Path, options: tuple[str, ...]
) -> None:
    inputs = (scored_bundle, pictures, pictures / "gone.jpg", pictures / "a" / "0.jpg")
    theirs = python("localize", *inputs, "--json", *options)
    ours = run(installed / "bin" / "wgap-localize", *inputs, "--json", *options, WGAP_ONNXRUNTIME=str(library))
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr) == (1, "2 of 12 images failed\n")
    made, expected = ours.stdout.splitlines(), theirs.stdout.splitlines()
    good = [n for n, line in enumerate(expected) if '"error"' not in line]
    assert len(made) == len(expected) == 12
    assert len(good) == 10
    assert [made[n] for n in good] == [expected[n] for n in good]  # to the byte
    assert [(json.loads(a)["image"], json.loads(a).get("code")) for a in made] == [
        (json.loads(b)["image"], json.loads(b).get("code")) for b in expected
    ]


@pytest.mark.parametrize("inputs", [(".",), ("a/../b", ".//a"), ("linked/..",), ("b/c/back/c",), ("",)], ids=str)
def test_folders_are_searched_as_python_s(
    installed: Path, library: Path, tiny_bundle: Path, pictures: Path, inputs: tuple[str, ...]
) -> None:
    asked = (tiny_bundle, *inputs, "--json", "--top-k", "1", "--top-k=2")
    theirs = python("localize", *asked, cwd=pictures)
    ours = run(installed / "bin" / "wgap-localize", *asked, cwd=pictures, WGAP_ONNXRUNTIME=str(library))
    names = [[json.loads(line)["image"] for line in done.stdout.splitlines()] for done in (theirs, ours)]
    assert names[1] == names[0]
    assert names[0]
    assert "others" in json.loads(ours.stdout.splitlines()[0])


def test_the_sentences_are_python_s(installed: Path, library: Path, scored_bundle: Path, pictures: Path) -> None:
    inputs = (scored_bundle, pictures / "a" / "0.jpg", pictures / "b", "--max-boxes", "3")
    for rule in ("adaptive", "foreground"):
        theirs = python("localize", *inputs, "--rule", rule)
        ours = run(installed / "bin" / "wgap-localize", *inputs, "--rule", rule, WGAP_ONNXRUNTIME=str(library))
        assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("BUNDLE",), 2, "too few arguments"),
        (("BUNDLE", "PICTURE", "--top-k"), 2, "--top-k needs a value"),
        (("BUNDLE", "PICTURE", "--top-k", "x"), 2, "--top-k: 'x' is no whole number"),
        (("BUNDLE", "PICTURE", "--class="), 2, "--class needs a value"),
        (("BUNDLE", "PICTURE", "--rule", ""), 2, "--rule needs a value"),
        (("BUNDLE", "PICTURE", "--threads=0"), 1, "threads must be at least 1, got 0"),
        (("BUNDLE", "PICTURE", "--fast"), 2, "no such option: --fast"),
        (("BUNDLE", "PICTURE", "--top-k", "9"), 1, "top_k must be a whole number in 1..3, got 9"),
        (("BUNDLE", "PICTURE", "--class", "owl"), 1, "no class 'owl'; expected a name (disc, ...) or an id of 0..2"),
        (("BUNDLE", "PICTURE", "--class", "3"), 1, "no class '3'"),
        (("BUNDLE", "PICTURE", "--rule", "otsu"), 1, "rule: expected 'adaptive'"),
        (("BUNDLE", "PICTURE", "--backend", "tvm"), 1, "unknown backend 'tvm'; expected one of: auto, onnx"),
        (("BUNDLE", "PICTURE", "--backend", "tensorrt_rtx"), 1, "tensorrt_rtx runs in the Python package alone: `wgap"),
        (("BUNDLE", "PICTURE", "--precision", "int8"), 1, "holds no int8 model; it has: fp32; make it with"),
        (("nothing", "PICTURE"), 1, "nothing is not a folder; expected a bundle"),
        (("BUNDLE", "EMPTY"), 1, "expected a folder with images in it, found none"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(
    installed: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path, arguments: tuple[str, ...],
    code: int, message: str,
) -> None:  # fmt: skip
    names = {"BUNDLE": tiny_bundle, "PICTURE": pictures / "a" / "0.jpg", "EMPTY": tmp_path}
    given = [names.get(word, word) for word in arguments]
    done = run(installed / "bin" / "wgap-localize", *given, WGAP_ONNXRUNTIME=str(library))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr.splitlines()[-1]


def test_a_full_disk_is_told(installed: Path, library: Path, tiny_bundle: Path, pictures: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [installed / "bin" / "wgap-localize", tiny_bundle, pictures / "a" / "0.jpg"],
            env={**os.environ, "WGAP_ONNXRUNTIME": str(library)}, stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"error: output: cannot be written\n")


def test_selftest_says_what_python_s_says(installed: Path, library: Path, scored_bundle: Path) -> None:
    for options in ((), ("--rule", "foreground"), ("--rule", "fixed:0.3")):
        theirs = python("selftest", scored_bundle, "--json", *options)
        ours = run(installed / "bin" / "wgap-selftest", scored_bundle, *options, WGAP_ONNXRUNTIME=str(library))
        a, b = json.loads(theirs.stdout), json.loads(ours.stdout)
        for check in (*a["checks"], *b["checks"]):
            assert check.pop("measured") <= check["limit"] or not check["ok"]
        assert (b, ours.returncode) == (a, theirs.returncode)
        assert len(a["checks"]) > 20


@pytest.fixture(scope="module")
def pooled_bundle(scored_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose network has an output that no rule reads, which golden cases hold too, before those that rules read."""
    onnx = pytest.importorskip("onnx")
    from onnxruntime import InferenceSession
    from safetensors import safe_open
    from safetensors.numpy import save

    root = Path(shutil.copytree(scored_bundle, tmp_path_factory.mktemp("pooled") / "bundle"))
    raw = json.loads((root / "wgap.json").read_text())
    model = onnx.load(str(root / raw["files"][0]["path"]))
    channels = next(tensor["shape"][1] for tensor in raw["model"]["outputs"] if tensor["name"] == "features")
    axes = onnx.numpy_helper.from_array(np.array([2, 3]), "pooled_axes")
    model.graph.initializer.append(axes)
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["features", axes.name], ["pooled"], keepdims=0))
    model.graph.output.insert(0, onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, ["N", channels]))
    contents = {raw["files"][0]["path"]: model.SerializeToString()}
    raw["model"]["outputs"].insert(0, {"name": "pooled", "dtype": "float32", "shape": ["N", channels], "layout": "NK"})
    session = InferenceSession(contents[raw["files"][0]["path"]], providers=["CPUExecutionProvider"])
    for path in (entry["path"] for entry in raw["files"] if entry["role"] == "golden"):
        with safe_open(root / path, "np") as case:
            tensors, words = {name: case.get_tensor(name) for name in case.keys()}, case.metadata()  # noqa: SIM118
        if "image" in tensors:
            tensors["pooled"] = session.run(["pooled"], {"image": tensors["image"][None]})[0][0]
        contents[path] = save(tensors, words)
    for entry in raw["files"]:
        if (content := contents.get(entry["path"])) is not None:
            (root / entry["path"]).write_bytes(content)
            entry.update(sha256=sha256(content).hexdigest(), size=len(content))
    (root / "wgap.json").write_text(json.dumps(raw))
    return root


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_output_that_no_rule_reads_is_passed_over(
    installed: Path, library: Path, scored_bundle: Path, pooled_bundle: Path, pictures: Path, backend: str
) -> None:
    asked = ("--backend", backend)
    environment = {"WGAP_ONNXRUNTIME": str(library)}
    if backend == "openvino":
        openvino = pytest.importorskip("openvino")
        [file] = Path(openvino.__file__).parent.glob("libs/libopenvino_c.so*")
        environment["WGAP_OPENVINO"] = str(file)
    for options in ((), ("--rule", "adaptive")):
        done = run(installed / "bin" / "wgap-selftest", pooled_bundle, *asked, *options, **environment)
        report = json.loads(done.stdout)
        assert (done.returncode, report["ok"]) == (0, True), report
        assert len(report["checks"]) > 20
        with_it, without = (
            run(installed / "bin" / "wgap-localize", root, pictures / "é", "--json", *asked, *options, **environment)
            for root in (pooled_bundle, scored_bundle)
        )
        assert (with_it.returncode, with_it.stdout) == (0, without.stdout), with_it.stderr
    assert json.loads(python("selftest", pooled_bundle, "--json").stdout)["ok"] is True


def test_bench_times_every_stage_and_its_report_is_compared_with_python_s(
    installed: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    asked = (
        tiny_bundle,
        "--iterations",
        "41",
        "--warmup",
        "1",
        "--batch",
        "1,3",
        "--rule",
        "fixed:0.5",
        "--threads",
        "1",
    )
    bench = installed / "bin" / "wgap-bench"
    ours, theirs = tmp_path / 'ours \\ ".json', tmp_path / "theirs.json"
    done = run(
        bench, *asked, pictures / "a" / "0.jpg", pictures / "a" / "0.jpg", "--json", WGAP_ONNXRUNTIME=str(library)
    )
    ours.write_text(done.stdout)
    report = read_report(ours)
    assert [cell.settings.batch for cell in report.cells] == [1, 3]
    for cell in report.cells:
        assert list(cell.samples) == list(cell.stages) == ["prepare", "network", "kernel", "total"]
        for *parts, total in zip(*cell.samples.values(), strict=True):
            assert 0 < sum(parts) <= total + 1e-4
        for name, told in cell.stages.items():
            expected = summary(cell.samples[name])
            for figure in ("samples", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "min_ms"):
                assert getattr(told, figure) == pytest.approx(getattr(expected, figure), abs=1e-4)
        assert cell.images_per_second == pytest.approx(
            1000 * cell.settings.batch / cell.stages["total"].p50_ms, rel=1e-3
        )
    assert python("bench", *asked, "--image", pictures / "a" / "0.jpg", "--export", theirs).returncode == 0
    found = compare(read_report(theirs), report)
    assert ([change.settings.batch for change in found.changes], found.missing, found.added) == ([1, 3], (), ())
    assert found.notes[0] == "program: wgap bench, then wgap-bench"
    assert "p50 ms" in run(bench, *asked, pictures / "a" / "0.jpg", WGAP_ONNXRUNTIME=str(library)).stdout
    for sizes in ("0", "1,", ",1", "one", "1,-2", "99999"):
        done = run(bench, tiny_bundle, pictures / "a" / "0.jpg", "--batch", sizes)
        assert (done.returncode, done.stdout) == (2, "")
        assert "error: --batch expects whole numbers of 1 or more" in done.stderr


@pytest.mark.parametrize("options", [("--rule", "adaptive"), (), ("--batch-size", "3", "--threads", "1")], ids=" ".join)
def test_openvino_s_boxes_are_onnx_runtime_s(
    installed: Path, library: Path, scored_bundle: Path, pictures: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    openvino = pytest.importorskip("openvino")
    [file] = Path(openvino.__file__).parent.glob("libs/libopenvino_c.so*")
    inputs = (scored_bundle, pictures / "a", pictures / "b", pictures / "é", "--json", *options)
    environment = {"WGAP_ONNXRUNTIME": str(library), "WGAP_OPENVINO": str(file), "WGAP_CACHE": str(tmp_path)}
    a, b = (
        run(installed / "bin" / "wgap-localize", *inputs, "--backend", backend, **environment)
        for backend in ("onnxruntime", "openvino")
    )
    assert (a.returncode, a.stderr) == (b.returncode, b.stderr) == (1, "1 of 8 images failed\n")
    for theirs, ours in zip(a.stdout.splitlines(), b.stdout.splitlines(), strict=True):
        first, second = json.loads(theirs), json.loads(ours)
        assert second.pop("score", 0) == pytest.approx(first.pop("score", 0), abs=1e-5)
        assert second == first
    wrong = run(
        installed / "bin" / "wgap-localize", *inputs, "--backend", "openvino", "--library", library, **environment
    )
    assert "is no library for the backend openvino: it has no ov_core_create" in wrong.stderr


# -- ONNX Runtime's library --


def opened(installed: Path, bundle: Path, picture: Path, **environment: str) -> str:
    clean = dict.fromkeys(("VIRTUAL_ENV", "CONDA_PREFIX", "WGAP_ONNXRUNTIME", "WGAP_MODULES", "LD_LIBRARY_PATH"), "")
    done = run(installed / "bin" / "wgap-localize", bundle, picture, **{**clean, **environment})
    return "ok" if done.returncode == 0 else done.stderr.strip()


def compiled(folder: Path, text: str, *flags: str) -> Path:
    source = folder / f"made{len(list(folder.iterdir()))}.c"
    source.write_text(text)
    call("cc", "-shared", "-fPIC", source, "-o", source.with_suffix(".so"), *flags)
    return source.with_suffix(".so")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_library_is_found_or_named(
    installed: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    picture = pictures / "a" / "0.jpg"
    assert opened(installed, tiny_bundle, picture, WGAP_ONNXRUNTIME=str(library)) == "ok"
    assert opened(installed, tiny_bundle, picture, LD_LIBRARY_PATH=str(library.parent)).startswith(
        ("ok", "error: the backend onnxruntime needs ONNX Runtime 1.20 or newer, which was not found (looked for")
    )  # pip's file is called libonnxruntime.so.1.x.y alone
    home = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "onnxruntime"
    home.mkdir(parents=True)
    (home / "capi").symlink_to(library.parent)
    assert opened(installed, tiny_bundle, picture, VIRTUAL_ENV=str(tmp_path / "env")) == "ok"
    assert opened(installed, tiny_bundle, picture, CONDA_PREFIX=str(tmp_path / "env")) == "ok"
    beside = installed / "lib" / "wgap" / "libonnxruntime.so.1"
    beside.symlink_to(library)
    try:
        assert opened(installed, tiny_bundle, picture) == "ok"
    finally:
        beside.unlink()
    old = compiled(
        tmp_path,
        "struct base { const void* (*api)(unsigned); const char* (*version)(void); };\n"
        "static const void* api(unsigned v) { return v > 19 ? 0 : &api; }\n"
        'static const char* version(void) { return "1.19.2"; }\n'
        "static const struct base base = {api, version};\n"
        "const struct base* OrtGetApiBase(void) { return &base; }\n",
    )
    wrong = {
        old: "is ONNX Runtime 1.19.2, which is too old: expected 1.20 or newer",
        compiled(tmp_path, "int nothing;"): "is no library for the backend onnxruntime: it has no OrtGetApiBase",
        tmp_path / "gone.so": "could not be loaded:",
        HERE / "fake.h": "could not be loaded:",
    }
    if shutil.which("aarch64-linux-gnu-gcc"):
        foreign = tmp_path / "arm.so"
        call("aarch64-linux-gnu-gcc", "-shared", "-fPIC", "-x", "c", "/dev/null", "-o", foreign)
        wrong[foreign] = "could not be loaded:"
    for path, message in wrong.items():
        said = opened(installed, tiny_bundle, picture, WGAP_ONNXRUNTIME=str(path))
        assert message in said
        assert said.count("\n") == 0


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_what_lies_in_the_current_folder_is_nobody_s_module(
    installed: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    """A program that the runtime is linked into, started by its name alone."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "here" / "wgap").mkdir(parents=True)
    trap = "__attribute__((constructor)) static void trap(void) { __builtin_trap(); }"
    made = compiled(tmp_path, trap)
    for place in ("libwgap_onnxruntime.so", "wgap/libwgap_onnxruntime.so"):
        shutil.copy(made, tmp_path / "here" / place)
    archives = (installed / "lib" / "libwgap_runtime.a", installed / "lib" / "libwgap.a")
    flags = ("-std=c++17", f"-I{installed / 'include'}", "-DWGAP_STATIC", HERE / "ten_lines.cpp", *archives)
    call("c++", *flags, "-ljpeg", "-lpng", "-lz", "-ldl", "-lpthread", "-o", tmp_path / "bin" / "app")
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "WGAP_ONNXRUNTIME": str(library)}
    asked = (tiny_bundle, pictures / "a" / "0.jpg")
    done = run("app", *asked, cwd=tmp_path / "here", **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"which is not there (looked for {tmp_path / 'bin'}/wgap/libwgap_onnxruntime.so" in done.stderr
    shutil.copytree(installed / "lib" / "wgap", tmp_path / "bin" / "wgap")
    done = run("app", *asked, cwd=tmp_path / "here", **environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_module_that_is_not_there_is_named(
    installed: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    said = opened(installed, tiny_bundle, pictures / "a" / "0.jpg", WGAP_MODULES=str(tmp_path))
    assert "needs its module, which is not there (looked for " in said
    (tmp_path / "libwgap_onnxruntime.so").symlink_to(library)
    said = opened(installed, tiny_bundle, pictures / "a" / "0.jpg", WGAP_MODULES=str(tmp_path))
    assert "is no module of wgap's: it has no wgap_network_open" in said


# -- Ways to get it --

USER = """
cmake_minimum_required(VERSION 3.24)
project(user LANGUAGES CXX)
{found}
foreach(library {libraries})
  string(MAKE_C_IDENTIFIER ${{library}} name)
  add_executable(${{name}} "{source}")
  target_compile_features(${{name}} PRIVATE cxx_std_17)
  target_link_libraries(${{name}} PRIVATE ${{library}})
endforeach()
"""


def used(tmp_path: Path, found: str, libraries: str, *options: str) -> list[Path]:
    """Programs of the ten lines, built by an outside project."""
    text = USER.format(found=found, libraries=libraries, source=HERE / "ten_lines.cpp")
    (tmp_path / "CMakeLists.txt").write_text(text)
    call("cmake", "-S", tmp_path, "-B", tmp_path / "build", *options)
    call("cmake", "--build", tmp_path / "build", "--parallel", "2")
    return [tmp_path / "build" / name.replace("::", "__") for name in libraries.split()]


def expected(bundle: Path, picture: Path) -> str:
    [line] = python("localize", bundle, picture, "--json").stdout.splitlines()
    found = json.loads(line)
    return f"{found['class_name']} {found['score']:.3f} at {' '.join(f'{edge:g}' for edge in found['box'])}\n"


def test_cmake_finds_an_installed_one(
    installed: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    version = wgap.__version__
    found = f"find_package(wgap {version} EXACT REQUIRED COMPONENTS kernel runtime onnxruntime)"
    libraries = "wgap::runtime wgap::wgap_runtime_shared wgap::wgap_runtime_static"
    for program in used(tmp_path, found, libraries, f"-DCMAKE_PREFIX_PATH={installed}"):
        modules = {"WGAP_MODULES": str(installed / "lib" / "wgap")} if "static" in program.name else {}
        done = run(program, tiny_bundle, pictures / "a" / "0.jpg", WGAP_ONNXRUNTIME=str(library), **modules)
        assert (done.stdout, done.stderr) == (expected(tiny_bundle, pictures / "a" / "0.jpg"), "")
    for absent in ("tvm", "nonsense"):
        (tmp_path / absent).mkdir()
        text = USER.format(found=f"find_package(wgap REQUIRED COMPONENTS {absent})", libraries="", source="")
        (tmp_path / absent / "CMakeLists.txt").write_text(text)
        asked = ("cmake", "-S", tmp_path / absent, "-B", tmp_path / absent / "b", f"-DCMAKE_PREFIX_PATH={installed}")
        failed = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert failed.returncode != 0
        assert absent in failed.stderr
    (tmp_path / "modules").mkdir()
    text = USER.format(
        found="find_package(wgap REQUIRED COMPONENTS runtime)", libraries="wgap::runtime", source="x.cpp"
    )
    (tmp_path / "modules" / "CMakeLists.txt").write_text(f"{text}\nwgap_copy_modules(wgap__runtime onnxruntime tvm)")
    asked = ("cmake", "-S", tmp_path / "modules", "-B", tmp_path / "modules" / "b", f"-DCMAKE_PREFIX_PATH={installed}")
    failed = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "no module for tvm; there are: onnxruntime" in " ".join(failed.stderr.split())


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_pkg_config_finds_it(installed: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    [folder] = [path.parent for path in installed.rglob("wgap-runtime.pc")]
    asked = ("env", f"PKG_CONFIG_PATH={folder}", "pkg-config", "--cflags", "--libs", "wgap-runtime")
    plain = Path(shutil.copytree(folder.parent.parent, tmp_path / "plain", symlinks=True))  # a path without a space
    flags = call(*asked).replace("\\ ", " ").replace(str(folder.parent.parent), str(plain)).split()
    command = ("c++", "-std=c++17", HERE / "ten_lines.cpp", *flags, f"-Wl,-rpath,{plain / 'lib'}")
    call(*command, "-o", tmp_path / "app")
    done = run(tmp_path / "app", tiny_bundle, pictures / "a" / "0.jpg", WGAP_ONNXRUNTIME=str(library))
    assert done.stdout == expected(tiny_bundle, pictures / "a" / "0.jpg")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_packages_unpack_and_run(sdk: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    call("cpack", "--config", sdk / "CPackConfig.cmake", "-B", tmp_path / "packages", cwd=sdk)
    [archive], [package] = (tmp_path / "packages").glob("*.tar.gz"), (tmp_path / "packages").glob("*.deb")
    shutil.unpack_archive(archive, tmp_path / "archive")
    call("dpkg-deb", "-x", package, tmp_path / "package")
    for root in (tmp_path / "archive" / archive.name.removesuffix(".tar.gz"), tmp_path / "package" / "usr"):
        picture = pictures / "a" / "0.jpg"
        done = run(root / "bin" / "wgap-localize", tiny_bundle, picture, WGAP_ONNXRUNTIME=str(library))
        assert done.stdout.startswith(f"{picture}: ")
        assert (root / "share" / "doc" / "wgap" / "LICENSE").is_file()
    depends = call("dpkg-deb", "--field", package, "Depends")
    assert all(name in depends for name in ("libc6", "libjpeg", "libpng", "libstdc++"))


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("standard", ["c++17", "c++20"])
@pytest.mark.parametrize("exceptions", ["-fexceptions", "-fno-exceptions"])
def test_compilers_take_it_without_a_warning(
    installed: Path, library: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path, compiler: str, standard: str,
    exceptions: str,
) -> None:  # fmt: skip
    if shutil.which(compiler) is None:
        pytest.skip(f"not installed: {compiler}")
    where = (f"-I{installed / 'include'}", f"-L{installed / 'lib'}", f"-Wl,-rpath,{installed / 'lib'}")
    flags = (f"-std={standard}", exceptions, *WARNINGS, *where)
    call(compiler, *flags, HERE / "ten_lines.cpp", "-lwgap_runtime", "-lwgap", "-o", tmp_path / "app")
    done = run(tmp_path / "app", tiny_bundle, pictures / "a" / "0.jpg", WGAP_ONNXRUNTIME=str(library))
    assert done.stdout == expected(tiny_bundle, pictures / "a" / "0.jpg")
    assert run(tmp_path / "app", "nothing", "x.jpg").stderr.startswith("nothing is not a folder")
    failed = run(tmp_path / "app", tiny_bundle, "gone.jpg", WGAP_ONNXRUNTIME=str(library))
    assert failed.returncode != 0  # thrown, or the program ended
    assert "gone.jpg: no such file" in failed.stderr
    call(compiler, *flags, HERE / "api.cpp", "-lwgap_runtime", "-lwgap", "-o", tmp_path / "api")
    assert run(tmp_path / "api", tiny_bundle).stdout == "passed\n"


def test_only_the_interface_is_exported(installed: Path) -> None:
    listed = call("nm", "--dynamic", "--defined-only", "--format=posix", installed / "lib" / "libwgap_runtime.so")
    header = (ROOT / "runtime" / "include" / "wgap" / "runtime.h").read_text()
    declared = {
        name for line in header.splitlines() if line.startswith("WGAP_RUNTIME_API")
        for name in [line.partition("(")[0].rpartition(" ")[2].lstrip("*")]
    }  # fmt: skip
    assert {line.split()[0] for line in listed.splitlines() if line.startswith("wgap")} == declared
    assert len(declared) > 20
    needed = call("readelf", "-d", installed / "lib" / "libwgap_runtime.so")
    assert "libwgap.so" in needed
    assert not any(name in needed for name in ("onnxruntime", "openvino", "nvinfer", "cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizer: str, tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    options = (f"-DWGAP_SANITIZE={sanitizer}", "-DCMAKE_CXX_FLAGS_RELEASE=-g1", "-DWGAP_TESTS=ON")
    folder = build_runtime(
        tmp_path / "build",
        *options,
        *IN_ONE_PIECE,
        targets=("test_sdk_api", "test_sdk_early", "test_sdk_hostile", "test_sdk_threads"),
    )
    programs = folder / "tests" / "sdk"
    locale = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], capture_output=True, check=False
    )
    if locale.returncode:
        warnings.warn(f"no locale with a decimal comma could be made: {locale.stderr[-200:]!r}", stacklevel=1)
    comma = () if locale.returncode else (("test_sdk_api", tiny_bundle, "de_DE.UTF-8"),)
    for command in (
        *comma,
        ("test_sdk_early",),
        ("test_sdk_api", tiny_bundle),
        ("test_sdk_threads", tiny_bundle, "400"),
        ("test_sdk_hostile", tiny_bundle, pictures / "a" / "0.jpg", "10000"),
    ):
        done = run(programs / command[0], *command[1:], BUNDLE=str(tiny_bundle), LOCPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.endswith("passed\n")


@pytest.mark.slow
def test_it_is_built_for_arm(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    """Runtime, programs and module; what needs no ONNX Runtime runs in QEMU."""
    if absent := [name for name in ("aarch64-linux-gnu-g++", "qemu-aarch64") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    call(ROOT / "cmake" / "fetch-headers.sh", "arm64")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'toolchains' / 'aarch64-linux-gnu.cmake'}"
    programs = ("test_sdk_api", "test_sdk_hostile")
    folder = build_runtime(
        tmp_path / "arm", toolchain, "-DWGAP_TESTS=ON", *IN_ONE_PIECE,
        targets=("wgap-localize", "wgap_onnxruntime", *programs),
    )  # fmt: skip
    libraries = f"{ROOT}/build/headers-arm64/usr/lib/aarch64-linux-gnu:/usr/aarch64-linux-gnu/lib"
    emulator = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={libraries}")
    api, hostile = (folder / "tests" / "sdk" / name for name in programs)
    assert call(*emulator, api, tiny_bundle) == "passed\n"
    assert call(*emulator, hostile, tiny_bundle, pictures / "a" / "0.jpg", "2000").endswith("passed\n")
