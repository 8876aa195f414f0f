"""Peak memory of `wgap evaluate --protocol` over many images: the whole way, with generated maps as a network's.

    python -m benchmarks.protocol_memory BUNDLE --protocol maxboxacc --images 50000

Pictures are decoded and resized, feature maps of a fixed seed take the network's place, the kernel makes the heat maps,
and counts are written every 500 images, as ever.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from benchmarks.synthetic import synthetic

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.datasets import Dataset, Sample
from wgap.datasets.dataset import Masks
from wgap.evaluate.public_protocol import PROTOCOLS, Protocol, evaluate_protocol

DISTINCT = 64
"""Pictures, masks and feature maps that are used again and again."""


def peak() -> int:
    """MiB of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Score a generated set, and print the peak every 5000 images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="maxboxacc")
    parser.add_argument("--threshold-step", type=float, default=0.01)
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    protocol = Protocol(options.protocol, options.threshold_step)
    bundle = Bundle.open(options.bundle)
    model = bundle.manifest.model
    channels, side, _ = model.feature_shape
    features, _, _ = synthetic(DISTINCT, channels, side, 1)
    logits = np.random.default_rng(0).normal(size=(DISTINCT, len(model.classes))).astype(np.float32)
    at = 0

    def network(images: Any) -> dict[str, Any]:
        nonlocal at
        rows = np.arange(at, at + len(images)) % DISTINCT
        at += len(images)
        return {"logits": logits[rows], "features": features[rows]}

    def told(batches: Sequence[int]) -> Iterator[int]:
        start = time.monotonic()
        for first in batches:
            if first and first % 5000 < batches.step:
                each = (time.monotonic() - start) / first * 1000
                print(f"{first:>6} images, peak {peak()} MiB, {each:.1f} ms each", flush=True)
            yield first

    with tempfile.TemporaryDirectory() as folder:
        data = generated(Path(folder), list(model.classes), options.images)
        localizer = Localizer(bundle, network=network)
        report = evaluate_protocol(localizer, data, protocol, state=Path(folder) / "state", progress=told).to_json()
        size = (Path(folder) / "state").stat().st_size / 2**20
    figure = report.get("pxap", report.get("max_box_acc"))
    print(f"{report['images']:>6} images, peak {peak()} MiB, state {size:.1f} MiB; {protocol.name} {figure:.4f}")


def generated(folder: Path, classes: list[str], count: int) -> Dataset:
    """A set of so many samples over a few files, a box and a mask each."""
    rng = np.random.default_rng(1)
    boxes, masks = [], []
    for n in range(DISTINCT):
        x, y = rng.integers(0, 100, 2)
        mask = np.zeros((200, 250), np.uint8)
        mask[y : y + 90, x : x + 120] = 255
        cv2.imwrite(str(folder / f"{n}.png"), mask)
        cv2.imwrite(str(folder / f"{n}.jpg"), rng.integers(0, 256, (200, 250, 3), dtype=np.uint8))
        boxes.append([(float(x), float(y), float(x + 120), float(y + 90))])
        masks.append(Masks((folder / f"{n}.png",)))
    samples = [Sample(folder / f"{n % DISTINCT}.jpg", n % len(classes)) for n in range(count)]
    return Dataset(
        folder, "generated", "test", classes, samples,
        lambda wanted: [boxes[n % DISTINCT] for n in range(len(wanted))],
        read_masks=lambda wanted, _: [masks[n % DISTINCT] for n in range(len(wanted))],
    )  # fmt: skip


if __name__ == "__main__":
    main()
