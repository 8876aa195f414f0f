"""``wgap inspect``: what a bundle holds, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wgap.cli.options import BundleFolder, changed_network_options, open_localizer, with_network
from wgap.errors import DataError

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.manifest import BundleFile
    from wgap.rule import Rule


@with_network
def inspect(
    ctx: typer.Context,
    bundle: BundleFolder,
    memory: Annotated[
        bool, typer.Option("--memory", help="Localize one image on --backend and show what the session holds.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page, one HTML file: graph, precisions, gate, files, engines.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier page of --html.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest as JSON, and which engines are stale.")
    ] = False,
) -> None:
    """Show the model, every file and every engine of BUNDLE; exit code 1 if a file is missing or changed."""
    from rich.console import Console
    from rich.table import Table

    from wgap.bundle import Bundle
    from wgap.evaluate.page.html import page_html, require_new_page, write_page
    from wgap.runtime.engine import engines, stale

    if not memory and (given := changed_network_options(ctx.params)):
        raise DataError(f"{given[0]} says on what --memory measures; add --memory, or leave it out")
    if html is not None:
        require_new_page(html, force)
    opened = Bundle.open(bundle, verify=False)
    held = _memory(opened, ctx.params) if memory else None
    if as_json:
        shown = json.loads(opened.manifest.to_json())
        shown["stale_engines"] = [entry.path for entry in engines(opened) if stale(opened, entry)]
        typer.echo(json.dumps(shown if held is None else {**shown, "memory": held}, indent=2))
    else:
        info, steps, rule = opened.manifest.model, opened.manifest.preprocessing, opened.manifest.rule
        parameters = ", ".join(f"{name} {value}" for name, value in info.architecture.parameters.items())
        typer.echo(
            f"{info.architecture.name} ({parameters})\n"
            f"input {info.input_size[0]}x{info.input_size[1]} {steps.name}, "
            f"features {'x'.join(map(str, info.feature_shape))}\n"
            f"map {rule.map}, rule {rule}\n"
            f"{len(info.classes)} classes: {', '.join(info.classes[:8])}{' ...' if len(info.classes) > 8 else ''}"
        )
        table = Table("file", "role", "precision", "gate", "bytes", "sha256")
        for entry in opened.manifest.files:
            gate = "stale" if opened.stale(entry) else _gate(entry, rule)
            table.add_row(entry.path, entry.role, entry.precision, gate, str(entry.size), entry.sha256[:12])
        Console(markup=False).print(table)
        _print_engines(opened)
        if held is not None:
            typer.echo("\n".join(f"{name}: {size} bytes" for name, size in held.items()) or "nothing on a GPU")
    opened.verify()
    if html is not None:
        from wgap.evaluate.page.bundle import bundle_data

        data = bundle_data(opened)
        write_page(html, page_html(f"wgap bundle: {data['name']}", {"bundle": data}))
    if not as_json:
        typer.echo("every file is as the manifest says")


def _memory(bundle: Bundle, options: dict[str, Any]) -> dict[str, int]:
    """What a session holds once it has localized one image."""
    import numpy as np

    with open_localizer(options) as localizer:
        blank = np.zeros((*bundle.manifest.model.input_size, 3), np.uint8)
        list(localizer(blank, on_error="yield"))
        return localizer.memory()


def _gate(entry: BundleFile, rule: Rule) -> str:
    """What the gates said of a lower-precision model, and under which rule where it is another than the bundle's."""
    if entry.precision == "fp32" or entry.role not in ("onnx", "rejected"):
        return ""
    found = {"": entry.gate} if entry.gate else {}
    found |= {f" on {name}": gate for name, gate in (entry.gates or {}).items()}
    said = []
    for on, gate in found.items():
        under = "" if gate.rule == rule else f" under {gate.rule} {gate.rule.map}"
        said.append(("passed" if gate.passed else "refused") + on + under)
    return ", ".join(said) or "never ran"


def _print_engines(bundle: Bundle) -> None:
    """What each engine is for; neither TensorRT nor a GPU is asked."""
    from wgap.runtime.engine import about, engines, stale

    for entry in engines(bundle):
        made = about(entry)
        state = "stale, its model was replaced: build it again" if stale(bundle, entry) else "up to date"
        typer.echo(
            f"engine {entry.path}: {made.flavor} {made.version}, {entry.precision}, GPU architecture "
            f"{made.architecture}, {made.platform}, "
            f"batch {made.profile.min}/{made.profile.opt}/{made.profile.max}, {state}"
        )
