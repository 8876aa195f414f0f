"""``wgap localize``: images in, one record per image out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from wgap.runtime.localizer import Failure, Localization, Localizer
    from wgap.runtime.postprocess import Map

RESULTS = "results.jsonl"


def localize(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders (searched to any depth) and globs.")],
    out: Annotated[Path | None, typer.Option(help=f"Folder for {RESULTS} and overlay pictures.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write each image with its box on it into --out.")] = False,
    heatmap: Annotated[bool, typer.Option("--heatmap", help="As --overlay, with the heat map blended in.")] = False,
    top_k: Annotated[int, typer.Option(help="Localize this many classes per image.")] = 1,
    class_: Annotated[str | None, typer.Option("--class", help="Localize this class (name or id).")] = None,
    map_: Annotated[str | None, typer.Option("--map", help="recombined, positive or signed.")] = None,
    threshold: Annotated[str | None, typer.Option(help="adaptive or fixed:ETA; default: the bundle's.")] = None,
    backend: Annotated[str, typer.Option(help="Inference backend.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="Which of the bundle's models to run.")] = "fp32",
    ungated: Annotated[
        bool, typer.Option("--ungated", help="Run a lower-precision file whose gate failed or never ran.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Threads of the forward pass; default: every core.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are already in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
) -> None:
    """Localize the object in each of IMAGES; exit code 1 if one of them failed, after all the others are done."""
    from wgap.errors import DataError
    from wgap.images import decode, find_images
    from wgap.runtime.localizer import Failure, Localizer
    from wgap.runtime.overlay import save_picture

    if (overlay or heatmap) and out is None:
        raise DataError("--overlay and --heatmap write pictures: say where with --out DIR")
    paths = find_images(images, missing="keep")
    pictures = _picture_names(paths, out) if out is not None and (overlay or heatmap) else {}
    if out is not None and not force:
        _refuse_overwriting([out / RESULTS, *pictures.values()])
    localizer = Localizer(
        bundle,
        backend,
        precision=precision,
        ungated=ungated,
        threads=threads,
        top_k=top_k,
        map=cast("Map | None", map_),
        threshold=threshold,
        batch_size=batch_size,
    )
    classes = None if class_ is None else _class_of(class_, localizer)
    failed = 0
    with _results(out) as write, _progress(len(paths)) as advance:
        for path, result in zip(paths, localizer(paths, classes, heatmap, on_error="yield"), strict=True):
            if path in pictures and not isinstance(result, Failure):
                save_picture(pictures[path], result.draw(decode(path)))
            failed += isinstance(result, Failure)
            line = json.dumps(result.to_json())
            write(line)
            if as_json:
                typer.echo(line)
            else:
                typer.echo(_sentence(result), err=isinstance(result, Failure))
            advance()
    if failed:
        typer.echo(f"{failed} of {len(paths)} images failed", err=True)
        raise typer.Exit(1)


def _class_of(given: str, localizer: Localizer) -> int | str:
    """A name where there is a class of that name, else the id it spells, else the name for the error message."""
    return int(given) if given not in localizer.classes and given.isdecimal() else given


def _picture_names(paths: list[Path], out: Path) -> dict[Path, Path]:
    """``<stem>.jpg`` for each image; where several share a stem, ``<stem>-2.jpg`` and so on in their order."""
    taken: set[str] = set()
    names = {}
    for path in paths:
        name, count = path.stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{path.stem}-{count}"
        taken.add(name.casefold())
        names[path] = out / f"{name}.jpg"
    return names


def _refuse_overwriting(files: list[Path]) -> None:
    from wgap.errors import OutputExistsError

    there = [file for file in files if file.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise OutputExistsError(f"{there[0]}{more} already there; choose another --out or pass --force to replace them")


@contextmanager
def _results(out: Path | None) -> Iterator[Callable[[str], None]]:
    """A function that adds a line to the results file, which appears whole at the end; nothing without a folder."""
    if out is None:
        yield lambda line: None
        return
    from wgap.atomic import atomic_file

    with atomic_file(out / RESULTS) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield lambda line: print(line, file=stream)
        stream.flush()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal and stdout is not: there the lines themselves show how far it is."""
    if sys.stdout.isatty() or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("localizing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _sentence(result: Localization | Failure) -> str:
    from wgap.runtime.localization import Failure

    if isinstance(result, Failure):
        return f"error: {result.error}"
    box = " ".join(f"{v:.0f}" for v in result.box)
    flag = " degenerate" if result.degenerate else ""
    return f"{result.image}: {result.class_name} {result.score:.1%} box {box} threshold {result.threshold:g}{flag}"
