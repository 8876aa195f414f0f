"""Percentiles, intervals, warm-up and comparison on distributions whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from wgap.errors import DataError
from wgap.evaluate.statistics import LEAST_SAMPLES, Difference, adjusted, difference, interval, steady, summary


def timings(seed: int, count: int, scale: float = 1.0, correlation: float = 0.0, spread: float = 0.04) -> np.ndarray:
    """Latencies in ms: lognormal around 20 ms, one in twenty disturbed by up to a half, neighbours alike if asked."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, count)
    for n in range(1, count):
        noise[n] = correlation * noise[n - 1] + np.sqrt(1 - correlation**2) * noise[n]
    disturbed = np.where(rng.random(count) < 0.05, rng.uniform(1.1, 1.5, count), 1)
    return 20 * scale * np.exp(spread * noise) * disturbed


def test_a_summary_is_the_percentiles_of_numpy_and_says_how_many_samples() -> None:
    values = timings(1, 500)
    told = summary(values)
    assert [told.p50_ms, told.p90_ms, told.p99_ms] == pytest.approx(np.percentile(values, (50, 90, 99)))
    assert (told.samples, told.mean_ms, told.min_ms) == (500, pytest.approx(values.mean()), values.min())
    for name in ("p50", "p90", "p99"):
        low, high = getattr(told, f"{name}_interval_ms")
        assert low <= getattr(told, f"{name}_ms") <= high
    assert summary(values) == told, "the same samples give the same intervals"


@pytest.mark.parametrize(("count", "percents"), [(1, []), (9, []), (10, [50]), (50, [50, 90]), (500, [50, 90, 99])])
def test_an_interval_is_absent_where_too_few_samples_lie_beyond_the_percentile(count: int, percents: list[int]) -> None:
    assert [percent for percent in (50, 90, 99) if interval(timings(0, count), percent) is not None] == percents


@pytest.mark.parametrize(("percent", "count"), [(50, 50), (50, 400), (90, 200)])
@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_intervals_hold_the_true_percentile_about_as_often_as_they_say(
    percent: int, count: int, correlation: float
) -> None:
    truth, repeats = np.percentile(timings(99, 200_000), percent), 200
    found = [interval(timings(seed, count, correlation=correlation), percent) for seed in range(repeats)]
    held = sum(low <= truth <= high for low, high in filter(None, found))
    assert (0.8 if correlation else 0.87) * repeats <= held <= 0.995 * repeats


def test_intervals_know_that_neighbours_are_alike() -> None:
    """Samples resampled one by one would give intervals that hold the truth in 66 of 100 cases."""
    truth = np.percentile(timings(99, 200_000, correlation=0.7), 50)
    found = [interval(timings(seed, 400, correlation=0.7), 50) for seed in range(100)]
    assert sum(low <= truth <= high for low, high in filter(None, found)) >= 80


def test_warm_up_is_over_when_times_no_longer_fall() -> None:
    falling = 20 * (1 + np.exp(-np.arange(80) / 8))
    over = next(n for n in range(80) if steady(falling[:n].tolist()))
    assert 25 < over < 50
    assert falling[over] < 1.03 * 20
    assert not any(steady((20 * 1.02 ** np.arange(n)).tolist()) for n in range(80)), "it never becomes steady"
    assert not steady([20.0] * 9)
    assert steady([20.0] * 10)
    quick = [next((n for n in range(60) if steady(timings(seed, n).tolist())), 60) for seed in range(50)]
    assert np.median(quick) <= 15, "noise alone does not keep it from being steady"


@pytest.mark.parametrize(("count", "spread"), [(50, 0.02), (200, 0.04)])
def test_a_comparison_finds_three_percent_and_does_not_cry_at_noise(count: int, spread: float) -> None:
    """Of 20 repeats on one distribution at most one is an alarm, of 20 with 3 % planted at most one is missed."""

    def differences(scale: float) -> list[Difference]:
        pairs = ((timings(s, count, spread=spread), timings(1000 + s, count, scale, spread=spread)) for s in range(20))
        return [difference(*pair) for pair in pairs]

    assert sum(one.p < 0.01 and abs(one.ratio - 1) >= 0.01 for one in differences(1.0)) <= 1
    planted = differences(1.03)
    assert sum(one.p < 0.01 and one.ratio >= 1.01 for one in planted) >= 19
    assert sum(one.interval[0] <= 1.03 <= one.interval[1] for one in planted) >= 16


def test_false_alarms_stay_rare_where_neighbours_are_alike() -> None:
    found = [difference(timings(s, 200, correlation=0.3), timings(900 + s, 200, correlation=0.3)) for s in range(200)]
    assert sum(one.p < 0.01 for one in found) <= 8, "4 %, at an error of 1 % for independent samples"


def test_a_comparison_refuses_what_it_cannot_judge() -> None:
    enough = timings(0, LEAST_SAMPLES)
    with pytest.raises(DataError, match="needs 40 samples on each side, got 40 and 39; measure with --iterations 40"):
        difference(enough, enough[:-1])
    with pytest.raises(DataError, match="times above 0 ms"):
        difference(enough, np.zeros(LEAST_SAMPLES))


def test_probabilities_are_adjusted_as_holm_does() -> None:
    assert adjusted([]) == []
    assert adjusted([0.03]) == [0.03]
    assert adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted([0.9, 0.8]) == [1.0, 1.0]
