"""``wgap localize``: images in, one record per image out."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wgap.cli.options import BundleFolder, MaxBoxes, open_localizer, say, with_network, with_rule
from wgap.errors import DataError, WgapError

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    from wgap.runtime.localizer import Failure, Localization, Localizer
    from wgap.runtime.shards import Sidecar


@with_network
@with_rule
def localize(
    ctx: typer.Context,
    bundle: BundleFolder,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders (searched to any depth), globs; lists (.txt), tables (.csv, .tsv, .parquet) and "
            "archives (.tar) of them; URLs of stores. Of a run with --shards that began none are needed."
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of a table: the column of paths or URLs.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.jsonl and overlay pictures.")] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write each image with its box on it into --out.")] = False,
    heatmap: Annotated[bool, typer.Option("--heatmap", help="As --overlay, with the heat map blended in.")] = False,
    top_k: Annotated[int, typer.Option(help="Localize this many classes per image.")] = 1,
    max_boxes: MaxBoxes = 1,
    class_: Annotated[str | None, typer.Option("--class", help="Localize this class (name or id).")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 1,
    prepare: Annotated[int, typer.Option(help="Threads that decode and resize ahead; 0: none.")] = 2,
    shards: Annotated[
        Path | None, typer.Option(help="Folder of tables, in place of output: a run that goes on where it ended.")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Of --shards: pictures in a table; default: 4096, or as the run has it.")
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option("--format", help="Of --shards: jsonl or parquet; default: jsonl, or as the run has it."),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(help="Of --shards: a worker for each of these devices, separated by commas, such as 0,1,2,3."),
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
    """Localize the object in each of IMAGES.

    Exit code 1 if one of them failed, after all the others are done; with --shards failed ones are rows, and no error.
    """
    from wgap.runtime.localizer import Failure
    from wgap.runtime.results import ResultFolder
    from wgap.stores import find_pictures

    if shards is not None:
        _sharded({**ctx.params, "shards": shards})  # a path, which it is not there yet in every version of typer
        return
    if shard_size or tables or devices or worker or lease:
        raise DataError(
            "--shard-size, --format, --devices, --worker and --lease are of --shards; say where with --shards DIR"
        )
    if not images:
        raise DataError("expected images: files, folders, globs, lists, archives or URLs")
    if (overlay or heatmap) and out is None:
        raise DataError("--overlay and --heatmap write pictures: say where with --out DIR")
    paths = find_pictures(images, "keep", column)
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
    """Make a run's tables, or go on with them, and say how it stands."""
    from wgap.runtime.shards import Shards, speeds

    if options["out"] or options["overlay"] or options["heatmap"] or options["force"]:
        raise DataError("--shards writes tables alone; leave --out, --overlay, --heatmap and --force out")
    if options["tables"] not in (None, "jsonl", "parquet"):
        raise DataError(f"--format {options['tables']}: expected jsonl or parquet")
    made = _work(options) if options["devices"] is None else _work_on_each(options)
    run = Shards(options["shards"])
    found, plan = run.sidecars(), run.plan
    failed = sum(sidecar.failed for sidecar in found)
    figures = {"shards": plan.shards, "made": len(made), "done": len(found), "images": plan.images, "failed": failed}
    if options["as_json"]:
        typer.echo(json.dumps({**figures, "speeds": speeds(made)}))
        return
    say(f"{run.folder}: made {len(made)} shards, {len(found)} of {plan.shards} are done; {failed} pictures failed")
    if made:
        say(speeds_text(speeds(made)))


def speeds_text(rates: Mapping[str, float]) -> str:
    """The images per second of each stage, in a line."""
    return (
        f"images/s of a worker: {rates['total']:.1f}; decoding and resizing {rates['prepare']:.1f} a thread, network "
        f"{rates['network']:.1f}, which waited for images {rates['waiting']:.1%} of the time"
    )


def _work(options: Mapping[str, Any], finished: Callable[[Sidecar], Any] | None = None) -> list[Sidecar]:
    """What one worker makes, told as it goes: to ``finished``, else by a bar."""
    from wgap.runtime.shards import LEASE, Shards, settings_of
    from wgap.stores import find_pictures

    worker = _worker(options["worker"])
    inputs = [entry if "://" in entry else os.path.abspath(entry) for entry in options["images"] or ()]  # noqa: PTH100
    pictures = find_pictures(inputs, "keep", options["column"]) if inputs else None
    localizer = open_localizer(options)
    class_ = None if options["class_"] is None else _class_of(options["class_"], localizer)
    run = Shards(
        options["shards"], pictures, settings_of(localizer, class_), options["shard_size"], options["tables"]
    )  # fmt: skip
    del pictures  # which may be many
    made: list[Sidecar] = []
    with _progress(run.plan.shards) if finished is None else nullcontext(finished) as tell:

        def one_more(sidecar: Sidecar) -> None:
            made.append(sidecar)
            tell(sidecar)

        run.work(localizer, class_, worker, options["lease"] or LEASE, one_more)
    return made


def _work_on_each(options: Mapping[str, Any]) -> list[Sidecar]:
    """What a worker on each of the devices makes, in processes of their own, which share the run by claims."""
    if options["worker"] is not None or options["device"] is not None:
        raise DataError(
            "--devices has a worker for each device, which share by claims; leave --worker and --device out"
        )
    devices = options["devices"].split(",")
    if not all(devices):
        raise DataError(f"--devices {options['devices']}: expected devices separated by commas, such as 0,1")
    import multiprocessing
    from queue import Empty

    spawn = multiprocessing.get_context("spawn")
    results: Queue[Sidecar] = spawn.Queue()
    workers = [
        spawn.Process(target=_work_on, args=({**options, "device": device}, results), name=device, daemon=True)
        for device in devices
    ]
    made: list[Sidecar] = []
    try:
        for one in workers:
            one.start()
        with _progress(None) as advance:
            while any(one.is_alive() for one in workers) or not results.empty():
                with suppress(Empty):
                    made.append(results.get(timeout=0.2))
                    advance(made[-1])
    finally:
        for one in workers:
            one.terminate()  # those that still run where this one is ended
            one.join()
    if failed := [one.name for one in workers if one.exitcode]:
        raise WgapError(
            f"{options['shards']}: the worker on device {', '.join(failed)} ended with an error, see above; what the "
            "others made counts, and the same command goes on from there"
        )
    return made


def _work_on(options: Mapping[str, Any], results: Queue[Sidecar]) -> None:
    """The process of one device, which ends with the one that began it."""
    from multiprocessing import connection, parent_process

    from wgap.cli import _end

    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and sends the other

    def end_with_parent() -> None:
        connection.wait([parent_process().sentinel])  # type: ignore[union-attr]
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        _work(options, results.put)
    except (WgapError, OSError) as error:
        say(f"error: device {options['device']}: {error}", err=True)
        sys.exit(1)


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
def _progress(total: int | None) -> Iterator[Callable[..., None]]:
    """A bar on stderr, where that is a terminal and stdout is not: there the lines themselves show how far it is."""
    if sys.stdout is None or sys.stderr is None or sys.stdout.isatty() or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("localizing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda *_: progress.advance(task)


def _sentence(result: Localization | Failure, foreground: bool) -> str:
    from wgap.runtime.localization import Failure

    if isinstance(result, Failure):
        return f"error: {result.error}"
    boxes = ", ".join(" ".join(f"{v:.0f}" for v in box) for box in result.boxes)
    cut = "" if foreground else f" threshold {result.threshold:g}"
    flag = " degenerate" if result.degenerate else ""
    return f"{result.image}: {result.class_name} {result.score:.1%} box {boxes}{cut}{flag}"
