"""Several boxes a class, and the oracle on scores: measures beside GT-known, never in its place."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from wgap import Localizer
from wgap.bundle import Bundle, write_manifest
from wgap.datasets import open_dataset
from wgap.evaluate.protocol import ablation_rules, evaluate_localizer
from wgap.rule import Rule

SIDE = 64


@pytest.fixture
def localizer(tiny_bundle: Path, tmp_path: Path) -> Localizer:
    """Scores that show every picture the same: a large blot upper left, and one half as large lower right."""
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, root)
    manifest = Bundle.open(root).manifest
    model = manifest.model.with_foreground((16, 16))
    write_manifest(root, replace(manifest, model=model, rule=Rule("foreground")))
    scores = np.full((1, 1, 16, 16), -1, np.float32)
    scores[0, 0, 2:8, 2:8] = 1
    scores[0, 0, 10:13, 10:16] = 1
    features = np.zeros((1, *model.feature_shape), np.float32)
    features[:, :, :2, :2] = 1

    def network(images: np.ndarray) -> dict[str, np.ndarray]:
        logits = np.zeros((len(images), 3), np.float32)
        given = {"logits": logits, "features": features, "foreground": scores}
        return {name: np.repeat(value, len(images), 0) if len(value) == 1 else value for name, value in given.items()}

    return Localizer(Bundle.open(root), network=network, max_boxes=3)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four pictures: the true box is the large blot's, the small one's, both, and neither."""
    root = tmp_path / "set"
    large, small, nowhere = (8, 8, 32, 32), (40, 40, 64, 52), (2, 50, 12, 60)
    lines = ["image,x0,y0,x1,y1"]
    (root / "test" / "disc").mkdir(parents=True)
    for number, boxes in enumerate(([large], [small], [large, small], [nowhere])):
        cv2.imwrite(str(root / "test" / "disc" / f"{number}.png"), np.full((SIDE, SIDE, 3), 90, np.uint8))
        lines += [f"test/disc/{number}.png," + ",".join(map(str, box)) for box in boxes]
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


def test_any_of_several_boxes_is_reported_apart(localizer: Localizer, data: Path) -> None:
    report = evaluate_localizer(localizer, open_dataset(data, "test")).to_json()
    assert report["gt_known_loc"] == 0.5, "the first box alone counts"
    assert report["any_of_n"] == {"loc": 0.75, "boxes": 2.0, "precision": 4 / 8, "recall": 4 / 5}
    one = Localizer(localizer.bundle, network=localizer.network)
    alone = evaluate_localizer(one, open_dataset(data, "test")).to_json()
    assert alone["any_of_n"] is None
    assert {**report, "any_of_n": None} == alone


def test_the_oracle_cuts_the_scores(localizer: Localizer, data: Path) -> None:
    evaluation = evaluate_localizer(localizer, open_dataset(data, "test"))
    assert evaluation.to_json()["oracle"]["gt_known_loc"] == 0.5, "two levels are all that these scores have"
    for image in evaluation.images:
        assert list(image.level_ious) == ["foreground"]
        assert image.scores[0].gt_iou == pytest.approx(max(image.level_ious["foreground"]), abs=0.25)


def test_the_ablation_has_the_foreground_rules_where_there_are_scores(
    localizer: Localizer, tiny_bundle: Path, data: Path
) -> None:
    rules = ablation_rules(localizer.bundle)
    report = evaluate_localizer(localizer, open_dataset(data, "test"), rules).to_json()
    rows = {(row["map"], row["threshold"]): row for row in report["ablation"]}
    assert len(rows) == 11
    assert rows["none", "foreground"]["gt_known_loc"] == report["gt_known_loc"]
    assert ("none", "foreground+colour") in rows
    bounds = {row["map"]: row for row in report["upper_bounds"]}
    assert set(bounds) == {"foreground", "signed", "positive", "recombined"}
    assert "best_fixed" not in bounds["foreground"]
    assert bounds["foreground"]["oracle"] == {k: report["oracle"][k] for k in ("gt_known_loc", "mean_iou")}
    assert len(ablation_rules(Bundle.open(tiny_bundle))) == 9
