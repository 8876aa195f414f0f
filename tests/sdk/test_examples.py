"""The examples and docs/embedding-cpp.md as a newcomer takes them: built as they stand, beside the Python command."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.sdk.conftest import GENERATOR, IN_ONE_PIECE, ROOT, call, lacking, python, run

from wgap import Localizer

PAGE, README = ROOT / "docs" / "embedding-cpp.md", ROOT / "README.md"
WARNINGS = "-Wall -Wextra -Wpedantic -Werror -Wconversion -Wshadow"


@pytest.fixture(scope="module")
def built(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples' programs lie: cpp/ and c/."""
    folder = tmp_path_factory.mktemp("examples")
    for name, language in (("cpp", "CXX"), ("c", "C")):
        options = (f"-DCMAKE_PREFIX_PATH={installed}", f"-DCMAKE_{language}_FLAGS={WARNINGS}")
        call("cmake", "-S", ROOT / "examples" / name, "-B", folder / name, *options)
        call("cmake", "--build", folder / name, "--parallel", "2")
    return folder


def lines_of(bundle: Path | str, *arguments: Any, cwd: Path | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in python("localize", bundle, *arguments, "--json", cwd=cwd).stdout.splitlines()]


def sentence(path: Path, found: dict[str, Any]) -> str:
    boxes = "".join(f" [{' '.join(f'{edge:g}' for edge in box)}]" for box in found["boxes"])
    whole = " (nothing stands out: the whole picture)" if found["degenerate"] else ""
    return f"{path}: {found['class_name']} {100 * found['score']:.1f}% at{boxes}{whole}"


# -- The examples --


@pytest.mark.parametrize("rule", ["foreground", "bundle's"])
def test_a_file_s_boxes_are_python_s(
    built: Path, library: Path, scored_bundle: Path, tiny_bundle: Path, pictures: Path, rule: str
) -> None:
    bundle = scored_bundle if rule == "foreground" else tiny_bundle
    given = (pictures / "a" / "0.jpg", pictures / "b/c/1.PNG", pictures / "gone.jpg", pictures / "é" / "5.PNG")
    done = run(built / "cpp" / "localize_file", bundle, *given, WGAP_ONNXRUNTIME=str(library))
    lines = lines_of(bundle, *given, "--max-boxes", "3")
    good = [sentence(path, line) for path, line in zip(given, lines, strict=True) if "error" not in line]
    assert (done.returncode, done.stdout.splitlines()) == (1, good)
    assert len(good) == 3
    ran, error = done.stderr.splitlines()
    assert re.fullmatch(r"onnxruntime [\d.]+ runs the network", ran)
    assert error == f"error: ImageError: {given[2]}: no such file"
    assert run(built / "cpp" / "localize_file", bundle, given[0], WGAP_ONNXRUNTIME=str(library)).returncode == 0


def test_c_s_boxes_are_python_s(built: Path, library: Path, scored_bundle: Path, pictures: Path) -> None:
    given = (pictures / "a" / "0.jpg", pictures / "gone.jpg", pictures / "b/c/1.PNG")
    done = run(built / "c" / "localize", scored_bundle, *given, WGAP_ONNXRUNTIME=str(library))
    first, failed, second = lines_of(scored_bundle, *given, "--max-boxes", "3", "--top-k", "2", "--batch-size", "4")
    expected = [
        sentence(path, one)
        for path, line in ((given[0], first), (given[2], second))
        for one in (line, *line["others"])
    ]  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()) == (1, expected)
    assert done.stderr == f"error: {failed['code']}: {given[1]}: no such file\n"


def test_threads_print_what_the_command_prints(built: Path, library: Path, scored_bundle: Path, pictures: Path) -> None:
    given = sorted(path for path in pictures.rglob("[0-9].*") if path.is_file()) * 5
    assert len(set(given)) >= 6
    expected = dict(zip(sorted(set(given)), lines_of(scored_bundle, *sorted(set(given))), strict=True))
    done = run(built / "cpp" / "threads", scored_bundle, 4, *given, WGAP_ONNXRUNTIME=str(library))
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [expected[path] for path in given]
    failed = run(built / "cpp" / "threads", scored_bundle, 2, given[0], "gone.jpg", WGAP_ONNXRUNTIME=str(library))
    assert failed.returncode == 1
    assert json.loads(failed.stdout.splitlines()[1])["code"] == "ImageError"


def test_frames_with_a_stride_are_python_s_pictures(built: Path, library: Path, scored_bundle: Path) -> None:
    rng = np.random.default_rng(8)
    frames = rng.integers(0, 60, (4, 48, 64 + 7, 3), dtype=np.uint8)  # rows of 71 pixels of which 64 are the picture
    for number, frame in enumerate(frames):
        cv2.circle(frame, (15 + 8 * number, 20), 9, (220, 240, 230), -1)
    program, environment = built / "cpp" / "frames", {**os.environ, "WGAP_ONNXRUNTIME": str(library)}

    def fed(content: bytes) -> subprocess.CompletedProcess[bytes]:
        command = [program, scored_bundle, "64", "48", str(71 * 3)]
        return subprocess.run(command, input=content, env=environment, capture_output=True, check=False)

    done = fed(frames.tobytes())
    assert done.returncode == 0, done.stderr
    with Localizer(scored_bundle) as localizer:
        expected = [localizer.one(frame[:, :64]) for frame in frames]
    for number, (line, found) in enumerate(zip(done.stdout.decode().splitlines(), expected, strict=True)):
        box = " ".join(f"{edge:g}" for edge in found.box)
        assert re.fullmatch(rf"{number}: {found.class_name} at {re.escape(box)} in [\d.]+ ms", line)
    assert re.fullmatch(rb"4 frames, median [\d.]+ ms, slowest [\d.]+ ms\n", done.stderr)
    cut = fed(frames.tobytes()[:-1])
    assert (cut.returncode, len(cut.stdout.splitlines())) == (1, 3)
    assert cut.stderr == b"error: frame 3: expected 10224 bytes, the input ended before\n"
    made_up = run(program, scored_bundle, WGAP_ONNXRUNTIME=str(library))
    assert (made_up.returncode, len(made_up.stdout.splitlines())) == (0, 30)
    assert run(program, scored_bundle, "64", "48", "100").returncode == 2


def test_an_engine_of_one_s_own_finds_what_it_computes(
    built: Path, scored_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    picture = np.full((120, 160, 3), 30, np.uint8)
    picture[30:75, 40:120] = 240
    cv2.imwrite(str(tmp_path / "bright.png"), picture)
    for bundle in (tiny_bundle, scored_bundle):  # features, and a foreground
        done = run(built / "cpp" / "own_engine", bundle, tmp_path / "bright.png", WGAP_MODULES="/nowhere")
        name, _, box = done.stdout.removeprefix("brightness: ").strip().partition(" at ")
        assert (done.returncode, done.stderr, name) == (0, "", "disc")
        x0, y0, x1, y1 = map(float, box.split())
        shared = max(0, min(x1, 120) - max(x0, 40)) * max(0, min(y1, 75) - max(y0, 30))
        assert shared > 0.8 * 80 * 45
        assert (x1 - x0) * (y1 - y0) < 0.6 * 160 * 120


@pytest.mark.parametrize("name", ["localize_file", "frames", "own_engine", "threads", "localize"])
def test_what_goes_wrong_is_one_line(built: Path, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    [program] = built.glob(f"*/{name}")
    used = run(program)
    assert (used.returncode, used.stdout) == (2, "")
    assert used.stderr.startswith(f"usage: {name} BUNDLE")
    rest = {"frames": (), "threads": (1, "x.jpg")}.get(name, ("x.jpg",))
    missing = run(program, tmp_path / "nothing", *rest)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert re.fullmatch(r"error: (BundleError: )?\S+ is not a folder; expected a bundle.*\n", missing.stderr)


def test_without_the_runtime_the_kernel_s_example_is_built(installed: Path, tmp_path: Path) -> None:
    prefix = Path(shutil.copytree(installed, tmp_path / "kernel", symlinks=True))
    for file in (prefix / "lib" / "cmake" / "wgap").glob("wgapRuntime*"):
        file.unlink()
    call("cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", tmp_path / "b")
    assert json.loads(call(tmp_path / "b" / "boxes"))["class_id"] == 1
    assert not (tmp_path / "b" / "threads").exists()


def test_ctypes_needs_neither_numpy_nor_wgap(
    installed: Path, library: Path, scored_bundle: Path, pictures: Path
) -> None:
    given = (pictures / "a" / "0.jpg", pictures / "b/c/1.PNG", pictures / "gone.jpg")
    arguments = (ROOT / "examples" / "ctypes_boxes.py", installed / "lib" / "libwgap_runtime.so", scored_bundle, *given)
    # -I -S: neither the environment's packages nor this folder's can be imported.
    done = run(sys.executable, "-I", "-S", "-X", "importtime", *arguments, WGAP_ONNXRUNTIME=str(library))
    assert done.returncode == 0, done.stderr
    *good, failed = (json.loads(line) for line in done.stdout.splitlines())
    assert good == lines_of(scored_bundle, *given)[:2]
    assert failed["code"] == "ImageError"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ctypes" in imported
    assert not [name for name in imported if name.partition(".")[0] in ("numpy", "wgap", "cv2")]


# -- The page --


def blocks(language: str, page: Path = PAGE, before: str = "") -> list[str]:
    return re.findall(rf"{re.escape(before)}```{language}\n(.*?)```", page.read_text(), flags=re.S)


TEN_LINES, *SNIPPETS = blocks("cpp")
COMMANDS = blocks("console", before="<!-- run -->\n")


@pytest.fixture(scope="module")
def desk(scored_bundle: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page supposes, which is a project of one program."""
    here = tmp_path_factory.mktemp("desk")
    (here / "bundle").symlink_to(scored_bundle)
    (here / "photos").symlink_to(pictures / "é")
    (here / "third_party").mkdir()
    (here / "third_party" / "wgap").symlink_to(ROOT)
    (here / "examples").symlink_to(ROOT / "examples")
    shutil.copy(pictures / "a" / "0.jpg", here / "bird.jpg")
    (here / "app.cpp").write_text(TEN_LINES)
    (here / "app.c").write_text(KERNEL)
    return here


# The kernel's two snippets, one after the other, with the arrays that they suppose.
KERNEL_C = [text for text in blocks("c") if "int main" not in text]
KERNEL = f"""
#include <stdio.h>
{KERNEL_C[0].partition(chr(10))[0]}
enum {{ n = 2 }};
static float weight[200 * 512], logits[n * 200], features[n * 512 * 14 * 14], foreground[n * 28 * 28];
static unsigned char rgb[n * 224 * 224 * 3];
static wgap_record records[n * 3];
int main(void) {{
  const unsigned long long weight_bytes = sizeof weight, logits_bytes = sizeof logits, features_bytes = sizeof features;
  for (int i = 0; i < n * 28 * 28; ++i) foreground[i] = i % 28 < 9 ? 1.0f : -1.0f;
  {KERNEL_C[0].partition(chr(10))[2]}
  {KERNEL_C[1]}
  if (wgap_localize(workspace, classifier, &input, &options, &output, &error) != WGAP_OK) puts(error.text);
  printf("%d %d\\n", records[0].boxes, records[0].degenerate);
  return 0;
}}
"""


def typed(text: str, prefix: Path, folder: Path, **environment: str) -> str:
    """What a shell prints where it is given these lines of the page."""
    text = text.replace("/opt/wgap", str(prefix))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env={**own, "PATH": path, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def in_the_tree(text: str, sdk: Path, tmp_path: Path) -> str:
    """Lines that build wgap, in the folder where the tests have built it, and with nothing written elsewhere."""
    packages, release = (shlex.quote(str(tmp_path / name)) for name in ("packages", "release"))
    text = text.replace("build/cpp", str(sdk.relative_to(ROOT))).replace("-B packages", f"-B {packages}")
    return text.replace("--preset release", f"--preset release -B {release}")


@pytest.fixture(scope="module")
def prefix(sdk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's first commands install wgap."""
    folder = tmp_path_factory.mktemp("page")
    with (sdk / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for text in (COMMANDS[0], *[text for text in blocks("console", README) if "/opt/wgap" in text]):
            assert "--install build/cpp" in text
            typed(in_the_tree(text, sdk, folder), folder / "wgap", ROOT)
    return folder / "wgap"


def of_the_bird(desk: Path) -> dict[str, Any]:
    [line] = lines_of("bundle", "bird.jpg", cwd=desk)
    return line


def expected(desk: Path) -> str:
    found = of_the_bird(desk)
    box = " ".join(f"{edge:g}" for edge in found["box"])
    return f"{found['class_name']} {100 * found['score']:.1f}% at {box}\n"


def test_every_command_of_the_page_runs(prefix: Path, sdk: Path, library: Path, desk: Path, tmp_path: Path) -> None:
    (desk / "CMakeLists.txt").write_text(project("find_package(wgap REQUIRED)", language="C"))
    outputs, missing = {}, set()
    for text in COMMANDS[1:]:
        builds_wgap = "build/cpp" in text or "--preset" in text
        needed = {"cpack": ("cpack", "dpkg-shlibdeps"), "pkg-config": ("pkg-config",)}
        absent = {name for word in needed if word in text for name in needed[word] if shutil.which(name) is None}
        missing |= absent
        if absent:
            continue
        (desk / "app").unlink(missing_ok=True)
        given, folder = (in_the_tree(text, sdk, tmp_path), ROOT) if builds_wgap else (text, desk)
        outputs[text] = typed(given, prefix, folder, WGAP_ONNXRUNTIME=str(library))
        if "-o app" in text:
            made = run(desk / "app", cwd=desk, WGAP_ONNXRUNTIME=str(library))
            assert made.stdout == (expected(desk) if "app.cpp" in text else "1 0\n"), made.stderr
    [programs] = [output for text, output in outputs.items() if "wgap-localize" in text]
    *lines, report = (line for line in programs.splitlines() if line.startswith("{"))
    assert [json.loads(line) for line in lines] == lines_of("bundle", "photos", cwd=desk) != []
    assert json.loads(report)["ok"] is True
    assert "p50 ms" in programs
    [other] = [output for text, output in outputs.items() if "ctypes_boxes.py" in text]
    assert [json.loads(other)] == [
        {**line, "image": "bird.jpg"} for line in lines_of(desk / "bundle", desk / "bird.jpg")
    ]
    if missing:
        lacking(f"all the page's other commands ran; not installed for the rest: {', '.join(sorted(missing))}")


def project(containing: str, language: str = "CXX") -> str:
    """A project of one program around the page's CMake lines that have these words."""
    [lines] = [text for text in blocks("cmake") if containing in text]
    source = "app.c" if language == "C" else "app.cpp"
    standard = "" if language == "C" else "target_compile_features(app PRIVATE cxx_std_17)\n"
    head = f"cmake_minimum_required(VERSION 3.24)\nproject(user LANGUAGES {language})\nadd_executable(app {source})\n"
    return head + lines + standard


def test_the_ten_lines_are_in_the_readme_too_and_cmake_builds_them(prefix: Path, library: Path, desk: Path) -> None:
    assert blocks("cpp", README) == [TEN_LINES]
    (desk / "CMakeLists.txt").write_text(project("COMPONENTS runtime"))
    call("cmake", "-S", desk, "-B", desk / "found", f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", desk / "found")
    assert run(desk / "found" / "app", cwd=desk, WGAP_ONNXRUNTIME=str(library)).stdout == expected(desk)


def test_it_is_part_of_another_project(sdk: Path, library: Path, desk: Path, tmp_path: Path) -> None:
    """Built there, and installed with it: the module is found without a variable, and the copy is of the latest."""
    (desk / "CMakeLists.txt").write_text(project("set(WGAP_RUNTIME ON)"))
    quick = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=", *IN_ONE_PIECE, *GENERATOR)
    call("cmake", "-S", desk, "-B", tmp_path / "b", *quick)
    call("cmake", "--build", tmp_path / "b", "--parallel", "2")
    [copied, made] = sorted(
        (tmp_path / "b").rglob("libwgap_onnxruntime.so"), key=lambda path: path.parent.name != "wgap"
    )
    copied.write_bytes(b"of a build before")
    made.unlink()
    call("cmake", "--build", tmp_path / "b")
    assert copied.read_bytes() == made.read_bytes()
    call("cmake", "--install", tmp_path / "b", "--prefix", tmp_path / "prefix")
    for program in (tmp_path / "b" / "app", tmp_path / "prefix" / "bin" / "app"):
        done = run(program, cwd=desk, WGAP_ONNXRUNTIME=str(library))
        assert (done.stdout, done.stderr) == (expected(desk), "")
    installed = sorted(path.name for path in (tmp_path / "prefix").rglob("*") if path.is_file())
    assert installed == ["app", "libwgap_onnxruntime.so"]


SNIPPET_PROGRAM = """
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>
#include <wgap/wgap.hpp>

struct Answer {
  bool ok;
  std::vector<float> logits, features;
};

static Answer ask(const std::uint8_t*, std::int64_t count) {
  const auto n = static_cast<std::size_t>(count);
  return {true, std::vector<float>(n * 3), std::vector<float>(n * 64 * 4 * 4, 1.0F)};
}

static void use(const wgap::Found&) {}

static std::string read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

"""


def test_every_cpp_snippet_of_the_page_runs(prefix: Path, library: Path, desk: Path, tmp_path: Path) -> None:
    functions, calls = [], []
    for number, snippet in enumerate(SNIPPETS):
        text = snippet
        opened = "" if "Localizer::open" in text else 'const auto localizer = wgap::Localizer::open("bundle");\n'
        given = 'const std::string bytes = read("bird.jpg");\nstd::vector<std::uint8_t> rgb(480 * 2048);\n'
        after = ""
        if "struct Server" in text:
            opened = given = ""
            after = (
                'wgap::Options options;\noptions.network = std::make_shared<Server>();\noptions.rule = "adaptive";\n'
                'std::printf("%s\\n", wgap::Localizer::open("bundle", options)->file("bird.jpg")->json.c_str());\n'
            )
        if "->device(" in text:
            opened += "const void* const pictures = nullptr;\nconst std::size_t n = 0;\nvoid* const stream = nullptr;\n"
            text = f'try {{\n{text}}} catch (const wgap::Exception& e) {{\nstd::printf("%s\\n", e.what());\n}}\n'
        if "batch" in text:
            after = 'std::printf("%zu %d %d\\n", results->size(), bool((*results)[0]), bool((*results)[1]));\n'
        if "wgap::decode" in text:
            after = 'std::printf("%s\\n", found->json.c_str());\n'
        if "selftest()" in text:
            after = 'std::printf("%s\\n", report->c_str());\n'
        if "const wgap::Found& found" in text:
            after = 'std::printf("best %s\\n", found.class_name.c_str());\n'
        used = "static_cast<void>(bytes), static_cast<void>(rgb);\n" if given else ""
        functions.append(f"static void snippet{number}() {{\n{opened}{given}{used}{text}{after}}}\n\n")
        calls.append(f"  snippet{number}();\n")
    source = tmp_path / "snippets.cpp"
    source.write_text(SNIPPET_PROGRAM + "".join(functions) + f"int main() {{\n{''.join(calls)}}}\n")
    where = (f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}")
    call("c++", "-std=c++17", *WARNINGS.split(), source, *where, "-lwgap_runtime", "-lwgap", "-o", tmp_path / "app")
    done = run(tmp_path / "app", cwd=desk, WGAP_ONNXRUNTIME=str(library))
    assert done.returncode == 0, done.stderr
    classes, batch, decoded, best, failed, thrown, report, own, device = done.stdout.splitlines()
    assert re.fullmatch(r"onnxruntime [\d.]+, 3 classes", classes)
    assert batch == "3 1 0"
    assert json.loads(decoded) == {**of_the_bird(desk), "image": None}
    assert json.loads(report)["ok"] is True
    assert best == f"best {of_the_bird(desk)['class_name']}"
    assert failed == "ImageError: gone.jpg: no such file"
    assert thrown == "gone.jpg: no such file"
    assert json.loads(own)["class_name"] == "disc"
    assert device.startswith("pictures on a GPU need a backend that is there too; onnxruntime ")


def test_the_c_program_of_the_page_runs(prefix: Path, library: Path, desk: Path, tmp_path: Path) -> None:
    [program] = [text for text in blocks("c") if "int main" in text]
    (tmp_path / "app.c").write_text(program)
    where = (f"-I{prefix / 'include'}", f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}")
    flags = ("-std=c11", *WARNINGS.split(), *where, "-lwgap_runtime", "-lwgap")
    call("cc", tmp_path / "app.c", *flags, "-o", tmp_path / "app")
    done = run(tmp_path / "app", cwd=desk, WGAP_ONNXRUNTIME=str(library))
    assert [json.loads(done.stdout)] == [
        {**line, "image": "bird.jpg"} for line in lines_of(desk / "bundle", desk / "bird.jpg")
    ]


def test_the_page_names_every_option_error_and_variable_there_is() -> None:
    page = PAGE.read_text()
    header = (ROOT / "runtime" / "include" / "wgap" / "wgap.hpp").read_text()
    struct = header.partition("struct Options {")[2].partition("};")[0]
    options = re.findall(r"^  [\w:<>]+ (\w+)[ ;]", struct, flags=re.M)
    assert len(options) >= 12
    assert [name for name in options if f"\n| `{name}` |" not in page] == []
    statuses = (ROOT / "runtime" / "include" / "wgap" / "wgap.h").read_text()
    errors = re.findall(r"(WGAP_\w+_ERROR) = 0x", statuses)
    assert len(errors) >= 12
    assert [name for name in errors if f"`{name}`" not in page] == []
    sources = (ROOT / "runtime" / "src" / "sdk").rglob("*.cpp")
    variables = {name for path in sources for name in re.findall(r'"(WGAP_[A-Z]+)"', path.read_text())}
    assert {"WGAP_MODULES", "WGAP_ONNXRUNTIME", "WGAP_OPENVINO"} <= variables
    assert [name for name in variables if f"`{name}`" not in page] == []
