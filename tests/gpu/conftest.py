"""Tests that need an NVIDIA GPU, or the emulated driver (emulator/), with which they run everywhere.

WGAP_REQUIRE_GPU=1 turns every skip for want of a GPU into a failure; ``make gpu-check`` sets it.
"""

from __future__ import annotations

import os
from typing import Any

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
