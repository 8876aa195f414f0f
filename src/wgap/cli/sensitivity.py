"""``wgap sensitivity``: what INT8 costs layer by layer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wgap.cli.options import MaxBad, note, show_progress


def sensitivity(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; nothing in it is changed.")],
    images: Annotated[Path, typer.Option(help="Calibration images: a folder, or a labelled set.")],
    method: Annotated[str, typer.Option(help="How ranges are chosen: minmax, entropy or percentile.")] = "minmax",
    count: Annotated[int, typer.Option(help="Images to take, every class in turn.")] = 32,
    split: Annotated[str, typer.Option(help="train, val, test or all; of a labelled set only.")] = "train",
    cache_dir: Annotated[Path | None, typer.Option(help="Keep ranges here, named by content.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for layers.png, pareto.png and report.json.")] = None,
    pareto: Annotated[bool, typer.Option(help="Also time mixtures of INT8 and float32.")] = True,
    max_bad: MaxBad = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Quantise BUNDLE's convolutions one at a time, and all but one, and show what that does to boxes."""
    from rich.console import Console
    from rich.table import Table

    from wgap.atomic import require_new
    from wgap.bundle import Bundle
    from wgap.calibrate.bundle import measure_layers
    from wgap.calibrate.sensitivity import write_sensitivity
    from wgap.extras import require

    if out is not None:
        require("--out", "matplotlib")
        require_new(out, force)
    found = measure_layers(
        Bundle.open(bundle), images, method=method, count=count, split=split, cache_dir=cache_dir, pareto=pareto,
        max_bad=max_bad, progress=show_progress(), note=note,
    )  # fmt: skip
    if out is not None:
        write_sensitivity(out, found, force)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    table = Table(
        "layer", "only it in INT8", "all but it in INT8", title=f"mean box IoU, all INT8: {found.all_int8:.4f}"
    )
    for row in found.layers:
        table.add_row(row.layer, f"{row.alone:.4f}", f"{row.all_but:.4f}")
    Console().print(table)
    if found.pareto:
        table = Table("layers in float32", "mean box IoU", "ms (p25-p75)", "")
        for point in found.pareto:
            spread = f"{point.median_ms:.1f} ({point.p25_ms:.1f}-{point.p75_ms:.1f})"
            table.add_row(str(len(point.keep_float)), f"{point.iou:.4f}", spread, "*" if point.best else "")
        Console().print(table)
        typer.echo("* no other mixture is better in both")
