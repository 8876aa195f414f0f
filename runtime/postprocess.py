"""Feature maps and logits to boxes, through the fused native kernel (Sec. 4.2 and 4.3 of the paper).

Arrays are anything with the buffer protocol or DLPack in CPU memory (NumPy, PyTorch, ``array``, ``memoryview``); they
are read in place, never converted. Everything here may be called from several threads at once and releases the GIL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from wgap._native import BoxRecord, Classifier, active_target, cpu_targets
from wgap._native import postprocess as _postprocess
from wgap._native import resize as _resize

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BoxRecord", "Classifier", "Map", "active_target", "cpu_targets", "postprocess", "resize"]

Map = Literal["recombined", "positive", "signed"]


def postprocess(
    features: Any,
    logits: Any,
    classifier: Classifier,
    *,
    size: tuple[int, int],
    classes: int | Iterable[int] | None = None,
    top_k: int = 1,
    map: Map = "recombined",  # noqa: A002
    threshold: str = "adaptive",
    heatmaps: bool = False,
    edge_means: bool = False,
    threads: int = 1,
    target: str = "",
) -> list[list[BoxRecord]]:
    """Localizes classes in a batch of feature maps.

    Args:
        features: float32[N, C, h, w], C-contiguous, after the last ReLU.
        logits: float32[N, K].
        classifier: the weights that made the logits.
        size: (H, W) of the map the boxes are wanted on, normally the network's input; at most 2**20 pixels.
        classes: one class id for each image, or one for all; None for the ``top_k`` classes by logit (ties: lower id).
        top_k: records per image when ``classes`` is None.
        map: ``recombined`` sums |w_c| F_c (Eq. 3), ``positive`` max(w_c, 0) F_c, ``signed`` w_c F_c with min-max
            normalisation (plain CAM).
        threshold: ``adaptive`` (the two-stage rule of Sec. 4.3) or ``fixed:ETA`` with ETA in [0, 0.999].
        heatmaps: also return each normalised map, as a memoryview float32[H, W] in [0, 1].
        edge_means: also return V_l, the mean of the map over each level's edge set (None for a fixed threshold and for
            a degenerate map, NaN where an edge set is empty).
        threads: how many threads share the batch's images and classes.
        target: instruction set, one of :func:`cpu_targets`; by default :func:`active_target`. All give the same bits.

    Returns:
        For each image a list of records, best class first; boxes are half-open (x0, y0, x1, y1) in map pixels.

    Raises:
        wgap.errors.FeatureError: a shape, dtype or memory layout is not as above, or an image's features or logits hold
            NaN or infinity (its index is named).
        ValueError: an option is not as above.
    """
    return _postprocess(
        features,
        logits,
        classifier,
        size=size,
        classes=classes,
        top_k=top_k,
        map=map,
        threshold=threshold,
        heatmaps=heatmaps,
        edge_means=edge_means,
        threads=threads,
        target=target,
    )


def resize(src: Any, height: int, width: int, out: Any = None) -> Any:
    """Bilinear resize without antialiasing: half-pixel centres, edges clamped, as OpenCV's ``INTER_LINEAR`` samples.

    Whole-number arithmetic throughout: the same bytes on every machine, within one grey level of OpenCV's.

    Args:
        src: uint8[h, w, C] with C in 1..4; rows must be contiguous, the row stride is free (crops need no copy).
        height: rows of the result.
        width: columns of the result.
        out: uint8[height, width, C] to write into, such as one image of a batch; None for a new NumPy array.

    Returns:
        ``out``, or the new array.

    Raises:
        wgap.errors.ImageError: ``src`` or ``out`` is not as above.
        ValueError: a size is below 1.
    """
    return _resize(src, height, width, out)
