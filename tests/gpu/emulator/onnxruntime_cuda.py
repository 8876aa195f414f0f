"""ONNX Runtime's CUDA provider against the emulated driver: the real library runs the network on the CPU."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime

SESSIONS: list[Any] = []  # what each was made with: the file, and the providers with their options
_CUDA = ctypes.CDLL("libcuda.so.1")
_Real = onnxruntime.InferenceSession


@contextmanager
def _primary(device: int) -> Any:
    """As the CUDA runtime does it."""
    context = ctypes.c_void_p()
    assert _CUDA.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    assert _CUDA.cuCtxPushCurrent(context) == 0
    yield
    assert _CUDA.cuCtxPopCurrent(ctypes.byref(context)) == 0
    assert _CUDA.cuDevicePrimaryCtxRelease(device) == 0


class Value:
    """An OrtValue on the device."""

    def __init__(self, array: Any, device: int) -> None:
        self._shape, self._device, self._pointer = array.shape, device, ctypes.c_uint64()
        with _primary(device):
            assert _CUDA.cuMemAlloc(ctypes.byref(self._pointer), ctypes.c_size_t(array.nbytes)) == 0
            copied = map(ctypes.c_uint64, (self._pointer.value, array.ctypes.data, array.nbytes))
            assert _CUDA.cuMemcpyHtoD(*copied) == 0

    def data_ptr(self) -> int:
        return self._pointer.value

    def shape(self) -> list[int]:
        return list(self._shape)

    def __del__(self) -> None:
        with _primary(self._device):
            assert _CUDA.cuMemFree(self._pointer) == 0


class Binding:
    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.devices: dict[str, int] = {}
        self.values: list[Value] = []

    def bind_cpu_input(self, name: str, array: Any) -> None:
        self.given[name] = array

    def bind_input(self, name: str, kind: str, device: int, dtype: Any, shape: list[int], pointer: int) -> None:
        assert kind == "cuda"
        self.given[name] = np.empty(shape, dtype)
        with _primary(device):
            copied = map(ctypes.c_uint64, (self.given[name].ctypes.data, pointer, self.given[name].nbytes))
            assert _CUDA.cuMemcpyDtoH(*copied) == 0

    def bind_output(self, name: str, kind: str, device: int) -> None:
        assert kind == "cuda"
        self.devices[name] = device

    def synchronize_outputs(self) -> None:
        pass

    def get_outputs(self) -> list[Value]:
        return self.values


class Session:
    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
        SESSIONS.append((path, providers))
        self.providers = [provider[0] for provider in providers]
        self.inner = _Real(path, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self.inner.get_inputs, self.inner.get_outputs

    def get_providers(self) -> list[str]:
        return self.providers

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding) -> None:
        outputs = self.inner.run(list(binding.devices), binding.given)
        binding.values = [Value(o, device) for o, device in zip(outputs, binding.devices.values(), strict=True)]


def session(path: str, options: Any = None, *, providers: list[Any]) -> Any:
    """In place of ``onnxruntime.InferenceSession``."""
    if providers[0] == "CPUExecutionProvider":
        return _Real(path, options, providers=providers)
    return Session(path, options, providers)
