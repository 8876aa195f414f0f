"""Score maps, boxes and masks that the public wsolevaluation code was run on once, and gave ``public_figures.json``.

Everything comes from whole-number arithmetic on seeds, so that every machine makes the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 224


class Case(NamedTuple):
    """One image: score map float64[224, 224] in [0, 1], original (W, H), true boxes in original pixels."""

    scores: np.ndarray
    size: tuple[int, int]
    boxes: list[tuple[int, int, int, int]]


def draw(seed: int, count: int, below: int) -> np.ndarray:
    """``count`` numbers in 0..below - 1 (SplitMix64)."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(1 << 20)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) % np.uint64(below)).astype(np.int64)


def blobs(seed: int, count: int) -> np.ndarray:
    """A sum of paraboloids, 1 at its highest."""
    ys, xs = np.mgrid[0:SIDE, 0:SIDE].astype(np.int64)
    total = np.zeros((SIDE, SIDE), np.int64)
    centres, radii = draw(seed, count, SIDE), 20 + draw(seed + 2, count, 80)
    for x, y, radius in zip(centres, draw(seed + 1, count, SIDE), radii, strict=True):
        total += np.maximum(radius * radius - (xs - x) ** 2 - (ys - y) ** 2, 0) * 10_000 // (radius * radius)
    return total / total.max()


def tiles(seed: int, side: int) -> np.ndarray:
    """Noise in tiles of so many pixels: many contours, and holes in them."""
    n = SIDE // side
    noise = draw(seed, n * n, 1001).reshape(n, n)
    return np.kron(noise - noise.min(), np.ones((side, side), np.int64)) / (noise.max() - noise.min())


def painted(*parts: tuple[int, int, int, int, float]) -> np.ndarray:
    scores = np.zeros((SIDE, SIDE))
    for x0, y0, x1, y1, value in parts:
        scores[y0:y1, x0:x1] = value
    return scores


def box_cases() -> list[Case]:
    """The corner cases first: empty, full, constant, a pixel, a hole, equal contours, an edge, a low maximum."""
    corners = [
        (painted(), [(0, 0, 1, 1)]),  # an empty mask's box is (0, 0, 0, 0): it is right here
        (painted(), [(100, 80, 300, 200)]),
        (painted((0, 0, SIDE, SIDE, 1.0)), [(0, 0, 499, 374)]),
        (painted((0, 0, SIDE, SIDE, 0.5)), [(0, 0, 250, 374), (3, 5, 499, 370)]),
        (painted((50, 60, 51, 61, 1.0)), [(112, 101, 113, 102), (90, 90, 130, 130)]),
        (painted((20, 20, 200, 200, 1.0), (60, 60, 160, 160, 0.0)), [(133, 100, 357, 268)]),  # the hole is a contour
        (painted((20, 20, 80, 80, 1.0), (120, 120, 180, 180, 1.0)), [(44, 33, 178, 134)]),  # first of equals is largest
        (painted((20, 20, 80, 80, 1.0), (120, 120, 180, 180, 1.0)), [(267, 200, 401, 301)]),
        (painted((20, 20, 80, 80, 1.0), (120, 120, 180, 180, 0.5)), [(267, 200, 401, 301), (0, 0, 20, 20)]),
        (painted((100, 40, SIDE, SIDE, 1.0)), [(223, 67, 499, 374)]),
        (painted((30, 30, 150, 31, 1.0)), [(66, 50, 335, 52)]),  # a line encloses no area
        (0.6 * blobs(900, 3), [(100, 50, 400, 300)]),
    ]
    cases = [Case(scores, (500, 375), boxes) for scores, boxes in corners]
    for seed in range(48):
        made = blobs(1000 + 10 * seed, 1 + seed % 4) if seed < 36 else tiles(1000 + 10 * seed, (4, 7, 16)[seed % 3])
        width, height = (int(v) for v in 120 + draw(seed, 2, 500))
        ys, xs = np.nonzero(made >= (1 + seed % 7) / 10)  # a box that some threshold gives, moved a little
        moved = np.array([xs.min(), ys.min(), xs.max(), ys.max()]) + draw(4000 + seed, 4, 31) - 15
        x, y = (
            np.sort(moved[[0, 2]].clip(0, SIDE - 1) * width // SIDE),
            np.sort(moved[[1, 3]].clip(0, SIDE - 1) * height // SIDE),
        )
        boxes = [(int(x[0]), int(y[0]), int(x[1]), int(y[1]))]
        for k in range(seed % 3):
            x = np.sort(draw(5000 + 3 * seed + k, 2, width))
            y = np.sort(draw(6000 + 3 * seed + k, 2, height))
            boxes.append((int(x[0]), int(y[0]), int(x[1]), int(y[1])))
        cases.append(Case(made, (width, height), boxes))
    return cases


def mask_cases(folder: Path) -> list[tuple[np.ndarray, list[str], str]]:
    """Score map, mask files and the file of what is ignored, written into a folder; masks empty, full and several."""
    cases = []
    for seed in range(12):
        height, width = (int(v) for v in 150 + draw(seed, 2, 300))
        pictures = {}
        for k in range(1 + seed % 3):
            mask = np.zeros((height, width), np.uint8)
            x, y = np.sort(draw(7000 + 3 * seed + k, 2, width)), np.sort(draw(8000 + 3 * seed + k, 2, height))
            mask[y[0] : y[1], x[0] : x[1]] = 255 if seed % 4 else 1
            pictures[f"{seed}_{k}.png"] = mask
        ignored = np.zeros((height, width), np.uint8)
        if seed % 3:
            ignored[height // 3 : height // 2, width // 4 :] = 255
        if seed == 7:
            pictures = {"7_0.png": np.zeros((height, width), np.uint8)}
        if seed == 8:
            pictures = {"8_0.png": np.full((height, width), 255, np.uint8)}
        for name, picture in {**pictures, f"{seed}_ignore.png": ignored}.items():
            cv2.imwrite(str(folder / name), picture)
        scores = blobs(9000 + 10 * seed, 2) if seed % 2 else tiles(9000 + 10 * seed, 8)
        cases.append(
            ({9: painted(), 11: painted((0, 0, SIDE, SIDE, 1.0))}.get(seed, scores), [*pictures], f"{seed}_ignore.png")
        )
    return cases
