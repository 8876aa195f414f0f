"""``wgap localize``: images in, one record per image out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wgap.cli.options import BundleFolder, MaxBoxes, open_localizer, say, with_network, with_rule
from wgap.errors import DataError

if TYPE_CHECKING:
    from wgap.runtime.localizer import Failure, Localization, Localizer


@with_network
@with_rule
def localize(
    ctx: typer.Context,
    bundle: BundleFolder,
    images: Annotated[list[str], typer.Argument(help="Image files, folders (searched to any depth) and globs.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results.jsonl and overlay pictures.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write each image with its box on it into --out.")] = False,
    heatmap: Annotated[bool, typer.Option("--heatmap", help="As --overlay, with the heat map blended in.")] = False,
    top_k: Annotated[int, typer.Option(help="Localize this many classes per image.")] = 1,
    max_boxes: MaxBoxes = 1,
    class_: Annotated[str | None, typer.Option("--class", help="Localize this class (name or id).")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are already in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
) -> None:
    """Localize the object in each of IMAGES; exit code 1 if one of them failed, after all the others are done."""
    from wgap.images import find_images
    from wgap.runtime.localizer import Failure
    from wgap.runtime.results import ResultFolder

    if (overlay or heatmap) and out is None:
        raise DataError("--overlay and --heatmap write pictures: say where with --out DIR")
    paths = find_images(images, missing="keep")
    results = None if out is None else ResultFolder(out, paths, overlay or heatmap, force)
    localizer = open_localizer(ctx.params)
    classes = None if class_ is None else _class_of(class_, localizer)
    failed = 0
    with results or nullcontext(), _progress(len(paths)) as advance:
        for path, result in zip(paths, localizer(paths, classes, heatmap, on_error="yield"), strict=True):
            ended = result if results is None else results.add(path, result)
            failed += isinstance(ended, Failure)
            if as_json:
                typer.echo(json.dumps({**result.to_json(), **ended.to_json()}))
            else:
                say(_sentence(ended, localizer.rule.on_scores), err=isinstance(ended, Failure))
            advance()
    if failed:
        typer.echo(f"{failed} of {len(paths)} images failed", err=True)
        raise typer.Exit(1)


def _class_of(given: str, localizer: Localizer) -> int | str:
    """A name where there is a class of that name, else the id it spells, else the name for the error message."""
    number = given not in localizer.classes and given.isdecimal() and len(given) < 20  # more are no id
    return int(given) if number else given


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal and stdout is not: there the lines themselves show how far it is."""
    if sys.stdout is None or sys.stderr is None or sys.stdout.isatty() or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("localizing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _sentence(result: Localization | Failure, foreground: bool) -> str:
    from wgap.runtime.localization import Failure

    if isinstance(result, Failure):
        return f"error: {result.error}"
    boxes = ", ".join(" ".join(f"{v:.0f}" for v in box) for box in result.boxes)
    cut = "" if foreground else f" threshold {result.threshold:g}"
    flag = " degenerate" if result.degenerate else ""
    return f"{result.image}: {result.class_name} {result.score:.1%} box {boxes}{cut}{flag}"
