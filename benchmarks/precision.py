"""Float32, FP16 and INT8 of one bundle, forward pass and end to end, interleaved in one run.

    python benchmarks/precision.py BUNDLE [--image FILE] [--batch 1,8] [--rounds 40] [--ungated] [--json]

Every precision that the bundle holds gets its own localizer with default options. In each round each of them decodes,
resizes, forwards and postprocesses the same JPEG, in an order that rotates, after a pause in which the other sessions'
threads stop spinning (without it they take cores from the one that is timed). Ratios are float32's time over the
other's in the same round; above 1 the other is faster. FP16 is here for its file alone: ONNX Runtime's CPU provider
computes it in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from localizer import golden_jpeg, quartiles

from wgap import Bundle, Localizer
from wgap.evaluate.latency import cpu_model
from wgap.images import decode, resize

PAUSE_S = 0.03
STAGES = ("decode", "resize", "forward", "postprocess", "total")


def main() -> None:
    """Time every precision and print medians, quartiles and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, help="JPEG file; default: a golden image, encoded")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ungated", action="store_true", help="also files whose gate failed or never ran")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    bundle = Bundle.open(arguments.bundle)
    encoded = arguments.image.read_bytes() if arguments.image else golden_jpeg(bundle)
    held = {entry.precision: entry.size for entry in bundle.manifest.files if entry.role == "onnx"}
    localizers = {
        name: Localizer(bundle, precision=str(name), threads=arguments.threads, ungated=arguments.ungated)
        for name in held
    }
    report: dict[str, Any] = {
        "bundle": str(arguments.bundle),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "onnxruntime": onnxruntime.__version__,
        "bytes": held,
        "batches": {
            batch: measure(localizers, [encoded] * batch, arguments.rounds, arguments.warmup)
            for batch in map(int, arguments.batch.split(","))
        },
    }
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{report['cpu']}, {report['cores']} cores, ONNX Runtime {report['onnxruntime']}")
    for batch, rows in report["batches"].items():
        print(f"\nbatch {batch}: median ms (quartiles)")
        for name, row in rows.items():
            times = "  ".join(f"{s} {row[s]['p50']:.2f} ({row[s]['p25']:.2f}-{row[s]['p75']:.2f})" for s in STAGES)
            ratios = "  ".join(f"{stage} {row['ratio'][stage]['p50']:.2f}x" for stage in ("forward", "total"))
            print(f"{name}  {times}  {ratios}")


def measure(localizers: dict[Any, Localizer], encoded: list[bytes], rounds: int, warmup: int) -> dict[str, Any]:
    """Milliseconds of every stage and precision, and float32's over each."""
    names = list(localizers)
    times: dict[Any, list[list[float]]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(PAUSE_S)
            row = once(localizers[name], encoded)
            if number >= warmup:
                times[name].append(row)
    found: dict[str, Any] = {}
    base = np.array(times["fp32"])
    for name in names:
        own = np.array(times[name])
        found[name] = {stage: quartiles(own[:, n]) for n, stage in enumerate(STAGES)}
        found[name]["ratio"] = {stage: quartiles(base[:, n] / own[:, n]) for n, stage in enumerate(STAGES)}
    return found


def once(localizer: Localizer, encoded: list[bytes]) -> list[float]:
    """One batch from JPEG to boxes, in milliseconds by stage."""
    size = localizer.bundle.manifest.model.input_size
    marks = [time.perf_counter()]
    images = [decode(data) for data in encoded]
    marks.append(time.perf_counter())
    batch = np.stack([resize(pixels, *size) for pixels in images])
    marks.append(time.perf_counter())
    outputs = localizer.network.run(batch)
    marks.append(time.perf_counter())
    localizer.locator.locate(outputs)
    marks.append(time.perf_counter())
    return [1e3 * float(t) for t in (*np.diff(marks), marks[-1] - marks[0])]


if __name__ == "__main__":
    main()
