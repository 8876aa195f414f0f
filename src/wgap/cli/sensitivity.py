"""``wgap sensitivity``: what INT8 costs layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def sensitivity(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; nothing in it is changed.")],
    images: Annotated[Path, typer.Option(help="Calibration images: a folder, or a labelled set.")],
    method: Annotated[str, typer.Option(help="How ranges are chosen: minmax, entropy or percentile.")] = "minmax",
    count: Annotated[int, typer.Option(help="Images to take, every class in turn.")] = 32,
    split: Annotated[str, typer.Option(help="train, val, test or all; of a labelled set only.")] = "train",
    cache_dir: Annotated[Path | None, typer.Option(help="Keep ranges here, named by content.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for layers.png, pareto.png and report.json.")] = None,
    pareto: Annotated[bool, typer.Option(help="Also time mixtures of INT8 and float32.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Quantise BUNDLE's convolutions one at a time, and all but one, and show what that does to boxes."""
    from rich.console import Console
    from rich.table import Table

    from wgap.atomic import atomic_dir
    from wgap.bundle import Bundle
    from wgap.calibrate.candidate import prepare
    from wgap.calibrate.images import image_set
    from wgap.calibrate.report import require_new
    from wgap.calibrate.sensitivity import plot
    from wgap.calibrate.sensitivity import sensitivity as measure
    from wgap.cli.calibrate import show_progress, warn

    if out is not None:
        require_new(out, force)
    progress = show_progress()
    opened = Bundle.open(bundle)
    chosen = image_set(
        opened, images, split=split, count=count, progress=lambda items: progress(items, "reading calibration images")
    )
    warn(chosen.warnings)
    with prepare(opened, chosen, method, cache_dir, progress) as source:
        found = measure(source, pareto, progress)
    if out is not None:
        with atomic_dir(out, overwrite=force) as folder:
            plot(found, folder)
            (folder / "report.json").write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found.to_json()))
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
