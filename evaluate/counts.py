"""What a protocol keeps of the images it has seen: whole numbers, which add up, and never an image."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from wgap.atomic import atomic_file
from wgap.errors import DataError, OutputExistsError
from wgap.geometry import Box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Counts", "Scored", "StateFile"]

_KEY = "wgap.evaluate"
_VERSION = 1


@dataclass(frozen=True)
class Scored:
    """One image as a protocol judges it.

    Attributes:
        path: its file.
        index: its place in the split.
        label: its class id.
        rank: how many classes have a higher logit than the label, or the same and a lower id; 0 is top-1.
        scores: float64[H, W] in [0, 1], the map of the label's class, min-max normalised.
        size: its original (H, W) in pixels.
        truth: its true boxes, half-open, in original pixels; none where it has masks.
        mask: uint8[H, W], 1 on the object, 0 on the ground and 255 where pixels do not count; None where it has boxes.
    """

    path: Path
    index: int
    label: int
    rank: int
    scores: NDArray[np.float64]
    size: tuple[int, int]
    truth: list[Box]
    mask: NDArray[np.uint8] | None = None


class Counts(ABC):
    """Counts of one protocol over any part of a set. Those of two parts add up to those of both.

    Attributes:
        thresholds: float64[T], where score maps are cut.
        arrays: the counts by name, ``images`` int64[K], by class, among them.
    """

    reads: ClassVar[str]
    """What of the truth it reads: ``boxes`` or ``masks``."""

    thresholds: NDArray[np.float64]
    arrays: dict[str, NDArray[Any]]

    @abstractmethod
    def add(self, images: Sequence[Scored]) -> None:
        """Count some images.

        Raises:
            DataError: a true box lies outside its image.
        """

    def merge(self, other: Counts) -> None:
        """Count the images that another, under the same thresholds and classes, has counted."""
        for name, counted in other.arrays.items():
            self.arrays[name] += counted


class StateFile:
    """Counts on the disk, so that a run that was ended goes on where they were last written.

    Args:
        path: the file, in the format of safetensors; written whole or not at all.
        identity: what the counts depend on, by the words a message names it with.
        resume: whether to go on from what is there.
        force: whether to replace it.

    Raises:
        OutputExistsError: it is there, and neither was asked for.
    """

    def __init__(self, path: Path, identity: dict[str, str], resume: bool = False, force: bool = False) -> None:
        self.path, self._identity, self._resume = path, identity, resume
        if path.exists() and not resume and not force:
            raise OutputExistsError(
                f"{path} holds the counts of a run that was ended; pass --resume to go on from them, or --force to "
                "begin anew"
            )

    def load(self, counts: Counts) -> tuple[int, list[tuple[str, str]]]:
        """Fill counts with what was written.

        Returns:
            how many images of the split are done, and (path, reason) of those that could not be read; 0 and none where
            there is nothing to go on from.

        Raises:
            DataError: the file is damaged, or was written under another identity; the message names what differs.
        """
        from safetensors import SafetensorError, safe_open

        if not self._resume or not self.path.exists():
            return 0, []
        damaged = f"{self.path}: expected the counts of a run to resume; "
        again = "remove it, or pass --force in place of --resume to begin anew"
        try:
            with safe_open(self.path, framework="numpy") as file:
                header = json.loads((file.metadata() or {})[_KEY])
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            version, stored = header["version"], header["identity"]
            done, skipped = int(header["done"]), [(str(path), str(why)) for path, why in header["skipped"]]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{damaged}it cannot be read ({error}); {again}") from error
        if version != _VERSION:
            raise DataError(f"{damaged}it is of version {version}, this is {_VERSION}; {again}")
        for name, given in self._identity.items():
            if stored.get(name) != given:
                raise DataError(f"{self.path} was counted with {name} {stored.get(name)}, not {given}; {again}")
        shapes = {name: (array.dtype, array.shape) for name, array in counts.arrays.items()}
        if {name: (array.dtype, array.shape) for name, array in found.items()} != shapes:
            raise DataError(f"{damaged}its arrays are of other shapes; {again}")
        if int(found["images"].sum()) + len(skipped) != done:
            raise DataError(f"{damaged}it holds other than {done} images; {again}")
        for name, array in counts.arrays.items():
            array[...] = found[name]
        return done, skipped

    def save(self, counts: Counts, done: int, skipped: Sequence[tuple[str, str]]) -> None:
        """Write what was counted of the first ``done`` images of the split."""
        from safetensors.numpy import save_file

        header = {"version": _VERSION, "identity": self._identity, "done": done, "skipped": list(skipped)}
        with atomic_file(self.path) as temporary:
            save_file(counts.arrays, temporary, {_KEY: json.dumps(header)})
