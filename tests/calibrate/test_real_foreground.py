"""The foreground's promises on real photographs: fitted to the training half, scored on the test half."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.calibrate.bundle import calibrate_bundle
from wgap.calibrate.foreground import Foreground, foreground_bundle
from wgap.datasets import open_dataset
from wgap.errors import CalibrationError
from wgap.evaluate.protocol import evaluate_localizer
from wgap.rule import Rule

pytestmark = [pytest.mark.data, pytest.mark.slow]


@pytest.fixture(scope="module")
def made(cub10_bundle: Path, cub10: Path, tmp_path_factory: pytest.TempPathFactory) -> Foreground:
    own = Path(shutil.copytree(cub10_bundle, tmp_path_factory.mktemp("foreground") / "cub10"))
    return foreground_bundle(Bundle.open(own), cub10)


def test_boxes_are_found_without_a_box_or_a_threshold(made: Foreground, cub10: Path) -> None:
    assert len(made.images) == 300
    localizer = Localizer(made.bundle)
    evaluation = evaluate_localizer(localizer, open_dataset(cub10, "test"), [Rule("foreground")])
    found = {str(rule): evaluation.summary(n) for n, rule in enumerate(evaluation.rules)}
    assert found["foreground"].gt_known_loc == pytest.approx(0.885, abs=0.017)
    assert found["foreground"].mean_iou == pytest.approx(0.751, abs=0.01)
    assert found["foreground+colour"].gt_known_loc == pytest.approx(0.934, abs=0.017)
    assert found["foreground+colour"].mean_iou == pytest.approx(0.804, abs=0.01)


def test_int8_keeps_the_foreground_s_boxes(exact_int8: None, made: Foreground, cub10: Path) -> None:
    done = calibrate_bundle(made.bundle, cub10, gate=cub10, rule=Rule("foreground"))
    figures = done.verdict.figures
    assert done.usable
    assert (figures["images"], figures["gt_known"]["images"]) == (122, 122)
    assert figures["box_iou"]["mean"] >= 0.98
    assert figures["gt_known"]["change"] >= -1 / 122 - 1e-9


def test_noise_has_no_foreground(cub10_bundle: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "noise").mkdir()
    for number in range(40):
        pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "noise" / f"{number}.png"), pixels)
    own = Bundle.open(Path(shutil.copytree(cub10_bundle, tmp_path / "cub10")))
    before = {path: path.read_bytes() for path in own.root.rglob("*") if path.is_file()}
    with pytest.raises(CalibrationError, match=r"separat"):
        foreground_bundle(own, tmp_path / "noise")
    assert {path: path.read_bytes() for path in own.root.rglob("*") if path.is_file()} == before
