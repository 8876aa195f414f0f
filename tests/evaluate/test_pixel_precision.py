"""PxAP against the sum of the paper, threshold by threshold; masks from files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgap.datasets.dataset import Masks
from wgap.errors import DataError, ImageError
from wgap.evaluate.counts import Scored
from wgap.evaluate.pixel_precision import IGNORED, PixelPrecision, read_mask
from wgap.evaluate.score_maps import grid

pixel_pairs = st.lists(st.tuples(st.integers(0, 20), st.sampled_from([0, 1, IGNORED])), min_size=1, max_size=60)


def scored(pairs: list[tuple[int, int]], index: int = 0, label: int = 0) -> Scored:
    scores = np.array([[value / 20 for value, _ in pairs]])
    mask = np.array([[kind for _, kind in pairs]], np.uint8)
    return Scored(Path("a.jpg"), index, label, 0, scores, (1, len(pairs)), [], mask)


def slow_pxap(pairs: list[tuple[int, int]], step: float) -> float:
    """Over thresholds from the highest on: precision times what recall has gained; 1.0 is one of them."""
    area, before = 0.0, 0.0
    objects = sum(kind == 1 for _, kind in pairs)
    for threshold in [1.0, *grid(step)[::-1]]:
        marked = [kind for value, kind in pairs if value / 20 >= threshold and kind != IGNORED]
        recall = sum(kind == 1 for kind in marked) / objects
        if marked:
            area += sum(kind == 1 for kind in marked) / len(marked) * (recall - before)
        before = recall
    return area


@settings(max_examples=150, deadline=None)
@given(st.lists(pixel_pairs, min_size=1, max_size=4), st.sampled_from([0.1, 0.05, 0.01]))
def test_pxap_is_the_slow_reference_s(images: list[list[tuple[int, int]]], step: float) -> None:
    counts = PixelPrecision(2, grid(step))
    for n, pairs in enumerate(images):
        counts.add([scored(pairs, n, n % 2)])
    everything = [pair for pairs in images for pair in pairs]
    if not any(kind == 1 for _, kind in everything):
        with pytest.raises(DataError, match="a pixel of an object in at least one mask"):
            counts.report(["a", "b"])
        return
    report = counts.report(["a", "b"])
    assert report["pxap"] == pytest.approx(slow_pxap(everything, step), abs=1e-9)
    for n, row in enumerate(report["per_class"]):
        own = [pair for pairs in images[n::2] for pair in pairs]
        assert row["images"] == len(images[n::2])
        has_object = any(kind == 1 for _, kind in own)
        assert row["pxap"] == (pytest.approx(slow_pxap(own, step), abs=1e-9) if has_object else None)


def test_the_highest_threshold_is_1() -> None:
    """Of the pixels in the last step, those at 1.0 alone are found first."""
    counts = PixelPrecision(1, grid(0.5))
    counts.add([scored([(20, 1), (18, 0), (18, 0), (18, 1), (0, 0)])])
    assert counts.report(["a"])["pxap"] == pytest.approx(1 * 0.5 + 2 / 4 * 0.5)


@settings(max_examples=30, deadline=None)
@given(st.lists(pixel_pairs, min_size=2, max_size=5))
def test_counts_of_two_parts_add_up(images: list[list[tuple[int, int]]]) -> None:
    made = [scored(pairs, n) for n, pairs in enumerate(images)]
    whole, first, second = (PixelPrecision(1, grid(0.05)) for _ in range(3))
    whole.add(made)
    first.add(made[:1])
    second.add(made[1:])
    first.merge(second)
    for name, array in whole.arrays.items():
        assert (first.arrays[name] == array).all(), name


def write(path: Path, picture: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), picture)
    return path


def test_masks_are_joined_and_what_is_ignored_gives_way_to_them(tmp_path: Path) -> None:
    first, second, ignored = (np.zeros((40, 80), np.uint8) for _ in range(3))
    first[:20, :20], second[:20, 60:], ignored[:, :40] = 255, 1, 255
    colour = np.repeat(second[..., None], 4, axis=2)  # with alpha, as some of OpenImages' are
    masks = Masks(
        (write(tmp_path / "1.png", first), write(tmp_path / "2.png", colour)), write(tmp_path / "i.png", ignored)
    )
    found = read_mask(masks, (20, 40), (8, 8))
    assert found.tolist() == [[1, 1, 255, 255, 0, 0, 1, 1]] * 4 + [[255] * 4 + [0] * 4] * 4
    assert read_mask(Masks(masks.objects), (20, 40), (8, 8)).tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]] * 4 + [[0] * 8] * 4


def test_masks_of_other_proportions_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    tall = write(tmp_path / "tall.png", np.zeros((80, 40), np.uint8))
    with pytest.raises(
        DataError, match=r"tall\.png: expected a mask in the proportions of its image, 80 x 40, got 40 x"
    ):
        read_mask(Masks((tall,)), (40, 80), (8, 8))
    rounded = write(tmp_path / "rounded.png", np.zeros((267, 400), np.uint8))
    assert not read_mask(Masks((rounded,)), (333, 500), (8, 8)).any(), "a mask may be scaled"
    (tmp_path / "cut.png").write_bytes(tall.read_bytes()[:40])
    with pytest.raises(ImageError, match=r"cut\.png"):
        read_mask(Masks((tmp_path / "cut.png",)), (80, 40), (8, 8))
