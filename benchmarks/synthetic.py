"""Feature maps like VGG16's, for benchmarks that need no network, and arrays on a GPU that need no other library."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wgap.runtime.cuda.driver import LEGACY, Context, Memory, call

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


def synthetic_scores(images: int, side: int) -> tuple[Array, NDArray[np.uint8]]:
    """Score maps float32[N, 1, side / 8, side / 8], above 0 on one blob, and pictures uint8[N, side, side, 3] of it."""
    rng = np.random.default_rng(20220528)
    ys, xs = np.mgrid[0:side, 0:side] / side
    coarse = np.mgrid[4:side:8, 4:side:8] / side
    scores = np.empty((images, 1, side // 8, side // 8), np.float32)
    pictures = np.empty((images, side, side, 3), np.uint8)
    for n in range(images):
        y, x = rng.uniform(0.35, 0.65, 2)
        distance = np.hypot(coarse[0] - y, coarse[1] - x)
        scores[n, 0] = 3 * np.exp(-3.5 * distance) - 1.3 + rng.normal(0, 0.15, distance.shape)
        bright = np.where(np.hypot(ys - y, xs - x) < 0.25, 150, 60)[..., None] + 20 * np.arange(3) + 25 * xs[..., None]
        pictures[n] = (bright + rng.normal(0, 6, bright.shape)).clip(0, 255)
    return scores, pictures


class DeviceCopy:
    """A copy of a host array in the GPU's memory, offered as PyTorch, CuPy and PyCUDA offer theirs.

    Takes what :meth:`wgap.Localizer.batch` or the kernel take, where no such library is at hand; ``with`` frees it.

    Args:
        array: a NumPy array.
        stream: the stream that readers have to wait for, 1 for the legacy default stream; None where for none.
        device: ordinal of the GPU.

    Raises:
        BackendError: if there is no device, or no room on it.
    """

    def __init__(self, array: NDArray[Any], stream: int | None = LEGACY, device: int = 0) -> None:
        array = np.ascontiguousarray(array)
        self.shape, self.context = array.shape, Context(device)
        with self.context:
            self._memory = Memory(self.context, array.nbytes)
            call("cuMemcpyHtoD", self._memory.pointer, array.ctypes.data, array.nbytes)
            call("cuStreamSynchronize", LEGACY)  # a copy from pageable memory may return before it has arrived
        self.pointer = self._memory.pointer
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "stream": stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.context.device  # kDLCUDA

    def __enter__(self) -> DeviceCopy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free it; nothing may be reading it."""
        with self.context:
            self._memory.close()
        self.context.close()
