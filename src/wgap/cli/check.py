"""``wgap check``: the PyTorch reference against the runtime, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wgap.cli.options import BundleFolder, open_localizer, show_progress, with_network, with_rule

NAMED = 10
"""At most so many images are named in the table's text."""


@with_network
@with_rule
def check(
    ctx: typer.Context,
    bundle: BundleFolder,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to compare on; default: the golden ones.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Of an imported bundle: the .onnx file, or package.module:factory, that it was made of."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare features, logits, map, level and box with PyTorch, or an import's source; exit code 1 beyond a limit."""
    from rich.console import Console
    from rich.table import Table

    from wgap.extras import require
    from wgap.images import find_images

    bar = show_progress(transient=False)
    with open_localizer(ctx.params) as localizer:
        require("check", "torch")
        from wgap.export.check import check_localizer

        chosen = None if images is None else find_images([images])
        report = check_localizer(localizer, chosen, progress=lambda cases: bar(cases, "comparing"), source=source)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        table = Table("stage", "measured", "limit", "", "what", title=f"parity on {report.images} images")
        for stage in report.stages:
            verdict, style = ("ok", "") if stage.ok else ("FAILED", "bold red")
            table.add_row(stage.name, f"{stage.measured:.3g}", f"{stage.limit:.3g}", verdict, stage.note, style=style)
        Console().print(table)
        for name in report.differing[:NAMED]:
            typer.echo(f"box differs end to end: {name}")
        if len(report.differing) > NAMED:
            typer.echo(f"and on {len(report.differing) - NAMED} more images; --json names them all")
    if not report.ok:
        raise typer.Exit(1)
