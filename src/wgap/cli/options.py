"""Options that verbs share: which network, on what, under which rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wgap.rule import Rule
    from wgap.runtime.localizer import Localizer

__all__ = [
    "Backend", "BundleFolder", "Device", "Json", "MapName", "MemoryLimit", "Precision", "RuleText", "Slots",
    "Threads", "Threshold", "Ungated", "open_localizer", "rule_text", "warn",
]  # fmt: skip

BundleFolder = Annotated[Path, typer.Argument(help="Bundle folder.")]
Backend = Annotated[
    str, typer.Option(help="onnxruntime; on GPUs onnxruntime_cuda, onnxruntime_tensorrt, tensorrt, tensorrt_rtx.")
]
Precision = Annotated[str, typer.Option(help="Which of the bundle's models to run.")]
Ungated = Annotated[
    bool,
    typer.Option("--ungated", help="Run a lower-precision file that no gate has passed under this rule."),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads of the forward pass; default: every core.")]
Device = Annotated[str | None, typer.Option(help="GPU, by ordinal or UUID (nvidia-smi -L); default: the first.")]
Slots = Annotated[int | None, typer.Option(help="Calls on the GPU at the same time; default: 4.")]
MemoryLimit = Annotated[int | None, typer.Option(help="Bytes that ONNX Runtime may hold on the GPU; default: 4 GiB.")]
RuleText = Annotated[str | None, typer.Option("--rule", help="adaptive or fixed:ETA; default: the bundle's.")]
MapName = Annotated[str | None, typer.Option("--map", help="recombined, positive or signed; default: the bundle's.")]
Threshold = Annotated[str | None, typer.Option("--threshold", help="The old name of --rule.", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def warn(text: str) -> None:
    """One line on standard error."""
    typer.echo(f"warning: {text}", err=True)


def rule_text(options: Mapping[str, Any]) -> str | None:
    """``--rule``, or what was given by its old name."""
    given: str | None = options.get("rule")
    if options.get("threshold") is not None:
        warn("--threshold is now --rule")
        given = options["threshold"] if given is None else given
    return given


def device_of(text: str | None) -> int | str | None:
    """An ordinal where it is a number, else a UUID."""
    return int(text) if text is not None and text.isdecimal() else text


def open_localizer(options: Mapping[str, Any]) -> Localizer:
    """The localizer that a verb's options ask for; those that the verb has not keep their defaults."""
    from wgap.runtime.localizer import Localizer

    names = ("backend", "precision", "ungated", "threads", "slots", "memory_limit", "top_k", "batch_size")
    given = {name: options[name] for name in names if name in options}
    return Localizer(
        options["bundle"], rule=rule_text(options), map=options.get("map_"),
        device=device_of(options.get("device")), **given,
    )  # fmt: skip


def chosen(bundle: Any, options: Mapping[str, Any]) -> Rule:
    """The rule that a verb's options ask for."""
    from wgap.runtime.localizer import chosen_rule

    return chosen_rule(bundle, rule_text(options), options.get("map_"))
