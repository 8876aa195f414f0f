"""The pictures of ``wgap bench`` hold what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from wgap.cli import app
from wgap.evaluate.bench_figures import draw_latency, draw_throughput
from wgap.evaluate.latency import Cell, Report, Settings
from wgap.evaluate.statistics import Summary

pytest.importorskip("matplotlib")

SVG = "{http://www.w3.org/2000/svg}"


def cell(batch: int, backend: str, **more: object) -> Cell:
    settings = Settings("b", backend, "fp32", "adaptive", "recombined", batch, **more)  # type: ignore[arg-type]
    return Cell(
        settings, {"total": Summary(50, 10.0 * batch, 12.0 * batch, 13.0, 10.0, 9.0, (9.0, 11.0 * batch))}, 100.0
    )


def test_each_network_has_a_line_and_each_kind_of_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[list[float], list[float], str]] = []
    plot = Axes.plot

    def telling(self: Axes, x: list[float], y: list[float], **more: object) -> object:
        drawn.append((list(x), list(y), str(more["label"])))
        return plot(self, x, y, **more)

    monkeypatch.setattr(Axes, "plot", telling)
    cells = [cell(batch, backend) for batch in (8, 1) for backend in ("one", "$two^_")]
    open_ = [cell(batch, "one", load="open", arrivals=rate) for batch in (1, 8) for rate in (50.0, 5.0)]
    cells += [cell(1, "one", load="closed", callers=4), *open_]
    report = Report(1, "wgap bench", {}, {}, {}, {}, tuple(cells))
    draw_latency(report, tmp_path / "new" / "a.svg", lambda settings: settings.backend)
    assert drawn == [([1, 8], [10.0, 80.0], "one"), ([1, 8], [10.0, 80.0], "$two^_")]
    drawn.clear()
    draw_throughput(report, tmp_path / "b.png", lambda settings: settings.backend)
    assert [(x, label) for x, _, label in drawn] == [
        ([12.0, 96.0], "one"), ([12.0], "one, closed loop"), ([12.0, 12.0], "one, open loop"), ([96.0, 96.0], "_"),
        ([12.0, 96.0], "$two^_"),
    ]  # fmt: skip
    assert ElementTree.parse(tmp_path / "new" / "a.svg").getroot().tag == f"{SVG}svg"
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_bench_draws_both(tiny_bundle: Path, tmp_path: Path) -> None:
    words = [
        "bench",
        str(tiny_bundle),
        "--batch",
        "1,2",
        "--iterations",
        "2",
        "--warmup",
        "0",
        "--figures",
        str(tmp_path / "f"),
    ]
    assert json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)["schema"] == 1
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == ["latency.svg", "throughput.svg"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        CliRunner().invoke(app, [*words[:-1], str(tmp_path / "file")], catch_exceptions=False)
