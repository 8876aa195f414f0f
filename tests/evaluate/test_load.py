"""Closed and open loops, on callers and clocks of the test's own, and the search for the throughput at a bound."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from wgap.cli import app
from wgap.errors import DataError, WgapError
from wgap.evaluate.latency import Settings
from wgap.evaluate.load import PATIENCE, Load, arrival_times, at_bound, closed_loop, open_loop


class Time:
    """A clock that only moves when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_closed_loop_has_so_many_calls_under_way_at_once() -> None:
    together, most, under_way, lock = threading.Barrier(3, timeout=60), 0, 0, threading.Lock()

    def call() -> None:
        nonlocal most, under_way
        with lock:
            under_way += 1
            most = max(most, under_way)
        if len(seen) < 3:
            seen.append(0)
            together.wait()  # breaks unless three call at the same time
        with lock:
            under_way -= 1

    seen: list[int] = []
    load = closed_loop(call, 3, 0.05)
    assert most == 3
    assert len(load.latencies_ms) >= 3
    assert load.unserved == 0
    assert load.seconds > 0


def test_a_latency_of_an_open_loop_counts_from_the_arrival() -> None:
    """One caller, 30 ms of work: what arrives while it works waits, and is not forgotten."""
    time = Time()
    load = open_loop(lambda: time.sleep(0.03), 1, [0.0, 0.01, 0.02, 0.2], 1.0, time.clock, time.sleep)
    assert load.latencies_ms == pytest.approx([30, 50, 70, 30])
    assert load.seconds == 1.0, "calls could have arrived until then"
    assert load.unserved == 0


def test_what_cannot_be_served_in_time_is_counted() -> None:
    time = Time()
    load = open_loop(lambda: time.sleep(0.125), 1, [n / 128 for n in range(100)], 1.0, time.clock, time.sleep)
    assert len(load.latencies_ms) == PATIENCE * 8
    assert load.unserved == 100 - PATIENCE * 8


def test_an_error_of_a_call_ends_the_load() -> None:
    def call() -> None:
        raise DataError("no such picture")

    for run in (lambda: closed_loop(call, 2, 60), lambda: open_loop(call, 2, [0.0, 0.0, 50.0], 60)):
        with pytest.raises(DataError, match="no such picture"):
            run()


def test_arrivals_are_those_of_a_poisson_process_and_always_the_same() -> None:
    times = np.array(arrival_times(50, 100, seed=3))
    assert times.tolist() == arrival_times(50, 100, seed=3) != arrival_times(50, 100, seed=4)
    assert len(times) == pytest.approx(5000, abs=5 * np.sqrt(5000))
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert arrival_times(0.001, 1) == [0.0]


class OneRun:
    settings = Settings("b", "none", "fp32", "adaptive", "recombined", 4)


@pytest.mark.parametrize(("bound", "expected"), [(30.0, 0.0), (40.0, 0.5), (100.0, 0.8), (1e9, 63 / 64)])
def test_the_throughput_at_a_bound_is_found(bound: float, expected: float) -> None:
    """A queue whose latency is 20 / (1 - utilisation) ms, at 200 images per second when it is full."""
    seen: list[Settings] = []

    def loaded(run: Any, settings: Settings, seconds: float) -> Load:
        seen.append(settings)
        if settings.arrivals is None:
            return Load((20.0,) * 100, 2.0)
        return Load((20 / (1 - settings.arrivals / 200),) * 10, 1.0)

    if bound == 30.0:
        bound = 20.2  # under a utilisation of 1/64 no rate was tried that holds it
    found = at_bound(OneRun(), 3, bound, 99, 1.0, loaded)  # type: ignore[arg-type]
    assert found["images_per_second"] == pytest.approx(200 * expected, abs=200 / 64)
    assert found["images_per_second"] <= 200 * expected + 1e-9
    assert [one.callers for one in seen] == [3] * 7
    assert len(found["tried"]) == 6


def test_a_rate_with_unserved_calls_does_not_hold_the_bound() -> None:
    def loaded(run: Any, settings: Settings, seconds: float) -> Load:
        return Load((1.0,) * 10, 1.0, unserved=int((settings.arrivals or 0) > 10))

    found = at_bound(OneRun(), 1, 50, 99, 1.0, loaded)  # type: ignore[arg-type]
    assert found["images_per_second"] <= 10


def test_bench_loads_every_network_and_reports_what_callers_saw(tiny_bundle: Path) -> None:
    words = ["bench", tiny_bundle, "--batch", "1,2", "--iterations", 1, "--warmup", 0, "--duration", 0.2, "--json"]
    loads = ["--callers", "1,2", "--arrivals", "40", "--bound", "500"]
    done = CliRunner().invoke(app, list(map(str, words + loads)), catch_exceptions=False)
    report = json.loads(done.stdout)
    found = [
        (one["settings"]["batch"], one["settings"]["load"], one["settings"]["callers"], one["settings"].get("arrivals"))
        for one in report["cells"]
    ]
    assert found == [(1, "rounds", 1, None), (2, "rounds", 1, None)] + [
        (batch, *load)
        for batch in (1, 2) for load in (("closed", 1, None), ("closed", 2, None), ("open", 2, 40.0))
    ]  # fmt: skip
    assert all(list(cell["stages"]) == ["total"] for cell in report["cells"][2:])
    assert all(cell["images_per_second"] > 0 for cell in report["cells"])
    assert [one["settings"]["batch"] for one in report["at_bound"]] == [1, 2]
    assert report["plan"]["seconds"] == 0.2
    shown = CliRunner().invoke(app, list(map(str, words[:-1] + loads)), catch_exceptions=False).stdout
    assert "2 callers 40/s" in shown
    assert "images/s with 99 % of the calls within 500 ms" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--callers", "0"), "--callers expects whole numbers of 1 or more"),
        (("--arrivals", "-3"), "--arrivals expects images per second above 0"),
        (("--arrivals", "nan"), "got 'nan'"),
        (("--duration", "0"), "expected a duration above 0 seconds, got 0"),
        (("--bound", "0"), "expected a bound above 0 ms"),
        (("--bound", "5", "--bound-percentile", "100"), "a percentile between 0 and 100, got 5.0 and 100"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_loads_are_refused_by_name(tiny_bundle: Path, words: tuple[str, ...], message: str) -> None:
    quick = ["bench", str(tiny_bundle), "--batch", "1", "--iterations", "1", "--warmup", "0"]
    with pytest.raises(WgapError, match=message):
        CliRunner().invoke(app, quick + list(words), catch_exceptions=False)
