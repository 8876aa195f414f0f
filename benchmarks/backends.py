"""ONNX Runtime and OpenVINO at every precision of a bundle, through wgap and bare, interleaved in one run.

    python benchmarks/backends.py BUNDLE [--batch 1,8] [--rounds 30] [--ungated] [--json]

wgap's time is from images at the network's input size to boxes: the network and the kernel. Bare is the library alone,
from the same images to its outputs, in several settings, of which the best counts: ONNX Runtime's session as it is;
OpenVINO compiled for the batch size for latency, for throughput, without a hint, and, in bf16, the float32 file with
bfloat16 as hint. The order within a round rotates, and a pause before each lets the others' threads stop spinning.
Ratios are wgap's time over the best bare one's in the same round; above 1 wgap is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
from localizer import quartiles

from wgap import Bundle, Localizer
from wgap.errors import BackendError, GateError
from wgap.evaluate.latency import cpu_model
from wgap.runtime.locator import Request

PAUSE_S = 0.03
Run = Callable[[], Any]


def main() -> None:
    """Time everything and print a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--ungated", action="store_true", help="also files whose gate failed or never ran")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    image = next(case["image"] for case in bundle.golden() if "image" in case)
    files = {entry.precision: bundle.root / entry.path for entry in bundle.manifest.files if entry.role == "onnx"}
    files = {name: files[name] for name in ("fp32", "bf16", "int8") if name in files}
    report: dict[str, Any] = {
        "bundle": str(options.bundle),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "versions": {"onnxruntime": onnxruntime.__version__, "openvino": openvino.get_version()},
        "rounds": options.rounds,
        "batches": {},
    }
    for size in map(int, options.batch.split(",")):
        runs: dict[tuple[str, str, str], Run] = {}
        images = np.repeat(image[None], size, axis=0)
        for backend, precision in product(("onnxruntime", "openvino"), files):
            try:
                localizer = Localizer(bundle, backend, precision=precision, ungated=options.ungated)
            except (BackendError, GateError) as error:
                print(f"{backend} {precision} is left out: {str(error)[:160]}", file=sys.stderr)
                continue
            runs[backend, precision, "wgap"] = whole(localizer, images)
            for name, run in bare(backend, precision, files, images).items():
                runs[backend, precision, name] = run
        report["batches"][size] = measured(runs, options.rounds, options.warmup)
    if options.json:
        print(json.dumps(report))
        return
    told = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print(f"{report['cpu']}, {report['cores']} cores, load {report['load']:.1f} at the start, {told}")
    for size, rows in report["batches"].items():
        print(f"\nbatch {size}: ms for the batch, median (quartiles); the best bare setting; wgap over it")
        for row in rows:
            ours, best = (f"{t['p50']:.2f} ({t['p25']:.2f}-{t['p75']:.2f})" for t in (row["wgap_ms"], row["bare_ms"]))
            ratio = row["ratio"]
            print(
                f"{row['backend']} {row['precision']}  wgap {ours}  bare {best} {row['setting']}  "
                f"{ratio['p50']:.3f} ({ratio['p25']:.3f}-{ratio['p75']:.3f})"
            )


def whole(localizer: Localizer, images: np.ndarray) -> Run:
    """Images to boxes."""
    return lambda: localizer.network.locate(images, localizer.locator, Request())


def bare(backend: str, precision: str, files: dict[str, Path], images: np.ndarray) -> dict[str, Run]:
    """The library alone, by setting."""
    if backend == "onnxruntime":
        session = onnxruntime.InferenceSession(str(files[precision]), providers=["CPUExecutionProvider"])
        return {"as it is": lambda: session.run(None, {"image": images})}
    asked = {
        "latency": (precision, {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}),
        "throughput": (precision, {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}),
        "no hint": (precision, {"INFERENCE_PRECISION_HINT": "f32"}),
    }
    if precision == "bf16":
        hinted = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16"}
        asked["float32 file, bf16 hint"] = ("fp32", hinted)
    core, found = openvino.Core(), {}
    for name, (file, properties) in asked.items():
        model = core.read_model(files[file])
        model.reshape({"image": list(images.shape)})
        request = core.compile_model(model, "CPU", properties).create_infer_request()
        request.set_tensor("image", openvino.Tensor(images, shared_memory=True))
        found[name] = request.infer
    return found


def measured(runs: dict[tuple[str, str, str], Run], rounds: int, warmup: int) -> list[dict[str, Any]]:
    """A row for each backend and precision."""
    keys = list(runs)
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in keys}
    for number in range(warmup + rounds):
        for key in keys[number % len(keys) :] + keys[: number % len(keys)]:
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            runs[key]()
            if number >= warmup:
                times[key].append(1e3 * (time.perf_counter() - start))
    rows = []
    for backend, precision in dict.fromkeys(key[:2] for key in keys):
        bares = {key[2]: np.array(times[key]) for key in keys if key[:2] == (backend, precision) and key[2] != "wgap"}
        setting = min(bares, key=lambda name: float(np.median(bares[name])))
        ours = np.array(times[backend, precision, "wgap"])
        rows.append(
            {
                "backend": backend, "precision": precision, "setting": setting, "wgap_ms": quartiles(ours),
                "bare_ms": quartiles(bares[setting]), "ratio": quartiles(ours / bares[setting]),
                "all_bare_ms": {name: quartiles(values) for name, values in bares.items()},
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
