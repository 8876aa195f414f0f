"""What the localizer adds to a bare ONNX Runtime session: both on one JPEG, interleaved in one run.

    python benchmarks/localizer.py BUNDLE [--image FILE] [--iterations 100] [--json]

Bare is the least code that gets logits and feature maps out of a JPEG: cv2.imdecode, cv2.resize, session.run on the
same model file with default options. The localizer does the same and also finds the box. The order within each pair
alternates, and a pause before each lets the other session's threads stop spinning. The ratio is the median of the
pairwise ratios; above 1 the localizer is slower.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from wgap import Bundle, Localizer
from wgap.images import decode

PAUSE_S = 0.02


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, help="JPEG file; default: a golden image, encoded")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    bundle = Bundle.open(arguments.bundle)
    encoded = arguments.image.read_bytes() if arguments.image else golden_jpeg(bundle)
    localizer = Localizer(bundle, threads=arguments.threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads or 0
    session = onnxruntime.InferenceSession(
        str(bundle.path("onnx", "fp32")), options, providers=["CPUExecutionProvider"]
    )
    height, width = bundle.manifest.model.input_size

    def bare() -> None:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        session.run(None, {"image": cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[None]})

    def ours() -> None:
        localizer.one(encoded)

    times: dict[str, list[float]] = {"bare": [], "wgap": []}
    for index in range(arguments.warmup + arguments.iterations):
        pair = [("bare", bare), ("wgap", ours)]
        for name, run in pair if index % 2 else reversed(pair):
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            run()
            if index >= arguments.warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    ratios = np.array(times["wgap"]) / np.array(times["bare"])
    pixels = decode(encoded)
    report = {
        "bundle": str(arguments.bundle),
        "image": [int(pixels.shape[1]), int(pixels.shape[0])],
        "iterations": arguments.iterations,
        "threads": arguments.threads,
        "onnxruntime": onnxruntime.__version__,
        **{f"{name}_ms": quartiles(np.array(values)) for name, values in times.items()},
        "ratio": quartiles(ratios),
        "ratio_of_medians": float(np.median(times["wgap"]) / np.median(times["bare"])),
    }
    if arguments.json:
        print(json.dumps(report))
        return
    for name in ("bare", "wgap"):
        low, median, high = report[f"{name}_ms"].values()
        print(f"{name}: median {median:.2f} ms (quartiles {low:.2f} .. {high:.2f})")
    low, median, high = report["ratio"].values()
    print(f"ratio wgap / bare: {median:.3f} (quartiles {low:.3f} .. {high:.3f})")


def golden_jpeg(bundle: Bundle) -> bytes:
    """The bundle's first golden image as a JPEG file."""
    image = next(case["image"] for case in bundle.golden() if "image" in case)
    return cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    return {name: float(np.percentile(values, p)) for name, p in (("p25", 25), ("p50", 50), ("p75", 75))}


if __name__ == "__main__":
    main()
