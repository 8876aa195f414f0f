"""``wgap bench``: how long images take, stage by stage, for several networks and settings interleaved in one run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from wgap.cli.bench_server import bench_server
from wgap.cli.options import (
    changed_network_options,
    device_of,
    open_localizer,
    rule_text,
    say,
    show_progress,
    warn,
    with_network,
    with_rule,
)
from wgap.errors import DataError, WgapError

if TYPE_CHECKING:
    from wgap.evaluate.latency import LeftOut, Report, Run, Settings
    from wgap.runtime.localizer import Localizer

KEPT = 4
"""Batch sizes that one network keeps compiled; more get another."""

PAUSE_S = 0.03
"""Before each call where several networks are open: threads of the last one spin for a while."""

T = TypeVar("T")


@with_network
@with_rule
def bench(
    ctx: typer.Context,
    bundle: Annotated[list[Path] | None, typer.Argument(help="Bundle folders.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image file; default: a JPEG of a golden image.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8",
    threads: Annotated[
        str, typer.Option(help="CPU threads, separated by commas; all: every core for the network, one for the kernel.")
    ] = "all",
    iterations: Annotated[int, typer.Option(help="Timed rounds, in each of which every setting has its turn.")] = 50,
    warmup: Annotated[
        str, typer.Option(help="Untimed rounds before them; steady: until times no longer fall.")
    ] = "steady",
    pause: Annotated[
        float | None, typer.Option(help="Milliseconds before each call; default: 30 where several networks are open.")
    ] = None,
    callers: Annotated[
        str | None, typer.Option(help="Also so many callers at once (closed loop), separated by commas, such as 1,4.")
    ] = None,
    arrivals: Annotated[
        str | None, typer.Option(help="Also so many images arriving per second (open loop), separated by commas.")
    ] = None,
    bound: Annotated[
        float | None, typer.Option(help="Also the throughput at which --bound-percentile stays under so many ms.")
    ] = None,
    bound_percentile: Annotated[float, typer.Option(help="Percentile of the latencies that --bound is for.")] = 99,
    duration: Annotated[float, typer.Option(help="Seconds of each load: of --callers, --arrivals, --bound.")] = 5,
    url: Annotated[
        str | None,
        typer.Option(
            help="Load a running server instead, http://HOST:PORT or grpc://HOST:PORT, at --arrivals or up to its knee."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Of --url: the model's name on the server.")] = "wgap",
    timeout: Annotated[float, typer.Option(help="Of --url: seconds that an answer may take.")] = 30.0,
    no_transfers: Annotated[
        bool, typer.Option("--no-transfers", help="On a GPU: time from images that lie there already.")
    ] = False,
    export: Annotated[Path | None, typer.Option(help="Write the report with every sample to this JSON file.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Draw latency.svg and throughput.svg into this folder.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="BEFORE.json AFTER.json",
            help="Compare two exported reports; exit with 3 where something became slower or is missing.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, without the samples.")] = False,
) -> None:
    """Time decoding, resizing, forward pass, postprocessing and the whole of it.

    --backend, --precision, --rule, --batch and --threads take several values, separated by commas: all combinations
    are timed in one run, in turns.
    """
    from wgap.atomic import atomic_file, require_place
    from wgap.evaluate.bench_figures import draw_latency, draw_throughput
    from wgap.evaluate.latency import Report, encoded_image, environment, measure
    from wgap.evaluate.load import at_bound, measure_loads, require_loads
    from wgap.evaluate.meters import cpu_mhz, meters, peak_rss_mib
    from wgap.extras import require
    from wgap.plain import to_plain

    if compare is not None:
        if bundle:
            raise DataError("--compare takes two reports and no bundle: wgap bench --compare BEFORE.json AFTER.json")
        _compare(*compare, as_json)
        return
    rates = [] if arrivals is None else _list("arrivals", arrivals, _rate)
    require_loads(duration, bound, bound_percentile)
    if url is not None:
        refused = changed_network_options({**ctx.params, "threads": None if threads == "all" else threads})
        refused += ["--figures"] if figures else []
        if refused or len(bundle or ()) > 1:
            raise DataError(f"--url loads a server as it is; leave {', '.join(refused) or 'all bundles but one'} out")
        options = {**ctx.params, "image": image, "export": export}
        counts = [] if callers is None else _list("callers", callers, _whole)
        bench_server(options, bundle[0] if bundle else None, counts, rates)
        return
    if not bundle:
        raise DataError("expected a bundle to time, or two reports: wgap bench --compare BEFORE.json AFTER.json")
    sizes = _list("batch", batch, _whole)
    rounds = None if warmup == "steady" else _whole("warmup", warmup, "a whole number or steady")
    counts = [1] if callers is None else _list("callers", callers, _whole)
    if export is not None and export.is_dir():
        raise DataError(f"--export expects a file, {export} is a folder")
    for place in (figures, None if export is None else export.parent):
        if place is not None:
            require_place(place)
    if figures is not None:
        require("a figure", "matplotlib")
    bar = show_progress()
    with ExitStack() as opened:
        combinations = list(_combinations(ctx.params, bundle, threads))
        picture = cache(lambda: encoded_image(combinations[0]["bundle"], image))
        if image is not None:
            picture()
        clocks = [cpu_mhz()]
        runs, left_out = _open(combinations, sizes, lambda: picture()[0], opened)
        absent: dict[str, str] = {}
        for run in runs:
            run.meters, missing = meters(run.localizer.locator.device)
            absent.update(missing)
        networks = {id(run.localizer.network): run.localizer for run in runs}
        pause_s = pause / 1e3 if pause is not None else PAUSE_S if len(networks) > 1 else 0.0
        cells = measure(
            runs, iterations=iterations, warmup=rounds, pause_s=pause_s, progress=lambda many: bar(many, "timing")
        )
        if callers is not None or rates:
            closed = counts if callers is not None else []
            cells += measure_loads(runs, closed, rates, max(counts), duration, lambda many: bar(many, "load"))
        bounds = (
            [] if bound is None else [at_bound(run, max(counts), bound, bound_percentile, duration) for run in runs]
        )
        machine, versions = environment(list(networks.values()))
        machine["peak_rss_mib"] = peak_rss_mib()
        machine |= _clocks([*clocks, cpu_mhz()], runs, absent)
    plan = {"iterations": iterations, "warmup": warmup if rounds is None else rounds, "pause_ms": 1e3 * pause_s}
    if bounds or len(cells) > len(runs):
        plan["seconds"] = duration
    report = Report(
        1, "wgap bench", picture()[1], plan, machine, versions, tuple(cells), tuple(left_out), tuple(to_plain(bounds)),
        absent,
    )  # fmt: skip
    if export is not None:
        with atomic_file(export) as temporary:
            temporary.write_text(json.dumps(to_plain(report)) + "\n", encoding="utf-8")
    if figures is not None:
        several = len(bundle) > 1

        def name(settings: Settings) -> str:
            return label(replace(settings, load="rounds", arrivals=None), several)

        draw_latency(report, figures / "latency.svg", name)
        draw_throughput(report, figures / "throughput.svg", name)
    if as_json:
        short = replace(report, cells=tuple(replace(cell, samples={}) for cell in report.cells))
        typer.echo(json.dumps(to_plain(short)))
        return
    _show(report)


def _list(name: str, text: str, read: Callable[[str, str], T]) -> list[T]:
    """Values of an option, separated by commas, each once."""
    return list(dict.fromkeys(read(name, item.strip()) for item in text.split(",")))


def _whole(name: str, text: str, expected: str = "whole numbers of 1 or more, separated by commas, such as 1,8") -> int:
    least = 0 if name == "warmup" else 1
    if not text.isdecimal() or not text.isascii() or int(text) < least:
        raise DataError(f"--{name} expects {expected}; got {text!r}")
    return int(text)


def _rate(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise DataError(f"--{name} expects images per second above 0, separated by commas, such as 5,20; got {text!r}")
    return value


def _text(name: str, text: str) -> str:
    if not text:
        raise DataError(f"--{name} expects names separated by commas; one of them is empty")
    return text


def _threads(name: str, text: str) -> int | None:
    return None if text == "all" else _whole(name, text, "all, or whole numbers of 1 or more, separated by commas")


def _combinations(options: Mapping[str, Any], bundles: Sequence[Path], threads: str) -> Iterator[dict[str, Any]]:
    """The options of each network to open."""
    from wgap.bundle import Bundle

    given = rule_text(options)
    rules = [None] if given is None else _list("rule", given, lambda _, text: text)
    values = product(
        [(str(path), Bundle.open(path)) for path in dict.fromkeys(bundles)],
        _list("backend", options["backend"], _text), _list("precision", options["precision"], _text), rules,
        _list("threads", threads, _threads),
    )  # fmt: skip
    for (path, bundle), backend, precision, rule, count in values:
        own = {"bundle": bundle, "backend": backend, "precision": precision, "rule": rule, "threads": count}
        yield {**options, "threshold": None, **own, "path": path}


def _open(
    combinations: Sequence[Mapping[str, Any]], sizes: Sequence[int], picture: Callable[[], bytes], opened: ExitStack
) -> tuple[list[Run], list[LeftOut]]:
    """What is to be timed. Of several combinations those that cannot be opened are left out, with a warning."""
    from wgap.evaluate.latency import LeftOut, Settings
    from wgap.evaluate.meters import rss_mib

    runs: list[Run] = []
    left_out, errors = [], []
    for options in combinations:
        names = ("path", "backend", "precision", "rule", "threads")
        asked = {"bundle" if name == "path" else name: options[name] for name in names if options[name] is not None}
        try:
            for start in range(0, len(sizes), KEPT):
                before, began = rss_mib(), perf_counter()
                localizer = opened.enter_context(open_localizer(options))
                took = 1e3 * (perf_counter() - began)
                network, rule = localizer.network, localizer.rule
                device = network.device if network.device is not None else device_of(options["device"])
                base = Settings(
                    options["path"], network.name, network.precision, str(rule), rule.map, 1, localizer.threads, device,
                    options["hint"], options["streams"],
                )  # fmt: skip
                made = []
                for size in sizes[start : start + KEPT]:
                    settings = replace(base, batch=size, transfers=not options["no_transfers"])
                    if any(run.settings == settings for run in runs):
                        warn(f"{' '.join(map(str, asked.values()))}, batch {size}: the same as another one, timed once")
                        continue
                    made.append(_run(localizer, settings, picture(), took, opened))
                    made[-1].call()
                grown = rss_mib() - before
                for run in made:
                    gpu = {f"gpu {name}": size / 2**20 for name, size in localizer.memory().items()}
                    run.memory_mib = {"opened": grown, **gpu}
                runs += made
        except WgapError as error:
            if len(combinations) == 1:
                raise
            errors.append(error)
            left_out.append(LeftOut(asked, str(error)))
            warn(f"left out: {' '.join(str(value) for value in asked.values())}: {error}")
    if not runs:
        raise DataError(f"none of {len(combinations)} combinations can be opened; the first: {errors[0]}")
    return runs, left_out


def _run(localizer: Localizer, settings: Settings, encoded: bytes, open_ms: float, opened: ExitStack) -> Run:
    """One batch size of a localizer, on a GPU with the GPU's own time."""
    from wgap.evaluate.latency import Run

    if localizer.network.context is None and settings.transfers:
        return Run(localizer, settings, encoded, open_ms)
    from wgap.evaluate.gpu_run import GpuRun

    run = GpuRun(localizer, settings, encoded, open_ms)
    opened.callback(run.close)
    return run


def _clocks(cpu: Sequence[float | None], runs: Sequence[Run], absent: dict[str, str]) -> dict[str, Any]:
    """Clocks in MHz: of the processor before and after, of each GPU after. Enters in ``absent`` what is not told."""
    found: dict[str, Any] = {"cpu_mhz": list(cpu)}
    if None in cpu:
        absent["clock of the processor"] = "/proc/cpuinfo does not tell it"
        found = {}
    gpus = {run.localizer.locator.device: run.meters["gpu"] for run in runs if "gpu" in run.meters}
    if gpus:
        found["gpu_mhz"] = {str(gpu): meter.mhz() for gpu, meter in gpus.items()}  # type: ignore[attr-defined]
    return found


def _compare(before: Path, after: Path, as_json: bool) -> None:
    """Print what changed between two reports; exit with 3 where that is for the worse."""
    from wgap.evaluate.comparison import LEAST_CHANGE, compare
    from wgap.evaluate.latency import read_report
    from wgap.plain import to_plain

    found = compare(read_report(before), read_report(after))
    if as_json:
        typer.echo(json.dumps({"ok": found.ok, **to_plain(found)}))
    else:
        for text in found.notes:
            say(f"differs: {text}")
        several = len({change.settings.bundle for change in found.changes}) > 1
        for change in found.changes:
            low, high = change.interval
            say(
                f"{change.verdict:6}  {label(change.settings, several)}, batch {change.settings.batch}: "
                f"{change.before_ms:.3f} -> {change.after_ms:.3f} ms, ratio {change.ratio:.3f} ({low:.3f}-{high:.3f}), "
                f"p {change.p:.2g}"
            )
            if change.verdict != "same":
                say("        " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in change.stages.items()))
        for what, some in (("missing", found.missing), ("new", found.added)):
            for settings in some:
                say(f"{what:7} {label(settings, several)}, batch {settings.batch}")
        counts = Counter(change.verdict for change in found.changes)
        say(
            f"{len(found.changes)} compared: {counts['slower']} slower, {counts['faster']} faster, {counts['same']} "
            f"the same within noise and {LEAST_CHANGE:.0%}"
        )
    if not found.ok:
        raise typer.Exit(3)


def _show(report: Report) -> None:
    """The report as a table, one row for each cell."""
    from rich.console import Console
    from rich.table import Table

    from wgap.evaluate.latency import Settings
    from wgap.plain import from_plain

    machine, plan, image = report.machine, report.plan, report.image
    say(
        f"{machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel_target']}, "
        f"load {machine['load_average']:.1f}\n"
        + ", ".join(f"{name} {version}" for name, version in report.versions.items())
        + f"\n{plan['iterations']} rounds after a warm-up of {max(cell.warmup for cell in report.cells)}, "
        f"pause {plan['pause_ms']:g} ms, image {image['width']}x{image['height']} ({image['source']})\n"
        "milliseconds for the batch: medians, of total with its 95 % interval"
    )
    stages = list(dict.fromkeys(stage for cell in report.cells for stage in cell.stages if stage != "total"))
    table = Table("network", "batch", *stages, "total p50", "p90", "p99", "images/s")
    several = len({cell.settings.bundle for cell in report.cells}) > 1
    for cell in report.cells:
        total = cell.stages["total"]
        parts = (f"{cell.stages[stage].p50_ms:.3f}" if stage in cell.stages else "" for stage in stages)
        low_high = total.p50_interval_ms
        median = f"{total.p50_ms:.3f}" + (f" ({low_high[0]:.3f}-{low_high[1]:.3f})" if low_high else "")
        row = (median, f"{total.p90_ms:.3f}", f"{total.p99_ms:.3f}", f"{cell.images_per_second:.1f}")
        table.add_row(label(cell.settings, several), str(cell.settings.batch), *parts, *row)
    wide = Console()
    (wide if wide.is_terminal else Console(width=180)).print(table)
    for one in report.at_bound:
        settings = from_plain(Settings, one["settings"])
        say(
            f"{label(settings, several)}, batch {settings.batch}: {one['images_per_second']:.1f} images/s with "
            f"{one['percentile']:g} % of the calls within {one['bound_ms']:g} ms"
        )
    for name, why in report.absent.items():
        say(f"absent: {name}: {why}")
    for cell in report.cells:
        what = f"{label(cell.settings, several)}, batch {cell.settings.batch}"
        if cell.unserved:
            warn(f"{what}: {cell.unserved} calls were not served in time")
        if cell.steady is False:
            warn(f"{what}: not steady after {cell.warmup} warm-up rounds")


def label(settings: Settings, several: bool) -> str:
    """What a table calls a measurement; with its bundle where there are several."""
    words = [Path(settings.bundle).name] if several else []
    words += [settings.backend, settings.precision, settings.rule]
    if settings.threads is not None:
        words.append(f"{settings.threads} threads")
    if settings.device is not None:
        words.append(f"on {settings.device}")
    if settings.load != "rounds":
        words.append(f"{settings.callers} callers")
    if settings.arrivals is not None:
        words.append(f"{settings.arrivals:g}/s")
    return " ".join(words)
