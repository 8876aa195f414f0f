"""Several callers at once: closed and open loops, and the throughput that keeps a latency bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, repeat, takewhile
from typing import Any

from wgap.errors import DataError
from wgap.evaluate.latency import Cell, Run, Settings
from wgap.evaluate.statistics import summary

__all__ = [
    "Load", "arrival_times", "at_bound", "closed_loop", "measure_loads", "most_within", "open_loop", "require_loads"
]  # fmt: skip

SLICES = 4
"""A load's seconds are cut into so many, which take turns with those of other loads."""

STEPS = 6
"""Of the bisection for the throughput at a bound: it is known to 1/64 of what the callers can do."""

PATIENCE = 2
"""An open loop ends after so many times its seconds; calls that still wait then are unserved."""


@dataclass(frozen=True)
class Load:
    """What callers saw.

    Attributes:
        latencies_ms: of each call, in the order in which they were answered; of an open loop from the call's arrival,
            so with the time it waited for a caller to be free.
        seconds: from the start to the last answer; of an open loop at least those that were asked for.
        unserved: arrivals that were not begun when time was up.
        refused: of each call that was refused the name of its error's class; it has no latency.
    """

    latencies_ms: tuple[float, ...]
    seconds: float
    unserved: int = 0
    refused: tuple[str, ...] = ()


def closed_loop(
    call: Callable[[], object], callers: int, seconds: float, refusals: tuple[type[Exception], ...] = ()
) -> Load:
    """``callers`` threads, each of which calls again as soon as it has an answer, for so many seconds; once at least.

    Raises:
        whatever ``call`` raises, but for ``refusals``.
    """
    return _drive(call, callers, repeat(None), seconds, seconds, time.perf_counter, time.sleep, refusals)


def open_loop(
    call: Callable[[], object],
    callers: int,
    arrivals: Sequence[float],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    refusals: tuple[type[Exception], ...] = (),
) -> Load:
    """Calls that arrive at given times, whether or not earlier ones were answered, served by ``callers`` threads.

    A latency counts from the arrival: a slow answer makes those behind it wait, which a closed loop does not show.

    Args:
        call: one call.
        callers: threads that serve, first come, first served.
        arrivals: seconds from the start, ascending.
        seconds: after ``PATIENCE`` times as many, what still waits is left unserved.
        clock: seconds.
        sleep: waits so many seconds.
        refusals: errors of a call that are counted.

    Raises:
        whatever else ``call`` raises.
    """
    return _drive(call, callers, arrivals, seconds, PATIENCE * seconds, clock, sleep, refusals)


def _drive(
    call: Callable[[], object], callers: int, arrivals: Iterable[float | None], seconds: float, limit: float,
    clock: Callable[[], float], sleep: Callable[[float], None], refusals: tuple[type[Exception], ...],
) -> Load:  # fmt: skip
    due, lock = iter(arrivals), threading.Lock()
    answers: list[tuple[float, float]] = []  # when, and after how many seconds
    refused: list[tuple[float, str]] = []  # when, and how
    errors: list[BaseException] = []
    ready = threading.Barrier(callers + 1)
    start = 0.0

    def serve() -> None:
        ready.wait()
        begun = 0
        while not errors:
            with lock:
                arrival = next(due, -1.0) if not begun or clock() - start < limit else -1.0
            if arrival is not None and arrival < 0:
                return
            if arrival is None:
                since = clock()
            else:
                since = start + arrival
                if (early := since - clock()) > 0:
                    sleep(early)
            begun += 1
            try:
                call()
            except refusals as error:
                refused.append((clock(), type(error).__name__))
                continue
            except BaseException as error:  # noqa: BLE001  (raised again where the threads are joined)
                errors.append(error)
                return
            end = clock()
            answers.append((end, end - since))

    threads = [threading.Thread(target=serve, name=f"wgap-caller-{n}", daemon=True) for n in range(callers)]
    for thread in threads:
        thread.start()
    start = clock()
    ready.wait()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    answers.sort()
    waiting = sum(1 for arrival in due if arrival is not None) if seconds < limit else 0
    last = max(when for when, _ in [*answers[-1:], *refused])
    took = max(last - start, seconds if seconds < limit else 0.0)
    return Load(tuple(1e3 * latency for _, latency in answers), took, waiting, tuple(name for _, name in refused))


def arrival_times(per_second: float, seconds: float, seed: int = 0) -> list[float]:
    """Arrivals of independent users (a Poisson process), from a fixed seed; one at least."""
    import numpy as np

    rng = np.random.default_rng(seed)
    gaps = iter(lambda: float(rng.exponential(1 / per_second)), None)
    return list(takewhile(lambda at: at < seconds, accumulate(gaps))) or [0.0]


def require_loads(seconds: float, bound_ms: float | None, percent: float) -> None:
    """Refuse what no load can be measured with.

    Raises:
        DataError: seconds or the bound are not above 0, or the percentile is not between 0 and 100.
    """
    if not 0 < seconds < float("inf"):
        raise DataError(f"expected a duration above 0 seconds, got {seconds}")
    if (bound_ms is not None and not 0 < bound_ms < float("inf")) or not 0 < percent < 100:
        raise DataError(f"expected a bound above 0 ms and a percentile between 0 and 100, got {bound_ms} and {percent}")


def measure_loads(
    runs: Sequence[Run], closed: Sequence[int], arrivals: Sequence[float], callers: int, seconds: float,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda rounds: rounds,
) -> list[Cell]:  # fmt: skip
    """Each run under every load; they take turns, slice by slice, so that drift of the machine meets all alike.

    Args:
        runs: what to load.
        closed: of each closed loop: callers.
        arrivals: of each open loop: images per second.
        callers: of the open loops.
        seconds: of each load.
        progress: wraps the slices, for a progress bar.
    """
    planned: list[tuple[Run, Settings]] = []
    for run in runs:
        planned += [(run, replace(run.settings, load="closed", callers=count)) for count in closed]
        open_ = replace(run.settings, load="open", callers=callers)
        planned += [(run, replace(open_, arrivals=rate)) for rate in arrivals]
    parts: list[list[Load]] = [[] for _ in planned]
    joules: list[dict[str, float]] = [{} for _ in planned]
    for number in progress(range(SLICES)):
        for turn in range(len(planned)):
            index = (number + turn) % len(planned)
            run, settings = planned[index]
            with run.metered():
                parts[index].append(_loaded(run, settings, seconds / SLICES, number))
            for name, used in run.joules_per_image(1).items():
                joules[index][name] = joules[index].get(name, 0.0) + used
    return [_cell(*plan, loads, used) for plan, loads, used in zip(planned, parts, joules, strict=True)]


def _loaded(run: Run, settings: Settings, seconds: float, seed: int = 0) -> Load:
    if settings.arrivals is None:
        return closed_loop(run.call, settings.callers, seconds)
    arrivals = arrival_times(settings.arrivals / settings.batch, seconds, seed)
    return open_loop(run.call, settings.callers, arrivals, seconds)


def _cell(run: Run, settings: Settings, loads: Sequence[Load], joules: dict[str, float]) -> Cell:
    samples = tuple(ms for load in loads for ms in load.latencies_ms)
    images = settings.batch * len(samples)
    return Cell(
        settings, {"total": summary(samples)}, images / sum(load.seconds for load in loads), {"total": samples},
        open_ms=run.open_ms, memory_mib=run.memory_mib, unserved=sum(load.unserved for load in loads),
        joules_per_image={name: used / images for name, used in joules.items()},
    )  # fmt: skip


def at_bound(
    run: Run, callers: int, bound_ms: float, percent: float, seconds: float, loaded: Callable[..., Load] = _loaded
) -> dict[str, Any]:
    """The most images per second that may arrive while a percentile of the latencies stays within a bound.

    Bisection over the rate of an open loop, between 0 and what ``callers`` in a closed loop get through.

    Returns:
        settings, bound, percentile, the rate (0 where none held) and every rate that was tried with its percentile and
        unserved calls.
    """
    most = loaded(run, replace(run.settings, load="closed", callers=callers), seconds)
    settings = replace(run.settings, load="open", callers=callers)
    low, tried = most_within(
        run.settings.batch * len(most.latencies_ms) / most.seconds, bound_ms, percent,
        lambda rate: loaded(run, replace(settings, arrivals=rate), seconds),
    )  # fmt: skip
    return {"settings": settings, "bound_ms": bound_ms, "percentile": percent, "images_per_second": low, "tried": tried}


def most_within(
    most: float, bound_ms: float, percent: float, loaded: Callable[[float], Load]
) -> tuple[float, list[dict[str, Any]]]:
    """Bisection for the most images per second, up to ``most``, at which a percentile stays within a bound.

    Returns:
        the rate, and every one that was tried. With unserved or refused calls a rate does not hold.
    """
    import numpy as np

    low, high, tried = 0.0, most, []
    for _ in range(STEPS):
        rate = (low + high) / 2
        load = loaded(rate)
        reached = float(np.percentile(load.latencies_ms, percent)) if load.latencies_ms else float("inf")
        held = reached <= bound_ms and not load.unserved and not load.refused
        low, high = (rate, high) if held else (low, rate)
        tried.append({"arrivals": rate, "ms": reached, "unserved": load.unserved, "held": held})
    return low, tried
