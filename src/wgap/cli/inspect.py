"""``wgap inspect``: what a bundle holds, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wgap.bundle import Bundle, BundleFile


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest as JSON, and which engines are stale.")
    ] = False,
) -> None:
    """Show the model, every file and every engine of BUNDLE; exit code 1 if a file is missing or changed."""
    from rich.console import Console
    from rich.table import Table

    from wgap.bundle import Bundle
    from wgap.runtime.engine import engines, stale

    opened = Bundle.open(bundle, verify=False)
    if as_json:
        outdated = [entry.path for entry in engines(opened) if stale(opened, entry)]
        typer.echo(json.dumps({**json.loads(opened.manifest.to_json()), "stale_engines": outdated}, indent=2))
    else:
        info, steps, defaults = opened.manifest.model, opened.manifest.preprocessing, opened.manifest.postprocessing
        typer.echo(
            f"{info.backbone} x{info.width:g}, pooling {info.pooling}, neck {info.neck}, stride {info.stride}\n"
            f"input {info.input_size[0]}x{info.input_size[1]} {steps.name}, "
            f"features {'x'.join(map(str, info.feature_shape))}\n"
            f"map {defaults.map}, threshold {defaults.threshold}\n"
            f"{len(info.classes)} classes: {', '.join(info.classes[:8])}{' ...' if len(info.classes) > 8 else ''}"
        )
        table = Table("file", "role", "precision", "gate", "bytes", "sha256")
        for entry in opened.manifest.files:
            table.add_row(entry.path, entry.role, entry.precision, _gate(entry), str(entry.size), entry.sha256[:12])
        Console().print(table)
        _print_engines(opened)
    opened.verify()
    if not as_json:
        typer.echo("every file is as the manifest says")


def _gate(entry: BundleFile) -> str:
    """What the gate said of a lower-precision model; empty for every other file."""
    if entry.precision == "fp32" or entry.role not in ("onnx", "rejected"):
        return ""
    verdict = entry.provenance.get("gate")
    return "never ran" if verdict is None else "passed" if verdict["passed"] else "refused"


def _print_engines(bundle: Bundle) -> None:
    """What each engine is for; neither TensorRT nor a GPU is asked."""
    from wgap.runtime.engine import engines, stale

    for entry in engines(bundle):
        made = entry.provenance
        state = "stale, its model was replaced: build it again" if stale(bundle, entry) else "up to date"
        typer.echo(
            f"engine {entry.path}: {made.get('flavor')} {made.get('version')}, {entry.precision}, "
            f"GPU architecture {made.get('architecture')}, {made.get('platform')}, "
            f"batch {'/'.join(str(size) for size in made.get('profile', {}).values())}, {state}"
        )
