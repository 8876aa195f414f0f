"""The protocol's arithmetic on cases that can be checked by hand."""

from __future__ import annotations

import pytest

from wgap.evaluate.metrics import ImageScore, Summary
from wgap.geometry import best_iou, centred_box, clipped, inclusive_iou, scaled


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), 1.0),
        ((0, 0, 9, 9), (10, 0, 19, 9), 0.0),
        ((0, 0, 9, 9), (9, 0, 18, 9), 10 / 190),  # sharing one column: both end pixels count
        ((0, 0, 9, 9), (0, 0, 9, 4), 0.5),
        ((0, 0, 0, 0), (0, 0, 0, 0), 1.0),
        ((2.5, 0, 7.5, 9), (0, 0, 9, 9), 60 / 100),
    ],
)
def test_iou_counts_both_end_pixels(a, b, iou: float) -> None:
    assert inclusive_iou(a, b) == pytest.approx(iou)
    assert inclusive_iou(b, a) == pytest.approx(iou)


def test_boxes_are_scaled_to_the_map_and_clipped_to_its_last_pixel() -> None:
    assert scaled((10, 30, 500, 375), (375, 500), (224, 224)) == pytest.approx((4.48, 17.92, 224, 224))
    assert clipped((-1, 17.92, 224, 224), (224, 224)) == (0, 17.92, 223, 223)
    # A box over the whole image fits a truth over the whole image exactly, whatever the original size was.
    assert best_iou((0, 0, 224, 224), [scaled((0, 0, 500, 375), (375, 500), (224, 224))], (224, 224)) == 1.0


def test_the_best_of_several_true_boxes_counts() -> None:
    assert best_iou((0, 0, 9, 9), [(50, 50, 60, 60), (0, 0, 9, 9)], (224, 224)) == 1.0


def test_the_centred_box_covers_half_the_image() -> None:
    x0, y0, x1, y1 = centred_box((100, 200))
    assert (x1 - x0) * (y1 - y0) == pytest.approx(100 * 200 / 2)
    assert (x0 + x1, y0 + y1) == pytest.approx((200, 100))


def test_summary_counts_what_each_metric_is_defined_on() -> None:
    rows = [
        ImageScore(True, 0.9, 0.9, 2, False),  # right class, right box
        ImageScore(True, 0.5, 0.5, 2, False),  # exactly at the limit counts
        ImageScore(True, 0.4999, 0.4999, 3, False),  # right class, wrong box
        ImageScore(False, 0.8, 0.8, 2, False),  # wrong class: GT-known right, Top-1 Loc wrong
        ImageScore(False, 0.1, 0.9, -1, True),
    ]
    got = Summary.of(rows)
    assert (got.images, got.top1_cls, got.gt_known_loc, got.top1_loc) == (5, 0.6, 0.6, 0.4)
    assert got.mean_iou == pytest.approx((0.9 + 0.5 + 0.4999 + 0.8 + 0.1) / 5)
    assert got.levels == {"0.10": 3, "0.15": 1}
    assert got.degenerate == 1
    with pytest.raises(ValueError, match="no images"):
        Summary.of([])
