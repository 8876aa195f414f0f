"""The frozen stages' outputs on disk, so that fine-tuning the rest pays for them once.

A cache folder is named by everything its contents depend on: the frozen weights, the images' bytes, the views and
their seed, the input size, the preprocessing, the arithmetic. It appears under that name by one rename after it is
complete, and every row carries a checksum that is compared when it is read. So a stale, half-written or damaged cache
is never used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wgap.atomic import atomic_dir
from wgap.errors import DataError
from wgap.preprocessing import Preprocessing
from wgap.train.model import WgapNetwork
from wgap.train.views import AUGMENTATION_VERSION, IGNORED, Draw, Item, Views, collate, normalise

CACHE_FORMAT = 1

CHUNK = 16
"""Images per pass through the frozen stages. Always this many (padded), since libraries choose kernels by batch size
and another kernel may round differently; a cached run and an uncached one then agree to the bit."""


@torch.no_grad()
def frozen_outputs(model: WgapNetwork, x: Tensor, end: int) -> Tensor:
    """float32[N, C, h, w] after layer ``end`` (exclusive) of normalised images float32[N, 3, H, W], in fixed chunks."""
    outputs = []
    for chunk in torch.split(x, CHUNK):
        padded = torch.cat([chunk, chunk.new_zeros((CHUNK - len(chunk), *chunk.shape[1:]))])
        outputs.append(model.run_blocks(padded, 0, end)[: len(chunk)].float())
    # The memory order of rows that come from the cache: the trained layers choose their kernels by it.
    return torch.cat(outputs).contiguous()


@dataclass(frozen=True)
class FrozenPart:
    """What computes frozen outputs: network, end of its frozen part, preprocessing, device and precision."""

    model: WgapNetwork
    end: int
    preprocessing: Preprocessing
    device: torch.device
    precision: str
    autocast: Callable[[], AbstractContextManager[None]]

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 outputs on the device, of uint8[N, S, S, 3] RGB pixels."""
        with self.autocast():
            return frozen_outputs(self.model, normalise(pixels.to(self.device), self.preprocessing), self.end)


def cache_key(part: FrozenPart, views: Views, variants: Sequence[int]) -> str:
    """Hexadecimal name of the cache: a hash of everything its contents depend on."""
    weights = hashlib.sha256()
    for name, value in nn.Sequential(*part.model.layers[: part.end]).state_dict().items():
        weights.update(f"{name} {tuple(value.shape)}".encode() + value.detach().cpu().numpy().tobytes())
    images = hashlib.sha256()
    for path in views.paths:
        images.update(_file_digest(path))
    facts = {
        "format": CACHE_FORMAT,
        "augmentation": AUGMENTATION_VERSION,
        "weights": weights.hexdigest(),
        "end": part.end,
        "stride": part.model.stride,
        "images": images.hexdigest(),
        "variants": list(variants),
        "seed": views.seed if any(v >= 0 for v in variants) else None,
        "input_size": views.input_size,
        "preprocessing": part.preprocessing.name,
        "device": part.device.type,
        "precision": part.precision,
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        # Unreadable is a content too: the cache records the same image as bad.
        return f"unreadable: {error.strerror}".encode()


class FrozenCache(torch.utils.data.Dataset[Item]):
    """Frozen outputs of views, indexed by :class:`~wgap.train.views.Draw`, memory-mapped.

    Args:
        folder: a complete cache.
        labels: class index of each sample.
        variants: the views that it holds, in its row order.

    Raises:
        DataError: if the folder is not a cache of that many rows.
    """

    def __init__(self, folder: Path, labels: Sequence[int], variants: Sequence[int]) -> None:
        self.folder, self.labels = folder, labels
        self._column = {variant: i for i, variant in enumerate(variants)}
        try:
            self._rows = np.load(folder / "outputs.npy", mmap_mode="r")
            self._sums = np.load(folder / "checksums.npy")
            errors = json.loads((folder / "errors.json").read_text())
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{folder}: damaged frozen cache ({error}); delete it and run again") from error
        if len(self._rows) != len(self._sums) or len(self._rows) != len(labels) * len(variants):
            raise DataError(f"{folder}: damaged frozen cache ({len(self._rows)} rows); delete it and run again")
        self.errors = {int(sample): str(text) for sample, text in errors}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> Item:
        if draw.sample < 0 or draw.sample in self.errors:
            blank = torch.zeros(self._rows.shape[1:])
            return Item(blank, IGNORED, draw.sample, self.errors.get(draw.sample))
        row = draw.sample * len(self._column) + self._column[draw.variant]
        values = np.array(self._rows[row])
        if zlib.crc32(values.tobytes()) != self._sums[row]:
            raise DataError(f"{self.folder}: damaged frozen cache (row {row}); delete it and run again")
        return Item(torch.from_numpy(values), self.labels[draw.sample], draw.sample, None)


def open_cache(
    part: FrozenPart,
    views: Views,
    variants: Sequence[int],
    folder: Path,
    *,
    workers: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
    note_error: Callable[[int, str], None] = lambda sample, text: None,
) -> FrozenCache:
    """The cache of these views in ``folder``, computed first if it is not there.

    Args:
        part: the frozen computation.
        views: the images.
        variants: numbers of the fixed views; ``[-1]`` for evaluation's plain view.
        folder: parent of all caches.
        workers: processes that decode images.
        advance: called with (rows done, rows in all).
        note_error: called with each unreadable sample and why; may raise to give up.

    Raises:
        DataError: if the disk is too small, or the cache is damaged.
    """
    target = folder / cache_key(part, views, variants)
    if not target.exists():
        with atomic_dir(target) as temporary:
            _compute(part, views, variants, temporary, workers, advance, note_error)
    cache = FrozenCache(target, views.labels, variants)
    for sample, text in cache.errors.items():
        note_error(sample, text)
    return cache


def _compute(
    part: FrozenPart,
    views: Views,
    variants: Sequence[int],
    folder: Path,
    workers: int,
    advance: Callable[[int, int], None],
    note_error: Callable[[int, str], None],
) -> None:
    draws = [Draw(sample, variant) for sample in range(len(views)) for variant in variants]
    blank = torch.zeros((1, views.input_size, views.input_size, 3), dtype=torch.uint8)
    shape = (len(draws), *part(blank).shape[1:])
    needed, free = 4 * int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder.parent}: the frozen cache needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            "choose another place with --cache-dir, fewer views, or --no-cache"
        )
    rows = np.lib.format.open_memmap(folder / "outputs.npy", mode="w+", dtype=np.float32, shape=shape)
    sums: NDArray[np.uint32] = np.zeros(len(draws), dtype=np.uint32)
    errors: dict[int, str] = {}
    loader = DataLoader(
        views,
        batch_sampler=[draws[i : i + CHUNK] for i in range(0, len(draws), CHUNK)],
        collate_fn=collate,
        num_workers=workers,
    )
    done = 0
    for batch in loader:
        for sample, text in batch.errors:
            if sample not in errors:
                note_error(sample, text)
            errors[sample] = text
        outputs = part(batch.inputs).cpu().numpy()
        for output in outputs:
            rows[done] = output
            sums[done] = zlib.crc32(output.tobytes())
            done += 1
        advance(done, len(draws))
    rows.flush()
    np.save(folder / "checksums.npy", sums)
    (folder / "errors.json").write_text(json.dumps(sorted(errors.items())))
