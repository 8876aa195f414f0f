"""``wgap report``: a labelled set as one page, with the pictures that it can afford."""

from __future__ import annotations

import base64
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.errors import DataError, GateError
from wgap.evaluate.latency import Run, Settings, cpu_model, environment, measure
from wgap.evaluate.page.bundle import bundle_data
from wgap.evaluate.page.figures import comparison, rule_figures, separations
from wgap.evaluate.page.html import page_html
from wgap.evaluate.page.observe import KINDS, Found, Grid, Row, Shown, observe, report_rules, wanted_grid
from wgap.figures import fitted
from wgap.geometry import iou
from wgap.images import decode

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.datasets import Dataset
    from wgap.evaluate.batches import Progress
    from wgap.runtime.localizer import Localizer

__all__ = ["BUDGET", "against_precision", "report_page"]

BUDGET = 5.5
"""Megabytes of a page, where nothing else is asked for."""

_SIDES = (480, 400, 320, 256, 208, 160, 128, 96, 64)
"""Longer sides that a picture may have, in pixels."""

_QUALITY = 80


def against_precision(
    bundle: Bundle, asked: str | None, precision: str, note: Callable[[str], None] = lambda text: None
) -> str | None:
    """Which precision's boxes to compare: the asked one, else ``int8`` where the bundle has it; None for none.

    ``note`` is told of an ``int8`` that is left out because it is stale.

    Raises:
        BundleError: the bundle has none of the asked precision (GateError where it is stale).
        DataError: it is the one that runs already.
    """
    if asked == "none":
        return None
    if asked is None:
        if precision == "int8" or all(entry.precision != "int8" for entry in bundle.manifest.files):
            return None
        try:
            bundle.model_file("int8", ungated=True)
        except GateError as error:
            note(f"int8 is not compared: {error}")
            return None
        return "int8"
    if asked == precision:
        raise DataError(f"--against {asked}: expected another precision than --precision {precision}, or none")
    bundle.model_file(asked, ungated=True)
    return asked


def report_page(
    localizer: Localizer, dataset: Dataset, against: Localizer | None = None, *, pictures: int = 200,
    budget: float = BUDGET, iterations: int = 10, batch_size: int = 8, max_bad: int = 10,
    progress: Progress = lambda items: items,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """The page of a localizer on a labelled set with boxes, and its figures.

    Args:
        localizer: whose boxes are judged, under its own rule and those of :func:`report_rules`.
        dataset: one split; its class names must be the bundle's, in any order.
        against: another precision of the same bundle, whose boxes are compared.
        pictures: how many to show at most: half of them the worst, the others drawn at random.
        budget: megabytes (10^6 bytes) that the page may have; pictures become smaller until it does.
        iterations: timed iterations of each network; 0 leaves latency out.
        batch_size: images per forward pass.
        max_bad: how many unreadable images to skip, by name, before giving up.
        progress: wraps the sequence of batches, for a progress bar.

    Returns:
        the page's text, and what ``wgap report --json`` prints.

    Raises:
        DataError: class names differ, the set has no boxes or no readable image, or the budget is too small.
        FeatureError: a network's output for an image is not finite.
    """
    if pictures < 1 or iterations < 0 or not budget > 0:
        raise DataError(
            "expected at least one picture, 0 or more iterations and a budget above 0 MB, got "
            f"{pictures}, {iterations} and {budget:g}"
        )
    networks = [localizer] if against is None else [localizer, against]
    rules, classes = report_rules(localizer), localizer.classes
    skipped: list[tuple[str, str]] = []
    rows, shown = [], Shown(pictures)
    for row, maps in observe(networks, rules, dataset, skipped, batch_size, max_bad, progress):
        rows.append(row)
        shown.add(row, maps)
    if not rows:
        raise DataError(f"{dataset.root}: no image of split {dataset.split!r} could be read")
    names = [one.network.precision for one in networks]
    report = {
        "images": len(rows),
        "skipped": [{"image": path, "error": error} for path, error in skipped],
        "rules": [{"text": str(rule), **rule.to_json()} for rule in rules],
        "networks": names,
        "figures": [[rule_figures(rows, n, r, classes) for r in range(len(rules))] for n in range(len(networks))],
        "comparison": None if against is None else comparison(rows, rules),
        "separation": separations(rows),
        "latency": _latency(networks, rows[0].path, iterations) if iterations else None,
        "provenance": _provenance(localizer, dataset),
    }
    seen = shown.rows()
    data = {
        "bundle": bundle_data(localizer.bundle),
        "report": {
            **report,
            "kinds": KINDS,
            "classes": classes,
            "grid": wanted_grid(localizer),
            "pictures": [_picture(row, maps, dataset.root) for row, maps in seen],
        },
    }
    title = f"wgap report: {localizer.bundle.root.absolute().name} on {dataset.root.absolute().name}"
    room = int(budget * 1e6) - len(page_html(title, data))
    for picture, url in zip(data["report"]["pictures"], _thumbnails([row.path for row, _ in seen], room), strict=True):
        picture["thumb"] = url
    return page_html(title, data), {**report, "shown": len(seen)}


def _picture(row: Row, maps: Sequence[Grid], root: Path) -> dict[str, Any]:
    name = row.path.relative_to(root) if row.path.is_relative_to(root) else row.path
    return {
        "name": str(name), "label": row.label, "height": row.size[0], "width": row.size[1],
        "truth": [_rounded(box) for box in row.truth],
        "predicted": row.predicted, "scores": [round(score, 4) for score in row.scores],
        "found": [[_judged(one) for one in by_rule] for by_rule in row.found],
        "agreement": [round(iou(a.box, b.box), 4) for a, b in zip(*row.found, strict=True)]
        if len(row.found) > 1 else None,
        "maps": [
            {
                "cells": base64.b64encode(one.cells.tobytes()).decode(),
                "low": round(one.low, 5),
                "high": round(one.high, 5),
            }
            for one in maps
        ],
        "thumb": "",
    }  # fmt: skip


def _judged(found: Found) -> dict[str, Any]:
    score = found.score
    return {
        "box": _rounded(found.box), "iou": round(score.gt_iou, 4), "kind": found.kind, "level": score.level,
        "degenerate": score.degenerate,
    }  # fmt: skip


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(side, 1) for side in box]


def _thumbnails(paths: Sequence[Path], room: int) -> list[str]:
    """Pictures as URLs of JPEG data, as large as so many bytes allow; what one leaves is the others'.

    Raises:
        DataError: even the smallest are too large.
    """
    import cv2

    urls: list[str] = []
    for number, path in enumerate(paths):
        share, picture = room / (len(paths) - number), decode(path)
        for side in _SIDES:
            if side > max(picture.shape[:2]) and side != _SIDES[-1]:
                continue
            small = fitted(picture, min(side, max(picture.shape[:2])))
            jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
            url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
            if len(url) <= share:
                break
        else:
            raise DataError(
                f"--budget: {len(paths)} pictures do not fit, even of {_SIDES[-1]} pixels; allow more megabytes, or "
                "fewer --pictures"
            )
        urls.append(url)
        room -= len(url)
    return urls


def _latency(networks: Sequence[Localizer], image: Path, iterations: int) -> dict[str, Any]:
    """Of one image through each network, in turns."""
    runs = []
    for one in networks:
        network, rule = one.network, one.rule
        runs.append(Run(one, Settings("", network.name, network.precision, str(rule), rule.map, 1), image.read_bytes()))
    return {
        "iterations": iterations,
        "machine": environment(networks)[0],
        "runs": [
            {
                "backend": cell.settings.backend,
                "precision": cell.settings.precision,
                "rule": cell.settings.rule,
                "stages": {stage: asdict(times) for stage, times in cell.stages.items()},
            }
            for cell in measure(runs, iterations=iterations, warmup=2)
        ],
    }


def _provenance(localizer: Localizer, dataset: Dataset) -> dict[str, Any]:
    from importlib import metadata

    network = localizer.network
    return {
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "wgap": metadata.version("wgap"),
        "python": platform.python_version(),
        "backend": f"{network.name} {network.version}",
        "processor": cpu_model(),
        "data": dataset.root.absolute().name,
        "layout": dataset.layout,
        "split": dataset.split,
    }
