"""Pictures of a report of ``wgap bench``: latency over batch size, throughput over latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wgap.atomic import atomic_file
from wgap.evaluate.latency import Cell, Report, Settings
from wgap.figures import new_figure

__all__ = ["draw_latency", "draw_throughput"]


_MARKS = {"rounds": "o", "closed": "s", "open": "^"}


def draw_latency(report: Report, path: Path, name: Callable[[Settings], str]) -> None:
    """Write the median of ``total`` over the batch size, a line for each network with the band of its intervals.

    Args:
        report: what was measured; loads are left out.
        path: of the file, whose suffix chooses the format: SVG, PNG, PDF.
        name: what the legend calls settings.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for label, cells in _grouped([cell for cell in report.cells if cell.settings.load == "rounds"], name).items():
        ordered = sorted(cells, key=lambda cell: cell.settings.batch)
        sizes, totals = [cell.settings.batch for cell in ordered], [cell.stages["total"] for cell in ordered]
        [line] = axes.plot(sizes, [total.p50_ms for total in totals], marker="o", label=label)
        bands = [total.p50_interval_ms or (total.p50_ms, total.p50_ms) for total in totals]
        axes.fill_between(sizes, *zip(*bands, strict=True), alpha=0.2, color=line.get_color())
    sizes = sorted({cell.settings.batch for cell in report.cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    _finish(figure, axes, "images per call", "ms per call: median, 95 % interval", path)


def draw_throughput(report: Report, path: Path, name: Callable[[Settings], str]) -> None:
    """Write images per second over the 90th percentile of ``total``.

    A line goes through a network's batch sizes, and through the loads of one kind on one batch size; the number at its
    end is the batch size. Arguments and errors as of :func:`draw_latency`.
    """
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for number, (label, cells) in enumerate(_grouped(report.cells, name).items()):
        lines: dict[tuple[str, int], list[Cell]] = {}
        for cell in cells:
            batch = 0 if cell.settings.load == "rounds" else cell.settings.batch
            lines.setdefault((cell.settings.load, batch), []).append(cell)
        told = set()
        for (load, batch), some in lines.items():
            ordered = sorted(some, key=lambda c: (c.settings.batch, c.settings.callers, c.settings.arrivals or 0))
            points = [(cell.stages["total"].p90_ms, cell.images_per_second) for cell in ordered]
            text = "_" if load in told else label if load == "rounds" else f"{label}, {load} loop"
            told.add(load)
            axes.plot(*zip(*points, strict=True), marker=_MARKS[load], color=f"C{number}", label=text)
            axes.annotate(str(batch or ordered[-1].settings.batch), points[-1], (4, 4), textcoords="offset points")
    _finish(figure, axes, "ms per call: 90th percentile", "images per second", path)


def _grouped(cells: Sequence[Cell], name: Callable[[Settings], str]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(name(cell.settings), []).append(cell)
    return found


def _finish(figure: Any, axes: Any, x: str, y: str, path: Path) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150)
