"""Localization metrics in the convention of the public wsolevaluation code.

A box counts as right when its IoU with any of the image's true boxes is at least 0.5; ``wgap.geometry`` says how boxes
are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from wgap._native import LEVELS
from wgap.geometry import RIGHT


@dataclass(frozen=True)
class ImageScore:
    """One image under one map and one threshold rule.

    Attributes:
        correct: whether the top-1 class is the label; None where the model has no such class.
        gt_iou: best IoU of the box drawn from the *label's* map.
        top1_iou: best IoU of the box drawn from the *predicted* class's map.
        level: chosen level of the label's map, -1 for a fixed threshold or a degenerate map.
        degenerate: whether the label's mask was empty.
        boxes: how many boxes were drawn from the label's map.
        right: how many of them are right.
        truths: how many true boxes there are.
        found: how many of those some box from the label's map is right about.
    """

    correct: bool | None
    gt_iou: float
    top1_iou: float
    level: int
    degenerate: bool
    boxes: int = 1
    right: int = 0
    truths: int = 1
    found: int = 0


@dataclass(frozen=True)
class Summary:
    """Fractions over a set of images.

    Attributes:
        images: how many.
        top1_cls: top-1 classification accuracy, over the images whose class the model has; None without such.
        gt_known_loc: share whose box from the label's map is right (GT-known localization).
        top1_loc: share whose class is right *and* whose box from that class's map is right; likewise.
        mean_iou: mean of the IoU of GT-known localization.
        levels: how often each level was chosen, by its threshold eta; empty for a fixed threshold.
        degenerate: how many masks were empty.
        any_of_n: of several boxes a class, which is another measure than GT-known: ``loc``, the share of images where
            any of them is right, ``boxes`` per image, ``precision`` and ``recall`` over the boxes; None for one box.
    """

    images: int
    top1_cls: float | None
    gt_known_loc: float
    top1_loc: float | None
    mean_iou: float
    levels: dict[str, int]
    degenerate: int
    any_of_n: dict[str, float] | None = None

    @staticmethod
    def of(scores: Iterable[ImageScore], max_boxes: int = 1) -> Summary:
        """Summarise; raises ValueError where there is nothing to summarise."""
        rows = list(scores)
        if not rows:
            raise ValueError("no images to summarise")
        count, known = len(rows), [row for row in rows if row.correct is not None]
        levels = Counter(row.level for row in rows if row.level >= 0)
        return Summary(
            images=count,
            top1_cls=sum(bool(row.correct) for row in known) / len(known) if known else None,
            gt_known_loc=sum(row.gt_iou >= RIGHT for row in rows) / count,
            top1_loc=sum(bool(row.correct) and row.top1_iou >= RIGHT for row in known) / len(known) if known else None,
            mean_iou=sum(row.gt_iou for row in rows) / count,
            levels={f"{level / LEVELS:.2f}": levels[level] for level in sorted(levels)},
            degenerate=sum(row.degenerate for row in rows),
            any_of_n=None
            if max_boxes == 1
            else {
                "loc": sum(row.right > 0 for row in rows) / count,
                "boxes": sum(row.boxes for row in rows) / count,
                "precision": sum(row.right for row in rows) / sum(row.boxes for row in rows),
                "recall": sum(row.found for row in rows) / sum(row.truths for row in rows),
            },
        )
