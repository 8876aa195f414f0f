"""What INT8 costs layer by layer, and what each layer kept in float32 buys back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wgap.atomic import atomic_dir, require_new
from wgap.calibrate.candidate import Calibration, Progress, silent
from wgap.calibrate.gate import Limits, Observation, observe, verdict
from wgap.calibrate.quantise import convolutions, int8_graph
from wgap.figures import new_figure
from wgap.runtime.locator import Locator, open_locator
from wgap.runtime.networks.onnxruntime import file_network, open_session

__all__ = ["LayerCost", "Point", "Sensitivity", "rank", "sensitivity", "write_sensitivity"]

ROUNDS = 15
"""Timed forward passes of each mixture."""


@dataclass(frozen=True)
class LayerCost:
    """One convolution; mean box IoU against float32 on the calibration images.

    Attributes:
        layer: node name.
        alone: with only this layer in INT8.
        all_but: with every layer but this one in INT8; high where this layer is the one that hurts.
    """

    layer: str
    alone: float
    all_but: float


@dataclass(frozen=True)
class Point:
    """One mixture: how many of the most harmful layers are float32, mean box IoU, milliseconds of a forward pass."""

    keep_float: tuple[str, ...]
    iou: float
    p25_ms: float
    median_ms: float
    p75_ms: float
    best: bool


@dataclass(frozen=True)
class Sensitivity:
    """Costs in the network's order, layers from most to least harmful, and the latency curve (may be empty)."""

    images: int
    all_int8: float
    layers: tuple[LayerCost, ...]
    ranking: tuple[str, ...]
    pareto: tuple[Point, ...]


def rank(source: Calibration, locator: Locator, progress: Progress = silent) -> list[tuple[str, float]]:
    """(layer, mean box IoU with only it in INT8), the most harmful layer first.

    Measured on the calibration images, under the locator's rule: a ranking by the gate's images would tune the file to
    its judge. A layer alone in INT8 shows its own harm; with all the others in INT8 too, their noise hides it, and a
    scale that two neighbours share stays bad whichever of the two is spared.
    """
    alone = _alone(source, locator, _observed(source, locator, source.graph), progress)
    return sorted(alone.items(), key=lambda row: row[1])


def _alone(
    source: Calibration, locator: Locator, float32: Sequence[Observation], progress: Progress
) -> dict[str, float]:
    names = convolutions(source.graph)
    return {
        name: _iou(source, locator, [other for other in names if other != name], float32)
        for name in progress(names, "one layer alone")
    }


def sensitivity(source: Calibration, pareto: bool = True, progress: Progress = silent) -> Sensitivity:
    """Quantise every convolution alone and all but it, and time what mixtures cost.

    Args:
        source: graph, ranges and calibration images, which are also the ones measured on.
        pareto: also make the k most harmful layers float32, k = 0, 1, ..., and time a forward pass at batch 1 of all
            mixtures and of float32, interleaved, with idle threads asleep.
        progress: shown while it works.
    """
    names, locator = convolutions(source.graph), open_locator(source.bundle)
    float32 = _observed(source, locator, source.graph)
    alone = _alone(source, locator, float32, progress)
    layers = tuple(
        LayerCost(name, alone[name], _iou(source, locator, [name], float32))
        for name in progress(names, "all but one layer")
    )
    ranking = tuple(sorted(alone, key=alone.__getitem__))
    points = _pareto(source, locator, ranking, float32, progress) if pareto else ()
    return Sensitivity(len(source.images), _iou(source, locator, (), float32), layers, ranking, points)


def write_sensitivity(out: Path, found: Sensitivity, force: bool = False) -> None:
    """Write report.json, layers.png and, where it was measured, pareto.png; whole or not at all.

    Raises:
        OutputExistsError: see :func:`wgap.atomic.require_new`.
        MissingDependencyError: if matplotlib is not installed.
    """
    require_new(out, force)
    with atomic_dir(out, overwrite=force) as folder:
        _plot(found, folder)
        (folder / "report.json").write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")


def _plot(found: Sensitivity, folder: Path) -> None:
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    at = range(len(found.layers))
    axes.bar([x - 0.2 for x in at], [1 - row.alone for row in found.layers], 0.4, label="only this layer in INT8")
    gain = [row.all_but - found.all_int8 for row in found.layers]
    axes.bar([x + 0.2 for x in at], gain, 0.4, label="gained by keeping this layer in float32")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xticks(list(at), [row.layer for row in found.layers], rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("mean box IoU against float32")
    axes.set_title(f"all in INT8: {found.all_int8:.4f}, on {found.images} calibration images", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(folder / "layers.png", dpi=110)
    if not found.pareto:
        return
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for best, colour, label in ((True, "tab:orange", "no other is better in both"), (False, "0.6", "others")):
        rows = [row for row in found.pareto if row.best == best]
        spread = [[row.median_ms - row.p25_ms for row in rows], [row.p75_ms - row.median_ms for row in rows]]
        axes.errorbar(
            [r.median_ms for r in rows], [r.iou for r in rows], xerr=spread, fmt="o", color=colour, label=label
        )
    for row in found.pareto:
        axes.annotate(
            str(len(row.keep_float)), (row.median_ms, row.iou), xytext=(4, 4), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel("forward pass at batch 1 in ms (median, quartiles)")
    axes.set_ylabel("mean box IoU against float32")
    axes.set_title("numbers: convolutions kept in float32", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(folder / "pareto.png", dpi=110)


def _iou(source: Calibration, locator: Locator, keep_float: Sequence[str], float32: Sequence[Observation]) -> float:
    if len(keep_float) == len(convolutions(source.graph)):
        return 1.0
    with tempfile.TemporaryDirectory(prefix="wgap-layer-") as folder:
        path = Path(folder) / "int8.onnx"
        int8_graph(source.graph, source.ranges, path, keep_float)
        seen = _observed(source, locator, path, float32)
    mean: float = verdict(locator.size, source.images, float32, seen, Limits()).figures["box_iou"]["mean"]
    return mean


def _observed(
    source: Calibration, locator: Locator, path: Path, float32: Sequence[Observation] | None = None
) -> list[Observation]:
    return observe(file_network(source.bundle, path, "int8"), locator, source.images, float32)


def _pareto(
    source: Calibration, locator: Locator, ranking: Sequence[str], float32: Sequence[Observation], progress: Progress
) -> tuple[Point, ...]:
    from time import perf_counter

    import numpy as np

    asleep = {"session.intra_op.allow_spinning": "0"}
    kept = [tuple(ranking[:k]) for k in range(len(ranking) + 1)]
    shares, sessions = [], []
    with tempfile.TemporaryDirectory(prefix="wgap-pareto-") as folder:
        for mixture in progress(kept, "mixtures"):
            path = source.graph
            if len(mixture) < len(ranking):
                path = Path(folder) / f"{len(mixture)}.onnx"
                int8_graph(source.graph, source.ranges, path, mixture)
            sessions.append(open_session(path, source.bundle.manifest.model, settings=asleep))
            shares.append(_iou(source, locator, mixture, float32))
        batch = source.images.batch(slice(0, 1))
        times: list[list[float]] = [[] for _ in kept]
        for number in progress(range(ROUNDS + 2), "timing"):
            for row, session in zip(times, sessions, strict=True):
                start = perf_counter()
                session.run(None, {"image": batch})
                if number >= 2:
                    row.append(1000 * (perf_counter() - start))
    quartiles = [[float(q) for q in np.percentile(row, (25, 50, 75))] for row in times]
    points = []
    for mixture, share, (p25, median, p75) in zip(kept, shares, quartiles, strict=True):
        beaten = any(s >= share and q[1] < median for s, q in zip(shares, quartiles, strict=True))
        points.append(Point(mixture, share, p25, median, p75, not beaten))
    return tuple(points)
