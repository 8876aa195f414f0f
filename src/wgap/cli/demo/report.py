"""The demo's one page: figures, pictures, and the command behind each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wgap.cli.demo.run import DemoResult


def options_text(settings: Mapping[str, Any]) -> str:
    """Settings as options of ``wgap train``."""
    values = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in settings.items()}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())


def commands(seed: int) -> list[str]:
    """What to run in the demo's folder to do the same by hand."""
    from wgap.cli.demo.run import SETTINGS

    return [
        f"wgap train data --out by-hand/run --seed {seed} {options_text(SETTINGS)}",
        "wgap export by-hand/run/model.safetensors --out by-hand/bundle",
        "wgap foreground by-hand/bundle --images data",
        "wgap check by-hand/bundle --images data/test",
        "wgap localize by-hand/bundle data/test --out by-hand/boxes --heatmap",
        "wgap evaluate by-hand/bundle data --ablation --out by-hand/evaluation",
    ]


def report_text(result: DemoResult, seed: int) -> str:
    """The page as Markdown; pictures are linked relative to the demo's folder."""
    from wgap.cli.demo.run import PER_CLASS, REQUIRED

    scores = result.scores
    verdict = "reached" if result.localizes else "**MISSED**"
    table = "\n".join(
        f"| {row['map']} | {row['threshold']} | {row['gt_known_loc']:.3f} | {row['top1_loc']:.3f} "
        f"| {row['mean_iou']:.3f} |"
        for row in [scores, *scores["ablation"]]
    )
    stages = "\n".join(f"| {name} | {value:.1f} |" for name, value in result.seconds.items())
    by_hand = "\n".join(commands(seed))
    return f"""# wgap demo

A narrow network, trained here from scratch on {PER_CLASS["train"]} generated pictures of each of six textures. It was
told the texture's name and nothing else: no box was opened before the evaluation.

![Six test pictures with predicted and true boxes, and their heat maps](montage.png)

*For each class the test picture in the middle of its ranking by IoU, neither the best nor the worst. Above, the
predicted box (orange) and the true one (green); below, the heat map.*

| on {scores["images"]} test pictures | |
|---|---|
| **GT-known localization** (IoU >= 0.5) | **{scores["gt_known_loc"]:.3f}** ({REQUIRED} required: {verdict}) |
| the same for a centred box of half the area | {scores["centred_box"]["gt_known_loc"]:.3f} |
| the same at each picture's best level (oracle: needs the true box) | {scores["oracle"]["gt_known_loc"]:.3f} |
| Top-1 classification | {scores["top1_cls"]:.3f} |
| Top-1 localization | {scores["top1_loc"]:.3f} |
| mean IoU | {scores["mean_iou"]:.3f} |
| PyTorch reference and runtime agree | {"yes" if result.parity else "**NO**"} |

## Rules

| map | rule | GT-known | Top-1 loc | mean IoU |
|---|---|---|---|---|
{table}

The first row is the bundle's own: a linear score of every cell, fitted to the training pictures without a box, is
above 0 on the object, and the picture's own colours move the edge to where they change. Nothing in it was chosen by
looking at boxes, and no threshold either. The paper's adaptive rule takes a level just above the map's minimum. On
ImageNet features, whose background is near zero, that is right; on this small network's map it takes in the object's
halo. Fixed thresholds are CAM's.

![V and D over the levels for one picture](levels.png)

*What the adaptive rule sees in the first picture above (Fig. 3 of the paper).*

![The six test pictures with the lowest IoU](worst.png)

*The six test pictures with the lowest IoU.*

## The same by hand

In this folder, whose `data/` was made by `wgap demo --seed {seed}` (boxes lie apart, in `data/boxes.csv`):

```console
{by_hand}
```

## Time

| stage | seconds |
|---|---|
{stages}
| **all** | **{sum(result.seconds.values()):.1f}** |
"""
