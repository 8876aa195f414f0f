"""A server under load, on a stand-in whose answers are known: what is counted, where the knee is, when it ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wgap.cli import app
from wgap.errors import DataError, OverloadError, ServerError
from wgap.evaluate import server_load
from wgap.evaluate.load import Load
from wgap.evaluate.server_load import FRACTIONS, Step, knee, measure_server


def steps(*rates: tuple[float, float, float | None]) -> list[Step]:
    return [Step(rate, answered, mean, mean, mean, {}, 0, None) for rate, answered, mean in rates]


def test_the_knee_is_where_throughput_over_latency_is_largest() -> None:
    assert knee(steps((10, 10, 20), (50, 50, 25), (80, 80, 60), (120, 90, 900))) == 50
    assert knee(steps((10, 10, 20), (50, 50, 20), (80, 0, None))) == 50
    assert knee(steps((10, 0, None))) is None


def test_refused_calls_are_counted_by_name_and_have_no_latency() -> None:
    numbers, lock = count(), threading.Lock()

    def call() -> None:
        with lock:
            number = next(numbers)
        if number % 3 == 1:
            raise OverloadError("the queue is full")
        if number % 3 == 2:
            raise ServerError("no answer within 1 s")

    report = measure_server(call, 1, [1e6, 200], 0.05, counted=lambda: (6, 2))
    assert [step.arrivals for step in report.steps] == [200, 1e6], "by rising rate"
    for step in (report.closed, *report.steps):
        assert set(step.refused) <= {"OverloadError", "ServerError"}
        assert step.answered > 0
        assert step.mean_ms is not None
        assert step.batch is None, "the server did nothing meanwhile, as it says"
    closed = report.closed.refused
    assert abs(closed["OverloadError"] - closed["ServerError"]) <= 1, "of three calls one of each"


def test_the_batch_is_what_the_server_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([(0, 0), (12, 4), (12, 4), (20, 5), (20, 5), (20, 5)])
    monkeypatch.setattr(server_load, "closed_loop", lambda *_: Load((2.0,) * 12, 1.0))
    monkeypatch.setattr(server_load, "open_loop", lambda *_, **__: Load((2.0,), 1.0))
    report = measure_server(lambda: None, 4, [5, 7], 1, counted=lambda: next(told))
    assert [step.batch for step in (report.closed, *report.steps)] == [3, 8, None]


def test_without_rates_they_are_parts_of_what_a_closed_loop_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue in front of one server of 100 a second."""

    def open_(_: object, __: int, arrivals: Sequence[float], seconds: float, **___: object) -> Load:
        rate = len(arrivals) / seconds
        return Load((10 / (1 - min(rate, 99) / 100),) * len(arrivals), seconds)

    monkeypatch.setattr(server_load, "closed_loop", lambda *_: Load((10.0,) * 1000, 10.0))
    monkeypatch.setattr(server_load, "open_loop", open_)
    report = measure_server(lambda: None, 4, [], 10, bound=(40, 99))
    assert [step.arrivals for step in report.steps] == [100 * fraction for fraction in FRACTIONS]
    assert report.knee == 50, "of such a queue at half its rate"
    assert report.bound is not None
    assert report.bound["images_per_second"] == pytest.approx(75, abs=5)


def test_a_server_that_is_gone_ends_the_run_and_one_that_refuses_does_not() -> None:
    def gone() -> None:
        raise ServerError("no server answers there")

    def full() -> None:
        raise OverloadError("the queue is full")

    with pytest.raises(ServerError, match=r"answered nothing: \{'ServerError': .*is it still running"):
        measure_server(gone, 2, [50], 0.05)
    report = measure_server(full, 2, [50], 0.05)
    assert report.knee is None
    assert report.steps[0].p99_ms is None
    assert report.steps[0].refused["OverloadError"] >= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected a picture to send"),
        (["--backend", "openvino"], "leave --backend out"),
        (["--callers", "2,4"], "one number of --callers"),
        (["--arrivals", "0"], "images per second above 0"),
        (["BUNDLE", "OTHER"], "leave all bundles but one out"),
    ],
)
def test_what_a_server_is_not_loaded_with(words: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", *words, "--url", "http://127.0.0.1:1"])
    assert isinstance(done.exception, DataError)
    assert said in str(done.exception)


def test_no_server_is_said_before_the_load(tiny_bundle: Path) -> None:
    pytest.importorskip("tritonclient")
    done = CliRunner().invoke(app, ["bench", str(tiny_bundle), "--url", "http://127.0.0.1:1", "--timeout", "5"])
    assert isinstance(done.exception, ServerError)
    assert "no server answers there" in str(done.exception)
