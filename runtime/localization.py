"""What a localizer returns: one typed record per image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wgap.geometry import Box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.errors import WgapError

__all__ = ["Failure", "Localization"]


@dataclass(frozen=True)
class Localization:
    """One class of one image, localized (method: Sec. 4.2 and 4.3 of the paper).

    Attributes:
        class_id: index of the class, the one asked for or the top-1.
        class_name: its name.
        score: softmax of the logits, the probability the classifier gives to this class, in [0, 1].
        boxes: (x0, y0, x1, y1) in pixels of the original image, half-open: x0 <= x < x1. The boxes on the map scaled by
            original size over map size; the best component's first, at most ``max_boxes``.
        threshold: the eta in [0, 0.999] at which the map was cut; 0 for a foreground rule and a degenerate map.
        level: the chosen level l of 0..20, eta = l / 20; -1 for other rules than the adaptive one and a degenerate map.
        degenerate: True when the mask is empty; the box is then the whole image.
        heatmap: float32[H, W] in [0, 1] at the network's input size, only if asked for, else None: the class's map, or
            of a foreground rule what of the scores is above 0, divided by its maximum.
        others: the next-best classes in order, where ``top_k`` > 1.
        image: path of the image, or None where it came as an array or bytes.
    """

    class_id: int
    class_name: str
    score: float
    boxes: tuple[Box, ...]
    threshold: float
    level: int
    degenerate: bool
    heatmap: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    others: tuple[Localization, ...] = ()
    image: str | None = None

    @property
    def box(self) -> Box:
        """The first of the boxes."""
        return self.boxes[0]

    def to_json(self) -> dict[str, Any]:
        """``image, class_id, class_name, score, box, boxes, threshold, degenerate``; ``others`` where there are any."""
        record = {"image": self.image, **self._own_json()}
        if self.others:
            record["others"] = [other._own_json() for other in self.others]
        return record

    def draw(self, image: NDArray[np.uint8], truth: Iterable[Box] = (), heatmap: bool = True) -> NDArray[np.uint8]:
        """The image (uint8[H, W, 3] RGB, original size) with its boxes drawn on it, see ``wgap.runtime.overlay``."""
        from wgap.runtime.overlay import overlay

        return overlay(image, self, truth, heatmap)

    def _own_json(self) -> dict[str, Any]:
        names = ("class_id", "class_name", "score", "box", "boxes", "threshold", "degenerate")
        own = {name: getattr(self, name) for name in names}
        return {**own, "box": list(self.box), "boxes": [list(box) for box in self.boxes]}


@dataclass(frozen=True)
class Failure:
    """An image that could not be localized, in its place among the results; only with ``on_error="yield"``.

    Attributes:
        image: path of the image, or None where it came as an array or bytes.
        error: why.
    """

    image: str | None
    error: WgapError

    def to_json(self) -> dict[str, Any]:
        """``image``, ``error`` and ``code``, the name of the error's class."""
        return {"image": self.image, "error": str(self.error), "code": type(self.error).__name__}
