"""The few words of the CUDA driver that are needed here, with errors that say what to do."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from wgap.errors import BackendError, MissingDependencyError

__all__ = ["LEGACY", "Context", "Memory", "attribute", "call", "device_arch", "driver", "quiet"]


def driver() -> Any:
    """The driver's bindings.

    Raises:
        MissingDependencyError: if cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import driver as found
    except ImportError as error:
        raise MissingDependencyError("the GPU path needs cuda-core: pip install 'wgap[cuda]'") from error
    return found


def call(name: str, *arguments: Any) -> Any:
    """Call ``cu...`` and return what it gives.

    Raises:
        BackendError: if it fails, with the driver's own words; where no driver is found, that a GPU is needed.
    """
    cu = driver()
    try:
        code, *values = getattr(cu, name)(*arguments)
    except RuntimeError as error:  # the library itself is not there
        raise BackendError(f"no NVIDIA driver on this machine ({error}); use the onnxruntime backend") from error
    if code != cu.CUresult.CUDA_SUCCESS:
        told = cu.cuGetErrorString(code)[1]
        told = told.decode() if told else str(code)
        if code in (cu.CUresult.CUDA_ERROR_NO_DEVICE, cu.CUresult.CUDA_ERROR_STUB_LIBRARY):
            raise BackendError(f"no NVIDIA GPU on this machine ({told}); use the onnxruntime backend")
        raise BackendError(f"{name} failed: {told}")
    return values[0] if len(values) == 1 else tuple(values)


quiet = threading.Lock()
"""Held while a stream is captured, and while a whole context is waited for: either would spoil the other."""

LEGACY = 1
"""Handle of the legacy default stream, on which the plain copies run."""


class Context:
    """The CUDA context that everything of one owner lives in; ``with`` makes it current.

    The caller's context if one is current and on this device, so that PyCUDA's arrays and streams can be used; else, or
    with ``primary``, the device's primary context, which PyTorch, CuPy and the CUDA runtime share, kept alive until
    :meth:`close`.

    Raises:
        BackendError: if there is no driver or no such device.
    """

    def __init__(self, device: int = 0, primary: bool = False) -> None:
        call("cuInit", 0)
        self.device = device
        self._retained: Any = None
        self._handle = call("cuCtxGetCurrent")
        if primary or not int(self._handle) or int(call("cuCtxGetDevice")) != device:
            self._retained = call("cuDeviceGet", device)
            self._handle = call("cuDevicePrimaryCtxRetain", self._retained)

    def __enter__(self) -> None:
        call("cuCtxPushCurrent", self._handle)

    def __exit__(self, *_: object) -> None:
        call("cuCtxPopCurrent")

    def close(self) -> None:
        """Let go of it; memory and streams in it must have been freed."""
        retained, self._retained = self._retained, None
        if retained is not None:
            call("cuDevicePrimaryCtxRelease", retained)


def attribute(name: str, device: int) -> int:
    """A number that the device tells of itself, ``CU_DEVICE_ATTRIBUTE_`` left out."""
    kind = getattr(driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", kind, call("cuDeviceGet", device)))


def device_arch(device: int = 0) -> str:
    """The device's compute capability, such as ``8.9``.

    Raises:
        BackendError: if there is no driver or no such device.
    """
    call("cuInit", 0)
    return f"{attribute('COMPUTE_CAPABILITY_MAJOR', device)}.{attribute('COMPUTE_CAPABILITY_MINOR', device)}"


class Memory:
    """One allocation in the current context, of the device or pinned on the host, as bytes at ``pointer``."""

    def __init__(self, size: int, pinned: bool = False) -> None:
        self.size, self.pinned = max(size, 1), pinned
        self.pointer = int(call("cuMemHostAlloc", self.size, 0) if pinned else call("cuMemAlloc", self.size))

    def view(self) -> memoryview:
        """Pinned memory as bytes; valid until :meth:`close`."""
        return memoryview((ctypes.c_ubyte * self.size).from_address(self.pointer)).cast("B")

    def close(self) -> None:
        """Free it, in the context it was made in; once is enough."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            call("cuMemFreeHost" if self.pinned else "cuMemFree", pointer)
