"""PxAP: the area under the curve of pixel precision over recall, pooled over all images of a set with masks.

Choe et al. (CVPR 2020), Sec. 4.2: a pixel is object where the score map reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.errors import DataError
from wgap.evaluate.counts import Counts, Scored
from wgap.evaluate.intervals import REPLICATES, percentiles, poisson_weights
from wgap.images import decode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.datasets.dataset import Masks

__all__ = ["IGNORED", "PixelPrecision", "average_precision", "read_mask"]

IGNORED = 255
"""Value of a mask's pixels that do not count."""


def read_mask(masks: Masks, original: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image's masks on the (H, W) map, uint8[H, W]: 1 in any object, 0 on the ground, 255 where only the ignored is.

    Each file is resized to the map by its nearest pixels and is object where it is not black.

    Args:
        masks: the files.
        original: (H, W) of the image; a mask has its proportions.
        size: (H, W) of the map.

    Raises:
        ImageError: a file is missing or damaged.
        DataError: a mask's proportions are not the image's.
    """
    import numpy as np

    mask = np.zeros(size, np.uint8)
    if masks.ignored is not None:
        mask[_white(masks.ignored, original, size)] = IGNORED
    for path in masks.objects:
        mask[_white(path, original, size)] = 1
    return mask


def _white(path: Path, original: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    import cv2

    grey = cv2.cvtColor(decode(path), cv2.COLOR_RGB2GRAY)
    (height, width), (image_height, image_width) = grey.shape, original
    smallest = min(height, width, image_height, image_width)
    if abs(width * image_height / (height * image_width) - 1) > 1 / smallest:  # what rounding makes of a scaled mask
        raise DataError(
            f"{path}: expected a mask in the proportions of its image, {image_width} x {image_height}, "
            f"got {width} x {height}"
        )
    white: NDArray[np.bool_] = cv2.resize(grey, size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return white


def average_precision(histograms: NDArray[np.integer]) -> NDArray[np.float64]:
    """Area under the curve, [...], of histograms [..., 2, B] of the scores of object and ground, lowest bin first.

    NaN where there is no pixel of an object.
    """
    import numpy as np

    found = histograms[..., ::-1].cumsum(axis=-1).astype(np.float64)  # from the highest threshold on
    objects, marked = found[..., 0, :], found.sum(axis=-2)
    precision = objects / np.maximum(marked, 1)
    with np.errstate(invalid="ignore"):
        recall = objects / objects[..., -1:]
    area: NDArray[np.float64] = (precision[..., 1:] * np.diff(recall, axis=-1)).sum(axis=-1)
    return area


class PixelPrecision(Counts):
    """Pixels of score maps against masks, in histograms of the thresholds' steps.

    Args:
        classes: how many there are.
        thresholds: float64[T].
    """

    reads = "masks"

    def __init__(self, classes: int, thresholds: NDArray[np.float64]) -> None:
        import numpy as np

        self.thresholds = thresholds
        self._edges = np.append(thresholds, [1.0, 2.0, 3.0])
        bins = len(self._edges) - 1
        self.arrays = {
            "images": np.zeros(classes, np.int64),
            "pixels": np.zeros((classes, 2, bins), np.int64),  # class; object, ground; bin
            "drawn": np.zeros((REPLICATES, 2, bins), np.int64),
        }

    def add(self, images: Sequence[Scored]) -> None:
        """See :meth:`Counts.add`."""
        import numpy as np

        found = []
        for image in images:
            pixels = np.stack(
                [np.histogram(image.scores[image.mask == value], bins=self._edges)[0] for value in (1, 0)]
            )
            self.arrays["images"][image.label] += 1
            self.arrays["pixels"][image.label] += pixels
            found.append(pixels.ravel())
        weights = poisson_weights(image.index for image in images)
        drawn = weights @ np.array(found, np.float64)
        self.arrays["drawn"] += drawn.astype(np.int64).reshape(self.arrays["drawn"].shape)

    def report(self, classes: Sequence[str]) -> dict[str, Any]:
        """Everything that was counted, as fractions.

        Raises:
            DataError: no mask has a pixel of an object.
        """
        import numpy as np

        pixels = self.arrays["pixels"]
        if not pixels[:, 0].any():
            raise DataError("expected a pixel of an object in at least one mask, found none: PxAP has no recall then")
        by_class = average_precision(pixels)
        return {
            "pxap": float(average_precision(pixels.sum(axis=0))),
            "confidence_95": {"pxap": percentiles(average_precision(self.arrays["drawn"]))},
            "per_class": [
                {"class": name, "images": int(count), "pxap": None if np.isnan(value) else float(value)}
                for name, count, value in zip(classes, self.arrays["images"], by_class, strict=True)
            ],
        }
