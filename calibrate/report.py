"""Pictures of a calibration: ranges and scales, how far boxes drift, and the images that drift most."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.atomic import atomic_dir, require_new
from wgap.calibrate.half import FP16_LARGEST
from wgap.calibrate.ranges import WATCHED
from wgap.errors import FeatureError
from wgap.figures import fitted, new_figure
from wgap.images import decode
from wgap.plain import to_plain
from wgap.runtime.localizer import Localizer
from wgap.runtime.overlay import overlay, save_picture

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.calibrate.candidate import Calibration, Candidate, GateRun
    from wgap.calibrate.gate import Verdict

__all__ = ["write_report"]

WORST = 10
TILE = 300
"""Height and width of one picture of a pair."""


def write_report(
    report: Path, bundle: Bundle, source: Calibration, candidate: Candidate, run: GateRun | None,
    judged: Verdict | None, force: bool,
) -> None:  # fmt: skip
    """Write report.json, ranges.png and, where a gate ran, drift.png and worst.png; whole or not at all.

    Raises:
        OutputExistsError: see :func:`wgap.atomic.require_new`.
        MissingDependencyError: if matplotlib is not installed.
    """
    require_new(report, force)
    with atomic_dir(report, overwrite=force) as folder:
        content: dict[str, Any] = {"precision": candidate.precision, "calibration": to_plain(candidate.record)}
        if source.images:
            _ranges(source, candidate, folder / "ranges.png")
        if run is not None and judged is not None:
            content |= {"gate": to_plain(judged.record), "images": [asdict(drift) for drift in judged.drifts]}
            _drift(judged, candidate.precision, folder / "drift.png")
            _worst(bundle, candidate, run, judged, folder / "worst.png")
        (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _ranges(source: Calibration, candidate: Candidate, path: Path) -> None:
    import onnx

    nodes = onnx.load(str(source.graph)).graph.node
    ordered = list(dict.fromkeys(name for n in nodes if n.op_type in WATCHED for name in (*n.input[:1], *n.output)))
    names = [name for name in ordered if name in source.ranges]
    figure = new_figure(11, 5)
    axes = figure.subplots()
    at = range(len(names))
    tops = [max(source.ranges[name][1], 0.0) for name in names]
    bottoms = [max(-source.ranges[name][0], 0.0) for name in names]
    axes.bar([x - 0.2 for x in at], tops, 0.4, color="tab:blue", label="largest value")
    axes.bar([x + 0.2 for x in at], bottoms, 0.4, color="0.7", label="smallest value, below zero")
    scales = (candidate.record.quantisation or {}).get("scales", {})
    marked = [(x, 127 * scales[name]) for x, name in zip(at, names, strict=True) if name in scales]
    if marked:
        axes.plot(
            *zip(*marked, strict=True), "_", color="tab:red", markersize=12, markeredgewidth=2, label="INT8 limit"
        )
    if candidate.precision == "fp16":
        axes.axhline(FP16_LARGEST, color="tab:red", label=f"float16 limit, {FP16_LARGEST:.0f}")
    axes.set_yscale("log")
    axes.set_xticks(list(at), names, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("magnitude")
    axes.set_title(f"activation ranges over {len(source.images)} calibration images, {source.method}", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _drift(judged: Verdict, precision: str, path: Path) -> None:
    ious, figures = [drift.iou for drift in judged.drifts], judged.figures
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    axes.hist(ious, bins=50, range=(min(0.9, *ious), 1.0), color="tab:blue")
    for value, colour, label in (
        (figures["box_iou"]["mean"], "tab:orange", "mean"),
        (figures["box_iou"]["p5"], "tab:green", "5th percentile"),
        (judged.limits.min_iou, "tab:red", "limit of the mean"),
    ):
        axes.axvline(value, color=colour, linestyle="--", label=f"{label} {value:.3f}")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel(f"IoU of the {precision} box with float32's")
    axes.set_ylabel("images")
    changed = sum(not drift.same_class for drift in judged.drifts)
    axes.set_title(
        f"{'passed' if judged.passed else 'REFUSED'}: {figures['images']} images, {changed} other top-1, "
        f"{figures['level_flips']} other level, {figures['not_finite']} not finite",
        fontsize=10,
    )
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)


def _worst(bundle: Bundle, candidate: Candidate, run: GateRun, judged: Verdict, path: Path) -> None:
    """Float32 left, candidate right, the class of both float32's top-1; true boxes in green."""
    import cv2
    import numpy as np

    order = sorted(range(len(judged.drifts)), key=lambda n: judged.drifts[n].iou)[:WORST]
    rows = []
    with ExitStack() as opened:
        float32 = opened.enter_context(Localizer(bundle, run.backend, rule=run.locator.rule))
        network = opened.enter_context(run.network(candidate.path, candidate.precision))
        lower = Localizer(bundle, network=network, locator=run.locator)
        for n in order:
            picture, row = run.images.pictures[n], []
            image, class_id = decode(picture.path), run.float32[n].top1
            for localizer in (float32, lower):
                try:
                    drawn: Any = overlay(image, localizer.one(image, class_id, heatmap=True), truth=picture.boxes)
                except FeatureError:
                    drawn = image // 3
                small = fitted(drawn, TILE)
                tile = np.full((TILE + 22, TILE + 4, 3), 24, np.uint8)
                tile[22 : 22 + small.shape[0], : small.shape[1]] = small
                row.append(tile)
            caption = f"IoU {judged.drifts[n].iou:.3f}  {picture.path.name}".encode("ascii", "replace").decode()
            cv2.putText(row[0], "float32", (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
            text = f"{candidate.precision}  {caption}"
            cv2.putText(row[1], text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
            rows.append(np.hstack(row))
    if len(rows) % 2:
        rows.append(np.full_like(rows[0], 24))
    save_picture(path, np.vstack([np.hstack(rows[n : n + 2]) for n in range(0, len(rows), 2)]))
