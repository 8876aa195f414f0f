"""Enough of TensorRT to run a session against the emulated driver: a plan is an ONNX file, ONNX Runtime runs it.

It obeys streams and captures: the network runs when the stream reaches it, from and into the addresses it was given,
which must be the current device's. Weights and execution contexts take memory there, and are freed in its context.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

__version__ = "10.99.0"
FAIL_AT: list[Any] = []  # the number of an execution that is to fail
RUNS: list[int] = []  # images of each forward pass, as it ran
FAULTS: list[str] = []  # what a real library would have crashed on
QUEUEING: list[Callable[[], object]] = []  # called when a forward pass is queued
_CUDA = ctypes.CDLL("libcuda.so.1")


class Memory:
    """Of the current device; freed with its owner, when that device must be current again."""

    def __init__(self, size: int) -> None:
        self.pointer = ctypes.c_uint64()
        if _CUDA.cuMemAlloc(ctypes.byref(self.pointer), ctypes.c_size_t(size)) != 0:
            raise MemoryError(f"no context, or no room for {size} bytes")

    def __del__(self) -> None:
        if _CUDA.cuMemFree(self.pointer) != 0:
            FAULTS.append("memory was freed outside of its context")


class DataType(enum.Enum):
    UINT8 = 1
    FLOAT = 2


class ILogger:
    Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def log(self, level: Any, message: str) -> None:
        raise NotImplementedError


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, log: ILogger) -> None:
        self.log = log

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        try:
            return Engine(plan, self.log)
        except Exception as error:
            self.log.log(ILogger.Severity.ERROR, f"not a plan: {error}"[:200])
            return None


class Engine:
    device_memory_size_v2 = 1 << 20  # of an execution context

    def __init__(self, plan: bytes, log: ILogger) -> None:
        self.log = log
        self.weights = Memory(len(plan))
        self.load(plan)

    def load(self, model: bytes) -> None:
        if model == b"stripped of its weights":
            return
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, n: int) -> str:
        return str(self.tensors[n].name)

    def _tensor(self, name: str) -> Any:
        return next(t for t in self.tensors if t.name == name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(n if isinstance(n, int) else -1 for n in self._tensor(name).shape)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8 if self._tensor(name).type == "tensor(uint8)" else DataType.FLOAT

    def create_execution_context(self) -> Any:
        return Context(self)


class Refitter:
    def __init__(self, engine: Engine, _log: ILogger) -> None:
        self.engine = engine
        self.model = b""

    def refit_cuda_engine(self) -> bool:
        self.engine.load(self.model)
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, log: ILogger) -> None:
        self.refitter, self.log = refitter, log

    def refit_from_bytes(self, graph: bytes) -> bool:
        self.refitter.model = graph
        if graph.startswith(b"\x08"):  # ir_version, the first field
            return True
        self.log.log(ILogger.Severity.ERROR, "not a model")
        return False


class Context:
    runs = 0

    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.shape = engine, {}, ()
        self.memory = Memory(engine.device_memory_size_v2)
        self.callbacks: list[Any] = []  # alive as long as a graph may call them

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        Context.runs += 1
        for queueing in QUEUEING:
            queueing()
        if Context.runs in FAIL_AT:
            self.engine.log.log(ILogger.Severity.ERROR, "the device is tired")
            return False
        shape, addresses, engine = self.shape, dict(self.addresses), self.engine  # not self: a cycle would outlive it

        def network(_data: Any) -> None:
            RUNS.append(shape[0])
            image = np.empty(shape, np.uint8)
            copied = [_CUDA.cuMemcpyDtoH(*map(ctypes.c_uint64, (image.ctypes.data, addresses["image"], image.size)))]
            names = [tensor.name for tensor in engine.session.get_outputs() if tensor.name in addresses]
            for name, value in zip(names, engine.session.run(names, {"image": image}), strict=True):
                address, size = addresses[name], value.nbytes
                copied.append(_CUDA.cuMemcpyHtoD(*map(ctypes.c_uint64, (address, value.ctypes.data, size))))
            if any(copied):
                FAULTS.append(f"an address that is not the current device's: {addresses}")

        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(network)
        self.callbacks.append(callback)
        return bool(_CUDA.cuLaunchHostFunc(ctypes.c_void_p(stream), callback, None) == 0)
