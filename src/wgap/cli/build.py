"""``wgap build``: an engine for TensorRT or TensorRT-RTX, entered into the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wgap.cli.options import BundleFolder, chosen, device_of, with_rule
from wgap.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress

    from wgap.export.engine import Phases


@with_rule
def build(
    ctx: typer.Context,
    bundle: BundleFolder,
    flavor: Annotated[str, typer.Option(help="tensorrt, or tensorrt_rtx, which needs no GPU to build.")] = (
        "tensorrt_rtx"
    ),
    precision: Annotated[str, typer.Option(help="Which of the bundle's models: fp32, fp16, bf16 or int8.")] = "fp32",
    batch: Annotated[str, typer.Option(help="MIN,OPT,MAX: images per call.")] = "1,8,16",
    timing_cache: Annotated[
        Path | None, typer.Option(help="Keep tactic timings in this file between builds (tensorrt).")
    ] = None,
    hardware_compat: Annotated[
        str, typer.Option(help="none, ampere_plus or same_compute_capability (tensorrt).")
    ] = "none",
    compute_capability: Annotated[
        str | None, typer.Option(help="Such as 8.6,8.9; default: portable (tensorrt_rtx).")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Loadable by later versions of the same major (tensorrt).")
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out; the plan is refitted when it is loaded.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Weights may be replaced in the loaded engine.")] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let float32 products be rounded to TF32.")] = False,
    outputs: Annotated[
        str | None, typer.Option(help="Such as logits,foreground, where no rule reads features; default: all.")
    ] = None,
    ungated: Annotated[
        bool, typer.Option("--ungated", help="Take a lower-precision model even if its gate failed or never ran.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="GPU to build on, by ordinal or UUID; default: the first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest entry as JSON.")] = False,
) -> None:
    """Build an engine from one of BUNDLE's models and enter it there, in place of an older one of its kind."""
    from wgap.bundle import Bundle
    from wgap.export.engine import BuildOptions, engine_from_bundle
    from wgap.plain import to_plain
    from wgap.runtime.engine import about

    options = BuildOptions(
        batch=_batch(batch), timing_cache=timing_cache, hardware_compat=hardware_compat,
        compute_capabilities=_capabilities(compute_capability), version_compatible=version_compatible,
        strip_weights=strip_weights, refit=refit, tf32=tf32,
        outputs=tuple(name.strip() for name in outputs.split(",")) if outputs is not None else (),
    )  # fmt: skip
    opened = Bundle.open(bundle)
    with _bars() as phases:
        opened, entry = engine_from_bundle(
            opened, flavor, precision, options, ungated, phases, device_of(device), chosen(opened, ctx.params)
        )
    made = about(entry)
    if as_json:
        typer.echo(json.dumps({"bundle": str(opened.root), **to_plain(entry)}))
        return
    counted = ", ".join(f"{count} in {name}" for name, count in made.attestation["convolutions"].items())
    inspected = made.attestation["engine_inspector"]
    typer.echo(
        f"{opened.root / entry.path}: {entry.size / 1e6:.1f} MB\n"
        f"{made.flavor} {made.version}, GPU architecture {made.architecture}, {made.platform}, "
        f"batch {made.profile.min}/{made.profile.opt}/{made.profile.max}\n"
        f"convolutions: {counted}; engine inspector: "
        f"{inspected if isinstance(inspected, str) else str(inspected['layers']) + ' layers'}"
    )


def _batch(text: str) -> tuple[int, int, int]:
    try:
        low, usual, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(f"--batch: expected MIN,OPT,MAX such as 1,8,16, got {text!r}") from error
    return low, usual, high


def _capabilities(text: str | None) -> tuple[str, ...]:
    """``8.6,12.0`` or ``86,120``, sorted."""
    found = set()
    for part in text.split(",") if text else ():
        digits = part.strip().replace(".", "")
        if not digits.isdigit() or len(digits) < 2:
            raise DataError(f"--compute-capability: expected numbers such as 8.6,8.9, got {text!r}")
        found.add((int(digits[:-1]), int(digits[-1])))
    return tuple(f"{major}.{minor}" for major, minor in sorted(found))


@contextmanager
def _bars() -> Iterator[Phases]:
    """A bar for each phase on standard error where that is a terminal, else nothing."""
    from rich.console import Console
    from rich.progress import Progress

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        yield _Bars(progress)


class _Bars:
    """TensorRT's phases as bars."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def start(self, phase: str, _parent: str | None, steps: int) -> None:
        self._tasks[phase] = self._progress.add_task(phase, total=steps)

    def step(self, phase: str, step: int) -> None:
        if phase in self._tasks:
            self._progress.update(self._tasks[phase], completed=step + 1)

    def finish(self, phase: str) -> None:
        if phase in self._tasks:
            self._progress.remove_task(self._tasks.pop(phase))
