"""Time and peak memory of `wgap import` beside the size of what it reads: ``python benchmarks/import_memory.py``.

A generated classifier (3x3 convolutions on 64x64 pixels) is imported in a process of its own. What the same import of a
network of 8 channels takes, the libraries foremost, is subtracted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, CLASSES, DEPTH = 64, 10, 12


def classifier(path: Path, channels: int, softmax: bool) -> float:
    """Write so many convolutions of so many channels, pooled and classified; return the file's MiB."""
    rng = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []

    def add(kind: str, x: str, *shape: int, **attributes: Any) -> str:
        inputs = [x]
        if shape:
            value = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
            weights.append(numpy_helper.from_array(value, f"w{len(weights)}"))
            inputs.append(weights[-1].name)
        nodes.append(helper.make_node(kind, inputs, [f"t{len(nodes)}"], **attributes))
        return f"t{len(nodes) - 1}"

    x, before = "x", 3
    for number in range(DEPTH):
        stride = 2 if number % 3 == 0 and number else 1
        x = add("Conv", x, channels, before, 3, 3, pads=[1, 1, 1, 1], strides=[stride, stride])
        x, before = add("Relu", x), channels
    x = add("Gemm", add("Flatten", add("GlobalAveragePool", x)), CLASSES, channels, transB=1)
    x = add("Softmax", x, axis=1) if softmax else x
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    found = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "g", [given], [found], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path.stat().st_size / 2**20


def imported(path: Path) -> tuple[float, float]:
    """Seconds of processor, and MiB of memory at most, of an import in a process of its own."""
    (path.parent / "classes.txt").write_text("".join(f"class {n}\n" for n in range(CLASSES)))
    done = subprocess.run([sys.executable, __file__, "--one", path], stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


def one(path: Path) -> None:
    """Import a file here, and print this process's peak: ``ru_maxrss`` would count the parent's as well."""
    import torch  # noqa: F401  (needed at the end; loaded only then, it would hide what was held before)

    from wgap.export.imported import bundle_from_onnx

    classes, out = path.with_name("classes.txt"), path.with_name("bundle")
    start = time.process_time()
    bundle_from_onnx(path, out, classes=classes, preprocessing="torchvision-rgb", force=True)
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(time.process_time() - start, int(line.split()[1]) / 1024)


def main() -> None:
    """Print time, memory, and memory over the file's size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[512], help="of each convolution; 512 make 100 MiB")
    parser.add_argument("--last", nargs="+", choices=("logits", "softmax"), default=["logits", "softmax"])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        for last in options.last:
            classifier(path, 8, last == "softmax")
            bare = imported(path)[1]
            for channels in options.channels:
                size = classifier(path, channels, last == "softmax")
                seconds, peak = imported(path)
                print(
                    f"{size:.0f} MiB, {last} last: {seconds:.1f} s of processor, {peak:.0f} MiB, "
                    f"{(peak - bare) / size:.2f} times the file beyond {bare:.0f} MiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
