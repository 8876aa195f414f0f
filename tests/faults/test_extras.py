"""A verb whose library is not installed says so in one line, before its work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

OLD = Path(__file__).parents[1] / "house" / "schema1" / "bundle"
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {names!r} else found(name, package)
from wgap.cli import main
main()
"""


@pytest.mark.parametrize(
    ("names", "verb", "said"),
    [
        (["torch"], ["check", "BUNDLE"], "check needs torch, which is not installed: pip install 'wgap[train]'"),
        (
            ["matplotlib"], ["evaluate", "BUNDLE", "DATA", "--out", "OUT"],
            "--out needs matplotlib, which is not installed: pip install 'wgap[calibrate]'",
        ),
        (["matplotlib"], ["sensitivity", "BUNDLE", "--images", "DATA", "--out", "OUT"], "--out needs matplotlib"),
        (["matplotlib"], ["calibrate", "BUNDLE", "--images", "DATA", "--report", "OUT"], "--report needs matplotlib"),
        (["matplotlib"], ["foreground", "BUNDLE", "--images", "DATA", "--report", "OUT"], "--report needs matplotlib"),
        (["onnx"], ["calibrate", "BUNDLE", "--images", "DATA"], "onnx, which is not installed"),
        (
            ["tritonclient"], ["serve", "BUNDLE", "--check", "http://127.0.0.1:1"],
            "a client needs tritonclient, which is not installed: pip install 'wgap[serve]'",
        ),
        (["onnx"], ["foreground", "BUNDLE", "--images", "DATA"], "onnx, which is not installed"),
        (["onnx"], ["build", "BUNDLE"], "onnx, which is not installed"),
        (["torch"], ["train", "DATA", "--out", "OUT"], "training needs torch"),
        (["torch"], ["demo", "--out", "OUT"], "the demo needs torch"),
        (["torch"], ["export", "x.safetensors", "--out", "OUT"], "torch, which is not installed"),
        (
            ["torch", "onnx"],
            ["import", "x.onnx", "--classes", "c", "--preprocessing", "torchvision-rgb", "--out", "OUT"],
            "importing needs torch and onnx, which are not installed",
        ),
        (["onnxruntime"], ["localize", "BUNDLE", "DATA"], "ONNX Runtime, which is not installed"),
        (["onnxruntime"], ["selftest", "BUNDLE"], "ONNX Runtime, which is not installed"),
        (["openvino"], ["localize", "BUNDLE", "DATA", "--backend", "openvino"], "OpenVINO, which is not installed"),
        (["openvino"], ["gate", "BUNDLE", "--images", "DATA", "--backend", "openvino"], "install 'wgap[openvino]'"),
        (["onnxruntime"], ["bench", "BUNDLE"], "ONNX Runtime, which is not installed"),
    ],
)  # fmt: skip
def test_a_missing_library_is_one_line(names: list[str], verb: list[str], said: str, tmp_path: Path) -> None:
    if verb[0] == "build":
        pytest.importorskip("tensorrt_rtx")
    data = tmp_path / "data"
    data.mkdir()
    cv2.imwrite(str(data / "a.png"), np.zeros((9, 9, 3), np.uint8))
    places = {"BUNDLE": str(OLD), "DATA": str(data), "OUT": str(tmp_path / "out")}
    program = [sys.executable, "-c", WITHOUT.format(names=names), *(places.get(word, word) for word in verb)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
