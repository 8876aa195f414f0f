"""``wgap evaluate``: how often the class, and the box, is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wgap.cli.options import BundleFolder, MaxBoxes, note, open_localizer, show_progress, with_network, with_rule
from wgap.errors import DataError

if TYPE_CHECKING:
    from wgap.evaluate.protocol import Evaluation


@with_network
@with_rule
def evaluate(
    ctx: typer.Context,
    bundle: BundleFolder,
    data: Annotated[Path, typer.Argument(help="Labelled image set with boxes; docs/datasets.md shows the layouts.")],
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    layout: Annotated[str, typer.Option(help="auto, cub, ilsvrc, wsolevaluation or folder.")] = "auto",
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also every map with fixed and adaptive thresholds; foreground rules.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures, report.json and per_image.jsonl.")] = None,
    plot: Annotated[
        list[str] | None, typer.Option(help="Plot the choice of threshold for: worst, random, or an image's path.")
    ] = None,
    max_boxes: MaxBoxes = 1,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 8,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to skip before giving up.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Score BUNDLE on DATA: Top-1 classification, GT-known and Top-1 localization (IoU >= 0.5)."""
    from wgap.atomic import require_new
    from wgap.datasets import open_dataset
    from wgap.evaluate.protocol import ablation_rules, evaluate_localizer
    from wgap.evaluate.report import write_report
    from wgap.extras import require

    if plot and out is None:
        raise DataError("--plot writes pictures: say where with --out DIR")
    if out is not None:
        require("--out", "matplotlib")
        require_new(out, force)
    bar = show_progress(transient=False)
    localizer = open_localizer(ctx.params)
    report = evaluate_localizer(
        localizer, open_dataset(data, split=split, layout=layout),
        ablation_rules(localizer.bundle) if ablation else (),
        batch_size=batch_size, max_bad=max_bad, progress=lambda batches: bar(batches, "evaluating"),
    )  # fmt: skip
    for path, reason in report.skipped:
        note(f"skipped {path}: {reason}")
    if out is not None:
        write_report(out, report, localizer, plot or ("random",), force)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        _print(report)


def _print(report: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    data = report.to_json()
    console = Console()
    table = Table(
        "map", "threshold", "top1_cls", "gt_known_loc", "top1_loc", "mean_iou", title=f"{data['images']} images"
    )
    for row in [data, *data.get("ablation", [])]:
        figures = (f"{row[key]:.3f}" for key in ("top1_cls", "gt_known_loc", "top1_loc", "mean_iou"))
        table.add_row(row["map"], row["threshold"], *figures)
    for key, name in (("centred_box", "centred box"), ("oracle", "oracle (uses the true box)")):
        known, mean = (f"{data[key][figure]:.3f}" for figure in ("gt_known_loc", "mean_iou"))
        table.add_row("", name, "", known, "", mean, style="dim")
    for bound in data.get("upper_bounds", []):
        if best := bound.get("best_fixed"):
            name = f"best fixed, {best['eta']:.2f} (tuned on the true boxes)"
            table.add_row(bound["map"], name, "", f"{best['gt_known_loc']:.3f}", "", "", style="dim")
        oracle = f"{bound['oracle']['gt_known_loc']:.3f}"
        table.add_row(bound["map"], "oracle (uses the true box)", "", oracle, "", "", style="dim")
    console.print(table)
    if several := data["any_of_n"]:
        console.print(
            f"any of {report.max_boxes} boxes right, which is not GT-known: {several['loc']:.3f}; "
            f"{several['boxes']:.2f} boxes an image, precision {several['precision']:.3f}, "
            f"recall {several['recall']:.3f}", soft_wrap=True,
        )  # fmt: skip
    if data["levels"]:
        chosen = ", ".join(f"{eta}: {count}" for eta, count in data["levels"].items())
        console.print(f"chosen thresholds: {chosen}", soft_wrap=True)
