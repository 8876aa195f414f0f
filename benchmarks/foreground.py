"""The foreground rules on real photographs: calibrated on the training half, scored on the test half.

    python benchmarks/foreground.py [--json] [--only cub10|raccoon] [--work DIR]

cub10: the given WGAP weights. raccoon: ImageNet's VGG16, never fine-tuned and without a classifier here: a head of
one class with all weights 1 makes its map the sum of the channels. ``adaptive`` is the paper's rule, ``tuned`` the one
fixed threshold that suits these very test pictures best, which needs their boxes. $WGAP_DATA holds data/ and weights/.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from wgap import Bundle, Localizer
from wgap.calibrate.foreground import foreground_bundle
from wgap.datasets import open_dataset
from wgap.evaluate.protocol import evaluate_localizer
from wgap.export.onnx import bundle_from_checkpoint
from wgap.rule import Rule

RULES = ("foreground", "foreground+colour", "adaptive")


def cub10(data: Path, work: Path) -> Bundle:
    """The given weights as a bundle."""
    classes = work / "cub10.txt"
    lines = (data / "data/cub10/classes.txt").read_text().splitlines()
    classes.write_text("\n".join(line.split()[1] for line in lines) + "\n")
    weights = data / "weights/wgap_vgg16_cub10.safetensors"
    return bundle_from_checkpoint(weights, work / "cub10", classes=classes, preprocessing="caffe-bgr")


def raccoon(data: Path, work: Path) -> Bundle:
    """ImageNet's VGG16 with a head of one class."""
    import torch
    from safetensors.torch import load_file, save_file

    state = {name: value.float() for name, value in load_file(data / "weights/vgg16_imagenet.safetensors").items()}
    state |= {"classifier.weight": torch.ones(1, 512), "classifier.bias": torch.zeros(1)}
    save_file(state, work / "raccoon.safetensors")
    (work / "raccoon.txt").write_text("raccoon\n")
    return bundle_from_checkpoint(
        work / "raccoon.safetensors", work / "raccoon", classes=work / "raccoon.txt", preprocessing="caffe-bgr"
    )


def measured(name: str, bundle: Bundle, data: Path) -> dict[str, Any]:
    """GT-known localization and mean IoU under each rule."""
    photographs = data / "data" / name
    start = time.perf_counter()
    made = foreground_bundle(bundle, photographs)
    seconds = time.perf_counter() - start
    first, *further = (Rule(kind) for kind in RULES)  # type: ignore[arg-type]
    localizer = Localizer(made.bundle, rule=first)
    evaluation = evaluate_localizer(localizer, open_dataset(photographs, "test"), further)
    scores = {str(rule): evaluation.summary(n) for n, rule in enumerate(evaluation.rules)}
    return {
        "calibrated_on": len(made.images),
        "seconds": round(seconds, 1),
        "separation": made.record.separation,
        "test_images": len(evaluation.images),
        "rules": {rule: {"gt_known": s.gt_known_loc, "mean_iou": s.mean_iou} for rule, s in scores.items()},
        "tuned": evaluation.best_fixed("recombined"),
        "oracle_on_scores": evaluation.oracle("foreground"),
    }


def main() -> None:
    """Print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=("cub10", "raccoon"))
    parser.add_argument("--work", type=Path, help="keep the bundles here, in a new folder")
    arguments = parser.parse_args()
    data = Path(os.environ.get("WGAP_DATA", "../shared"))
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for name, make in (("cub10", cub10), ("raccoon", raccoon)):
            if arguments.only in (None, name):
                found[name] = measured(name, make(data, work), data)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name}: {figures['calibrated_on']} pictures in {figures['seconds']} s, {figures['separation']}")
        for rule, score in figures["rules"].items():
            print(f"  {rule:18} GT-known {score['gt_known']:.3f}  mean IoU {score['mean_iou']:.3f}")
        print(f"  tuned fixed {figures['tuned']}; oracle on the scores {figures['oracle_on_scores']}")


if __name__ == "__main__":
    main()
