"""An evaluation as a folder: figures, one line per image, and pictures."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wgap._native import LEVELS
from wgap.atomic import atomic_dir, require_new
from wgap.errors import DataError
from wgap.evaluate.pictures import montage, plot_levels
from wgap.evaluate.protocol import Evaluation, ImageResult
from wgap.runtime.localizer import Localizer
from wgap.runtime.overlay import save_picture

__all__ = ["write_protocol_report", "write_report"]

SHOWN = 24
"""How many images each montage shows."""


def write_report(
    out: Path, report: Evaluation, localizer: Localizer, plots: Sequence[str] = ("random",), force: bool = False
) -> None:
    """Write report.json, per_image.jsonl, worst.png, spread.png and the plots of levels; whole or not at all.

    Args:
        out: folder to make.
        report: what was measured.
        localizer: draws the pictures; over the same bundle and network, under the first of the report's rules.
        plots: images whose choice of threshold is plotted: ``worst``, ``random``, or an image's path or name.
        force: replace an earlier report in ``out``.

    Raises:
        OutputExistsError: see :func:`wgap.atomic.require_new`.
        DataError: if no image has the path that a plot names.
        MissingDependencyError: if matplotlib is not installed.
    """
    require_new(out, force)
    worst = sorted(report.images, key=lambda image: image.scores[0].gt_iou)
    spread = worst[:: max(1, len(worst) // SHOWN)][:SHOWN]
    with atomic_dir(out, overwrite=force) as folder:
        (folder / "report.json").write_text(json.dumps(report.to_json(), indent=2) + "\n")
        with (folder / "per_image.jsonl").open("w") as lines:
            lines.writelines(json.dumps(_record(image, localizer.classes)) + "\n" for image in report.images)
        save_picture(folder / "worst.png", montage(localizer, worst[:SHOWN]))
        save_picture(folder / "spread.png", montage(localizer, spread))
        for number, image in enumerate(_chosen(report, plots, worst)):
            plot_levels(localizer, image, folder / f"levels-{number}-{image.path.stem}.png")


def write_protocol_report(out: Path, report: dict[str, Any], force: bool = False) -> None:
    """Write report.json and, of its table of classes, per_class.csv; whole or not at all.

    Raises:
        OutputExistsError: see :func:`wgap.atomic.require_new`.
    """
    require_new(out, force)
    rows = report["per_class"]
    with atomic_dir(out, overwrite=force) as folder:
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        with (folder / "per_class.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)


def _record(image: ImageResult, classes: tuple[str, ...]) -> dict[str, Any]:
    score = image.scores[0]
    return {
        "image": str(image.path),
        "label": None if image.label is None else classes[image.label],
        "predicted": classes[image.predicted],
        "score": image.score,
        "box": list(image.box),
        "truth": [list(box) for box in image.truth],
        "gt_iou": score.gt_iou,
        "top1_iou": score.top1_iou,
        "threshold": score.level / LEVELS if score.level >= 0 else None,
        "degenerate": score.degenerate,
        "oracle_iou": max(next(iter(image.level_ious.values()))),
    }


def _chosen(report: Evaluation, plots: Sequence[str], worst: list[ImageResult]) -> list[ImageResult]:
    chosen = []
    for plot in plots:
        if plot == "worst":
            chosen.append(worst[0])
        elif plot == "random":
            chosen.append(random.Random(0).choice(report.images))  # noqa: S311  (a picture, no secret)
        else:
            found = [image for image in report.images if image.path == Path(plot) or image.path.name == plot]
            if not found:
                raise DataError(f"--plot {plot}: no such image in the set; give worst, random or an image's path")
            chosen += found
    return chosen
