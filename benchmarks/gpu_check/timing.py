"""Clocks: the host's around calls that wait, the device's between two events, and what is told of many readings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from wgap.runtime.cuda.driver import call


def between_events(work: Callable[[], Any], stream: int) -> float:
    """Milliseconds between two events around the work."""
    start, end = (call("cuEventCreate", 0) for _ in range(2))
    call("cuEventRecord", start, stream)
    work()
    call("cuEventRecord", end, stream)
    call("cuEventSynchronize", end)
    ms = float(call("cuEventElapsedTime", start, end))
    for event in (start, end):
        call("cuEventDestroy", event)
    return ms


def timed(peers: dict[str, Callable[[], Any]], images: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each peer, in turns."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(rounds + 5):
        for name, once in peers.items():
            start = time.perf_counter()
            once()
            if number >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return [{"images": images, "peer": name, **quartiles(values)} for name, values in times.items()]


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    return {name: float(np.percentile(values, p)) for name, p in (("p25", 25), ("p50", 50), ("p75", 75))}
