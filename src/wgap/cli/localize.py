"""``wgap localize``: images in, one record per image out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    shards: Annotated[
        Path | None, typer.Option(help="Folder of tables, in place of output: a run that goes on where it ended.")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Of --shards: pictures in a table; default: 4096, or as the run has it.")
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(
            help="Of --shards: I/N, the I-th of N that share the run; default: whatever no other has claimed."
        ),
    ] = None,
    lease: Annotated[
        float | None,
        typer.Option(min=1, help="Of --shards: seconds after which a silent worker's claim is void; default: 120."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are already in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per image.")] = False,
) -> None:
    """Localize the object in each of IMAGES; exit code 1 if one of them failed, after all the others are done."""
    from wgap.images import find_images
    from wgap.runtime.localizer import Failure
    from wgap.runtime.results import ResultFolder

    if shards is not None:
        _sharded({**ctx.params, "shards": shards})  # a path, which it is not there yet in every version of typer
        return
    if shard_size or worker or lease:
        raise DataError("--shard-size, --worker and --lease are of --shards; say where with --shards DIR")
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


def _sharded(options: Mapping[str, Any]) -> None:
    """Make a run's tables, or go on with them."""
    from wgap.images import find_images
    from wgap.runtime.shards import LEASE, Shards, settings_of

    if options["out"] or options["overlay"] or options["heatmap"] or options["force"]:
        raise DataError("--shards writes tables alone; leave --out, --overlay, --heatmap and --force out")
    worker, folder = _worker(options["worker"]), options["shards"]
    paths = find_images(options["images"], missing="keep")
    localizer = open_localizer(options)
    class_ = None if options["class_"] is None else _class_of(options["class_"], localizer)
    run = Shards(folder, paths, settings_of(localizer, class_), options["shard_size"])
    plan = run.plan
    with _progress(plan.shards) as advance:
        made = run.work(localizer, class_, worker, options["lease"] or LEASE, lambda _: advance())
    found = [sidecar for shard in range(plan.shards) if (sidecar := run.sidecar(shard)) is not None]
    failed = sum(sidecar.failed for sidecar in found)
    figures = {"shards": plan.shards, "made": made, "done": len(found), "images": len(paths), "failed": failed}
    if options["as_json"]:
        typer.echo(json.dumps(figures))
    else:
        say(f"{folder}: made {made} shards, {len(found)} of {plan.shards} are done; {failed} pictures failed")


def _worker(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    number, slash, count = given.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise DataError(f"--worker {given}: expected I/N with 1 <= I <= N, such as 2/8")
    return int(number), int(count)


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
