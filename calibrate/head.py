"""The foreground head: two linear scores of the network's cells, object or ground, fitted without a box.

The cells of every picture are labelled by their map, a Fisher discriminant of the features relabels them by its own
sign, and GrabCut on what that finds labels the cells of twice the resolution for a second one; where those are still
coarse, GrabCut on the sum of both labels the cells of four times the resolution for a third. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wgap.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Labels = NDArray[np.bool_]

__all__ = ["RIDGE", "ROUNDS", "Discriminant", "Fit", "fit_head", "upsampled"]

RIDGE = 0.3
"""Of the mean variance, added to the covariance's diagonal where there are fewer pictures than channels; with more, as
much less: a covariance that more pictures have measured needs less help (docs/decisions/081)."""

ROUNDS = 4
"""Fits on the features, each relabelling the cells for the next."""

GRABCUT = 4
"""GrabCut works at so many times the finer grid."""

CHUNK = 1 << 16
"""Cells whose products are taken at once."""


@dataclass(frozen=True)
class Discriminant:
    """A linear score ``weight . x + bias``, above 0 on the object, of standard deviation 1 over the cells.

    Attributes:
        weight: float64[C].
        bias: float64.
        separation: distance of the two labels' mean scores, in units of the scores' standard deviation within a label.
    """

    weight: Floats
    bias: float
    separation: float


@dataclass(frozen=True)
class Fit:
    """A fitted head.

    Attributes:
        coarse: of the features.
        fine: of each finer activation; none where the network has none.
        scores: per picture float64[h, w], the coarse scores.
        agreement: share of the first finer cells where the coarse score's sign is GrabCut's label; None without those.
    """

    coarse: Discriminant
    fine: tuple[Discriminant, ...]
    scores: tuple[Floats, ...]
    agreement: float | None

    def tensors(self) -> dict[str, Any]:
        """``A.weight`` float32[C], ``A.bias`` float32[1], and ``B`` and ``C`` likewise."""
        import numpy as np

        tensors = {}
        for name, one in zip("ABC", (self.coarse, *self.fine), strict=False):
            tensors[f"{name}.weight"] = one.weight.astype(np.float32)
            tensors[f"{name}.bias"] = np.array([one.bias], np.float32)
        return tensors


def fit_head(
    pictures: Sequence[NDArray[np.uint8]],
    coarse: Floats,
    fine: Sequence[Floats],
    class_weights: Floats,
    progress: Callable[[Sequence[Any], str], Iterable[Any]] = lambda items, _: items,
) -> Fit:
    """Fit the scores of every resolution.

    Args:
        pictures: uint8[H, W, 3] RGB each, as the network sees them.
        coarse: float32[N, C, h, w], the features; a memory map will do.
        fine: float32[N, D, 2h, 2w], the activation of twice their resolution, then that of four times, where they are.
        class_weights: float32[N, C], of the map that labels each picture's cells first: of a class |W[k]|.
        progress: wraps lists that take a while.

    Raises:
        CalibrationError: all cells would carry one label.
    """
    import numpy as np

    count, _, height, width = coarse.shape
    maps = np.stack([np.einsum("c,chw->hw", w, f) for w, f in zip(class_weights, coarse, strict=True)])
    labels = (maps > maps.mean(axis=(1, 2), keepdims=True)).reshape(count, -1)
    cells = _Cells(coarse, progress)
    for _ in range(ROUNDS):
        found = cells.discriminant(labels)
        scores = cells.scores(found)
        labels = scores > 0
    grids = tuple(scores.reshape(count, height, width))
    finer, agreement, sums = [], None, list(grids)
    for activation in fine:
        size = activation.shape[2:]
        with _one_opencv_thread():
            cut = [
                _grabcut(picture, grid, size)
                for picture, grid in progress(list(zip(pictures, sums, strict=True)), "cutting")
            ]
        drawn, sums = np.stack(cut).reshape(count, -1), [upsampled(grid, size) for grid in sums]
        if agreement is None:
            agreement = float((drawn == (np.stack(sums) > 0).reshape(count, -1)).mean())
        cells = _Cells(activation, progress)
        finer.append(cells.discriminant(drawn))
        sums = [grid + own.reshape(size) for grid, own in zip(sums, cells.scores(finer[-1]), strict=True)]
    return Fit(found, tuple(finer), grids, agreement)


class _Cells:
    """Cells of float32[N, C, h, w], whose scatter is summed once: fits differ in their labels alone."""

    def __init__(self, activation: Floats, progress: Callable[[Sequence[Any], str], Iterable[Any]]) -> None:
        import numpy as np

        self._activation = activation
        count, channels, height, width = activation.shape
        self._cells, self._step = count * height * width, max(1, CHUNK // (height * width))
        self._mean = np.zeros(channels)
        self._scatter = np.zeros((channels, channels))
        self._total = progress
        for _, cells in self._chunks():
            self._mean += cells.sum(axis=0)
        self._mean /= self._cells
        for start in progress(range(0, count, self._step), "measuring cells"):
            centred = self._chunk(start) - self._mean
            self._scatter += centred.T @ centred

    def _chunk(self, start: int) -> Floats:
        """float64[cells, C] of some pictures."""
        import numpy as np

        part = np.asarray(self._activation[start : start + self._step], np.float64)
        return np.ascontiguousarray(part.transpose(0, 2, 3, 1)).reshape(-1, part.shape[1])

    def _chunks(self) -> Iterator[tuple[slice, Floats]]:
        for start in range(0, len(self._activation), self._step):
            yield slice(start, start + self._step), self._chunk(start)

    def discriminant(self, labels: Labels) -> Discriminant:
        """Fisher's, with equal priors, of cells labelled bool[N, cells]."""
        import numpy as np

        inside = int(labels.sum())
        if not 0 < inside < self._cells:
            raise CalibrationError(
                f"all {self._cells} cells of the calibration pictures would be {'object' if inside else 'ground'}: "
                "there is nothing to tell apart. Give pictures that show objects and some ground"
            )
        total = np.zeros(len(self._mean))
        for rows, cells in self._chunks():
            total += labels[rows].reshape(-1).astype(np.float64) @ cells
        ours = total / inside
        theirs = (self._mean * self._cells - total) / (self._cells - inside)
        between = inside * np.outer(ours - self._mean, ours - self._mean)
        between += (self._cells - inside) * np.outer(theirs - self._mean, theirs - self._mean)
        within = (self._scatter - between) / self._cells
        ridge = RIDGE * min(1.0, len(within) / len(self._activation)) * np.trace(within) / len(within)
        if not ridge > 0:
            raise CalibrationError("the calibration pictures' cells are all alike; give pictures that show objects")
        weight = np.linalg.solve(within + ridge * np.eye(len(within)), ours - theirs)
        bias = -float(weight @ (ours + theirs)) / 2
        spread = float(np.sqrt(weight @ self._scatter @ weight / self._cells))
        apart = float(weight @ (ours - theirs)) / max(float(np.sqrt(weight @ within @ weight)), 1e-30)
        return Discriminant(weight / spread, bias / spread, apart)

    def scores(self, found: Discriminant) -> Floats:
        """float64[N, cells]."""
        import numpy as np

        scores = [cells @ found.weight + found.bias for _, cells in self._chunks()]
        return np.concatenate(scores).reshape(len(self._activation), -1)


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """The same cut whatever the machine: GrabCut's clusters begin from OpenCV's own random numbers."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def upsampled(grid: Floats, size: tuple[int, ...]) -> NDArray[np.float32]:
    """float32[h', w'] of float[h, w], bilinear, half-pixel centres."""
    import cv2
    import numpy as np

    larger: Any = cv2.resize(grid.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(larger, np.float32)


def _grabcut(picture: NDArray[np.uint8], grid: Floats, size: tuple[int, ...]) -> Labels:
    """bool[h, w] of that size: which cells GrabCut takes for the object, from the coarse scores of one picture.

    Where the scores leave it nothing to compare, or it finds nothing, the scores' own sign.
    """
    import cv2
    import numpy as np

    sign = upsampled(grid, size) > 0
    score = upsampled(grid, (GRABCUT * size[0], GRABCUT * size[1]))
    inside = score > 0
    if inside.all() or not inside.any():
        return sign
    mask = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[inside & (score > score[inside].mean())] = cv2.GC_FGD
    mask[~inside & (score < score[~inside].mean())] = cv2.GC_BGD
    shrunk: Any = cv2.resize(picture, score.shape[::-1], interpolation=cv2.INTER_AREA)
    ground, objects = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    try:
        cut: Any = cv2.grabCut
        cut(np.ascontiguousarray(shrunk[..., ::-1]), mask, None, ground, objects, 1, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few cells of one kind for its five clusters
        return sign
    drawn = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(drawn, connectivity=8)
    if count < 2:
        return sign
    largest = (parts == 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())).astype(np.float32)
    share: Any = cv2.resize(largest, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(share > 0.5)
