"""The runtime stands alone: it runs where neither a training framework nor another room is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOMS = {"wgap.train", "wgap.export", "wgap.evaluate", "wgap.calibrate"}
FRAMEWORKS = {"torch", "onnx", "onnxscript", "lightning_fabric", "matplotlib"}


def test_localizing_and_selftest_run_where_no_framework_is_installed(tiny_bundle: Path, pictures: Path) -> None:
    program = f"""
import json, sys
for name in {sorted(FRAMEWORKS | ROOMS)!r}:
    sys.modules[name] = None  # importing it now raises
from wgap import Localizer
from wgap.runtime.selftest import selftest
report = selftest(Localizer({str(tiny_bundle)!r}))
record = Localizer({str(tiny_bundle)!r}).one({str(pictures / "a.jpg")!r}).to_json()
print(json.dumps([report.ok, record["image"]]))
"""
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert json.loads(output) == [True, str(pictures / "a.jpg")]
