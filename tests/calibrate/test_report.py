"""``wgap calibrate --report``: pictures for a file that passed and, more needed, for one that did not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from tests.calibrate.test_cli import LENIENT, wgap

from wgap.bundle import Bundle
from wgap.plain import to_plain


@pytest.mark.parametrize(("precision", "passes"), [("int8", True), ("int8", False), ("fp16", True), ("bf16", True)])
def test_the_report_shows_ranges_drift_and_the_worst_images(
    tiny_bundle: Path, copied: Callable[[Path], Path], shapes: Path, tmp_path: Path, precision: str, passes: bool
) -> None:
    own, out = copied(tiny_bundle), tmp_path / "report"
    limits = LENIENT if passes else ("--min-iou", "1", "--min-agreement", "1", "--max-drop", "0")
    arguments = ("--precision", precision, "--images", shapes, "--count", "16", "--gate", shapes, "--report", out)
    manifest = json.loads((own / "wgap.json").read_text())
    manifest["rule"].update(kind="fixed", eta=0.7)
    (own / "wgap.json").write_text(json.dumps(manifest))
    done = wgap("calibrate", own, *arguments, *limits)
    assert done.returncode == (0 if passes else 3), done.stdout + done.stderr
    report = json.loads((out / "report.json").read_text())
    entry = Bundle.open(own).file("onnx" if passes else "rejected", precision)
    assert report["gate"] == to_plain(entry)["gate"]
    assert len(report["images"]) == 16
    assert sorted(p.name for p in out.iterdir()) == ["drift.png", "ranges.png", "report.json", "worst.png"]
    for name in ("drift.png", "ranges.png", "worst.png"):
        assert cv2.imread(str(out / name)).std() > 10
    # five rows of two pairs of tiles, each a bar of text above a picture
    height, width = cv2.imread(str(out / "worst.png")).shape[:2]
    assert (height, width) == (5 * 322, 4 * 304)
    again = wgap("calibrate", own, *arguments, *limits)
    assert again.returncode == 1
    assert "already exists" in again.stderr


def test_without_a_gate_only_ranges_are_drawn_and_others_folders_are_safe(
    tiny_bundle: Path, copied: Callable[[Path], Path], shapes: Path, tmp_path: Path
) -> None:
    own, out, mine = copied(tiny_bundle), tmp_path / "report", tmp_path / "mine"
    done = wgap("calibrate", own, "--images", shapes, "--count", "16", "--report", out)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["ranges.png", "report.json"]
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    done = wgap("calibrate", own, "--images", shapes, "--report", mine, "--force")
    assert done.returncode == 1
    assert "is not a report (no report.json)" in done.stderr
    assert (mine / "notes.txt").read_text() == "mine"
