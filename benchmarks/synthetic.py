"""Feature maps like VGG16's, for benchmarks that need no network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def synthetic(images: int, channels: int, side: int, classes: int) -> tuple[Array, Array, Array]:
    """Features, logits and classifier weights as benchmarks/postprocess.py describes them, from a fixed seed."""
    rng = np.random.default_rng(20220527)
    ys, xs = np.mgrid[0:side, 0:side].astype(np.float32)
    features = np.empty((images, channels, side, side), np.float32)
    for image in features:
        centre = rng.uniform(0.3, 0.7, 2) * side
        for channel in image:
            y, x = rng.normal(centre, side / 7) if rng.random() < 0.7 else rng.uniform(0, side, 2)
            bump = np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * rng.uniform(0.6, 2.2) ** 2))
            channel[:] = np.maximum(rng.gamma(1.0, 150.0) * bump - rng.gamma(2.0, 8.0), 0)
    weight = (rng.standard_normal((classes, channels)) * 0.02).astype(np.float32)
    logits = (features.mean(axis=(2, 3)) @ weight.T).astype(np.float32)
    return features, logits, weight
