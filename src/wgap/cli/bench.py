"""``wgap bench``: how long one image takes, stage by stage."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from wgap.cli.options import BundleFolder, open_localizer, show_progress, with_network, with_rule
from wgap.errors import DataError


@with_network
@with_rule
def bench(
    ctx: typer.Context,
    bundle: BundleFolder,
    image: Annotated[Path | None, typer.Option(help="Image file; default: a JPEG of a golden image.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8",
    iterations: Annotated[int, typer.Option(help="Timed iterations per batch size.")] = 50,
    warmup: Annotated[int, typer.Option(help="Untimed iterations before them.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Time decoding, resizing, forward pass, postprocessing and the whole of it for BUNDLE."""
    from rich.console import Console
    from rich.table import Table

    from wgap.evaluate.latency import measure_latency

    try:
        batches = [int(size) for size in batch.split(",")]
    except ValueError:
        raise DataError(f"--batch expects whole numbers separated by commas, such as 1,8; got {batch!r}") from None
    bar = show_progress()
    report = measure_latency(
        open_localizer(ctx.params), image, batches=batches, iterations=iterations, warmup=warmup,
        progress=lambda rounds: bar(rounds, "timing"),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"bundle": str(bundle), **asdict(report)}))
        return
    settings, machine = report.settings, report.machine
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    typer.echo(
        f"{machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel_target']}\n{versions}\n"
        f"{settings['backend']} {settings['precision']}, {_where(settings)}, "
        f"{settings['warmup']} + {settings['iterations']} iterations, "
        f"image {report.image['width']}x{report.image['height']} ({report.image['source']})"
    )
    table = Table("batch", "stage", "p50 ms", "p90 ms", "p99 ms", "mean ms", "min ms")
    for entry in report.batches:
        for stage, t in entry.stages.items():
            figures = (f"{v:.3f}" for v in (t.p50_ms, t.p90_ms, t.p99_ms, t.mean_ms, t.min_ms))
            table.add_row(str(entry.batch), stage, *figures, end_section=stage == "total")
    Console().print(table)
    for entry in report.batches:
        typer.echo(f"batch {entry.batch}: {entry.images_per_second:.1f} images/s")


def _where(settings: dict[str, Any]) -> str:
    """What ran it: threads of the CPU, or a GPU."""
    return f"threads {settings['threads'] or 'all'}" if settings["device"] is None else f"GPU {settings['device']}"
