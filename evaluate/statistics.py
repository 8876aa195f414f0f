"""What so many timings say: percentiles with bootstrap intervals, when warm-up is over, whether two sets differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from wgap.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LEAST_SAMPLES", "Difference", "Summary", "adjusted", "difference", "interval", "steady", "summary"]

BEYOND = 5
"""A percentile has an interval where so many samples are expected on either side of it."""

WINDOW = 5
"""Rounds whose medians are compared to tell whether warm-up is over."""

BLOCKS, LEAST_BLOCKS, BLOCK = 20, 8, 5
"""At most so many blocks of one run are compared, at least so many, each of at least so many samples."""

LEAST_SAMPLES = LEAST_BLOCKS * BLOCK
"""Samples of each run that a comparison needs."""


@dataclass(frozen=True)
class Summary:
    """Milliseconds of many samples. Intervals are 95 % bootstrap intervals, None where there are too few samples."""

    samples: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    p50_interval_ms: tuple[float, float] | None = None
    p90_interval_ms: tuple[float, float] | None = None
    p99_interval_ms: tuple[float, float] | None = None


def summary(ms: ArrayLike) -> Summary:
    """Percentiles of samples in the order in which they were measured, in milliseconds."""
    import numpy as np

    values = np.asarray(ms, np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    intervals = (interval(values, percent) for percent in (50, 90, 99))
    return Summary(len(values), p50, p90, p99, float(values.mean()), float(values.min()), *intervals)


def interval(
    values: ArrayLike, percent: float, level: float = 0.95, resamples: int = 400
) -> tuple[float, float] | None:
    """Bootstrap interval of a percentile; the same samples always give the same one.

    Neighbours are resampled together (circular blocks of n^(1/3) samples), since a busy machine slows several in a row.

    Returns:
        lower and upper bound, or None where fewer than ``BEYOND`` samples are expected on one side of the percentile.
    """
    import numpy as np

    samples = np.asarray(values, np.float64)
    count = len(samples)
    if count * min(percent, 100 - percent) / 100 < BEYOND:
        return None
    length = ceil(count ** (1 / 3))
    starts = np.random.default_rng(count).integers(0, count, (resamples, ceil(count / length), 1))
    rows = ((starts + np.arange(length)) % count).reshape(resamples, -1)[:, :count]
    estimates = np.percentile(samples[rows], percent, axis=1)
    low, high = np.quantile(estimates, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def steady(ms: Sequence[float], tolerance: float = 0.02) -> bool:
    """Whether warm-up is over: the last rounds took as long as those before them.

    The medians of the last ``WINDOW`` rounds and of as many before may differ by ``tolerance``, or by half the
    quartiles' distance of the last ones where they scatter more than that.
    """
    import numpy as np

    if len(ms) < 2 * WINDOW:
        return False
    before, last = np.asarray(ms[-2 * WINDOW : -WINDOW]), np.asarray(ms[-WINDOW:])
    low, median, high = np.percentile(last, (25, 50, 75))
    return bool(abs(np.median(before) - median) <= max(tolerance * median, (high - low) / 2))


@dataclass(frozen=True)
class Difference:
    """How the second of two sets of samples differs from the first.

    Attributes:
        ratio: the second over the first: of the geometric means of the medians of their blocks.
        interval: 95 % bootstrap interval of the ratio.
        p: probability that two runs of the same thing differ as much (permutation test).
    """

    ratio: float
    interval: tuple[float, float]
    p: float


def difference(first: ArrayLike, second: ArrayLike, resamples: int = 20_000) -> Difference:
    """Compare two sets of samples, each in the order in which it was measured.

    Each is cut into up to ``BLOCKS`` blocks of neighbours, and the medians of the blocks are exchanged between the two
    at random: a permutation test on the difference of their mean logarithms. Blocks, since neighbours are alike.

    Raises:
        DataError: there are fewer than ``LEAST_SAMPLES``, or a time that is not above 0.
    """
    import numpy as np

    sides = [np.asarray(side, np.float64) for side in (first, second)]
    if min(map(len, sides)) < LEAST_SAMPLES:
        raise DataError(
            f"a comparison needs {LEAST_SAMPLES} samples on each side, got {len(sides[0])} and {len(sides[1])}; "
            f"measure with --iterations {LEAST_SAMPLES} or more"
        )
    if not all(np.isfinite(side).all() and (side > 0).all() for side in sides):
        raise DataError("a comparison needs times above 0 ms")
    rng = np.random.default_rng(sum(map(len, sides)))
    a, b = (np.log(_block_medians(side)) for side in sides)
    both = np.concatenate([a, b])
    order = rng.random((resamples, len(both))).argsort(axis=1)
    shuffled = both[order]
    chance = np.abs(shuffled[:, : len(a)].mean(axis=1) - shuffled[:, len(a) :].mean(axis=1))
    p = (1 + int((chance >= abs(a.mean() - b.mean()) - 1e-12).sum())) / (1 + resamples)
    drawn = [side[rng.integers(0, len(side), (2000, len(side)))].mean(axis=1) for side in (a, b)]
    low, high = np.exp(np.quantile(drawn[1] - drawn[0], (0.025, 0.975)))
    return Difference(float(np.exp(b.mean() - a.mean())), (float(low), float(high)), p)


def _block_medians(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    count = min(BLOCKS, len(samples) // BLOCK)
    return np.array([np.median(block) for block in np.array_split(samples, count)])


def adjusted(p: Sequence[float]) -> list[float]:
    """Probabilities adjusted for their number, so that a threshold holds for all of them together (Holm)."""
    order = sorted(range(len(p)), key=p.__getitem__)
    result, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p[index] * (len(p) - rank)))
        result[index] = largest
    return result
