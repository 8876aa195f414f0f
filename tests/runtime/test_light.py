"""The runtime stands alone: no file of it imports a training framework or another room, and it runs without them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import wgap.runtime

ROOMS = {"wgap.train", "wgap.export", "wgap.evaluate", "wgap.calibrate"}
FRAMEWORKS = {"torch", "onnx", "onnxscript", "lightning_fabric", "matplotlib"}
SOURCES = sorted(Path(wgap.runtime.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_file_imports_a_framework_or_another_room(source: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            imported |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert not {name for name in imported if name.split(".")[0] in FRAMEWORKS}
    assert not {name for name in imported if any(f"{name}.".startswith(f"{room}.") for room in ROOMS)}


def test_localizing_and_selftest_run_where_no_framework_is_installed(tiny_bundle: Path, pictures: Path) -> None:
    program = f"""
import json, sys
for name in {sorted(FRAMEWORKS | ROOMS)!r}:
    sys.modules[name] = None  # importing it now raises
from wgap import Bundle, Localizer
from wgap.runtime.selftest import selftest
report = selftest(Bundle.open({str(tiny_bundle)!r}))
record = Localizer({str(tiny_bundle)!r}).one({str(pictures / "a.jpg")!r}).to_json()
print(json.dumps([report.ok, record["image"]]))
"""
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert json.loads(output) == [True, str(pictures / "a.jpg")]
