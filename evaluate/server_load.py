"""A running server under load: an open loop at several rates, and the rate at which it bends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from wgap.errors import OverloadError, ServerError
from wgap.evaluate.load import Load, arrival_times, closed_loop, most_within, open_loop

__all__ = ["FRACTIONS", "ServerReport", "Step", "knee", "measure_server"]

FRACTIONS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
"""The rates that are tried where none are given, of what callers in a closed loop get through."""

REFUSALS = (OverloadError, ServerError)
"""Errors of a call that are counted; every other one ends the run."""


@dataclass(frozen=True)
class Step:
    """One rate.

    Attributes:
        arrivals: pictures per second that came; None of the closed loop.
        answered: pictures per second that were answered.
        mean_ms: of the latencies, each from its picture's arrival; None where nothing was answered. Likewise p50_ms and
            p99_ms.
        refused: answers that were errors, by the errors' class.
        unserved: pictures that no caller had come to when time was up.
        batch: pictures in a forward pass, on average; None where the server does not tell.
    """

    arrivals: float | None
    answered: float
    mean_ms: float | None
    p50_ms: float | None
    p99_ms: float | None
    refused: dict[str, int]
    unserved: int
    batch: float | None


@dataclass(frozen=True)
class ServerReport:
    """What :func:`measure_server` found.

    Attributes:
        callers: threads with a connection each.
        seconds: of each rate.
        closed: all callers, each again as soon as it has an answer.
        steps: the open loops, by rising rate.
        knee: the rate of :func:`knee`; None where nothing was answered.
        bound: ``bound_ms``, ``percentile``, ``images_per_second`` and ``tried`` of a bisection; None where no bound was
            asked for.
    """

    callers: int
    seconds: float
    closed: Step
    steps: tuple[Step, ...]
    knee: float | None
    bound: dict[str, Any] | None


def knee(steps: Sequence[Step]) -> float | None:
    """The rate at which answered pictures per second over mean latency, Kleinrock's power, is largest.

    Below it a higher rate costs little latency, above it little but latency comes of it.
    """
    power = {step.arrivals: step.answered / step.mean_ms for step in steps if step.mean_ms}
    return max(power, key=lambda rate: power[rate]) if power else None


def measure_server(
    call: Callable[[], object], callers: int, rates: Sequence[float], seconds: float,
    bound: tuple[float, float] | None = None, counted: Callable[[], tuple[int, int]] | None = None,
    progress: Callable[[Iterable[float]], Iterable[float]] = lambda rates: rates,
) -> ServerReport:  # fmt: skip
    """Load a server.

    Args:
        call: sends one picture and waits for its answer; from any of the callers' threads.
        callers: threads.
        rates: pictures per second that arrive, whether or not earlier ones were answered; none: ``FRACTIONS`` of what
            the callers get through in a closed loop.
        seconds: of each rate.
        bound: milliseconds and a percentile, to find the highest rate at which it stays below.
        counted: pictures and forward passes that the server has had so far.
        progress: wraps the rates.

    Raises:
        ServerError: at some rate nothing was answered, and not for overload.
    """
    counted = counted or (lambda: (0, 0))

    def step(arrivals: float | None) -> tuple[Step, Load]:
        before = counted()
        if arrivals is None:
            load = closed_loop(call, callers, seconds, REFUSALS)
        else:
            load = open_loop(call, callers, arrival_times(arrivals, seconds), seconds, refusals=REFUSALS)
        pictures, passes = (now - then for now, then in zip(counted(), before, strict=True))
        return _step(arrivals, load, pictures / passes if passes else None), load

    closed, _ = step(None)
    chosen = sorted(rates) or [closed.answered * fraction for fraction in FRACTIONS]
    steps = tuple(step(rate)[0] for rate in progress(chosen))
    found = None
    if bound is not None:
        most, tried = most_within(closed.answered, *bound, lambda rate: step(rate)[1])
        found = {"bound_ms": bound[0], "percentile": bound[1], "images_per_second": most, "tried": tried}
    return ServerReport(callers, seconds, closed, steps, knee(steps), found)


def _step(arrivals: float | None, load: Load, batch: float | None) -> Step:
    import numpy as np

    refused = dict(Counter(load.refused))
    if not load.latencies_ms and set(refused) - {OverloadError.__name__}:
        raise ServerError(f"the server answered nothing: {refused}; is it still running?")
    mean = p50 = p99 = None
    if load.latencies_ms:
        mean, p50, p99 = float(np.mean(load.latencies_ms)), *map(float, np.percentile(load.latencies_ms, [50, 99]))
    answered = len(load.latencies_ms) / load.seconds
    return Step(arrivals, answered, mean, p50, p99, refused, load.unserved, batch)
