"""The public wsolevaluation code was run once on ``score_map_cases``; what it counted and computed is in a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.evaluate.score_map_cases import SIDE, Case, box_cases, mask_cases

from wgap.datasets.dataset import Masks
from wgap.evaluate.box_accuracy import ALL, IOUS, LARGEST, BoxAccuracy
from wgap.evaluate.counts import Scored
from wgap.evaluate.pixel_precision import PixelPrecision, read_mask
from wgap.evaluate.score_maps import contour_boxes, grid

PUBLIC = json.loads(Path(__file__).with_name("public_figures.json").read_text())


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return box_cases()


@pytest.fixture(scope="module", params=[0.01, 0.001], ids=str)
def counted(request: pytest.FixtureRequest, cases: list[Case]) -> tuple[float, BoxAccuracy]:
    counts = BoxAccuracy(2, grid(request.param))
    images = [
        Scored(Path(f"{n}.jpg"), n, n % 2, 0, case.scores, case.size[::-1], [tuple(map(float, b)) for b in case.boxes])
        for n, case in enumerate(cases)
    ]
    for first in range(0, len(images), 7):
        counts.add(images[first : first + 7])
    return request.param, counts


def test_max_box_acc_and_v2_are_the_public_code_s(counted: tuple[float, BoxAccuracy]) -> None:
    step, counts = counted
    report = counts.report(counts.best(), LARGEST, ["even", "odd"])
    largest, all_contours = (PUBLIC["boxes"][f"{step} {contours}"]["percent"] for contours in ("largest", "all"))
    assert report["max_box_acc"] == pytest.approx(largest[IOUS.index(50)] / 100, abs=1e-6)
    v2 = {"30": all_contours[0], "50": all_contours[1], "70": all_contours[2], "mean": sum(all_contours) / 3}
    assert report["max_box_acc_v2"] == {name: pytest.approx(value / 100, abs=1e-6) for name, value in v2.items()}
    everything = [counts.arrays["right"][:, LARGEST, i].sum(axis=0).max() for i in range(3)]
    assert [n / len(box_cases()) for n in everything] == pytest.approx([value / 100 for value in largest], abs=1e-6)


@pytest.mark.parametrize(("contours", "name"), [(LARGEST, "largest"), (ALL, "all")])
def test_every_threshold_has_as_many_right_boxes_as_in_the_public_code(
    counted: tuple[float, BoxAccuracy], contours: int, name: str
) -> None:
    step, counts = counted
    right, public = counts.arrays["right"].sum(axis=0)[contours], PUBLIC["boxes"][f"{step} {name}"]
    for i, iou in enumerate(IOUS):
        if "correct" in public:
            assert right[i].tolist() == public["correct"][str(iou)]
        else:
            assert right[i].sum() == public["sum"][str(iou)]


def test_each_corner_case_has_the_public_code_s_boxes(cases: list[Case]) -> None:
    assert len(PUBLIC["contours"]) == 12
    for case, wanted in zip(cases, PUBLIC["contours"], strict=False):
        found = contour_boxes(case.scores, np.arange(0, 1, 0.05))
        ends = [*found.first[1:], len(found.boxes)]
        for cut, boxes in zip(found.cut, wanted, strict=True):
            assert found.boxes[found.first[cut] : ends[cut]].tolist() == boxes


@pytest.mark.parametrize("step", [0.01, 0.001])
def test_pxap_is_the_public_code_s(step: float, tmp_path: Path) -> None:
    counts, public = PixelPrecision(1, grid(step)), PUBLIC["masks"][str(step)]
    for n, (scores, objects, ignored) in enumerate(mask_cases(tmp_path)):
        masks = Masks(tuple(tmp_path / name for name in objects), tmp_path / ignored)
        height, width = mask_size(masks)
        mask = read_mask(masks, (height, width), (SIDE, SIDE))
        counts.add([Scored(Path(), n, 0, 0, scores, (height, width), [], mask)])
    if "object" in public:
        assert counts.arrays["pixels"][0].tolist() == [public["object"], public["ground"]]
    assert counts.report(["all"])["pxap"] == pytest.approx(public["percent"] / 100, abs=1e-6)


def mask_size(masks: Masks) -> tuple[int, int]:
    from wgap.images import image_size

    return image_size(masks.objects[0])
