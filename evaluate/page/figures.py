"""The figures of a report: shares, tables, histograms, over all images, by network and by rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wgap._native import LEVELS
from wgap.evaluate.intervals import wilson
from wgap.evaluate.metrics import Summary
from wgap.evaluate.page.observe import KINDS, Row
from wgap.geometry import RIGHT, iou

if TYPE_CHECKING:
    from wgap.rule import Rule

__all__ = ["comparison", "histogram", "reliability", "rule_figures", "separations"]

BINS = 20
"""Of histograms over 0..1."""

SCORE_BINS = 10
"""Of scores: in each, the share that is right is compared with the mean score."""


def rule_figures(rows: Sequence[Row], network: int, rule: int, classes: Sequence[str]) -> dict[str, Any]:
    """What one network reaches under one rule."""
    found = [row.found[network][rule] for row in rows]
    summary = Summary.of(one.score for one in found)
    shares = {name: getattr(summary, name) for name in ("top1_cls", "gt_known_loc", "top1_loc")}
    kinds = Counter(one.kind for one in found)
    levels = Counter(one.score.level for one in found if one.score.level >= 0)
    return {
        **shares,
        "mean_iou": summary.mean_iou,
        "degenerate": summary.degenerate,
        "interval": {name: wilson(round(share * len(rows)), len(rows)) for name, share in shares.items()},
        "kinds": [kinds[kind] for kind in range(len(KINDS))],
        "levels": [levels[level] for level in range(LEVELS + 1)],
        "ious": histogram([one.score.gt_iou for one in found], BINS),
        "reliability": reliability(rows, network, rule),
        "classes": [
            _class(name, of, network, rule, classes)
            for label, name in enumerate(classes)
            if (of := [row for row in rows if row.label == label])
        ],
    }


def _class(name: str, rows: list[Row], network: int, rule: int, classes: Sequence[str]) -> dict[str, Any]:
    found = [row.found[network][rule] for row in rows]
    summary = Summary.of(one.score for one in found)
    taken = Counter(row.predicted[network] for row in rows if row.predicted[network] != row.label)
    most = next(iter(taken.most_common(1)), None)
    kinds = Counter(one.kind for one in found)
    return {
        "name": name, "images": len(rows), "top1_cls": summary.top1_cls, "gt_known_loc": summary.gt_known_loc,
        "top1_loc": summary.top1_loc, "mean_iou": summary.mean_iou,
        "kinds": [kinds[kind] for kind in range(len(KINDS))],
        "taken_for": None if most is None else f"{classes[most[0]]} ({most[1]})",
    }  # fmt: skip


def histogram(values: Sequence[float], bins: int, low: float = 0.0, high: float = 1.0) -> list[int]:
    """How many values lie in each of so many equal parts; those beyond an end count in its part."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    return counts


def reliability(rows: Sequence[Row], network: int, rule: int) -> dict[str, Any]:
    """Of images by their top-1 score: how many, the mean score, the share whose class, and class and box, is right.

    ``ece`` is the expected calibration error of the class, the mean over images of their part's distance between the
    two.
    """
    parts: list[list[Row]] = [[] for _ in range(SCORE_BINS)]
    for row in rows:
        parts[min(SCORE_BINS - 1, int(row.scores[network] * SCORE_BINS))].append(row)
    table: list[dict[str, float] | None] = []
    distance = 0.0
    for part in parts:
        if not part:
            table.append(None)
            continue
        score = sum(row.scores[network] for row in part) / len(part)
        known = [row.found[network][rule].score for row in part]
        right = sum(bool(one.correct) for one in known) / len(part)
        both = sum(bool(one.correct) and one.top1_iou >= RIGHT for one in known) / len(part)
        table.append({"images": len(part), "score": score, "class": right, "box": both})
        distance += abs(right - score) * len(part)
    return {"parts": table, "ece": distance / len(rows)}


def separations(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By map: how far object and ground lie apart, from -1 to 5 standard deviations, and the mean."""
    found = []
    for name, values in zip(("class map", "scores"), zip(*(row.separation for row in rows), strict=True), strict=False):
        known = [value for value in values if value is not None]
        mean = sum(known) / len(known) if known else None
        found.append({"map": name, "counts": histogram(known, 24, -1.0, 5.0), "mean": mean, "low": -1.0, "high": 5.0})
    return found


def comparison(rows: Sequence[Row], rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """By rule, what the second network's boxes of the same classes are to the first one's."""
    import numpy as np

    found = []
    for number in range(len(rules)):
        pairs = [(row.found[0][number], row.found[1][number]) for row in rows]
        ious = np.array([iou(a.box, b.box) for a, b in pairs])
        rights = [(a.score.gt_iou >= RIGHT, b.score.gt_iou >= RIGHT) for a, b in pairs]
        found.append(
            {
                "mean": float(ious.mean()),
                "p5": float(np.percentile(ious, 5)),
                "worst": float(ious.min()),
                "ious": histogram(ious.tolist(), BINS),
                "lost": sum(a and not b for a, b in rights),
                "won": sum(b and not a for a, b in rights),
                "same_class": sum(row.predicted[0] == row.predicted[1] for row in rows) / len(rows),
            }
        )
    return found
