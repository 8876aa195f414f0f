"""Programs built against another version of runtime.h: an older one is served, a newer one is refused by name.

``abi/runtime-first.h`` is the header as it was first. Fields are appended at the ends of its structs, never before.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tests.kernel.test_abi import grown
from tests.sdk.conftest import ROOT, call, run

HERE = Path(__file__).parent / "abi"
INCLUDE = ROOT / "runtime" / "include" / "wgap"
FIRST, TODAY = (HERE / "runtime-first.h").read_text(), (INCLUDE / "runtime.h").read_text()
ALONE = re.compile(r"(\w+)(?:\[\d+\])?(?=[,;])|\(\*(\w+)\)")

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def compiled(header: str, source: Path, folder: Path, *flags: str | Path) -> Path:
    (folder / "wgap").mkdir(parents=True)
    (folder / "wgap" / "runtime.h").write_text(header)
    shutil.copy(INCLUDE / "wgap.h", folder / "wgap" / "wgap.h")
    strict = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", folder)
    call("cc", *strict, source, "-o", folder / "program", *flags)
    return folder / "program"


def told(header: str, installed: Path, bundle: Path, folder: Path) -> tuple[int, str]:
    """Exit code and output of the client built against a header with this text."""
    where = (f"-L{installed / 'lib'}", f"-Wl,-rpath,{installed / 'lib'}", "-lwgap_runtime", "-lwgap")
    done = run(compiled(header, HERE / "client.c", folder, *where), bundle)
    return done.returncode, done.stdout


def test_a_program_of_the_first_header_is_served(installed: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    old, new = (told(text, installed, tiny_bundle, tmp_path / name) for name, text in (("old", FIRST), ("new", TODAY)))
    assert old == new
    lines = old[1].splitlines()
    assert lines[:2] == ["64 x 64, 3 classes", "client 1"]
    assert lines[2] == lines[3]
    assert re.fullmatch(r"2 \w+ 0\.\d+ -1 0\.500 0 \[0 .* 4 2\].* of 64 x 64", lines[2])
    assert lines[4:] == ["timed 1", "released 2"]
    assert old[0] == 0


def fields(header: str) -> list[tuple[str, str]]:
    """(struct, field) of every field, in order."""
    found = []
    for body, name in re.findall(r"^typedef struct (?:wgap_\w+ )?\{(.*?)^\} (wgap_\w+);", header, flags=re.M | re.S):
        text = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
        found += [(name, pointer or word) for word, pointer in ALONE.findall(re.sub(r"\)\([^;]*;", ");", text))]
    return found


def test_every_field_stands_where_it_stood(tmp_path: Path) -> None:
    first = fields(FIRST)
    assert len(first) > 80
    assert ("wgap_network", "release") in first
    assert ("wgap_tensor", "extents") in first
    assert ("wgap_box", "y1") in first
    shown = "".join(
        f'  printf("{struct}.{field} %zu %zu\\n", offsetof({struct}, {field}), sizeof((({struct}*)0)->{field}));\n'
        for struct, field in first
    )
    source = tmp_path / "layout.c"
    included = "#include <stddef.h>\n#include <stdio.h>\n#include <wgap/runtime.h>\n"
    source.write_text(f"{included}int main(void) {{\n{shown}  return 0;\n}}\n")
    old, new = (call(compiled(text, source, tmp_path / name)) for name, text in (("old", FIRST), ("new", TODAY)))
    assert new == old


@pytest.mark.parametrize(
    ("struct", "refused"),
    [
        ("bundle_info", "describe"), ("engine_host", "engine"), ("localizer_options", "open"), ("network", "open"),
        ("picture", "run"), ("run_options", "run"), ("timings", "timings"),
    ],
)  # fmt: skip
def test_a_newer_header_is_refused_by_name(
    installed: Path, tiny_bundle: Path, tmp_path: Path, struct: str, refused: str
) -> None:
    code, output = told(grown(TODAY, struct), installed, tiny_bundle, tmp_path / "new")
    assert code == 3, output
    version = re.escape(".".join(re.findall(r"#define WGAP_VERSION_M?[A-Z]+ (\d+)", (INCLUDE / "wgap.h").read_text())))
    sentence = rf"{refused} 11 wgap_{struct} has (\d+) bytes, wgap {version} knows (\d+): the program's header is newer"
    said = re.fullmatch(sentence, output.splitlines()[-1])
    assert said is not None, output
    assert int(said[1]) == int(said[2]) + 8
