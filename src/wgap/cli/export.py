"""``wgap export``: a checkpoint becomes a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from wgap.cli.options import rule_text

Pooling = Literal["wgap", "gap"]


def export(
    ctx: typer.Context,
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of `wgap train`, or a bare .safetensors state dict.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    classes: Annotated[Path | None, typer.Option(help="Text file, one class name per line, in row order.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="torchvision-rgb or caffe-bgr; belongs to the weights.")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="16, 8 or 32; a bare state dict does not tell.")] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="wgap or gap; a bare state dict does not tell.")] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the network input in pixels.")] = None,
    rule: Annotated[str | None, typer.Option(help="The bundle's rule: adaptive (the default) or fixed:ETA.")] = None,
    map_: Annotated[str, typer.Option("--map", help="Of which map: recombined, positive or signed.")] = "recombined",
    threshold: Annotated[str | None, typer.Option(help="The old name of --rule.", hidden=True)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Export CHECKPOINT as a bundle: ONNX graph, classifier, golden cases and manifest."""
    from wgap.export.onnx import bundle_from_checkpoint
    from wgap.rule import Rule

    text = rule_text(ctx.params)
    bundle = bundle_from_checkpoint(
        checkpoint, out, classes=classes, preprocessing=preprocessing, stride=stride, pooling=pooling,
        input_size=input_size, rule=Rule.parse("adaptive" if text is None else text, map_), force=force,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"bundle": str(bundle.root), **json.loads(bundle.manifest.to_json())}))
    else:
        info = bundle.manifest.model
        typer.echo(
            f"{bundle.root}: {info.architecture.name}, {len(info.classes)} classes, input "
            f"{info.input_size[0]}x{info.input_size[1]}, features {'x'.join(map(str, info.feature_shape))}, "
            f"{len(bundle.manifest.files)} files, checked against PyTorch"
        )
