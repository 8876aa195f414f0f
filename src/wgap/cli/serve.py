"""``wgap serve``: a bundle as a Triton model repository, and a running server against the bundle."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wgap.cli.options import BundleFolder, MaxBoxes, rule_text, say, warn, with_network, with_rule
from wgap.errors import DataError

if TYPE_CHECKING:
    from wgap.serve.repository import Options


@with_network
@with_rule
def serve(
    ctx: typer.Context,
    bundle: BundleFolder,
    pictures: Annotated[
        list[str] | None, typer.Argument(help="Of --check: image files, folders and globs; default: the golden images.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Triton model repository to write the model into.")] = None,
    check: Annotated[
        str | None, typer.Option(help="Compare a running server: http://HOST:PORT or grpc://HOST:PORT.")
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name on the server.")] = "wgap",
    top_k: Annotated[int, typer.Option(help="Classes that each picture gives.")] = 1,
    max_boxes: MaxBoxes = 1,
    max_batch: Annotated[
        int | None, typer.Option(help="Pictures in a request or a forward pass; default: the engine's, or 8.")
    ] = None,
    instances: Annotated[int, typer.Option(help="Instances of the model, each a process; on GPUs on each.")] = 1,
    devices: Annotated[
        str | None, typer.Option(help="GPUs of a backend on GPUs, by ordinal, such as 0,1; default: all.")
    ] = None,
    untested: Annotated[
        bool, typer.Option("--untested", help="Serve the model even if its selftest fails on the server's device.")
    ] = False,
    max_bytes: Annotated[int, typer.Option(help="Bytes of an encoded picture, at most.")] = 32 << 20,
    max_pixels: Annotated[int, typer.Option(help="Pixels of a picture, at most.")] = 1 << 26,
    max_request: Annotated[int, typer.Option(help="Bytes of a request's pictures, at most.")] = 128 << 20,
    queue_size: Annotated[int, typer.Option(help="Requests that may wait; further ones are refused at once.")] = 64,
    queue_timeout: Annotated[int, typer.Option(help="Milliseconds that a request may wait.")] = 5000,
    queue_delay: Annotated[int, typer.Option(help="Microseconds that a request waits for others of its batch.")] = 1000,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Let clients register shared memory, which all of them can read.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Of --check: seconds that an answer may take.")] = 30.0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier model of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write BUNDLE as a model into a Triton repository (--out), or compare a running server with it (--check)."""
    if (out is None) == (check is None):
        raise DataError("say what to do: --out REPOSITORY writes a model, --check URL compares a running server")
    given = {**ctx.params, "devices": _devices(devices)}
    if check is not None:
        _check(given)
        return
    if pictures:
        raise DataError("pictures are of --check; leave them out with --out")
    _write(given)


def _devices(text: str | None) -> tuple[int, ...]:
    words = text.split(",") if text else []
    if not all(word.isdecimal() and len(word) < 4 for word in words):
        raise DataError(f"--devices: expected ordinals of GPUs separated by commas, such as 0,1, got {text!r}")
    return tuple(map(int, words))


def _options(given: Mapping[str, Any]) -> Options:
    from wgap.serve.repository import Options

    names = set(Options.__dataclass_fields__) - {"rule", "map"}
    return Options(rule=rule_text(given), map=given["map_"], **{name: given[name] for name in names})


def _write(given: Mapping[str, Any]) -> None:
    from wgap.serve.repository import Queue, has_body_limit, server_command, write_repository

    queue = Queue(
        delay_us=given["queue_delay"], size=given["queue_size"], timeout_ms=given["queue_timeout"],
        instances=given["instances"], devices=given["devices"],
    )  # fmt: skip
    out, name = Path(given["out"]), given["name"]
    options = write_repository(Path(given["bundle"]), out, name, _options(given), queue, given["force"])
    command = server_command(out, options, queue, given["shared_memory"])
    if not has_body_limit():
        warn("the tritonserver here, before 2.59 (25.06), takes bodies of any size; put a proxy with a limit before it")
    if given["as_json"]:
        typer.echo(json.dumps({"model": name, "folder": str(out / name), "command": command}))
        return
    say(f"{out / name}: {options.backend} {options.precision}, {options.rule}, {options.max_batch} pictures at most")
    say(f"serve it: {shlex.join(command)}")


def _check(given: Mapping[str, Any]) -> None:
    from wgap.images import find_images
    from wgap.serve.check import check_server

    paths = find_images(given["pictures"]) if given["pictures"] else None
    report = check_server(
        given["check"], Path(given["bundle"]), _options(given), paths, name=given["name"], timeout=given["timeout"]
    )
    if given["as_json"]:
        typer.echo(json.dumps(report.to_json()))
    else:
        for problem in report.problems:
            say(problem, err=True)
        verdict = "the server's boxes are the localizer's" if report.ok else f"{len(report.problems)} differences"
        say(f"{given['check']}: {report.pictures} pictures, {report.identical} identical to the last bit; {verdict}")
    if not report.ok:
        raise typer.Exit(1)
