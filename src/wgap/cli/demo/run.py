"""The whole way on images made from nothing: generate, train, export, calibrate the foreground, evaluate, report.

No network, no downloads, no weights. Class labels alone train the network, and the run picks nothing by looking at
boxes: those of the generated set are opened once, by the evaluation at the end.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.atomic import atomic_file, require_new
from wgap.cli.demo.report import report_text
from wgap.extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.evaluate.protocol import Evaluation, ImageResult
    from wgap.runtime.localizer import Localizer

REQUIRED = 0.85
"""GT-known localization that the demo has to reach on its own test images."""

PER_CLASS = {"train": 150, "test": 25}
"""Generated images per class and split."""

SETTINGS: dict[str, Any] = {
    "width": 0.125,
    "stride": 8,
    "input_size": 96,
    "epochs": 8,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "warmup": 0.05,
    "clip_norm": 1.0,
    "classifier_rate": 1.0,
}
"""Options of ``wgap train``, the same for every seed."""

TILE = 160
"""Side of a tile of ``montage.png`` in pixels."""

MARK = "demo.json"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        out: its folder: data/, run/, bundle/, localized/, evaluation pictures, report.md, demo.json.
        seconds: wall-clock time of each stage.
        parity: whether every stage of the PyTorch reference and the runtime agreed.
        scores: the evaluation's report, as ``wgap evaluate --json`` prints it.
    """

    out: Path
    seconds: dict[str, float]
    parity: bool
    scores: dict[str, Any]

    @property
    def localizes(self) -> bool:
        """GT-known localization of at least ``REQUIRED``."""
        return bool(self.scores["gt_known_loc"] >= REQUIRED)

    @property
    def ok(self) -> bool:
        """Whether the demo kept its promises."""
        return self.parity and self.localizes

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON."""
        return {
            "out": str(self.out),
            "ok": self.ok,
            "required_gt_known_loc": REQUIRED,
            "parity": self.parity,
            "seconds": {stage: round(value, 1) for stage, value in self.seconds.items()},
            "total_seconds": round(sum(self.seconds.values()), 1),
            "scores": self.scores,
        }


def run_demo(
    out: Path, *, seed: int = 0, force: bool = False, say: Callable[[str], None] = lambda text: None
) -> DemoResult:
    """Run every stage into ``out``.

    Args:
        out: folder to make.
        seed: of the images and of the training.
        force: replace an earlier demo in ``out``; anything else there is left alone.
        say: called with one line as each stage starts or ends.

    Raises:
        OutputExistsError: ``out`` exists, and is not an earlier demo or ``force`` is false.
        MissingDependencyError: training or its export is not installed.
        WgapError: a stage failed.
    """
    require("the demo", "torch", "lightning_fabric", "onnx", "onnxscript", "onnxruntime", "matplotlib")
    from wgap.calibrate.foreground import foreground_bundle
    from wgap.cli.demo.images import write_demo_set
    from wgap.datasets import open_dataset
    from wgap.evaluate.protocol import ablation_rules, evaluate_localizer
    from wgap.export.check import check_localizer
    from wgap.export.onnx import bundle_from_checkpoint
    from wgap.runtime.localizer import Localizer
    from wgap.train.config import TrainConfig
    from wgap.train.loop import train

    _make_room(out, force)
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str, text: str) -> Iterator[None]:
        say(f"{name:<10} {text}")
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with stage("generate", f"{6 * PER_CLASS['train']} training and {6 * PER_CLASS['test']} test images"):
        write_demo_set(out / "data", PER_CLASS, seed)
    with stage("train", "a narrow network from scratch, on class labels alone"), _one_thread():
        config = TrainConfig(data=out / "data", out=out / "run", seed=seed, **SETTINGS)
        checkpoint = train(config, on_epoch=lambda metrics: _say_epoch(say, metrics))
    with stage("export", "checkpoint to bundle"):
        bundle = bundle_from_checkpoint(checkpoint, out / "bundle")
    with stage("foreground", "what is object and what is ground, from the training images"):
        bundle = foreground_bundle(bundle, out / "data").bundle
    test = open_dataset(out / "data", "test")
    localizer = Localizer(bundle)
    with stage("check", "PyTorch reference against the runtime"):
        parity = check_localizer(localizer, [sample.path for sample in test.samples[:: max(1, len(test) // 16)]])
    with stage("localize", f"{len(test)} test images"):
        _localize(localizer, [sample.path for sample in test], out / "localized.jsonl")
    with stage("evaluate", "boxes are opened now, for the first time"):
        evaluation = evaluate_localizer(localizer, test, ablation_rules(bundle))
    with stage("pictures", "montage and threshold plot"):
        _pictures(localizer, evaluation, out)
    result = DemoResult(out, seconds, parity.ok, evaluation.to_json())
    with atomic_file(out / "report.md") as temporary:
        temporary.write_text(report_text(result, seed), encoding="utf-8")
    with atomic_file(out / MARK) as temporary:
        temporary.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch on one thread: the same network on any number of cores, and no waiting for each other on a busy machine.

    The layers are so small that a second thread gains little on an idle machine; on a loaded one it cost four times as
    much.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make_room(out: Path, force: bool) -> None:
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        require_new(out, force, MARK, "demo")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("{}\n")  # from here on the folder is ours, whatever happens


def _say_epoch(say: Callable[[str], None], metrics: dict[str, Any]) -> None:
    if metrics["epoch"] % 5 == 0 or metrics["epoch"] == SETTINGS["epochs"]:
        figures = {k: v for k, v in metrics.items() if isinstance(v, float) and k in ("loss", "accuracy", "seconds")}
        say(f"{'':<10} epoch {metrics['epoch']}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()))


def _localize(localizer: Localizer, paths: list[Path], out: Path) -> None:
    """One JSON line per image, as ``wgap localize`` writes them."""
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for found in localizer(paths):
            stream.write(json.dumps(found.to_json()) + "\n")


def _pictures(localizer: Localizer, evaluation: Evaluation, out: Path) -> None:
    """``montage.png`` (the middling image of each class: box and heat map), ``worst.png`` and one Fig. 3."""
    from wgap.evaluate.pictures import montage, plot_levels
    from wgap.runtime.overlay import save_picture

    ranked = sorted(evaluation.images, key=lambda image: image.scores[0].gt_iou)
    by_class = [[image for image in ranked if image.label == label] for label in range(len(localizer.classes))]
    middling = [images[len(images) // 2] for images in by_class]  # neither the best nor the worst of its class
    save_picture(out / "montage.png", _strip(localizer, middling))
    save_picture(out / "worst.png", montage(localizer, ranked[:6]))
    plot_levels(localizer, middling[0], out / "levels.png")


def _strip(localizer: Localizer, images: Sequence[ImageResult]) -> NDArray[np.uint8]:
    """Two rows of tiles, small enough for a README: box (orange) beside truth (green), and below the heat map.

    Drawn at the tile's own size rather than scaled down from an overlay, so that lines and letters stay crisp.
    """
    import cv2
    import numpy as np

    from wgap.geometry import scaled
    from wgap.images import decode
    from wgap.runtime.overlay import PREDICTED, TRUE

    columns = []
    for image in images:
        tile = cv2.resize(decode(image.path), (TILE, TILE), interpolation=cv2.INTER_AREA)
        found = localizer.one(image.path, image.label, heatmap=True)
        assert found.heatmap is not None
        heat = cv2.resize(found.heatmap, (TILE, TILE), interpolation=cv2.INTER_LINEAR)
        colours = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
        below = cv2.addWeighted(tile, 0.35, np.ascontiguousarray(colours), 0.65, 0)
        for boxes, colour in ((image.truth, TRUE), ([found.box], PREDICTED)):
            for x0, y0, x1, y1 in (scaled(box, image.size, (TILE, TILE)) for box in boxes):
                cv2.rectangle(tile, (round(x0), round(y0)), (round(x1) - 1, round(y1) - 1), colour, 2)
        cv2.putText(
            below, found.class_name, (5, TILE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA
        )
        columns.append(np.concatenate([tile, below]))
    sheet = np.concatenate(columns, axis=1)
    return (sheet & 0xF8).astype(np.uint8)  # five bits a channel: half the file, hardly visible
