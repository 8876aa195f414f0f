"""The cost of INT8 layer by layer: a layer that was broken on purpose stands out; the curve ends at float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import onnx
import pytest
from tests.calibrate.test_cli import content, wgap

from wgap.bundle import Bundle
from wgap.calibrate.candidate import prepare
from wgap.calibrate.images import image_set
from wgap.calibrate.quantise import convolutions
from wgap.calibrate.sensitivity import sensitivity
from wgap.rule import Rule


def test_the_layers_on_both_sides_of_a_broken_scale_stand_out(tiny_bundle: Path, shapes: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle = replace(bundle, manifest=replace(bundle.manifest, rule=Rule.parse("fixed:0.7")))
    with prepare(bundle, image_set(bundle, shapes, split="train", count=16)) as source:
        names = convolutions(source.graph)
        victim = next(n for n in onnx.load(str(source.graph)).graph.node if n.name == names[6])
        low, high = source.ranges[victim.input[0]]
        broken = replace(source, ranges={**source.ranges, victim.input[0]: (low / 500, high / 500)})
        found = sensitivity(broken, pareto=False)
    assert [row.layer for row in found.layers] == names
    assert set(found.ranking[:2]) == {names[5], names[6]}  # what writes the broken tensor, and what reads it
    hit = [found.layers[5].alone, found.layers[6].alone]
    others = [row.alone for row in found.layers if row.layer not in (names[5], names[6])]
    assert max(hit) < min(others) - 0.1
    assert all(0 <= row.all_but < 0.7 for row in found.layers)  # sparing one of the two mends nothing
    assert found.pareto == ()


def test_the_verb_prints_writes_and_leaves_the_bundle_alone(
    tiny_bundle: Path, copied: Callable[[Path], Path], shapes: Path, tmp_path: Path
) -> None:
    own, out = copied(tiny_bundle), tmp_path / "out"
    before = content(own)
    arguments = ("sensitivity", own, "--images", shapes, "--count", "8", "--out", out)
    done = wgap(*arguments)
    assert done.returncode == 0, done.stderr
    assert "only it in INT8" in done.stdout
    report = json.loads((out / "report.json").read_text())
    points = report["pareto"]
    assert [len(point["keep_float"]) for point in points] == list(range(14))
    assert points[-1]["iou"] == 1.0
    for point in points:
        assert point["p25_ms"] <= point["median_ms"] <= point["p75_ms"]
        beaten = any(o["iou"] >= point["iou"] and o["median_ms"] < point["median_ms"] for o in points)
        assert point["best"] is not beaten
    for name in ("layers.png", "pareto.png"):
        picture = cv2.imread(str(out / name))
        assert picture.std() > 10
    assert content(own) == before
    again = wgap(*arguments)
    assert again.returncode == 1
    assert "--force" in again.stderr
    assert wgap(*arguments, "--no-pareto", "--force").returncode == 0
    assert not (out / "pareto.png").exists()


@pytest.mark.parametrize("name", ["layers.png", "notes.txt"])
def test_a_folder_that_is_no_report_is_never_replaced(
    tiny_bundle: Path, shapes: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    done = wgap("sensitivity", tiny_bundle, "--images", shapes, "--out", tmp_path, "--force")
    assert done.returncode == 1
    assert "refusing to replace it" in done.stderr
    assert (tmp_path / name).read_text() == "mine"
