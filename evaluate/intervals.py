"""Confidence intervals from counts: of a share, and, by Poisson bootstrap, of what no single share is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "REPLICATES", "percentiles", "poisson_weights", "wilson"]

CONFIDENCE = 0.95

REPLICATES = 1000
"""Of the bootstrap."""

_Z = 1.959963984540054
"""The normal distribution's 97.5th percentile."""


def wilson(hits: int, count: int) -> list[float]:
    """Lower and upper end of Wilson's 95 % interval of a share ``hits / count``."""
    share, z2 = hits / count, _Z * _Z / count
    centre = (share + z2 / 2) / (1 + z2)
    reach = _Z / (1 + z2) * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    return [max(0.0, centre - reach), min(1.0, centre + reach)]


def poisson_weights(indices: Iterable[int]) -> NDArray[np.float64]:
    """How often each replicate draws each image, float64[REPLICATES, N] of whole numbers, Poisson with mean 1.

    A function of the image's index in its split: neither batches nor a resumed run change it.
    """
    import numpy as np

    terms = [math.exp(-1) / math.factorial(n) for n in range(20)]
    draws = [np.random.Philox(key=index).random_raw(REPLICATES) for index in indices]
    counts = np.searchsorted(np.cumsum(terms), np.array(draws).T * 2.0**-64, side="right")
    weights: NDArray[np.float64] = counts.astype(np.float64)
    return weights


def percentiles(values: NDArray[np.float64]) -> list[float]:
    """Lower and upper end of the 95 % interval of replicates; those that have no value are NaN and left out."""
    import numpy as np

    return [float(value) for value in np.nanpercentile(values, [2.5, 97.5])]
