"""``wgap import``: somebody else's classifier, in ONNX or PyTorch, becomes a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def import_(
    model: Annotated[
        str, typer.Argument(help=".onnx file of a classifier, or package.module:factory of a PyTorch module.")
    ],
    classes: Annotated[Path, typer.Option(help="Text file, one class name per line, in the order of the logits.")],
    preprocessing: Annotated[
        str,
        typer.Option(
            help="torchvision-rgb, caffe-bgr, or a .json file of channel_order, scale, mean and std; belongs to the "
            "weights."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder to make.")],
    images: Annotated[
        Path | None, typer.Option(help="Pictures on which linearity and parity are measured; default: generated ones.")
    ] = None,
    logits: Annotated[
        str | None, typer.Option(help="Tensor before the softmax, of a graph with several heads.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="Tensor that is pooled, where no pooling is found.")] = None,
    input_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Side of the input in pixels, where the graph leaves it free.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="The bundle's rule: adaptive (the default), or fixed:ETA (0.2 where features are negative)."),
    ] = None,
    map_: Annotated[str | None, typer.Option("--map", help="Of which map: recombined, positive or signed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Import MODEL as a bundle, once it is proven that its logits are linear in its pooled features."""
    from wgap.errors import RuleError
    from wgap.export.imported import bundle_from_onnx
    from wgap.rule import Rule

    if map_ is not None and rule is None:
        raise RuleError("--map belongs to a rule; give --rule as well")
    bundle = bundle_from_onnx(
        model, out, classes=classes, preprocessing=preprocessing, images=images, logits=logits, features=features,
        input_size=input_size, rule=None if rule is None else Rule.parse(rule, map_), force=force,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"bundle": str(bundle.root), **json.loads(bundle.manifest.to_json())}))
        return
    info, own, made = bundle.manifest.model, bundle.manifest.rule, bundle.file("onnx", "fp32").import_
    assert made is not None
    typer.echo(
        f"{bundle.root}: {len(info.classes)} classes, input {info.input_size[0]}x{info.input_size[1]}, features "
        f"{'x'.join(map(str, info.feature_shape))} at {made.features}, classifier {made.nodes['classifier']}\n"
        f"W . pool(features) + b differs from the logits by {made.figures['linearity']:.1e} of their maximum, the "
        f"logits from the model's own by {made.figures['parity']:.1e}, on {made.figures['pictures']} pictures"
    )
    if made.features_min < 0:
        typer.echo(
            f"features go down to {made.features_min:.3g}: the rule is {own} on the {own.map} map; for "
            "better boxes run `wgap foreground` on the bundle"
        )
