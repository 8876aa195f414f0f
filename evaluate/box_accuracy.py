"""MaxBoxAcc and MaxBoxAccV2, Top-1 and Top-5 localization, and kinds of error, counted at every threshold.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020): the share of images whose box
is right at the one threshold that makes it highest. V2 takes all contours in place of the largest, and the mean over
three IoUs, each at its own best threshold. Kinds of error: Xue et al., DANet (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wgap.evaluate.counts import Counts, Scored
from wgap.evaluate.intervals import REPLICATES, percentiles, poisson_weights, wilson
from wgap.evaluate.score_maps import contour_boxes, overlaps, whole_boxes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.evaluate.score_maps import ContourBoxes

__all__ = ["ERRORS", "IOUS", "BoxAccuracy", "judged"]

IOUS = (30, 50, 70)
"""Per cent from which a box is right."""

RIGHT = IOUS.index(50)
"""The IoU of MaxBoxAcc, of Top-k localization and of the kinds of error."""

LARGEST, ALL = range(2)
"""Which contours are boxes: the one that encloses the largest area, or all, of which the best counts."""

TOPS = (1, 5)

ERRORS = ("wrong_class", "m_ins", "part", "more", "other")
"""Kinds of error, each image's first: another class has the highest logit; the box covers more than 0.3 of each of
several true boxes; more than 0.5 of the box lies in the true box that it fits best; it covers more than 0.7 of that."""


class BoxAccuracy(Counts):
    """Boxes against true boxes.

    Args:
        classes: how many there are.
        thresholds: float64[T], where score maps are cut.
    """

    reads = "boxes"

    def __init__(self, classes: int, thresholds: NDArray[np.float64]) -> None:
        import numpy as np

        count = len(thresholds)
        self.thresholds = thresholds
        self.arrays = {
            "images": np.zeros(classes, np.int64),
            "top": np.zeros((classes, len(TOPS)), np.int64),
            "right": np.zeros((classes, 2, len(IOUS), count), np.int32),  # class, contours, IoU, threshold
            "located": np.zeros((classes, 2, len(TOPS), count), np.int32),
            "errors": np.zeros((2, len(ERRORS), count), np.int32),
            "weights": np.zeros(REPLICATES, np.int32),
            "drawn": np.zeros((REPLICATES, len(IOUS), count), np.int32),  # right with all contours, by replicate
        }

    def add(self, images: Sequence[Scored]) -> None:
        """See :meth:`Counts.add`."""
        import numpy as np

        counts, rights = self.arrays, []
        for image in images:
            truths = whole_boxes(image.truth, image.size, image.scores.shape, str(image.path))
            found = contour_boxes(image.scores, self.thresholds)
            iou, kinds = judged(found, truths)
            right = (iou[:, None] >= np.array(IOUS)[:, None] / 100)[..., found.cut]
            top = np.array([image.rank < k for k in TOPS])
            kinds = kinds if top[0] else np.full_like(kinds, ERRORS.index("wrong_class"))
            kinds = np.where(right[:, RIGHT] & top[0], -1, kinds[:, found.cut])
            counts["images"][image.label] += 1
            counts["top"][image.label] += top
            counts["right"][image.label] += right
            counts["located"][image.label] += right[:, RIGHT, None] & top[:, None]
            counts["errors"] += kinds[:, None] == np.arange(len(ERRORS))[:, None]
            rights.append(right[ALL].ravel())
        weights = poisson_weights(image.index for image in images)
        counts["weights"] += weights.sum(axis=1).astype(np.int32)
        drawn = weights @ np.array(rights, np.float64)  # whole numbers: exact in any order
        counts["drawn"] += drawn.astype(np.int32).reshape(counts["drawn"].shape)

    def best(self) -> NDArray[np.int64]:
        """Index of the threshold at which most images are right, the first of several; int64[contours, IoU]."""
        best: NDArray[np.int64] = self.arrays["right"].sum(axis=0).argmax(axis=-1)
        return best

    def report(self, chosen: NDArray[np.int64], contours: int, classes: Sequence[str]) -> dict[str, Any]:
        """Everything that was counted, as fractions.

        Args:
            chosen: the thresholds to judge at, as :meth:`best` gives them for these or other images.
            contours: ``LARGEST`` or ``ALL``: of which boxes localization, errors and the table of classes are.
            classes: names.
        """
        import numpy as np

        counts, names = self.arrays, [str(iou) for iou in IOUS]
        images = int(counts["images"].sum())
        by_class = np.take_along_axis(counts["right"], chosen[None, ..., None], axis=-1)[..., 0]
        right, at = by_class.sum(axis=0), int(chosen[contours, RIGHT])
        located, top = counts["located"][:, contours, :, at], counts["top"]
        drawn = np.stack([counts["drawn"][:, i, chosen[ALL, i]] for i in range(len(IOUS))], axis=1)
        v2 = {name: int(right[ALL, i]) / images for i, name in enumerate(names)}
        hits = {
            "max_box_acc": right[LARGEST, RIGHT],
            **{f"top{k}_cls": top[:, i].sum() for i, k in enumerate(TOPS)},
            **{f"top{k}_loc": located[:, i].sum() for i, k in enumerate(TOPS)},
        }
        shares = {name: int(count) / images for name, count in hits.items()}
        errors = counts["errors"][contours, :, at]
        return {
            "max_box_acc": shares.pop("max_box_acc"),
            "max_box_acc_v2": {**v2, "mean": sum(v2.values()) / len(v2)},
            **shares,
            "errors": {name: int(count) / images for name, count in zip(ERRORS, errors, strict=True)},
            "thresholds": {
                "max_box_acc": self._threshold(chosen[LARGEST, RIGHT]),
                "max_box_acc_v2": {name: self._threshold(chosen[ALL, i]) for i, name in enumerate(names)},
            },
            "confidence_95": {
                **{name: wilson(int(count), images) for name, count in hits.items()},
                "max_box_acc_v2": {
                    **{name: wilson(int(right[ALL, i]), images) for i, name in enumerate(names)},
                    "mean": percentiles(drawn.mean(axis=1) / np.where(counts["weights"], counts["weights"], np.nan)),
                },
            },
            "per_class": [
                _row(name, int(counts["images"][c]), by_class[c], top[c], located[c]) for c, name in enumerate(classes)
            ],
        }

    def _threshold(self, index: np.int64) -> float:
        return round(float(self.thresholds[index]), 6)


def _row(name: str, images: int, right: NDArray[Any], top: NDArray[Any], located: NDArray[Any]) -> dict[str, Any]:
    """One class at the thresholds of the whole set; its figures are None where it has no image."""

    def share(count: Any) -> float | None:
        return float(count) / images if images else None

    return {
        "class": name, "images": images, "max_box_acc": share(right[LARGEST, RIGHT]),
        "max_box_acc_v2": share(right[ALL].mean()), "top1_cls": share(top[0]), "top5_cls": share(top[1]),
        "top1_loc": share(located[0]), "top5_loc": share(located[1]),
    }  # fmt: skip


def judged(found: ContourBoxes, truths: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Best IoU with a true box, and kind of error if it is too low, [contours, C]."""
    import numpy as np

    shared, areas, true_areas = overlaps(found.boxes, truths)
    iou = shared / (areas + true_areas - shared)
    best = iou.max(axis=1)
    ends = [*found.first[1:], len(best)]
    fittest = [first + int(best[first:end].argmax()) for first, end in zip(found.first, ends, strict=True)]
    judged = np.stack([found.largest, np.array(fittest)])
    fitted = iou.argmax(axis=1)[judged]
    of_truth = shared / true_areas
    kinds = np.select(
        [
            ((of_truth > 0.3).sum(axis=1) > 1)[judged],
            (shared / areas)[judged, fitted] > 0.5,
            of_truth[judged, fitted] > 0.7,
        ],
        [ERRORS.index(name) for name in ("m_ins", "part", "more")],
        ERRORS.index("other"),
    )
    return best[judged], kinds
