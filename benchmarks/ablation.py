"""Pooling x map x threshold on cub10, several seeds: fine-tune, export, evaluate, one table.

    python benchmarks/ablation.py --out runs/ablation            # trains what is not there yet, hours on two cores
    python benchmarks/ablation.py --out runs/ablation --json

Each run is what `wgap train $WGAP_DATA/data/cub10 --init $WGAP_DATA/weights/vgg16_imagenet.safetensors --preprocessing
caffe-bgr --freeze-through block4 --views 6 --epochs 4 --pooling P --seed S` does: blocks 1-4 frozen, SGD 1e-3
(classifier 1e-2), weight decay 5e-4, cosine, batch 32. Finished runs, bundles and evaluations are reused, so that an
interrupted command goes on where it stopped. Thresholds are never tuned here; columns that use the true boxes say so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from wgap import Localizer
from wgap.atomic import atomic_file
from wgap.bundle import Bundle
from wgap.datasets import open_dataset
from wgap.evaluate.protocol import ablation_rules, evaluate_localizer
from wgap.export.onnx import bundle_from_checkpoint
from wgap.rule import Rule
from wgap.train.config import TrainConfig
from wgap.train.loop import train

POOLINGS = ("gap", "wgap")


def evaluated(data: Path, out: Path, pooling: Any, seed: int) -> dict[str, Any]:
    """The evaluation report of one run, trained and exported first where that is still to be done."""
    run = out / f"{pooling}-s{seed}"
    report = run / "evaluation.json"
    if not report.is_file():
        checkpoint = run / "model.safetensors"
        if not checkpoint.is_file():
            train(
                TrainConfig(
                    data=data / "data" / "cub10",
                    out=run,
                    init=data / "weights" / "vgg16_imagenet.safetensors",
                    preprocessing="caffe-bgr",
                    pooling=pooling,
                    freeze_through="block4",
                    views=6,
                    cache_dir=out / "cache",
                    epochs=4,
                    seed=seed,
                    resume=(run / "last.pt").is_file(),
                )
            )
        bundle = run / "bundle"
        opened = Bundle.open(bundle) if bundle.exists() else bundle_from_checkpoint(checkpoint, bundle)
        test = open_dataset(data / "data" / "cub10", split="test")
        evaluation = evaluate_localizer(Localizer(opened, rule=Rule()), test, ablation_rules(opened))
        with atomic_file(report) as temporary:
            temporary.write_text(json.dumps(evaluation.to_json(), indent=2) + "\n")
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def table(reports: dict[str, list[dict[str, Any]]]) -> str:
    """GT-known localization in percent as Markdown, a line per pooling and map."""
    thresholds = [row["threshold"] for row in reports[POOLINGS[0]][0]["ablation"] if row["map"] == "signed"]
    head = ["pooling", "map", *thresholds, "best fixed*", "oracle*"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for pooling, runs in reports.items():
        for kind in ("signed", "positive", "recombined"):
            cells = [
                spread([row["gt_known_loc"] for run in runs for row in run["ablation"] if _is(row, kind, threshold)])
                for threshold in thresholds
            ]
            bounds = [bound for run in runs for bound in run["upper_bounds"] if bound["map"] == kind]
            cells += [spread([bound[name]["gt_known_loc"] for bound in bounds]) for name in ("best_fixed", "oracle")]
            lines.append(f"| {pooling} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds_table(reports: dict[str, list[dict[str, Any]]], seeds: list[int]) -> str:
    """Every run's figures under the method's own rule, in percent, as Markdown."""
    lines = ["| pooling | seed | top1_cls | gt_known_loc | top1_loc | mean_iou |", "|---|---|---|---|---|---|"]
    for pooling, runs in reports.items():
        for seed, run in zip(seeds, runs, strict=True):
            cells = " | ".join(f"{100 * run[key]:.1f}" for key in ("top1_cls", "gt_known_loc", "top1_loc", "mean_iou"))
            lines.append(f"| {pooling} | {seed} | {cells} |")
    return "\n".join(lines)


def _is(row: dict[str, Any], kind: str, threshold: str) -> bool:
    return bool(row["map"] == kind and row["threshold"] == threshold)


def main() -> None:
    """Print both tables, or everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("WGAP_DATA", "../shared")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    reports = {
        pooling: [evaluated(options.data, options.out, pooling, seed) for seed in options.seeds] for pooling in POOLINGS
    }
    if options.json:
        print(json.dumps({"seeds": options.seeds, "reports": reports}))
        return
    print(f"{reports['wgap'][0]['images']} test images, seeds {', '.join(map(str, options.seeds))}\n")
    print(f"{seeds_table(reports, options.seeds)}\n\n{table(reports)}\n")
    print("Columns with * use the true boxes of the evaluated images: upper bounds, not results.")


if __name__ == "__main__":
    main()
