"""Feature maps and logits to boxes, through the fused native kernel (Sec. 4.2 and 4.3 of the paper).

Arrays are anything with the buffer protocol or DLPack in CPU memory (NumPy, PyTorch, ``array``, ``memoryview``); they
are read in place, never converted. Everything here may be called from several threads at once and releases the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wgap._native import BoxRecord, Classifier, active_target, cpu_targets, localize
from wgap.errors import FeatureError
from wgap.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BoxRecord", "Classifier", "Rule", "active_target", "cpu_targets", "postprocess", "require_finite"]


def postprocess(
    logits: Any,
    features: Any,
    classifier: Classifier,
    *,
    size: tuple[int, int],
    rule: Rule | None = None,
    classes: int | Iterable[int] | None = None,
    top_k: int = 1,
    heatmaps: bool = False,
    edge_means: bool = False,
    threads: int = 1,
    target: str = "",
    scores: Any = None,
    pictures: Any = None,
    max_boxes: int = 1,
) -> list[list[BoxRecord]]:
    """Localizes classes in a batch of a network's outputs.

    Args:
        logits: float32[N, K].
        features: float32[N, C, h, w], C-contiguous, after the last ReLU; None for a rule whose map is ``none``.
        classifier: the weights that made the logits.
        size: (H, W) of the map the boxes are wanted on, normally the network's input; at most 2**20 pixels.
        rule: which map, and where it is cut; None for ``Rule()``, the paper's.
        classes: one class id for each image, or one for all; None for the ``top_k`` classes by logit (ties: lower id).
        top_k: records per image when ``classes`` is None.
        heatmaps: also return each normalised map, as a memoryview float32[H, W] in [0, 1]; of a foreground rule what of
            the upsampled scores is above 0, over its maximum.
        edge_means: also return V_l, the mean of the map over each level's edge set (None for a fixed threshold and for
            a degenerate map, NaN where an edge set is empty).
        threads: how many threads share the batch's images and classes.
        target: instruction set, one of :func:`cpu_targets`; by default :func:`active_target`. All give the same bits.
        scores: for the foreground rules: float32[N, 1, h', w'] or [N, h', w'], C-contiguous, above 0 on the object; at
            most as large as the map.
        pictures: for ``foreground+colour``: uint8[N, H, W, 3] RGB of the map's size, C-contiguous.
        max_boxes: boxes per class, 1 to 64: of the heaviest components of its mask, each of at least a tenth of the
            heaviest's weight, which is its pixels or, under a foreground rule, the sum of its positive scores.

    Returns:
        For each image a list of records, best class first; boxes are half-open (x0, y0, x1, y1) in map pixels.

    Raises:
        wgap.errors.FeatureError: a shape, dtype or memory layout is not as above, something that the rule reads is
            missing, or an image's features, logits or scores hold NaN or infinity (its index is named).
        ValueError: an option is not as above.
    """
    found = localize(
        logits, features, classifier, size=size, rule=rule, classes=classes, top_k=top_k, heatmaps=heatmaps,
        edge_means=edge_means, threads=threads, target=target, scores=scores, pictures=pictures, max_boxes=max_boxes,
    )  # fmt: skip
    return require_finite(found)


def require_finite(found: list[list[BoxRecord]]) -> list[list[BoxRecord]]:
    """The records themselves.

    Raises:
        wgap.errors.FeatureError: an image's features, logits or scores were not finite; the first one is named.
    """
    for index, records in enumerate(found):
        if records and records[0].error is not None:
            raise FeatureError(f"image {index} of the batch: {records[0].error}; check the model and its input")
    return found
