"""Arrays on a GPU, from whatever library: shape, type and address, read in place."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from wgap.errors import FeatureError
from wgap.runtime.cuda.driver import call

__all__ = ["DeviceArray", "device_array", "on_device", "require_gpu", "to_host"]

_TYPES = {"<f4": "float32", "|u1": "uint8", "<i8": "int64"}
_SIZES = {"float32": 4, "uint8": 1, "int64": 8}


@dataclass(frozen=True)
class DeviceArray:
    """C-contiguous memory on a GPU.

    Attributes:
        pointer: address on the device.
        shape: extents.
        stream: the stream that work on it was queued on, as the producer told; None where it names none.
        owner: keeps the memory alive.
        dtype: ``float32``, ``uint8`` or ``int64``.
        context: in which the address is valid; None for the current one.
        device: ordinal of the GPU, as ``__dlpack_device__`` tells it; None where the producer has no such method.
    """

    pointer: int
    shape: tuple[int, ...]
    stream: int | None
    owner: Any
    dtype: str = "float32"
    context: Any = None
    device: int | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Some rows, as a view."""
        start, stop, _ = rows.indices(self.shape[0])
        pointer = self.pointer + start * prod(self.shape[1:]) * _SIZES[self.dtype]
        return replace(self, pointer=pointer, shape=(max(stop - start, 0), *self.shape[1:]))


def to_host(value: Any) -> Any:
    """A NumPy array of what lies on a GPU; anything else as it is."""
    if not isinstance(value, DeviceArray):
        return value
    import numpy as np

    copy = np.empty(value.shape, value.dtype)
    with value.context or nullcontext():
        call("cuMemcpyDtoH", copy.ctypes.data, value.pointer, copy.nbytes)
    return copy


def on_device(value: Any) -> bool:
    """Whether it says that it lies in a GPU's memory."""
    if isinstance(value, DeviceArray):
        return True
    if getattr(value, "__cuda_array_interface__", None) is not None:
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) == 2  # kDLCUDA


def require_gpu(array: DeviceArray, device: int, name: str, reader: str) -> None:
    """Raise FeatureError if it lies on another GPU than its reader, where it says on which."""
    lies = array.device if array.context is None else array.context.device
    if lies not in (None, device):
        raise FeatureError(f"{name} are on GPU {lies}, and this {reader} runs on GPU {device}")


def device_array(value: Any, dtype: str, axes: str, name: str) -> DeviceArray:
    """View ``__cuda_array_interface__`` (PyTorch, CuPy, PyCUDA, Numba) or DLPack memory.

    Args:
        value: the array.
        dtype: ``float32``, ``uint8`` or ``int64``.
        axes: letters of its axes for messages, such as ``NCHW``.
        name: what messages call it.

    Raises:
        FeatureError: if it is not in a GPU's memory, or of another type, rank or layout.
    """
    wanted = f"{dtype}[{', '.join(axes)}]"
    if isinstance(value, DeviceArray):
        if value.dtype != dtype or len(value.shape) != len(axes):
            raise FeatureError(f"{name}: expected {wanted}, got {value.dtype}{list(value.shape)}")
        return value
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None and on_device(value):
        return _from_dlpack(value, dtype, wanted, name)
    if interface is None:
        raise FeatureError(f"{name}: expected {wanted} in the GPU's memory, got {type(value).__name__} on the host")
    shape = tuple(int(n) for n in interface["shape"])
    got = _TYPES.get(interface["typestr"], interface["typestr"])
    if got != dtype or len(shape) != len(axes):
        raise FeatureError(f"{name}: expected {wanted}, got {got}{list(shape)}")
    size = int(interface["typestr"][2:])
    _require_contiguous(shape, interface.get("strides"), size, name)
    return DeviceArray(int(interface["data"][0]), shape, interface.get("stream"), value, dtype, device=_gpu_of(value))


def _from_dlpack(value: Any, dtype: str, wanted: str, name: str) -> DeviceArray:
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(value, stream_ptr=1)  # ready on the legacy default stream
    shape = tuple(view.shape)
    if str(view.dtype) != dtype or len(shape) != wanted.count(",") + 1:
        raise FeatureError(f"{name}: expected {wanted}, got {view.dtype}{list(shape)}")
    strides = None if view.strides is None else [n * view.dtype.itemsize for n in view.strides]
    _require_contiguous(shape, strides, view.dtype.itemsize, name)
    return DeviceArray(int(view.ptr), shape, 1, view, dtype, device=_gpu_of(value))


def _gpu_of(value: Any) -> int | None:
    told = getattr(value, "__dlpack_device__", None)
    return None if told is None else int(told()[1])


def _require_contiguous(shape: tuple[int, ...], strides: Any, size: int, name: str) -> None:
    if strides is None or 0 in shape:
        return
    expected = [size * prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if any(n != 1 and int(got) != wanted for n, got, wanted in zip(shape, strides, expected, strict=True)):
        raise FeatureError(f"{name} must be C-contiguous; pass a contiguous copy")
