"""``wgap bench --compare``: a planted regression is found, noise is not one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from wgap.cli import app
from wgap.errors import DataError, WgapError
from wgap.evaluate.comparison import compare
from wgap.evaluate.latency import Cell, Report, Settings
from wgap.evaluate.statistics import adjusted, difference, summary
from wgap.plain import to_plain

SETTINGS = Settings("/somewhere/bundle", "onnxruntime", "fp32", "adaptive", "recombined", 1)


def report(seed: int, scales: dict[int, float] | None = None, count: int = 100, **settings: Any) -> Report:
    """Measurements of several batch sizes, slowed by a factor each, with the noise of a quiet machine."""
    rng, cells = np.random.default_rng(seed), []
    for batch, scale in (scales or {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}).items():
        disturbed = np.where(rng.random(count) < 0.05, rng.uniform(1.1, 1.5, count), 1)
        total = 20 * batch * scale * np.exp(0.02 * rng.normal(0, 1, count)) * disturbed
        samples = {"forward": 0.8 * total, "total": total}
        cells.append(
            Cell(
                replace(SETTINGS, batch=batch, **settings), {name: summary(ms) for name, ms in samples.items()},
                1000 * batch / float(np.median(total)), {name: tuple(ms.tolist()) for name, ms in samples.items()},
            )
        )  # fmt: skip
    return Report(1, "wgap bench", {"bytes": 9}, {"pause_ms": 0.0}, {"cpu": "some"}, {"wgap": "7"}, tuple(cells))


def written(path: Path, content: Report) -> Path:
    path.write_text(json.dumps(to_plain(content)))
    return path


def ran(*words: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", "--compare", *map(str, words)], catch_exceptions=False)
    return done.exit_code, done.stdout


def test_a_planted_regression_of_three_percent_is_found_in_its_place() -> None:
    found = [compare(report(seed), report(100 + seed, {1: 1.0, 2: 1.03, 4: 1.0, 8: 1.0})) for seed in range(20)]
    verdicts = [[change.verdict for change in one.changes] for one in found]
    assert sum(one == ["same", "slower", "same", "same"] for one in verdicts) >= 19
    assert sum(one.ok for one in found) <= 1


def test_two_runs_of_the_same_thing_are_the_same() -> None:
    """Twenty repeats of four measurements: at most one alarm."""
    assert sum(not compare(report(seed), report(500 + seed)).ok for seed in range(20)) <= 1


def test_probabilities_are_those_of_all_measurements_together() -> None:
    a, b = report(0), report(1)
    pairs = zip(a.cells, b.cells, strict=True)
    alone = [difference(one.samples["total"], other.samples["total"]).p for one, other in pairs]
    assert [change.p for change in compare(a, b).changes] == adjusted(alone) != alone


def test_a_change_under_one_percent_is_none_however_sure() -> None:
    change = compare(report(0, {1: 1.0}, 5000), report(1, {1: 1.006}, 5000)).changes[0]
    assert change.p < 0.01
    assert (change.verdict, compare(report(0, {1: 1.0}), report(1, {1: 0.9})).changes[0].verdict) == ("same", "faster")


def test_the_command_says_what_changed_and_exits_with_3(tmp_path: Path) -> None:
    before = written(tmp_path / "a.json", report(0))
    slower = written(tmp_path / "b.json", replace(report(1, {1: 1.0, 2: 1.05, 4: 1.0, 8: 0.9}), versions={"wgap": "9"}))
    code, text = ran(before, slower)
    assert code == 3
    lines = text.splitlines()
    assert lines[0] == "differs: wgap: 7, then 9"
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == [
        "same",
        "slower",
        "same",
        "faster",
        "4",
    ]
    assert "onnxruntime fp32 adaptive, batch 2: 40." in text
    assert "        forward 1.0" in text
    assert "1 slower, 1 faster, 2 the same" in lines[-1]
    assert ran(before, written(tmp_path / "c.json", report(2)))[0] == 0
    code, text = ran(before, slower, "--json")
    told = json.loads(text)
    assert (code, told["ok"], told["changes"][1]["verdict"]) == (3, False, "slower")
    assert told["changes"][1]["ratio"] == pytest.approx(1.05, abs=0.02)


def test_faster_is_no_failure_and_a_measurement_that_is_gone_is_one() -> None:
    assert compare(report(0), report(1, {1: 0.9, 2: 1.0, 4: 1.0, 8: 1.0})).ok
    found = compare(report(0), report(1, {1: 1.0, 2: 1.0, 16: 1.0}))
    assert [one.batch for one in found.missing] == [4, 8]
    assert [one.batch for one in found.added] == [16]
    assert not found.ok


def test_bundles_are_told_apart_by_name_where_there_are_several() -> None:
    assert compare(report(0), report(1, bundle="/elsewhere/new")).ok, "each report has one"
    a, b = report(0), report(1, bundle="/x/other")
    both = replace(a, cells=a.cells + b.cells)
    moved = replace(
        both,
        cells=tuple(replace(c, settings=replace(c.settings, bundle="/new" + c.settings.bundle)) for c in both.cells),
    )
    assert len(compare(both, moved).changes) == 8
    with pytest.raises(DataError, match="one measurement twice"):
        compare(replace(a, cells=a.cells * 2), a)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: report(0, count=20), "a comparison needs 40 samples on each side, got 100 and 20"),
        (lambda one: replace(one, cells=tuple(replace(c, samples={}) for c in one.cells)), "has no samples"),
        (lambda one: report(0, backend="openvino"), "no measurement in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare(report(0), change(report(0)))


def test_compare_takes_two_reports_and_bench_a_bundle(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", report(0))
    for words, message in (
        (["--compare", path, path, "bundle"], "--compare takes two reports and no bundle"),
        ([], "expected a bundle to time, or two reports"),
    ):
        with pytest.raises(WgapError, match=message):
            CliRunner().invoke(app, ["bench", *map(str, words)], catch_exceptions=False)
    with pytest.raises(OSError, match="No such file"):
        ran(path, tmp_path / "gone.json")
