"""``wgap bench --url``: a running server under load."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wgap.cli.options import say, show_progress
from wgap.errors import DataError, ImageError
from wgap.runtime.localization import Failure

if TYPE_CHECKING:
    from wgap.evaluate.server_load import ServerReport, Step
    from wgap.serve.client import Client

CALLERS = 32
"""Connections, where nothing else is asked for."""


def bench_server(
    options: Mapping[str, Any], bundle: Path | None, callers: Sequence[int], rates: Sequence[float]
) -> None:
    """Load the server at a URL, and say how it bears it."""
    from wgap.atomic import atomic_file
    from wgap.bundle import Bundle
    from wgap.evaluate.latency import encoded_image
    from wgap.evaluate.server_load import measure_server
    from wgap.plain import to_plain
    from wgap.serve.client import Client

    if len(callers) > 1:
        raise DataError("--url takes one number of --callers")
    picture, about = encoded_image(None if bundle is None else Bundle.open(bundle), options["image"])
    url, model, timeout = options["url"], options["model"], options["timeout"]
    mine, clients = threading.local(), list[Client]()

    def call() -> None:
        client: Client | None = getattr(mine, "client", None)
        if client is None:
            client = mine.client = Client(url, model, timeout)
            clients.append(client)
        [result] = client.request([picture])
        if isinstance(result, Failure):
            raise ImageError(f"{url}: the picture was not localized: {result.error}")

    with Client(url, model, timeout) as asked:
        call()  # says what is wrong before the load begins

        def counted() -> tuple[int, int]:
            told = asked.statistics()
            return int(told["inference_count"]), int(told["execution_count"])

        bound = None if options["bound"] is None else (options["bound"], options["bound_percentile"])
        bar = show_progress()
        try:
            report = measure_server(
                call, callers[0] if callers else CALLERS, rates, options["duration"], bound, counted,
                lambda many: bar(many, "load"),
            )  # fmt: skip
        finally:
            for client in clients:
                client.close()
    record = {"url": url, "model": model, "image": about, **to_plain(report)}
    if options["export"] is not None:
        with atomic_file(options["export"]) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options["as_json"]:
        typer.echo(json.dumps(record))
    else:
        _show(report, about)


def _show(report: ServerReport, image: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    say(
        f"{report.callers} connections, {report.seconds:g} s a rate, image {image['width']}x{image['height']} "
        f"({image['bytes']} bytes, {image['source']}); latencies in ms, from arrival"
    )
    table = Table("arrivals/s", "answered/s", "p50", "p99", "refused", "unserved", "batch", box=None)
    for step in (report.closed, *report.steps):
        name = "closed loop" if step.arrivals is None else f"{step.arrivals:.1f}"
        table.add_row(name, f"{step.answered:.1f}", *(_number(v) for v in (step.p50_ms, step.p99_ms)), *_rest(step))
    Console().print(table)
    if report.knee is not None:
        say(f"the knee is at {report.knee:.1f} pictures a second")
    if report.bound is not None:
        say(
            "p{percentile:g} stays within {bound_ms:g} ms up to {images_per_second:.1f} a second".format(**report.bound)
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _rest(step: Step) -> tuple[str, str, str]:
    refused = ", ".join(f"{count} {name}" for name, count in step.refused.items())
    return refused or "0", str(step.unserved), _number(step.batch)
