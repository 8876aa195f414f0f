"""``wgap foreground``: object and ground told apart, from pictures alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wgap.cli.options import BundleFolder, LabelMap, MaxBad, note, show_progress
from wgap.plain import to_plain


def foreground(
    bundle: BundleFolder,
    images: Annotated[Path, typer.Option(help="Pictures of what is to be localized: a labelled set, or a folder.")],
    split: Annotated[str, typer.Option(help="train, val, test or all; of a labelled set only.")] = "train",
    count: Annotated[
        int | None, typer.Option(help="Pictures to take, every class in turn; default: 500 at most.")
    ] = None,
    rule: Annotated[str, typer.Option(help="The bundle's rule from then on.")] = "foreground+colour",
    map_: Annotated[
        str | None, typer.Option("--map", help="Of a foreground rule: the map that decides between components.")
    ] = None,
    sum_of_channels: Annotated[
        bool, typer.Option("--sum-of-channels", help="Begin with the sum of the features, not with the class's map.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Folder for pictures and report.json.")] = None,
    max_bad: MaxBad = 0,
    label_map: LabelMap = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --report if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest entry as JSON.")] = False,
) -> None:
    """Fit a score of object against ground to BUNDLE's network and put it into the graph; no box is read."""
    from wgap.bundle import Bundle
    from wgap.calibrate.foreground import foreground_bundle
    from wgap.rule import Rule
    from wgap.runtime.engine import engines, stale

    made = foreground_bundle(
        Bundle.open(bundle), images, split=split, count=count, rule=Rule.parse(rule, map_),
        sum_of_channels=sum_of_channels, report=report, force=force, max_bad=max_bad, label_map=label_map,
        progress=show_progress(), note=note,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"bundle": str(made.bundle.root), **to_plain(made.entry)}))
        return
    found, scores = made.record.separation, made.bundle.manifest.model.signature()["foreground"]
    fine = ""
    if found["fine"] is not None:
        finer = f" and {found['finer']:.2f}" if "finer" in found else ""
        fine = f", finer {found['fine']:.2f}{finer}; GrabCut agrees on {found['grabcut_agreement']:.1%}"
    models = [entry for entry in made.bundle.manifest.files if made.bundle.stale(entry)]
    of_those = {entry.precision for entry in models}
    old = models + [e for e in engines(made.bundle) if e.precision in of_those or stale(made.bundle, e)]
    typer.echo(
        f"{made.bundle.root}: output foreground {scores} from {len(made.images)} pictures ({made.record.labels})\n"
        f"object and ground lie {found['coarse']:.2f} standard deviations apart{fine}\n"
        f"rule {made.bundle.manifest.rule}"
        + (f"; stale, made before: {', '.join(entry.path for entry in old)}; make them again" if old else "")
    )
