"""Localization metrics in the convention of the public wsolevaluation code.

Boxes are compared on the network-input scale (224 x 224): ground truth is scaled there from original pixels, corners
are clipped to the last pixel, and widths and heights count both end pixels (``+1``). A box counts as right when its IoU
with any of the image's true boxes is at least 0.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]

RIGHT = 0.5
"""IoU from which a box counts as right."""


def inclusive_iou(a: Box, b: Box) -> float:
    """IoU of two corner boxes whose widths and heights count both end pixels: width = x1 - x0 + 1."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def clipped(box: Box, size: tuple[int, int]) -> Box:
    """Corners of a half-open box as the protocol compares them: clipped to the last pixel of an (H, W) image."""
    height, width = size
    return (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width - 1.0), min(box[3], height - 1.0))


def scaled(box: Box, original: tuple[int, int], size: tuple[int, int]) -> Box:
    """A box in pixels of an (H, W) ``original`` image in pixels of ``size``."""
    sy, sx = size[0] / original[0], size[1] / original[1]
    return (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)


def best_iou(predicted: Box, truth: Sequence[Box], size: tuple[int, int]) -> float:
    """IoU of a predicted half-open box with the true box it fits best; all in pixels of the (H, W) map."""
    return max(inclusive_iou(clipped(predicted, size), clipped(box, size)) for box in truth)


def centred_box(size: tuple[int, int]) -> Box:
    """The baseline that has seen nothing: half the image's area, centred, half-open, on an (H, W) image."""
    height, width = size
    share = 0.5**0.5
    return (width * (1 - share) / 2, height * (1 - share) / 2, width * (1 + share) / 2, height * (1 + share) / 2)


@dataclass(frozen=True)
class ImageScore:
    """One image under one map and one threshold rule.

    Attributes:
        correct: whether the top-1 class is the label.
        gt_iou: best IoU of the box drawn from the *label's* map.
        top1_iou: best IoU of the box drawn from the *predicted* class's map.
        level: chosen level of the label's map, -1 for a fixed threshold or a degenerate map.
        degenerate: whether the label's map was flat at zero.
    """

    correct: bool
    gt_iou: float
    top1_iou: float
    level: int
    degenerate: bool


@dataclass(frozen=True)
class Summary:
    """Fractions over a set of images.

    Attributes:
        images: how many.
        top1_cls: top-1 classification accuracy.
        gt_known_loc: share whose box from the label's map is right (GT-known localization).
        top1_loc: share whose class is right *and* whose box from that class's map is right.
        mean_iou: mean of the IoU of GT-known localization.
        levels: how often each level was chosen, by its threshold eta; empty for a fixed threshold.
        degenerate: how many maps were flat.
    """

    images: int
    top1_cls: float
    gt_known_loc: float
    top1_loc: float
    mean_iou: float
    levels: dict[str, int]
    degenerate: int

    @staticmethod
    def of(scores: Iterable[ImageScore]) -> Summary:
        """Summarise; raises ValueError where there is nothing to summarise."""
        rows = list(scores)
        if not rows:
            raise ValueError("no images to summarise")
        count = len(rows)
        levels = Counter(row.level for row in rows if row.level >= 0)
        return Summary(
            images=count,
            top1_cls=sum(row.correct for row in rows) / count,
            gt_known_loc=sum(row.gt_iou >= RIGHT for row in rows) / count,
            top1_loc=sum(row.correct and row.top1_iou >= RIGHT for row in rows) / count,
            mean_iou=sum(row.gt_iou for row in rows) / count,
            levels={f"{level / 20:.2f}": levels[level] for level in sorted(levels)},
            degenerate=sum(row.degenerate for row in rows),
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON."""
        return dict(vars(self))
