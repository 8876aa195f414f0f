"""``wgap shards``: what became of a run with ``wgap localize --shards``, and its tables as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wgap.cli.localize import speeds_text
from wgap.errors import DataError

if TYPE_CHECKING:
    from wgap.runtime.shards import Shards

shards = typer.Typer(help="Look at, verify and merge the tables of `wgap localize --shards`.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of a run with --shards.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def _opened(folder: Path) -> Shards:
    from wgap.runtime.shards import Shards

    return Shards(folder)


@shards.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Say how many shards and pictures are done."""
    from wgap.runtime.shards import speeds

    run = _opened(folder)
    found = run.sidecars()
    rates = speeds(found)
    figures = {
        "shards": run.plan.shards, "done": len(found), "images": run.plan.images,
        "images_done": sum(one.rows for one in found), "failed": sum(one.failed for one in found), "speeds": rates,
        "settings": run.plan.settings,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(figures))
        return
    typer.echo(
        f"{folder}: {figures['done']} of {figures['shards']} shards done, {figures['images_done']} of "
        f"{figures['images']} pictures, {figures['failed']} of them failed\n"
        + ", ".join(f"{name} {value}" for name, value in run.plan.settings.items())
    )
    if rates:
        typer.echo(speeds_text(rates))


@shards.command()
def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Read every table and compare it with its sidecar and the plan; exit code 1 where something is wrong."""
    run = _opened(folder)
    problems = run.verify()
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "shards": run.plan.shards, "problems": problems}))
    else:
        for problem in problems:
            typer.echo(problem, err=True)
        if not problems:
            typer.echo(f"{folder}: all {run.plan.shards} shards are whole, {run.plan.images} pictures")
    if problems:
        raise typer.Exit(1)


@shards.command()
def merge(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="File to write, of the kind that the tables are of.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write all tables, in the order of the list, as one file, once all of them are whole."""
    if out.exists() and not force:
        raise DataError(f"{out} is already there; choose another --out or pass --force to replace it")
    rows = _opened(folder).merge(out)
    typer.echo(json.dumps({"out": str(out), "rows": rows}) if as_json else f"{out}: {rows} rows")
