"""``wgap inspect``: what a bundle holds, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wgap.bundle import BundleFile


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Show the model, the preprocessing and every file of BUNDLE; exit code 1 if a file is missing or changed."""
    from rich.console import Console
    from rich.table import Table

    from wgap.bundle import Bundle

    opened = Bundle.open(bundle, verify=False)
    if as_json:
        typer.echo(opened.manifest.to_json().rstrip())
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
    opened.verify()
    if not as_json:
        typer.echo("every file is as the manifest says")


def _gate(entry: BundleFile) -> str:
    """What the gate said of a lower-precision model; empty for every other file."""
    if entry.precision == "fp32" or entry.role not in ("onnx", "rejected"):
        return ""
    verdict = entry.provenance.get("gate")
    return "never ran" if verdict is None else "passed" if verdict["passed"] else "refused"
