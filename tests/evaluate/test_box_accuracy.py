"""MaxBoxAcc and its company against a slow reference that is written from the definitions, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgap.errors import DataError
from wgap.evaluate.box_accuracy import ALL, ERRORS, IOUS, LARGEST, BoxAccuracy
from wgap.evaluate.counts import Scored
from wgap.evaluate.intervals import percentiles, poisson_weights, wilson
from wgap.evaluate.score_maps import contour_boxes, grid, normalised, whole_boxes

Corners = tuple[int, int, int, int]


def pieces(mask: list[list[bool]], value: bool, diagonal: bool) -> list[set[tuple[int, int]]]:
    """Connected components of the pixels of one value, (y, x)."""
    left = {(y, x) for y, row in enumerate(mask) for x, pixel in enumerate(row) if pixel == value}
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + ([(1, 1), (1, -1), (-1, 1), (-1, -1)] if diagonal else [])
    found = []
    while left:
        piece, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            piece.add((y, x))
            for dy, dx in steps:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    edge.append((y + dy, x + dx))
        found.append(piece)
    return found


def slow_boxes(scores: np.ndarray, threshold: float) -> set[Corners]:
    """Rectangles around each component and each of its holes, the hole's edge pixels included."""
    height, width = scores.shape
    bits = [[int(value * 255) for value in row] for row in scores]
    level = int(threshold * max(map(max, bits)))
    mask = [[value > level for value in row] for row in bits]
    grown = [(piece, 0) for piece in pieces(mask, True, True)]
    for hole in pieces(mask, False, False):
        if all(0 < y < height - 1 and 0 < x < width - 1 for y, x in hole):
            grown.append((hole, 1))
    boxes = set()
    for piece, by in grown:
        ys, xs = [y for y, _ in piece], [x for _, x in piece]
        boxes.add((min(xs) - by, min(ys) - by, min(max(xs) + by + 1, width - 1), min(max(ys) + by + 1, height - 1)))
    return boxes or {(0, 0, 0, 0)}


def pixels(box: Corners) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def shared(a: Corners, b: Corners) -> int:
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    return max(width, 0) * max(height, 0)


def slow_iou(a: Corners, b: Corners) -> float:
    return shared(a, b) / (pixels(a) + pixels(b) - shared(a, b))


def slow_error(box: Corners, truths: list[Corners], top1: bool) -> str | None:
    if not top1:
        return "wrong_class"
    fitted = max(truths, key=lambda truth: slow_iou(box, truth))
    if slow_iou(box, fitted) >= 0.5:
        return None
    if sum(shared(box, truth) / pixels(truth) > 0.3 for truth in truths) > 1:
        return "m_ins"
    if shared(box, fitted) / pixels(box) > 0.5:
        return "part"
    return "more" if shared(box, fitted) / pixels(fitted) > 0.7 else "other"


@st.composite
def images(draw: st.DrawFn) -> Scored:
    """A small map in tiles or in single pixels, one to three true boxes, a rank."""
    height, width = draw(st.tuples(st.integers(3, 14), st.integers(3, 14)))
    side = draw(st.sampled_from([1, 2, 3]))
    shape = (-(-height // side), -(-width // side))
    values = draw(st.lists(st.integers(0, 6), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    tiles = np.kron(np.array(values, float).reshape(shape), np.ones((side, side)))[:height, :width]
    truth = []
    for _ in range(draw(st.integers(1, 3))):
        x, y = (sorted(draw(st.tuples(*[st.integers(0, side)] * 2))) for side in (width, height))
        truth.append((min(x[0], width - 1.0), min(y[0], height - 1.0), float(x[1]), float(y[1])))
    index, label, rank = draw(st.tuples(st.integers(0, 99), st.integers(0, 1), st.integers(0, 7)))
    return Scored(Path("a.jpg"), index, label, rank, normalised(tiles), (height, width), truth)


def last_pixels(image: Scored) -> list[Corners]:
    height, width = image.size
    return [(int(x0), int(y0), min(int(x1), width - 1), min(int(y1), height - 1)) for x0, y0, x1, y1 in image.truth]


@settings(max_examples=60, deadline=None)
@given(st.lists(images(), min_size=1, max_size=4))
def test_all_contours_and_errors_are_the_slow_reference_s(given_images: list[Scored]) -> None:
    counts = BoxAccuracy(2, grid(0.05))
    counts.add(given_images)
    right = np.zeros((len(IOUS), 20), int)
    located = np.zeros((2, 20), int)
    for t, threshold in enumerate(grid(0.05)):
        for image in given_images:
            truths = last_pixels(image)
            best = max(slow_iou(box, truth) for box in slow_boxes(image.scores, threshold) for truth in truths)
            right[:, t] += [best >= iou / 100 for iou in IOUS]
            located[:, t] += [best >= 0.5 and image.rank < k for k in (1, 5)]
    assert counts.arrays["right"][:, ALL].sum(axis=0).tolist() == right.tolist()
    assert counts.arrays["located"][:, ALL].sum(axis=0).tolist() == located.tolist()
    report = counts.report(counts.best(), ALL, ["a", "b"])
    v2 = [row.max() / len(given_images) for row in right]
    assert [report["max_box_acc_v2"][name] for name in ("30", "50", "70")] == v2
    assert report["max_box_acc_v2"]["mean"] == pytest.approx(sum(v2) / 3)
    at = round(report["thresholds"]["max_box_acc_v2"]["50"] / 0.05)
    assert at == right[1].argmax(), "the first of equally good thresholds"
    assert report["top1_loc"] == located[0, at] / len(given_images)
    assert report["top5_loc"] == located[1, at] / len(given_images)
    for contours in (LARGEST, ALL):
        told = counts.arrays["errors"][contours].sum(axis=0) + counts.arrays["located"][:, contours, 0].sum(axis=0)
        assert told.tolist() == [len(given_images)] * 20, "each image is right, or wrong in one way"


@settings(max_examples=100, deadline=None)
@given(images(), st.integers(0, 19))
def test_errors_of_the_largest_contour_are_the_slow_reference_s(image: Scored, t: int) -> None:
    counts = BoxAccuracy(2, grid(0.05))
    counts.add([image])
    found = contour_boxes(image.scores, grid(0.05))
    largest = tuple(int(corner) for corner in found.boxes[found.largest[found.cut[t]]])
    assert largest in slow_boxes(image.scores, grid(0.05)[t])
    wanted = slow_error(largest, last_pixels(image), image.rank == 0)
    assert counts.arrays["errors"][LARGEST, :, t].tolist() == [int(name == wanted) for name in ERRORS]


@pytest.mark.parametrize(
    ("truths", "kind"),
    [
        ([(0, 0, 9, 9)], None),
        ([(0, 0, 9, 19)], None),  # IoU 0.5 is right
        ([(0, 0, 9, 20)], "part"),
        ([(4, 1, 19, 19)], "part"),  # 54 of the box's 100 pixels
        ([(5, 0, 19, 19)], "other"),  # 50 of them, and 0.17 of the true box
        ([(0, 3, 0, 12)], "other"),  # 7 of the true box's 10 pixels
        ([(0, 2, 0, 12)], "more"),  # 8 of 11
        ([(0, 7, 0, 16), (9, 7, 9, 16)], "other"),  # 3 of 10, twice
        ([(0, 7, 0, 15), (9, 7, 9, 15)], "m_ins"),  # 3 of 9, twice
        ([(0, 7, 0, 15), (20, 20, 30, 30)], "other"),
        ([(0, 0, 0, 9), (9, 0, 9, 9)], "m_ins"),  # before "more"
    ],
)
def test_each_kind_of_error_begins_beyond_its_limit(truths: list[Corners], kind: str | None) -> None:
    """Of a predicted box of 10 x 10 pixels; corners are last pixels, as the protocol takes them."""
    scores = np.zeros((40, 40))
    scores[:9, :9] = 1
    for rank, wanted in ((0, kind), (1, "wrong_class")):
        counts = BoxAccuracy(1, grid(0.5))
        counts.add([Scored(Path("a"), 0, 0, rank, scores, (40, 40), [tuple(map(float, box)) for box in truths])])
        for contours in (LARGEST, ALL):
            told = counts.arrays["errors"][contours, :, 0].tolist()
            assert told == [int(name == wanted) for name in ERRORS]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9))
def test_the_largest_contour_encloses_the_largest_area(sides: list[tuple[int, int]]) -> None:
    """Of filled rectangles apart from each other: (width - 1)(height - 1), between centres of their outer pixels."""
    scores = np.zeros((33, 33))
    for n, (width, height) in enumerate(sides):
        scores[11 * (n // 3) : 11 * (n // 3) + height, 11 * (n % 3) : 11 * (n % 3) + width] = 1
    [cut] = set(contour_boxes(scores, grid(0.5)).cut.tolist())
    found = contour_boxes(scores, grid(0.5))
    x0, y0, x1, y1 = found.boxes[found.largest[cut]]
    assert (x1 - x0 - 1) * (y1 - y0 - 1) == max((width - 1) * (height - 1) for width, height in sides)


@settings(max_examples=40, deadline=None)
@given(st.lists(images(), min_size=2, max_size=6), st.data())
def test_counts_of_two_parts_add_up_to_those_of_both(given_images: list[Scored], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(given_images) - 1))
    whole, first, second = (BoxAccuracy(2, grid(0.1)) for _ in range(3))
    whole.add(given_images)
    first.add(given_images[:at])
    for image in given_images[at:]:
        second.add([image])
    first.merge(second)
    for name, array in whole.arrays.items():
        assert (first.arrays[name] == array).all(), name


def test_thresholds_are_chosen_once_and_used_on_other_images() -> None:
    """The tuning map is right at 0.5 and above alone; the scored one below 0.5 alone."""
    wide, narrow = (np.zeros((20, 20)) for _ in range(2))
    wide[:, :] = 0.4
    wide[2:8, 2:8] = narrow[2:8, 2:8] = 1
    narrow[9:18, 9:18] = 0.4
    tuning, scored = BoxAccuracy(1, grid(0.1)), BoxAccuracy(1, grid(0.1))
    tuning.add([Scored(Path("a"), 0, 0, 0, wide, (20, 20), [(2, 2, 8, 8)])])
    scored.add([Scored(Path("b"), 0, 0, 0, narrow, (20, 20), [(9, 9, 18, 18)])])
    own = scored.report(scored.best(), LARGEST, ["x"])
    tuned = scored.report(tuning.best(), LARGEST, ["x"])
    assert (own["max_box_acc"], own["thresholds"]["max_box_acc"]) == (1.0, 0.0)
    assert (tuned["max_box_acc"], tuned["thresholds"]["max_box_acc"]) == (0.0, 0.4)
    assert tuned["errors"]["other"] == 1.0


def test_a_class_without_images_has_a_row_without_figures() -> None:
    counts = BoxAccuracy(2, grid(0.1))
    counts.add([Scored(Path("a"), 0, 1, 0, np.eye(9), (9, 9), [(0, 0, 9, 9)])])
    first, second = counts.report(counts.best(), LARGEST, ["none", "one"])["per_class"]
    assert {first.pop(name) for name in list(first)} == {"none", 0, None}
    assert (second["images"], second["max_box_acc"], second["top5_loc"]) == (1, 1.0, 1.0)


def test_true_boxes_are_clipped_scaled_and_cut_to_whole_pixels() -> None:
    assert whole_boxes([(60, 27, 385, 331), (0, 0, 500, 335)], (335, 500), (224, 224)).tolist() == [
        [26, 18, 172, 221],
        [0, 0, 223, 223],
    ]
    with pytest.raises(DataError, match=r"b\.jpg: expected boxes inside the image, 500 x 335 pixels, got 500 0 510 9"):
        whole_boxes([(500, 0, 510, 9)], (335, 500), (224, 224), "b.jpg")


@pytest.mark.parametrize("step", [0.5, 0.1, 0.05, 0.04, 0.01, 0.001])
def test_the_grid_is_numpy_s_to_the_bit(step: float) -> None:
    assert (grid(step) == np.arange(0, 1, step)).all()


@pytest.mark.parametrize("step", [0, -0.1, 0.03, 0.0007, 0.6, 1, 1e-9, float("nan"), float("inf")])
def test_a_step_that_does_not_divide_1_is_refused(step: float) -> None:
    with pytest.raises(DataError, match="--threshold-step: expected 1 divided by a whole number from 2 to 1000"):
        grid(step)


def test_a_constant_map_is_empty() -> None:
    assert not normalised(np.full((4, 4), 0.7, np.float32)).any()
    assert normalised(np.array([[2, 4], [3, 2]], np.float32)).tolist() == [[0, 1], [0.5, 0]]


def test_wilson_s_interval_is_the_root_of_its_equation() -> None:
    """The ends are where the normal test of the share just rejects."""
    for hits, count in ((0, 10), (3, 10), (86, 122), (122, 122)):
        low, high = wilson(hits, count)
        assert 0 <= low <= hits / count <= high <= 1
        for end in (low, high):
            if 0 < end < 1:
                assert (hits / count - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count, rel=1e-5)


def test_replicates_draw_as_a_poisson_bootstrap_does() -> None:
    weights = poisson_weights(range(200))
    assert weights.shape == (1000, 200)
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.02)
    assert (poisson_weights([150]) == weights[:, [150]]).all(), "a function of the index alone"
    assert abs(np.corrcoef(weights[:, 0], weights[:, 1])[0, 1]) < 0.1
    shares = (weights[:, :60].sum(axis=1)) / weights.sum(axis=1)  # 60 of 200 images are right
    assert percentiles(shares) == pytest.approx(wilson(60, 200), abs=0.015)


def test_the_mean_of_v2_has_the_interval_of_its_images() -> None:
    """Each image right at all IoUs or at none: the mean is a share, and its bootstrap agrees with Wilson's interval."""
    counts = BoxAccuracy(1, grid(0.1))
    right, wrong = np.zeros((16, 16)), np.zeros((16, 16))
    right[2:13, 2:13] = wrong[0:2, 0:2] = 1
    counts.add(
        [Scored(Path("a"), n, 0, 0, right if n < 140 else wrong, (16, 16), [(2, 2, 13, 13)]) for n in range(200)]
    )
    report = counts.report(counts.best(), ALL, ["x"])
    assert report["max_box_acc_v2"]["mean"] == pytest.approx(0.7)
    assert report["confidence_95"]["max_box_acc_v2"]["mean"] == pytest.approx(wilson(140, 200), abs=0.015)
    assert report["confidence_95"]["max_box_acc"] == wilson(140, 200)
