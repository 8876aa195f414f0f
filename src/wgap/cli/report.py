"""``wgap report``: a bundle on a labelled set as one page to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wgap.cli.options import BundleFolder, LabelMap, note, open_localizer, show_progress, with_network, with_rule


@with_network
@with_rule
def report(
    ctx: typer.Context,
    bundle: BundleFolder,
    data: Annotated[Path, typer.Argument(help="Labelled image set with boxes; docs/datasets.md shows the layouts.")],
    out: Annotated[Path, typer.Option(help="The page, one HTML file.")],
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    layout: Annotated[str, typer.Option(help="auto, cub, ilsvrc, wsolevaluation or folder.")] = "auto",
    label_map: LabelMap = None,
    against: Annotated[
        str | None,
        typer.Option(help="Precision whose boxes are compared, or none; default: int8 where the bundle has it."),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures at most: half of them the worst, others at random.")] = 200,
    budget: Annotated[float, typer.Option(help="Megabytes of the page; pictures become smaller to fit.")] = 5.5,
    iterations: Annotated[int, typer.Option(help="Timed iterations of each network; 0 leaves latency out.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 8,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to skip before giving up.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Write BUNDLE on DATA as one HTML page that needs no network: pictures, boxes, tables, histograms, a slider."""
    from wgap.datasets import open_dataset, with_label_map
    from wgap.evaluate.page.html import require_new_page, write_page
    from wgap.evaluate.page.report import against_precision, report_page

    require_new_page(out, force)
    localizer = open_localizer(ctx.params)
    other = against_precision(localizer.bundle, against, localizer.network.precision, note)
    compared = None if other is None else open_localizer({**ctx.params, "precision": other, "ungated": True})
    bar = show_progress(transient=False)
    dataset = with_label_map(open_dataset(data, split=split, layout=layout), label_map)
    page, figures = report_page(
        localizer, dataset, compared, pictures=pictures, budget=budget,
        iterations=iterations, batch_size=batch_size, max_bad=max_bad, progress=lambda batches: bar(batches, "looking"),
    )  # fmt: skip
    for skipped in figures["skipped"]:
        note(f"skipped {skipped['image']}: {skipped['error']}")
    size = write_page(out, page)
    if as_json:
        typer.echo(json.dumps({**figures, "out": str(out), "bytes": size}))
    else:
        own = figures["figures"][0][0]
        typer.echo(
            f"{out}: {size / 1e6:.2f} MB, {figures['shown']} of {figures['images']} images shown; GT-known "
            f"localization {own['gt_known_loc']:.3f}, Top-1 {own['top1_loc']:.3f}"
            + ("" if other is None else f"; {other}: {figures['figures'][1][0]['gt_known_loc']:.3f}")
        )
