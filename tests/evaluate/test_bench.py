"""``wgap bench``: what is timed, in which order, and what the report says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.runtime.conftest import pictures  # noqa: F401  (a fixture)
from typer.testing import CliRunner

from wgap.cli import app
from wgap.errors import DataError, WgapError
from wgap.evaluate.latency import STAGES, Report, Run, Settings, measure, read_report
from wgap.plain import from_plain, read_json

QUICK = ("--iterations", 3, "--warmup", 1)


def told(*words: Any) -> Any:
    done = CliRunner().invoke(app, ["bench", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refusal(*words: Any) -> str:
    with pytest.raises(WgapError) as caught:
        CliRunner().invoke(app, ["bench", *map(str, words)], catch_exceptions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_report_has_every_stage_and_what_it_depends_on(tiny_bundle: Path, pictures: Path) -> None:  # noqa: F811
    report = told(tiny_bundle, "--image", pictures / "a.jpg", "--batch", "1,2", "--threads", 1, *QUICK)
    assert (report["schema"], report["program"]) == (1, "wgap bench")
    assert [cell["settings"] for cell in report["cells"]] == [
        {
            "bundle": str(tiny_bundle), "backend": "onnxruntime", "precision": "fp32", "rule": "adaptive",
            "map": "recombined", "batch": batch, "threads": 1, "load": "rounds", "callers": 1, "transfers": True,
        }
        for batch in (1, 2)
    ]  # fmt: skip
    for cell in report["cells"]:
        assert tuple(cell["stages"]) == STAGES
        for stage in cell["stages"].values():
            assert stage["samples"] == 3
            assert 0 < stage["min_ms"] <= stage["p50_ms"] <= stage["p90_ms"] <= stage["p99_ms"]
        per_second = 1000 * cell["settings"]["batch"] / cell["stages"]["total"]["p50_ms"]
        assert cell["images_per_second"] == pytest.approx(per_second)
        assert cell["samples"] == {}
        assert cell["open_ms"] > 0
    assert report["plan"] == {"iterations": 3, "warmup": 1, "pause_ms": 0.0}
    assert (report["image"]["width"], report["image"]["height"]) == (160, 120)
    assert {"cpu", "cores", "kernel_target", "load_average"} <= set(report["machine"])
    assert {"wgap", "python", "onnxruntime", "opencv", "numpy"} <= set(report["versions"])
    shown = CliRunner().invoke(app, ["bench", str(tiny_bundle), "--batch", "1", *map(str, QUICK)])
    assert "images/s" in shown.stdout
    assert "onnxruntime fp32 adaptive" in shown.stdout


def test_every_combination_has_a_cell_and_an_export_has_its_samples(tiny_bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    out = tmp_path / "new" / "report.json"
    rules = ("adaptive", "fixed:0.5")
    report = told(
        tiny_bundle, other, "--rule", ",".join(rules), "--threads", "1,all", "--batch", "1,2,1", *QUICK, "--export", out
    )
    found = [
        (
            cell["settings"]["bundle"],
            cell["settings"]["rule"],
            cell["settings"].get("threads"),
            cell["settings"]["batch"],
        )
        for cell in report["cells"]
    ]
    assert found == [
        (str(bundle), rule, threads, batch)
        for bundle in (tiny_bundle, other) for rule in rules for threads in (1, None) for batch in (1, 2)
    ]  # fmt: skip
    assert report["plan"]["pause_ms"] == 30
    exported = read_report(out)
    for cell, short in zip(exported.cells, report["cells"], strict=True):
        assert {stage: len(values) for stage, values in cell.samples.items()} == dict.fromkeys(STAGES, 3)
        assert min(cell.samples["total"]) == short["stages"]["total"]["min_ms"]


def test_no_network_is_given_more_batch_sizes_than_it_keeps_compiled(tiny_bundle: Path) -> None:
    """Else it would be compiled anew in every round."""
    pytest.importorskip("openvino")
    from wgap.cli.bench import KEPT
    from wgap.runtime.networks import openvino, tensorrt

    assert min(openvino.KEPT, tensorrt.MOST_BATCHES) >= KEPT
    few, many = (told(tiny_bundle, "--batch", ",".join(map(str, range(1, n + 1))), *QUICK) for n in (KEPT, KEPT + 1))
    assert (len(few["cells"]), len(many["cells"])) == (KEPT, KEPT + 1)
    assert (few["plan"]["pause_ms"], many["plan"]["pause_ms"]) == (0, 30), "a second network was opened"


def test_what_comes_twice_under_other_names_is_timed_once(tiny_bundle: Path) -> None:
    words = ["bench", str(tiny_bundle), str(tiny_bundle), "--backend", "onnxruntime,auto", "--batch", "1", "--json"]
    done = CliRunner().invoke(app, [*words, *map(str, QUICK)], catch_exceptions=False)
    assert [cell["settings"]["backend"] for cell in json.loads(done.stdout)["cells"]] == ["onnxruntime"]
    assert "auto fp32, batch 1: the same as another one, timed once" in done.stderr


class Told(Run):
    """A run that says when it was called, and takes as long as it is told."""

    def __init__(self, name: str, calls: list[str], times: Any) -> None:
        self.settings = Settings(name, "none", "fp32", "adaptive", "recombined", 1)
        self.open_ms, self.stages, self.memory_mib, self.joules = 0.0, ("total",), {}, {}
        self._calls, self._times = calls, iter(times)

    def once(self) -> tuple[float, ...]:
        self._calls.append(self.settings.bundle)
        return (next(self._times),)


def test_runs_take_turns_and_the_first_one_changes() -> None:
    calls: list[str] = []
    runs = [Told(name, calls, range(1, 9)) for name in "abc"]
    cells = measure(runs, iterations=4, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert [cell.samples["total"] for cell in cells] == [(2, 3, 4, 5)] * 3, "the first one is warm-up"
    assert [cell.steady for cell in cells] == [None] * 3


def test_warm_up_ends_when_every_run_is_steady_and_says_where_one_never_is() -> None:
    calls: list[str] = []
    slow = [40.0] * 7 + [20.0] * 60
    cells = measure([Told("a", calls, [20.0] * 90), Told("b", calls, slow)], iterations=2)
    assert [cell.steady for cell in cells] == [True, True]
    assert cells[0].warmup == cells[1].warmup == 15, "of the ten last, the median of either half is 20"
    [cell] = measure([Told("c", [], (1.1**n for n in range(200)))], iterations=2)
    assert (cell.steady, cell.warmup) == (False, 100)


def test_what_cannot_be_opened_is_left_out_and_named_but_not_where_nothing_else_is(tiny_bundle: Path) -> None:
    done = CliRunner().invoke(
        app, ["bench", str(tiny_bundle), "--precision", "fp32,int8", "--batch", "1", *map(str, QUICK), "--json"]
    )
    report = json.loads(done.stdout)
    assert [cell["settings"]["precision"] for cell in report["cells"]] == ["fp32"]
    [left] = report["left_out"]
    assert left["settings"]["precision"] == "int8"
    assert "holds no int8 model" in left["error"]
    assert "warning: left out: " in done.stderr
    assert "holds no int8 model" in refusal(tiny_bundle, "--precision", "int8")
    assert "none of 2 combinations can be opened; the first: " in refusal(tiny_bundle, "--precision", "int8,fp16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch", "8,0"), "--batch expects whole numbers of 1 or more, separated by commas, such as 1,8; got '0'"),
        (("--batch", "one"), "--batch expects whole numbers"),
        (("--threads", "1,some"), "--threads expects all, or whole numbers of 1 or more"),
        (("--warmup", "-1"), "--warmup expects a whole number or steady; got '-1'"),
        (("--iterations", "0"), "expected at least one iteration"),
        (("--pause", "-1"), "a pause of 0 or more, got 50, None and -0.001"),
        (("--pause", "nan"), "a pause of 0 or more"),
        (("--export", "."), "--export expects a file, . is a folder"),
        (("--backend", "onnxruntime,"), "--backend expects names separated by commas; one of them is empty"),
        (("--backend", "tpu"), "unknown backend 'tpu'"),
        (("--rule", "otsu"), "rule: expected"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options_are_refused_by_name(tiny_bundle: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refusal(tiny_bundle, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a report of wgap bench or wgap-bench with schema 1, got None"),
        ('{"schema": 2}', "got 2"),
        ("{", "expected a report of wgap bench or wgap-bench; "),
        ('{"schema": 1}', "program: missing"),
        ("\xff", "expected a report"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="expected a report") as caught:
        read_report(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarking.md"


@pytest.mark.skipif(not PAGE.exists(), reason="docs are not beside the tests (installed wheel)")
def test_the_page_names_every_option_and_shows_a_report_that_is_one() -> None:
    text = PAGE.read_text()
    parameters = typer.main.get_command(app).commands["bench"].params
    options = {name for parameter in parameters for name in parameter.opts if name.startswith("--")}
    shared = {"--map", "--ungated", "--memory-limit", "--hint", "--streams", "--threshold"}  # of runtime.md
    assert options - shared - {name for name in options if f"`{name}" in text or f" {name} " in text} == set()
    [shown] = re.findall(r"```json\n(.*?)```", text, flags=re.S)
    [cell] = from_plain(Report, read_json(shown)).cells
    assert cell.images_per_second == pytest.approx(1000 * cell.settings.batch / cell.stages["total"].p50_ms, rel=1e-2)
