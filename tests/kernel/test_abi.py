"""Programs built against another version of wgap.h: an older one is served, a newer one is refused by name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent / "abi"
HEADER = ROOT / "runtime" / "include" / "wgap" / "wgap.h"
FROZEN = sorted(HERE.glob("wgap-*.h"))
STRUCTS = ("error", "rule", "options", "input", "record", "output", "image")
EXPECTED = """\
grey 77 77 77 77
class 0 logit 2 level -1 threshold 0.25 box 0 0 2 2 known 1
class 1 logit 1 level -1 threshold 0.25 box 0 0 2 2 known 1
class 1 logit 3 level -1 threshold 0.25 box 2 2 4 4 known 1
class 0 logit 0 level -1 threshold 0.25 box 2 2 4 4 known 1
"""

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and a C and C++ compiler"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of today's libwgap.so."""
    folder = tmp_path_factory.mktemp("library")
    # A build started from a Python build must not inherit its generator or flags.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("CMAKE_", "SKBUILD_"))}
    for command in (
        ["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Debug"],
        ["cmake", "--build", folder, "--target", "wgap_shared", "--parallel", "2"],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def run_client(header: str, library: Path, folder: Path) -> tuple[int, str]:
    """Exit code and output of the client built against a header with this text."""
    (folder / "wgap").mkdir()
    (folder / "wgap" / "wgap.h").write_text(header)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", folder, "-L", library]
    subprocess.run(
        ["cc", *flags, HERE / "client.c", "-o", folder / "client", "-lwgap", f"-Wl,-rpath,{library}"], check=True
    )
    done = subprocess.run([folder / "client"], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout


def grown(header: str, *structs: str) -> str:
    """A later version of the header: each of these structs has one more field at its end, which its _INIT sets."""
    for name in structs:
        header, ends = re.subn(rf"^}} wgap_{name};", f"  uint64_t later;\n}} wgap_{name};", header, flags=re.MULTILINE)
        assert ends == 1, name
        if name != "record":  # the library fills it in: it has no _INIT
            init = rf"(#define WGAP_{name.upper()}_INIT(?:.*\\\n)* *\{{?(?:.*\\\n)*.*)\}}$"
            header, inits = re.subn(init, r"\1, 0}", header, flags=re.M)
            assert inits == 1, name
    return header


def test_today_s_header_is_served(library: Path, tmp_path: Path) -> None:
    assert run_client(HEADER.read_text(), library, tmp_path) == (0, EXPECTED)


@pytest.mark.parametrize("frozen", FROZEN, ids=lambda path: path.stem)
def test_an_older_header_of_this_minor_version_is_served(frozen: Path, library: Path, tmp_path: Path) -> None:
    assert run_client(frozen.read_text(), library, tmp_path) == (0, EXPECTED)


@pytest.mark.parametrize(
    ("structs", "call", "named"),
    [
        (("error",), "classifier", "wgap_error"),
        (("rule",), "rule", "wgap_rule"),
        (("options",), "localize", "wgap_options"),
        (("input",), "localize", "wgap_input"),
        (("record",), "localize", "wgap_record"),
        (("output",), "localize", "wgap_output"),
        (("image",), "resize", "source (wgap_image)"),
        (STRUCTS, "classifier", "wgap_error"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_a_newer_header_is_refused_by_name(
    structs: tuple[str, ...], call: str, named: str, library: Path, tmp_path: Path
) -> None:
    code, told = run_client(grown(HEADER.read_text(), *structs), library, tmp_path)
    assert code == 3, told
    version = ".".join(re.findall(r"#define WGAP_VERSION_M?[A-Z]+ (\d+)", HEADER.read_text()))
    said = re.fullmatch(
        rf"{call} 11 {re.escape(named)} has (\d+) bytes, wgap {re.escape(version)} knows (\d+): "
        r"the program's header is newer",
        told.splitlines()[-1],
    )
    assert said is not None, told
    assert int(said[1]) == int(said[2]) + 8


def test_every_version_since_the_first_of_its_minor_number_is_kept() -> None:
    """Freeze today's header as ``tests/kernel/abi/wgap-VERSION.h`` before the version moves on."""
    major, minor, patch = re.findall(r"#define WGAP_VERSION_M?[A-Z]+ (\d+)", HEADER.read_text())
    kept = {path.stem for path in FROZEN}
    assert {f"wgap-{major}.{minor}.{n}" for n in range(int(patch))} <= kept
