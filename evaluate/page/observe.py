"""A labelled set through one or two networks, every rule over the same outputs: a row for each image, maps for some."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.evaluate.batches import Loaded, Progress, batches
from wgap.evaluate.box_accuracy import ERRORS, judged
from wgap.evaluate.metrics import ImageScore
from wgap.evaluate.protocol import one_class_id
from wgap.evaluate.score_maps import ContourBoxes
from wgap.geometry import RIGHT, Box, best_iou, clipped, scaled
from wgap.rule import Rule
from wgap.runtime.cuda.arrays import to_host
from wgap.runtime.locator import Request
from wgap.runtime.postprocess import require_finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap._native import BoxRecord
    from wgap.datasets import Dataset
    from wgap.runtime.localizer import Localizer

__all__ = ["KINDS", "Found", "Grid", "Row", "Shown", "observe", "report_rules", "wanted_grid"]

KINDS = ("right", *ERRORS)
"""What became of an image: class and box are right, or :data:`wgap.evaluate.box_accuracy.ERRORS`."""

PAPER = Rule()
"""Whose map is stored, and cut by the page's slider."""


@dataclass(frozen=True)
class Found:
    """One image, one network, one rule: the box of the label's map in original pixels, and how right it is."""

    box: Box
    score: ImageScore
    kind: int


@dataclass(frozen=True)
class Grid:
    """A map in few cells: uint8[h, w], and what 0 and 255 stand for."""

    cells: NDArray[np.uint8]
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        path: the file.
        label: class id of the truth.
        size: original (H, W) in pixels.
        truth: boxes, half-open, original pixels.
        predicted: top-1 class id of each network.
        scores: its probability, of each network.
        found: by network, then by rule.
        separation: by map, how far its values within the true boxes lie above the others, in standard deviations;
            None where there is one kind alone.
    """

    path: Path
    label: int
    size: tuple[int, int]
    truth: list[Box]
    predicted: tuple[int, ...]
    scores: tuple[float, ...]
    found: tuple[tuple[Found, ...], ...]
    separation: tuple[float | None, ...]


class Shown:
    """Of rows that come one by one, the worst and as many of the others, drawn at random, in flat memory.

    Args:
        limit: how many at most.
    """

    def __init__(self, limit: int) -> None:
        self._most = ((limit + 1) // 2, limit // 2)
        self._worst: list[tuple[float, int, Row, tuple[Grid, ...]]] = []
        self._others: list[tuple[float, int, Row, tuple[Grid, ...]]] = []
        self._seen = self._passed = 0
        self._random = random.Random(0)  # noqa: S311  (pictures to look at, no secret)

    def add(self, row: Row, maps: tuple[Grid, ...]) -> None:
        """Offer a row; how bad it is, its first network and rule say."""
        item = (-row.found[0][0].score.gt_iou, -self._seen, row, maps)
        self._seen += 1
        if len(self._worst) < self._most[0]:
            heapq.heappush(self._worst, item)
            return
        passed = heapq.heappushpop(self._worst, item)
        self._passed += 1
        if len(self._others) < self._most[1]:
            self._others.append(passed)
        elif (place := self._random.randrange(self._passed)) < self._most[1]:
            self._others[place] = passed

    def rows(self) -> list[tuple[Row, tuple[Grid, ...]]]:
        """What is shown, in the order it came."""
        kept = sorted([*self._worst, *self._others], key=lambda item: -item[1])
        return [(row, maps) for _, _, row, maps in kept]


def report_rules(localizer: Localizer) -> tuple[Rule, ...]:
    """The localizer's rule, then those of the paper, of the foreground and of the colours that the network has."""
    scored = "foreground" in localizer.bundle.manifest.model.signature()
    more = [Rule("foreground"), Rule("foreground+colour")] if scored else []
    return tuple(dict.fromkeys([localizer.rule, PAPER, *more]))


def wanted_grid(localizer: Localizer) -> tuple[int, int]:
    """(h, w) of stored maps: four times the features, at most the map's own."""
    _, height, width = localizer.bundle.manifest.model.feature_shape
    return min(4 * height, localizer.locator.size[0]), min(4 * width, localizer.locator.size[1])


def observe(
    networks: Sequence[Localizer], rules: Sequence[Rule], dataset: Dataset, skipped: list[tuple[str, str]],
    batch_size: int, max_bad: int, progress: Progress,
) -> Iterator[tuple[Row, tuple[Grid, ...]]]:  # fmt: skip
    """Each readable image's row and maps: of its label's class as the paper recombines it, and of the scores if any.

    Args:
        networks: one or two over the same bundle, the one whose maps are kept first.
        rules: what is asked of each.
        dataset: one split, its boxes known.
        skipped: receives (path, reason) of unreadable images.
        batch_size: images per forward pass.
        max_bad: how many unreadable images to skip before giving up.
        progress: wraps the sequence of batches.

    Raises:
        DataError: class names differ, the set has no boxes, or more than ``max_bad`` images are unreadable.
        FeatureError: a network's output for an image is not finite.
    """
    first, size = networks[0], networks[0].locator.size
    labels, grid = one_class_id(first, dataset), wanted_grid(first)
    for batch in batches(dataset.samples, labels, dataset.boxes(), size, batch_size, max_bad, skipped, progress):
        if batch.pixels is None:
            continue
        results, maps = zip(*(_through(one, rules, batch.images, batch.pixels) for one in networks), strict=True)
        for n, image in enumerate(batch.images):
            truths = [scaled(box, image.size, size) for box in image.truth]
            grids = tuple(_grid(one, grid) for one in maps[0][n])
            tops = [result[0][1][n] for result in results]
            yield (
                Row(
                    path=image.path, label=image.label, size=image.size, truth=image.truth,
                    predicted=tuple(top.class_id for top in tops), scores=tuple(top.score for top in tops),
                    found=tuple(
                        tuple(_found(image, truths, size, own[n], top[n]) for own, top in by_rule)
                        for by_rule in results
                    ),
                    separation=tuple(_separation(one.cells, truths, size) for one in grids),
                ),
                grids,
            )  # fmt: skip


def _through(
    localizer: Localizer, rules: Sequence[Rule], images: Sequence[Loaded[list[Box]]], pixels: Any
) -> tuple[list[tuple[list[BoxRecord], list[BoxRecord]]], list[list[NDArray[np.float32]]]]:
    """By rule the records of the labels and of the top-1 classes; by image the maps."""
    import numpy as np

    known = [image.label for image in images]
    found: list[tuple[list[BoxRecord], list[BoxRecord]]] = [([], []) for _ in rules]
    maps: list[list[NDArray[np.float32]]] = []
    names = sorted({name for rule in rules for name in rule.outputs})
    for rows, part in localizer.network.parts(pixels):
        with localizer.network.forward(part, outputs=names) as given:
            outputs = {**given, "picture": part}
            for rule, records in zip(rules, found, strict=True):
                locator = localizer.locator.with_rule(rule)
                for kept, classes in zip(records, (known[rows], None), strict=True):
                    request = Request(classes, heatmaps=rule == PAPER and classes is not None)
                    kept.extend(row[0] for row in require_finite(locator.locate(outputs, request)))
            paper = found[list(rules).index(PAPER)][0][len(maps) :]
            scores = to_host(outputs["foreground"])[:, 0] if "foreground" in names else [None] * len(paper)
            for record, score in zip(paper, scores, strict=True):
                own = np.array(record.heatmap, np.float32)
                maps.append([own] if score is None else [own, np.array(score, np.float32)])
    return found, maps


def _found(image: Loaded[list[Box]], truths: list[Box], size: tuple[int, int], own: BoxRecord, top: BoxRecord) -> Found:
    correct, gt_iou = top.class_id == image.label, best_iou(own.box, truths, size)
    score = ImageScore(correct, gt_iou, best_iou(top.box, truths, size), own.level, own.degenerate)
    if correct and gt_iou >= RIGHT:
        kind = 0
    elif not correct:
        kind = KINDS.index("wrong_class")
    else:
        kind = 1 + _kind(own.box, truths, size)
    return Found(scaled(own.box, size, image.size), score, kind)


def _kind(box: Box, truths: list[Box], size: tuple[int, int]) -> int:
    """Which of ``ERRORS`` a box is that is not right, of an image whose class is."""
    import numpy as np

    one: Any = np.zeros(1, np.int64)
    boxes, true = (np.array([clipped(each, size) for each in given]) for given in ([box], truths))
    return int(judged(ContourBoxes(boxes, one, one, one), true)[1][0, 0])


def _grid(values: NDArray[np.float32], grid: tuple[int, int]) -> Grid:
    """A map in ``grid`` cells of eight bits over its own range."""
    import cv2
    import numpy as np

    how = cv2.INTER_LINEAR if values.shape[0] < grid[0] else cv2.INTER_AREA
    cells = cv2.resize(values, grid[::-1], interpolation=how)
    low, high = float(cells.min()), float(cells.max())
    scale = 255 / (high - low) if high > low else 0.0
    return Grid(((cells - low) * scale).round().astype(np.uint8), low, high)


def _separation(cells: NDArray[np.uint8], truths: list[Box], size: tuple[int, int]) -> float | None:
    import numpy as np

    inside = np.zeros(cells.shape, bool)
    for box in truths:
        x0, y0, x1, y1 = (round(side) for side in scaled(box, size, cells.shape))
        inside[y0:y1, x0:x1] = True
    if inside.all() or not inside.any():
        return None
    object_, ground = cells[inside].astype(np.float64), cells[~inside].astype(np.float64)
    spread = math.sqrt((object_.var() + ground.var()) / 2)
    return float(object_.mean() - ground.mean()) / spread if spread > 0 else None
