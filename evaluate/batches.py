"""A labelled set in batches of decoded, resized images; those that cannot be read are named, up to a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from wgap.datasets import Sample
from wgap.errors import DataError, ImageError
from wgap.images import decode, resize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Batch", "Loaded", "batches"]

Truth = TypeVar("Truth")

Progress = Callable[[Sequence[Any]], Any]
"""Wraps a sequence, for a progress bar."""


@dataclass(frozen=True)
class Loaded(Generic[Truth]):
    """One readable image: place in the split, file, class id, truth, original (H, W) in pixels."""

    index: int
    path: Path
    label: int
    truth: Truth
    size: tuple[int, int]


@dataclass(frozen=True)
class Batch(Generic[Truth]):
    """Some images that follow each other in the split.

    Attributes:
        images: those that could be read.
        pixels: uint8[N, H, W, 3] of them, or None where there are none.
        done: how many images of the split are done with this batch, readable or not.
    """

    images: list[Loaded[Truth]]
    pixels: NDArray[np.uint8] | None
    done: int


def batches(
    samples: Sequence[Sample], labels: Sequence[int], truths: Sequence[Truth], size: tuple[int, int], batch_size: int,
    max_bad: int, skipped: list[tuple[str, str]], progress: Progress, start: int = 0,
) -> Iterator[Batch[Truth]]:  # fmt: skip
    """Decode and resize a split, a batch at a time.

    Args:
        samples: the split.
        labels: bundle class id of each of the set's labels.
        truths: what is known of each sample.
        size: (H, W) to resize to.
        batch_size: images per batch.
        max_bad: how many unreadable images to skip before giving up.
        skipped: receives (path, reason) of each.
        progress: wraps the sequence of batches.
        start: samples that are done already.

    Raises:
        DataError: more than ``max_bad`` images are unreadable.
    """
    import numpy as np

    for first in progress(range(start, len(samples), batch_size)):
        done = min(first + batch_size, len(samples))
        images, pixels = [], []
        for index in range(first, done):
            path = samples[index].path
            try:
                picture = decode(path)
            except ImageError as error:
                skipped.append((str(path), str(error)))
                if len(skipped) > max_bad:
                    raise DataError(
                        f"{len(skipped)} unreadable images, at most {max_bad} allowed; the last: {error}"
                    ) from error
                continue
            height, width = picture.shape[:2]
            images.append(Loaded(index, path, labels[samples[index].label], truths[index], (height, width)))
            pixels.append(resize(picture, *size))
        yield Batch(images, np.stack(pixels) if pixels else None, done)
