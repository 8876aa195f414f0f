"""The version is written once, in wgap.h; everything else takes it from there."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import wgap
from wgap import _native

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "runtime/include/wgap/wgap.h"


def test_the_package_and_the_library_take_it_from_the_header() -> None:
    parts = re.findall(r"^#define WGAP_VERSION_(MAJOR|MINOR|PATCH) (\d+)$", HEADER.read_text(), flags=re.M)
    assert [name for name, _ in parts] == ["MAJOR", "MINOR", "PATCH"]
    stated = ".".join(number for _, number in parts)
    assert wgap.__version__ == version("wgap") == _native.__version__ == stated


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_other_file_states_it() -> None:
    major, minor, _ = wgap.__version__.split(".")
    stating = re.compile(rf"(?<![\d.])v?{re.escape(wgap.__version__)}(?![\d.])|wgap[\" (]+v?{major}\.{minor}\b", re.I)
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    # What was released and what was measured keep the version of their day.
    told = ("CHANGELOG.md", "benchmarks/results/")
    texts = (ROOT / name for name in files if name and not name.startswith(told))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts
        if path.is_file() and path.suffix not in {".png", ".jpg", ".onnx", ".safetensors"}
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if stating.search(line)
    ]
    assert found == []
