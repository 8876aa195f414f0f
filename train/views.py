"""What the network sees of each image in training: a resized, cropped and perhaps mirrored view.

Every random choice is a function of (seed, variant, sample index) alone, where the variant is the epoch, or the number
of a fixed view. So runs repeat bit for bit whatever the number of workers, and a resumed run needs no generator state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wgap.errors import ImageError
from wgap.images import decode, resize
from wgap.preprocessing import Preprocessing

IGNORED = -100
"""Label of a place in a batch that holds no image: unreadable, or padding of the last batch of an epoch."""

AUGMENTATION_VERSION = 1
"""Part of the frozen cache's key; raise it when a view's pixels change."""

ENLARGEMENT = 256 / 224
"""Side of the resized image over the side of the crop."""

_ORDER, _CROP = 1, 2  # separate random streams of one seed


class Draw(NamedTuple):
    """One view of one sample. ``sample`` -1 is padding; ``variant`` -1 the plain view of evaluation (no crop)."""

    sample: int
    variant: int


class Item(NamedTuple):
    """One place of a batch.

    Attributes:
        inputs: uint8[S, S, 3] RGB pixels, or float32[C, h, w] outputs of the frozen part; zeros without an image.
        label: class index, or ``IGNORED``.
        sample: index of the sample; -1 for padding.
        error: why there is no image, if it could not be read.
    """

    inputs: Tensor
    label: int
    sample: int
    error: str | None


class Batch(NamedTuple):
    """Items stacked: inputs, int64[N] labels, and (sample, error text) of those that could not be read."""

    inputs: Tensor
    labels: Tensor
    errors: list[tuple[int, str]]


def crop_and_flip(seed: int, draw: Draw, room: int) -> tuple[int, int, bool]:
    """Top, left (0..room inclusive) and whether to mirror."""
    random = np.random.default_rng([_CROP, seed, draw.variant, draw.sample])
    top, left, flip = random.integers(0, [room + 1, room + 1, 2])
    return int(top), int(left), bool(flip)


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """int64[count]: the order of an epoch's samples."""
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(count)


class EpochBatches:
    """The batches of one epoch for one of ``world`` processes, as lists of draws.

    Each global batch of ``batch_size`` is dealt out in turn; the last is padded so that all ranks get the same count.
    """

    def __init__(self, samples: int, views: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.samples, self.views, self.batch_size, self.seed = samples, views, batch_size, seed
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return math.ceil(self.samples * max(self.views, 1) / self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = epoch_order(self.seed, self.epoch, self.samples * max(self.views, 1)).tolist()
        for start in range(0, len(order), self.batch_size):
            batch = [self._draw(i) for i in order[start : start + self.batch_size]]
            batch += [Draw(-1, 0)] * (-len(batch) % self.world)
            yield batch[self.rank :: self.world]

    def _draw(self, i: int) -> Draw:
        return Draw(i // self.views, i % self.views) if self.views else Draw(i, self.epoch)


class PlainBatches:
    """Every sample once, unaugmented and in order, dealt out to ``world`` processes."""

    def __init__(self, samples: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.mine = range(rank, samples, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.mine) / self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for start in range(0, len(self.mine), self.batch_size):
            yield [Draw(i, -1) for i in self.mine[start : start + self.batch_size]]


class Views(torch.utils.data.Dataset[Item]):
    """Views of image files, indexed by :class:`Draw`.

    Args:
        paths: image files.
        labels: class index of each.
        input_size: side S of a view.
        seed: of crops and mirroring.
        keep_bytes: resized images are kept in memory up to this many bytes (in each worker).
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], input_size: int, seed: int, keep_bytes: int = 1 << 29
    ) -> None:
        self.paths, self.labels, self.input_size, self.seed = paths, labels, input_size, seed
        self.resized_size = round(input_size * ENLARGEMENT)
        self._kept: dict[tuple[int, int], NDArray[np.uint8] | str] = {}
        self._room = keep_bytes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> Item:
        size = self.input_size
        blank = torch.zeros((size, size, 3), dtype=torch.uint8)
        if draw.sample < 0:
            return Item(blank, IGNORED, -1, None)
        plain = draw.variant < 0
        image = self._resized(draw.sample, size if plain else self.resized_size)
        if isinstance(image, str):
            return Item(blank, IGNORED, draw.sample, image)
        if not plain:
            top, left, flip = crop_and_flip(self.seed, draw, self.resized_size - size)
            image = image[top : top + size, left : left + size]
            image = image[:, ::-1] if flip else image
        return Item(torch.from_numpy(np.ascontiguousarray(image)), self.labels[draw.sample], draw.sample, None)

    def _resized(self, sample: int, side: int) -> NDArray[np.uint8] | str:
        """The whole image at side x side, or the text of the error that it gave."""
        if (kept := self._kept.get((sample, side))) is not None:
            return kept
        image: NDArray[np.uint8] | str
        try:
            image = resize(decode(self.paths[sample]), side, side)
        except ImageError as error:
            image = str(error)
        size = len(image) if isinstance(image, str) else image.nbytes
        if size <= self._room:
            self._room -= size
            self._kept[sample, side] = image
        return image


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into a batch."""
    return Batch(
        torch.stack([item.inputs for item in items]),
        torch.tensor([item.label for item in items]),
        [(item.sample, item.error) for item in items if item.error is not None],
    )


def normalise(pixels: Tensor, how: Preprocessing) -> Tensor:
    """uint8[N, H, W, 3] RGB to float32[N, 3, H, W], as the weights expect; on the pixels' device."""
    x = pixels.float().permute(0, 3, 1, 2)  # in this order: TensorRT transposes no bytes
    if how.channel_order == "bgr":
        x = torch.index_select(x, 1, torch.tensor((2, 1, 0), device=x.device)).to(memory_format=torch.channels_last)
    mean = torch.tensor(how.mean, device=x.device).reshape(3, 1, 1)
    x = x * how.scale - mean
    if all(value == 1 for value in how.std):
        return x
    return x / torch.tensor(how.std, device=x.device).reshape(3, 1, 1)
