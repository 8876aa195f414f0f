"""``wgap train``: labelled images become a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    ctx: typer.Context,
    data: Annotated[Path, typer.Argument(help="Dataset folder; docs/training.md shows the layouts.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    backbone: Annotated[
        str, typer.Option(help="vgg16, resnet18, resnet34, resnet50, resnet101, mobilenet_v2.")
    ] = "vgg16",
    init: Annotated[Path | None, typer.Option(help="Weights to start from, .safetensors or .pth.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="torchvision-rgb or caffe-bgr, if the weights do not say.")
    ] = None,
    pooling: Annotated[str, typer.Option(help="wgap, or gap for the ablation.")] = "wgap",
    neck: Annotated[str, typer.Option(help="none, or conv1024: a 3x3 convolution to 1024 channels.")] = "none",
    stride: Annotated[int, typer.Option(help="Pixels per map position: 16, 8, or 32 (vgg16: 16 or 8).")] = 16,
    width: Annotated[float, typer.Option(help="Channel multiplier, for small models.")] = 1.0,
    input_size: Annotated[int, typer.Option(help="Side of the network input in pixels.")] = 224,
    epochs: Annotated[int, typer.Option(help="Passes over images x views.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images per step, over all processes together.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate of pretrained layers.")] = 1e-3,
    new_layer_rate: Annotated[float, typer.Option(help="Factor on --lr for layers that start new.")] = 10.0,
    classifier_rate: Annotated[
        float | None, typer.Option(help="Factor on --lr for the classifier's weights, instead of the derived one.")
    ] = None,
    warmup: Annotated[float, typer.Option(help="Fraction of the run over which the rate rises to its peak.")] = 0.0,
    clip_norm: Annotated[float | None, typer.Option(help="Scale gradients down to this norm; default: never.")] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    weight_decay: Annotated[float, typer.Option(help="On every parameter.")] = 5e-4,
    freeze_through: Annotated[
        str | None,
        typer.Option(
            help="Keep the backbone up to this stage as it is: block1 ... block5; stem, layer1 ...; stem, stage1 ..."
        ),
    ] = None,
    batch_norm: Annotated[
        str,
        typer.Option(help="Statistics of trained stages: stored (of --init), batch, or auto: stored if there is one."),
    ] = "auto",
    views: Annotated[int, typer.Option(help="Fixed augmentations per image; 0 draws fresh ones each epoch.")] = 0,
    cache: Annotated[bool, typer.Option(help="Keep the frozen part's outputs on disk.")] = True,
    cache_dir: Annotated[Path | None, typer.Option(help="Where to keep them; default: in --out until the end.")] = None,
    seed: Annotated[int, typer.Option(help="Of initialisation, order and augmentation.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that decode images; 0: none beside the training one.")] = 0,
    layout: Annotated[str, typer.Option(help="auto, cub, ilsvrc, wsolevaluation or folder.")] = "auto",
    val_split: Annotated[str | None, typer.Option(help="Split to measure accuracy on after each epoch.")] = None,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to skip before giving up.")] = 10,
    precision: Annotated[str, typer.Option(help="auto: mixed on a GPU, float32 on the CPU.")] = "auto",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes on this machine; torchrun's number counts if it ran us.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, with its options.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON line per epoch, then one for the run.")] = False,
) -> None:
    """Train a backbone with WGAP on the class labels of DATA. Boxes are never read."""
    from wgap.extras import require

    require("training", "torch", "lightning_fabric")
    from wgap.train.config import FREE_TO_CHANGE, TrainConfig, stored_options
    from wgap.train.loop import train as run

    options: dict[str, Any] = {k: v for k, v in ctx.params.items() if k != "as_json"}
    if resume:
        # A resumed run keeps its options; one given again is passed on, so that a contradiction is refused.
        given = {k for k in options if _was_given(ctx, k)} | {"data", "out", "resume"}
        stored = stored_options(out)
        options = {
            **stored,
            **{k: v for k, v in options.items() if k in given or (k in FREE_TO_CHANGE and k not in stored)},
        }
    try:
        config = TrainConfig.from_json(options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

    def on_epoch(metrics: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(metrics))

    model = run(config, on_epoch=on_epoch)
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        return  # one of several processes speaks for all
    if as_json:
        typer.echo(json.dumps({"model": str(model), "metrics": str(config.out / "metrics.jsonl")}))
    else:
        typer.echo(f"{model}")


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
