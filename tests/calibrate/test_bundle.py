"""From Python: one call makes, judges and enters a file, another judges it anew; results are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from wgap.bundle import Bundle
from wgap.calibrate.bundle import calibrate_bundle, gate_bundle
from wgap.calibrate.gate import Limits


def test_calibrate_and_gate_are_one_call_each(tiny_bundle: Path, copied: Callable[[Path], Path], shapes: Path) -> None:
    own, notes, stages = copied(tiny_bundle), [], []
    manifest = json.loads((own / "wgap.json").read_text())
    manifest["rule"].update(kind="fixed", eta=0.7)  # lower ones give this random network the whole image
    (own / "wgap.json").write_text(json.dumps(manifest))

    def progress(items, what):
        stages.append(what)
        return items

    made = calibrate_bundle(
        Bundle.open(own), shapes, count=20, gate=shapes, limits=Limits(1, 0, 0), progress=progress, note=notes.append
    )
    assert made.usable
    assert made.entry == Bundle.open(own).model_file("int8")
    assert notes == [f"warning: {shapes} has 16 calibration images, 20 were asked for"]
    assert stages[0] == "reading calibration images"
    assert stages[-1] == "gate, int8"

    refused = gate_bundle(made.bundle, shapes, limits=Limits(min_iou=1))
    assert not refused.usable
    assert refused.verdict is not None
    assert refused.verdict.reasons[0].startswith("mean box IoU")
    assert refused.entry.path == "rejected/model.int8.onnx"
    assert (own / refused.entry.path).is_file()
