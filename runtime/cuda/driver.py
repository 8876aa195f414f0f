"""The few words of the CUDA driver that are needed here, with errors that say what to do."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from typing import TYPE_CHECKING, Any

from wgap.errors import BackendError, MissingDependencyError

if TYPE_CHECKING:
    from wgap.runtime.cuda.arrays import DeviceArray

__all__ = ["LEGACY", "READY", "Context", "Memory", "attribute", "call", "capture_lock", "driver", "wait_for"]


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
        text = cu.cuGetErrorString(code)[1]
        text = text.decode() if text else str(code)
        if code in (cu.CUresult.CUDA_ERROR_NO_DEVICE, cu.CUresult.CUDA_ERROR_STUB_LIBRARY):
            raise BackendError(f"no NVIDIA GPU on this machine ({text}); use the onnxruntime backend")
        raise BackendError(f"{name} failed: {text}")
    return values[0] if len(values) == 1 else tuple(values)


capture_lock = threading.Lock()
"""Held while a stream is captured, and while a whole context is waited for: either would spoil the other."""

LEGACY = 1
"""Handle of the legacy default stream, on which the plain copies run."""


READY = 0
"""Stands for the stream of an array that has been computed."""


class Context:
    """The CUDA context that everything of one owner lives in; ``with`` makes it current.

    The caller's context if one is current and on this device, so that PyCUDA's arrays and streams can be used; else, or
    with ``primary``, the device's primary context, which PyTorch, CuPy and the CUDA runtime share, kept alive until
    :meth:`close` of its last owner.

    Attributes:
        device: ordinal of the GPU.
        held: bytes that are allocated in it, ``device`` on the GPU and ``pinned`` on the host.

    Raises:
        BackendError: if there is no driver or no such device.
    """

    def __init__(self, device: int = 0, primary: bool = False) -> None:
        call("cuInit", 0)
        self.device = device
        self.held = {"device": 0, "pinned": 0}
        self._lock, self._owners = threading.Lock(), 1
        self._retained: Any = None
        self._handle = call("cuCtxGetCurrent")
        if primary or not int(self._handle) or int(call("cuCtxGetDevice")) != device:
            self._retained = call("cuDeviceGet", device)
            self._handle = call("cuDevicePrimaryCtxRetain", self._retained)

    def __enter__(self) -> None:
        call("cuCtxPushCurrent", self._handle)

    def __exit__(self, *_: object) -> None:
        call("cuCtxPopCurrent")

    def shared(self) -> Context:
        """The same for one more owner, who closes it too."""
        with self._lock:
            self._owners += 1
        return self

    def count(self, kind: str, size: int) -> None:
        """Enter what was allocated, or with a negative size freed."""
        with self._lock:
            self.held[kind] += size

    def close(self) -> None:
        """Let go of it, once by each owner, whose memory and streams in it must have been freed."""
        with self._lock:
            self._owners -= 1
            last = self._owners == 0
        if last and self._retained is not None:
            call("cuDevicePrimaryCtxRelease", self._retained)

    def __del__(self) -> None:
        if getattr(self, "_owners", 0) > 0:  # an owner was dropped, not closed
            self._owners = 1
            with contextlib.suppress(Exception):  # the driver may be gone at exit, and a destructor has no caller
                self.close()


def attribute(name: str, device: int) -> int:
    """An attribute of the device, ``CU_DEVICE_ATTRIBUTE_`` left out."""
    kind = getattr(driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", kind, call("cuDeviceGet", device)))


class Memory:
    """One allocation in a context, which is current: of the device or pinned on the host, as bytes at ``pointer``.

    Pinned memory has the same address on the GPU, which reads and writes it in place.
    """

    def __init__(self, context: Context, size: int, pinned: bool = False) -> None:
        self.size, self._kind, self._context = max(size, 1), "pinned" if pinned else "device", context
        both = 3  # CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP
        self.pointer = int(call("cuMemHostAlloc", self.size, both) if pinned else call("cuMemAlloc", self.size))
        context.count(self._kind, self.size)

    def view(self) -> memoryview:
        """Pinned memory as bytes; valid until :meth:`close`."""
        return memoryview((ctypes.c_ubyte * self.size).from_address(self.pointer)).cast("B")

    def close(self) -> None:
        """Free it, in the context it was made in; once is enough."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            self._context.count(self._kind, -self.size)
            call("cuMemFreeHost" if self._kind == "pinned" else "cuMemFree", pointer)


def wait_for(*arrays: DeviceArray) -> None:
    """Until what the arrays hold has been computed; an array that names no stream may be under work on any."""
    streams = {array.stream for array in arrays} - {READY}
    if None in streams:
        with capture_lock:
            call("cuCtxSynchronize")
        return
    for stream in streams:
        call("cuStreamSynchronize", stream)
