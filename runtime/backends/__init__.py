"""Inference backends: resized bytes in, logits and feature maps out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from wgap.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.bundle import Bundle
    from wgap._native import BoxRecord
    from wgap.runtime.cuda.postprocess import Options

__all__ = ["BACKENDS", "Backend", "DeviceBackend", "open_backend"]

BACKENDS = {
    "onnxruntime": "wgap.runtime.backends.onnxruntime:open_bundle",
    "onnxruntime_cuda": "wgap.runtime.backends.onnxruntime_gpu:open_cuda",
    "onnxruntime_tensorrt": "wgap.runtime.backends.onnxruntime_gpu:open_tensorrt",
    "tensorrt": "wgap.runtime.backends.tensorrt:open_bundle",
    "tensorrt_rtx": "wgap.runtime.backends.tensorrt:open_rtx",
}
"""Name of each backend, and the module and function that make it; modules load on first use."""


class Backend(Protocol):
    """The forward pass of one bundle. Implementations are safe to call from several threads at once."""

    name: str
    """As in ``BACKENDS``."""

    precision: str
    """``fp32``, ``fp16``, ``bf16`` or ``int8``: the file that was opened."""

    version: str
    """Version of the library underneath."""

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Forward one batch.

        Args:
            images: uint8[N, H, W, 3] RGB at the input size of the bundle, C-contiguous, N >= 1.

        Returns:
            logits float32[N, K] and features float32[N, C, h, w], C-contiguous, owned by the caller.

        Raises:
            BackendError: if the library fails to run the model.
        """
        ...


@runtime_checkable
class DeviceBackend(Backend, Protocol):
    """A backend on a GPU: the kernel runs behind the network on the device, and only its records come back."""

    def records(self, images: Any, options: Options, stream: int | None = None) -> list[list[BoxRecord]]:
        """Forward and localize a batch uint8[N, H, W, 3] in host memory or on the GPU; one list of records an image.

        Raises:
            FeatureError: an image's features or logits are not finite; its index is named.
            BackendError: the library or the device failed.
        """
        ...

    def close(self) -> None:
        """Free everything on the device; no call may be under way."""
        ...


def open_backend(
    name: str, bundle: Bundle, precision: str = "fp32", threads: int | None = None, ungated: bool = False
) -> Backend:
    """The backend of that name over a bundle.

    Args:
        name: a key of ``BACKENDS``.
        bundle: an opened bundle.
        precision: which of the bundle's model files to run.
        threads: threads of one forward pass; None leaves the choice to the library (all cores).
        ungated: run a lower-precision file even if its gate failed or never ran.

    Raises:
        BackendError: if the name is unknown or the library refuses the model.
        GateError: if the file's gate failed or never ran, unless ``ungated``.
        BundleError: if the bundle has no such file, or its inputs and outputs are not those of the manifest.
        MissingDependencyError: if the library is not installed.
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; expected one of: {', '.join(sorted(BACKENDS))}")
    module, _, function = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), function)(bundle, precision, threads, ungated)
    return backend
