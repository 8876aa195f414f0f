"""Options that verbs share: which network, on what, under which rule."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wgap.errors import DataError

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.rule import Rule
    from wgap.runtime.localizer import Localizer

__all__ = [
    "BundleFolder", "LabelMap", "MaxBad", "MaxBoxes", "changed_network_options", "chosen", "device_of", "note",
    "open_localizer", "rule_text", "say", "show_progress", "warn", "with_network", "with_rule",
]  # fmt: skip

BundleFolder = Annotated[Path, typer.Argument(help="Bundle folder.")]
LabelMap = Annotated[
    Path | None,
    typer.Option(help="JSON file of a labelled set's classes, each with the model's, where they are called otherwise."),
]
MaxBad = Annotated[
    int, typer.Option(min=0, help="Images that cannot be read: at most so many are left out, with a warning.")
]
MaxBoxes = Annotated[int, typer.Option(help="Boxes per class: of the heaviest components of its mask.")]


def _network(
    backend: Annotated[
        str,
        typer.Option(
            help="auto, onnxruntime, openvino; on GPUs onnxruntime_cuda, onnxruntime_tensorrt, tensorrt, tensorrt_rtx."
        ),
    ] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="Which of the bundle's models to run.")] = "fp32",
    ungated: Annotated[
        bool, typer.Option("--ungated", help="Run a lower-precision file that no gate has passed under this rule.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; default: every core for the network, one for the kernel.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="GPU, by ordinal or UUID (nvidia-smi -L); default: the first. Of openvino CPU, GPU, NPU."),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Calls on the GPU at the same time; default: 4.")] = None,
    memory_limit: Annotated[
        int | None, typer.Option(help="Bytes that ONNX Runtime may hold on the GPU; default: 4 GiB.")
    ] = None,
    hint: Annotated[
        str | None, typer.Option(help="What OpenVINO compiles for: latency (the default) or throughput.")
    ] = None,
    streams: Annotated[int | None, typer.Option(help="Forward passes that OpenVINO runs side by side.")] = None,
) -> None:
    """The options of a verb that opens a network."""


def _rule(
    rule: Annotated[
        str | None, typer.Option(help="adaptive, fixed:ETA, foreground or foreground+colour; default: the bundle's.")
    ] = None,
    map_: Annotated[
        str | None,
        typer.Option("--map", help="recombined, positive, signed or, of foreground, none; default: the bundle's."),
    ] = None,
    threshold: Annotated[str | None, typer.Option(help="The old name of --rule.", hidden=True)] = None,
) -> None:
    """The options of a verb that has a rule."""


def _with(group: Callable[..., None], verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with the options of a group before its last one, but for its own; it reads them from its context."""
    signature, offered = (inspect.signature(f, eval_str=True).parameters for f in (verb, group))
    more = {name: parameter for name, parameter in offered.items() if name not in signature}

    @functools.wraps(verb)
    def wrapped(**given: Any) -> None:
        verb(**{name: value for name, value in given.items() if name not in more})

    *first, last = signature.values()
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*first, *more.values(), last)
    ]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


with_network = functools.partial(_with, _network)
"""Decorator: the verb takes ``--backend`` and what belongs to it."""

with_rule = functools.partial(_with, _rule)
"""Decorator: the verb takes ``--rule`` and ``--map``."""


def changed_network_options(options: Mapping[str, Any]) -> list[str]:
    """Those options of :data:`with_network` that are not as they are by default."""
    parameters = inspect.signature(_network).parameters.items()
    return [f"--{name.replace('_', '-')}" for name, one in parameters if options[name] != one.default]


def say(text: str, err: bool = False) -> None:
    """Text with names of files and classes in it, what would steer a terminal or cannot be encoded escaped."""
    typer.echo("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text), err=err)


def note(text: str) -> None:
    """One line on standard error."""
    say(text, err=True)


def warn(text: str) -> None:
    """A warning, as :func:`note` writes it."""
    note(f"warning: {text}")


def show_progress(transient: bool = True) -> Callable[[Any, str], Any]:
    """A bar on standard error where that is a terminal, else nothing; for a list and what is done with it."""
    from rich.console import Console
    from rich.progress import track

    errors = Console(stderr=True)
    return lambda items, what: track(items, what, console=errors, transient=transient, disable=not errors.is_terminal)


def device_of(text: str | None) -> int | str | None:
    """An ordinal where it is a number, else a UUID."""
    return int(text) if text is not None and text.isdecimal() else text


def rule_text(options: Mapping[str, Any]) -> str | None:
    """``--rule``, or what was given by its old name."""
    given: str | None = options.get("rule")
    if (old := options.get("threshold")) is None:
        return given
    if given is not None:
        raise DataError("--threshold is the old name of --rule; give --rule alone")
    warn("--threshold is now --rule")
    return str(old)


def chosen(bundle: Bundle, options: Mapping[str, Any]) -> Rule:
    """The rule that a verb's options ask for."""
    from wgap.runtime.localizer import chosen_rule

    return chosen_rule(bundle, rule_text(options), options.get("map_"))


def open_localizer(options: Mapping[str, Any]) -> Localizer:
    """The localizer that a verb's options ask for; those that the verb has not keep their defaults."""
    from wgap.runtime.localizer import Localizer

    names = (
        "backend", "precision", "ungated", "threads", "slots", "memory_limit", "hint", "streams", "top_k", "max_boxes",
        "batch_size", "prepare",
    )  # fmt: skip
    given = {name: options[name] for name in names if name in options}
    rule, map_, device = rule_text(options), options.get("map_"), device_of(options.get("device"))
    localizer = Localizer(options["bundle"], rule=rule, map=map_, device=device, **given)
    if options.get("backend") == "auto":
        note(f"auto: {localizer.backend} {localizer.network.version}")
    return localizer
