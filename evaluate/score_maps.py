"""Score maps as the public wsolevaluation code cuts them: 8 bits, rectangles of contours, IoU in whole pixels.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020) and its extension (2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from wgap.errors import DataError
from wgap.geometry import Box, scaled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ContourBoxes", "contour_boxes", "grid", "normalised", "overlaps", "whole_boxes"]

FINEST = 1000
"""Thresholds at most: the public code's own grid."""


class ContourBoxes(NamedTuple):
    """Boxes of one score map at every threshold; thresholds whose masks are the same share a cut.

    Attributes:
        boxes: int64[N, 4], (x0, y0, x1, y1) of each contour, x1 and y1 at most the last pixel; cut by cut.
        first: int64[C], where each cut's boxes begin; each has at least one.
        largest: int64[C], the box of the contour that encloses the largest area.
        cut: int64[T], which cut each threshold makes.
    """

    boxes: NDArray[np.int64]
    first: NDArray[np.int64]
    largest: NDArray[np.int64]
    cut: NDArray[np.int64]


def grid(step: float) -> NDArray[np.float64]:
    """Thresholds 0, step, ..., 1 - step, in the same floats as ``numpy.arange(0, 1, step)``.

    Raises:
        DataError: 1 is no multiple of the step, or there would be fewer than 2 or more than 1000 thresholds.
    """
    import numpy as np

    count = round(1 / step) if 0.5 / FINEST < step <= 0.5 else 0
    if not 2 <= count <= FINEST or abs(count * step - 1) > 1e-9:
        raise DataError(
            f"--threshold-step: expected 1 divided by a whole number from 2 to {FINEST}, such as 0.01, got {step:g}"
        )
    thresholds: NDArray[np.float64] = np.arange(count, dtype=np.float64) * np.float64(step)
    return thresholds


def normalised(heatmap: NDArray[np.floating]) -> NDArray[np.float64]:
    """A map [H, W] stretched to [0, 1]; all 0 where it is constant."""
    import numpy as np

    scores: NDArray[np.float64] = np.asarray(heatmap, np.float64)
    scores = scores - scores.min()
    highest = scores.max()
    return scores / highest if highest > 0 else scores


def contour_boxes(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> ContourBoxes:
    """Boxes of a score map [H, W] in [0, 1] where its 8 bits exceed each threshold times their maximum, in whole steps.

    A mask's boxes are the bounding rectangles of all its contours, those of holes among them; a rectangle's exclusive
    edge is clipped to the last pixel. An empty mask has the one box (0, 0, 0, 0).
    """
    import cv2
    import numpy as np

    height, width = scores.shape
    bits = (scores * 255).astype(np.uint8)
    levels = (thresholds * float(bits.max())).astype(np.int64)
    above = bits.size - np.bincount(bits.ravel(), minlength=256).cumsum()  # masks are nested: one size, one mask
    _, index, cut = np.unique(-above[levels], return_index=True, return_inverse=True)
    boxes: list[tuple[int, int, int, int]] = []
    first, largest = [], []
    for level in levels[index]:
        _, mask = cv2.threshold(bits, int(level), 255, cv2.THRESH_BINARY)
        contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        first.append(len(boxes))
        areas = [cv2.contourArea(contour) for contour in contours] or [0.0]
        largest.append(len(boxes) + areas.index(max(areas)))
        for contour in contours:
            x, y, w, h = cv2.boundingRect(contour)
            boxes.append((x, y, min(x + w, width - 1), min(y + h, height - 1)))
        if not contours:
            boxes.append((0, 0, 0, 0))
    return ContourBoxes(np.array(boxes, np.int64), np.array(first), np.array(largest), cut)


def whole_boxes(
    truth: list[Box], original: tuple[int, int], size: tuple[int, int], name: str = "boxes"
) -> NDArray[np.int64]:
    """True boxes on an (H, W) map in whole pixels, int64[M, 4]: clipped to the last pixel, scaled, truncated.

    The public lists were clipped before they were published. Messages call the image ``name``.

    Raises:
        DataError: a box begins outside the image.
    """
    import numpy as np

    height, width = original
    whole = []
    for x0, y0, x1, y1 in truth:
        if x0 > width - 1 or y0 > height - 1:
            box = " ".join(f"{corner:g}" for corner in (x0, y0, x1, y1))
            raise DataError(f"{name}: expected boxes inside the image, {width} x {height} pixels, got {box}")
        inside = (x0, y0, min(x1, width - 1.0), min(y1, height - 1.0))
        whole.append([int(corner) for corner in scaled(inside, original, size)])
    return np.array(whole, np.int64)


def overlaps(
    boxes: NDArray[np.int64], truths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pixels that boxes [N, 4] and truths [M, 4] share, int64[N, M], and their own, [N, 1] and [M]; both ends count."""
    import numpy as np

    low = np.maximum(boxes[:, None, :2], truths[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    shared = np.maximum(high - low + 1, 0).prod(axis=2)
    areas = [(corners[:, 2:] - corners[:, :2] + 1).prod(axis=1) for corners in (boxes, truths)]
    return shared, areas[0][:, None], areas[1]
