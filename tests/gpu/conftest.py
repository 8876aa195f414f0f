"""Tests that need an NVIDIA GPU, or the emulated driver (emulator/), with which they run everywhere.

WGAP_REQUIRE_GPU=1 turns every skip for want of a GPU into a failure; ``make gpu-check`` sets it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from wgap.errors import WgapError

EMULATED = os.environ.get("WGAP_EMULATED_GPU") == "1"


def absent(reason: str) -> None:
    """Skip, or fail where a GPU was promised."""
    if os.environ.get("WGAP_REQUIRE_GPU") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def gpu() -> str:
    """The device's compute capability."""
    pytest.importorskip("cuda.bindings")
    from wgap.runtime.cuda.driver import device_arch

    try:
        return device_arch()
    except WgapError as error:
        absent(f"no GPU: {error}")
        raise


class OnDevice:
    """A copy of an array in the GPU's memory, offered as PyTorch, CuPy and PyCUDA offer theirs."""

    def __init__(self, array: Any, stream: int | None = 1) -> None:
        from wgap.runtime.cuda.driver import Context, Memory, call

        array = np.ascontiguousarray(array)
        self.context = Context()
        with self.context:
            self.memory = Memory(array.nbytes)
            call("cuMemcpyHtoD", self.memory.pointer, array.ctypes.data, array.nbytes)
            call("cuStreamSynchronize", 1)  # a copy from pageable memory may return before it has arrived
        self.shape = array.shape
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.memory.pointer, False),
            "version": 3,
            "stream": stream,
        }

    def close(self) -> None:
        with self.context:
            self.memory.close()
        self.context.close()


def free_memory() -> int:
    """Bytes of the device that nobody holds."""
    from wgap.runtime.cuda.driver import Context, call

    context = Context()
    with context:
        free = int(call("cuMemGetInfo")[0])
    context.close()
    return free


def same(expected: Any, found: Any) -> bool:
    """Every field of two records, bit for bit."""
    fields = ("class_id", "score", "logit", "level", "threshold", "box", "degenerate")
    return all(getattr(expected, name) == getattr(found, name) for name in fields)
