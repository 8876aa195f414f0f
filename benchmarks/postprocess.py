"""One 512x14x14 feature map to a box: our kernel, OpenCV with NumPy, and the PyTorch reference, side by side.

    python benchmarks/postprocess.py [--json] [--targets] [--stages] [--features FILE.npz]

All run on one thread, in one process, in interleaved rounds on the same features, through their Python interfaces, from
float32 arrays to class, score, threshold and box. They must agree on the level and the box before anything is timed.

Without ``--features`` the maps are synthetic: every channel a smooth bump, most of them near a common object, cut off
so that about one value in seven is positive (VGG16's last ReLU gives 0.14), which yields maps with about as many edge
pixels as real ones (4 to 6 thousand at 224x224). With it: an ``.npz`` with ``features`` float32[N, C, h, w], ``logits``
float32[N, K] and ``weight`` float32[K, C].

With ``--stages`` the C++ program kernel_stages.cpp is built too (CMake's preset ``benchmark``) and times the kernel's
stages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy loads its BLAS

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from synthetic import synthetic  # noqa: E402

from wgap import _native  # noqa: E402
from wgap.runtime import postprocess  # noqa: E402
from wgap.train import reference  # noqa: E402

Array = NDArray[np.float32]
SIZE = (224, 224)
LEVELS = 20


class OpenCv:
    """The method in OpenCV and NumPy calls: per level a comparison, an erosion, a masked mean; then the labelling."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        self.mask, self.inside, self.edge = (np.empty(size, np.uint8) for _ in range(3))

    def __call__(self, features: Array, logits: Array, absolute: Array) -> tuple[int, float, int, tuple[int, ...]]:
        """Class, score, level and box of the top class; ``absolute`` is |W|."""
        channels, height, width = features.shape
        k = int(logits.argmax())
        exps = np.exp(logits - logits[k])
        low = (absolute[k] @ features.reshape(channels, -1)).reshape(height, width)
        if not np.isfinite(low).all() or not np.isfinite(logits).all():
            raise ValueError("not finite")
        u = cv2.resize(low, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        u *= 1 / u.max()
        means = np.full(LEVELS + 1, np.nan)
        for level in range(LEVELS + 1):
            cv2.compare(u, level / LEVELS, cv2.CMP_GT, dst=self.mask)  # type: ignore[call-overload]  # stubs know no scalars
            cv2.erode(self.mask, self.cross, dst=self.inside, borderType=cv2.BORDER_CONSTANT, borderValue=255)
            cv2.subtract(self.mask, self.inside, dst=self.edge)
            if cv2.hasNonZero(self.edge):
                means[level] = cv2.mean(u, mask=self.edge)[0]
        return k, float(1 / exps.sum()), *self.box(u, self.level(means))

    @staticmethod
    def level(means: NDArray[np.float64]) -> int:
        """The two-stage rule (Sec. 4.3)."""
        difference = np.nan_to_num(np.abs(np.diff(means)))
        candidates = difference > difference.mean()
        return int(candidates.argmax()) + 1 if candidates.any() else 4

    def box(self, u: Array, level: int) -> tuple[int, tuple[int, ...]]:
        """Level and box of the largest component."""
        cv2.compare(u, level / LEVELS, cv2.CMP_GT, dst=self.mask)  # type: ignore[call-overload]  # stubs know no scalars
        _, _, stats, _ = cv2.connectedComponentsWithStats(self.mask, connectivity=8)
        x, y, w, h, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()].tolist()
        return level, (x, y, x + w, y + h)


class OpenCvOnePass(OpenCv):
    """The same with this project's idea of a single pass over all levels, as far as NumPy can carry it."""

    def __call__(self, features: Array, logits: Array, absolute: Array) -> tuple[int, float, int, tuple[int, ...]]:
        """Class, score, level and box of the top class; ``absolute`` is |W|."""
        channels, height, width = features.shape
        k = int(logits.argmax())
        exps = np.exp(logits - logits[k])
        low = (absolute[k] @ features.reshape(channels, -1)).reshape(height, width)
        if not np.isfinite(low).all() or not np.isfinite(logits).all():
            raise ValueError("not finite")
        u = cv2.resize(low, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        u *= 1 / u.max()
        index = np.ceil(u * LEVELS).astype(np.uint8)
        lowest = cv2.erode(index, self.cross, borderType=cv2.BORDER_CONSTANT, borderValue=255)
        edge = np.flatnonzero(cv2.compare(lowest, index, cv2.CMP_LT))
        values, first, last = u.ravel()[edge], lowest.ravel()[edge], index.ravel()[edge]
        slots = LEVELS + 2
        count = np.cumsum(np.bincount(first, minlength=slots) - np.bincount(last, minlength=slots))[: LEVELS + 1]
        total = np.cumsum(np.bincount(first, values, slots) - np.bincount(last, values, slots))[: LEVELS + 1]
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return k, float(1 / exps.sum()), *self.box(u, self.level(means))


def torch_reference(features: torch.Tensor, logits: torch.Tensor, weight: torch.Tensor) -> tuple[Any, ...]:
    """train/reference.py as it stands."""
    k = int(logits.argmax())
    found = reference.box_from_features(features, weight[k], SIZE)
    return k, float(torch.softmax(logits, 0)[k]), found.level, found.box


def microseconds(call: Callable[[int], object], image: int) -> float:
    """Time of one call."""
    start = time.perf_counter_ns()
    call(image)
    return (time.perf_counter_ns() - start) / 1e3


def spread(times: list[float]) -> dict[str, float]:
    """Median with the tenth and ninetieth percentile."""
    tenths = statistics.quantiles(times, n=10)
    return {"p10": round(tenths[0], 2), "p50": round(statistics.median(times), 2), "p90": round(tenths[-1], 2)}


def contenders(data: tuple[Array, Array, Array], targets: list[str]) -> dict[str, Callable[[int], tuple[Any, ...]]]:
    """Name to a function from image number to (class, score, level, box)."""
    features, logits, weight = data
    absolute = np.abs(weight)
    classifier = postprocess.Classifier(weight)
    tensors = [torch.from_numpy(array) for array in data]
    per_level, one_pass = OpenCv(SIZE), OpenCvOnePass(SIZE)

    def ours(target: str) -> Callable[[int], tuple[Any, ...]]:
        def call(i: int) -> tuple[Any, ...]:
            [[r]] = postprocess.postprocess(
                logits[i : i + 1], features[i : i + 1], classifier, size=SIZE, target=target
            )
            return r.class_id, r.score, r.level, r.box

        return call

    calls: dict[str, Callable[[int], tuple[Any, ...]]] = {
        "wgap": ours(""),
        "opencv": lambda i: per_level(features[i], logits[i], absolute),
        "opencv_one_pass": lambda i: one_pass(features[i], logits[i], absolute),
        "torch": lambda i: torch_reference(tensors[0][i], tensors[1][i], tensors[2]),
    }
    return calls | {f"wgap[{target}]": ours(target) for target in targets}


def check_agreement(calls: dict[str, Callable[[int], tuple[Any, ...]]], images: int) -> None:
    """Stops unless every contender gives the reference's class, level and box on every image, and its score to 1e-5."""
    for i in range(images):
        k, score, level, box = calls["torch"](i)
        for name, call in calls.items():
            found = call(i)
            if (found[0], *found[2:]) != (k, level, box) or abs(found[1] - score) > 1e-5:
                raise SystemExit(f"error: image {i}: {name} found {found}, the reference {(k, score, level, box)}")


def measure(data: tuple[Array, Array, Array], rounds: int, targets: list[str]) -> dict[str, Any]:
    """Interleaved rounds: in each, every contender does one image five times in a row (the reference, slow, once).

    A round's time is the median of the five; the first of them, with the others' data in the caches, is told apart.
    """
    images = len(data[0])
    calls = contenders(data, targets)
    check_agreement(calls, images)
    times: dict[str, list[float]] = {name: [] for name in calls}
    first: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name, call in calls.items():
            elapsed = [microseconds(call, i % images) for _ in range(1 if name == "torch" else 5)]
            first[name].append(elapsed[0])
            times[name].append(statistics.median(elapsed))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        **{f"{name}_us": round(median[name], 2) for name in ("wgap", "opencv", "torch")},
        "speedup_opencv": round(median["opencv"] / median["wgap"], 1),
        "speedup_torch": round(median["torch"] / median["wgap"], 1),
        "opencv_one_pass_us": round(median["opencv_one_pass"], 2),
        "speedup_opencv_one_pass": round(median["opencv_one_pass"] / median["wgap"], 1),
        "first_call_us": {name: round(statistics.median(v), 2) for name, v in first.items() if "[" not in name},
        "spread_us": {name: spread(values) for name, values in times.items() if "[" not in name},
        "targets_us": {name[5:-1]: spread(values) for name, values in times.items() if "[" in name},
        "rounds": rounds,
        "images": images,
        "features": list(data[0].shape[1:]),
        "map": list(SIZE),
        "target": postprocess.active_target(),
        "cpu": cpu_model(),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "torch": torch.__version__,
            "wgap": _native.__version__,
        },
    }


def kernel_stages(data: tuple[Array, Array, Array]) -> dict[str, Any]:
    """What the kernel takes without Python, stage by stage: benchmarks/kernel_stages.cpp, built and run."""
    root = Path(__file__).resolve().parents[1]
    for command in (["cmake", "--preset", "benchmark"], ["cmake", "--build", "--preset", "benchmark"]):
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("features", "logits", "weight")]
        for file, array in zip(files, data, strict=True):
            array.tofile(file)
        sizes = [*map(str, data[0].shape), str(data[2].shape[0]), str(SIZE[0])]
        program = root / "build" / "benchmark" / "kernel_stages"
        done = subprocess.run([program, *files, *sizes], check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout)
    return {
        "kernel_us": told["whole_us"],
        "stages_us": told["stages_us"],
        "read_features_once_us": told["read_once_us"],
        "kernel_over_reading": round(told["whole_us"] / told["read_once_us"], 1),
    }


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    """Prints one line per contender, or everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--targets", action="store_true", help="also time every instruction set")
    parser.add_argument("--stages", action="store_true", help="also time the kernel's stages, with a C++ program")
    parser.add_argument("--features", type=Path, help=".npz with features, logits, weight")
    parser.add_argument("--rounds", type=int, default=150)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if options.features is None:
        data = synthetic(images=8, channels=512, side=14, classes=200)
    else:
        with np.load(options.features) as file:
            features, logits, weight = (
                np.ascontiguousarray(file[n], np.float32) for n in ("features", "logits", "weight")
            )
            data = features, logits, weight
    targets = postprocess.cpu_targets() if options.targets else []
    result = measure(data, options.rounds, targets) | (kernel_stages(data) if options.stages else {})
    if options.json:
        print(json.dumps(result))
        return
    for name, times in (result["spread_us"] | {f"wgap, {k}": v for k, v in result["targets_us"].items()}).items():
        print(f"{name:18} {times['p50']:10.1f} us   (p10 {times['p10']:.1f}, p90 {times['p90']:.1f})")
    print(f"{result['speedup_opencv']}x OpenCV, {result['speedup_torch']}x PyTorch")
    print(f"on {result['cpu']}, {result['target']}")
    print(f"first call after the others' {result['first_call_us']['wgap']} us")
    if not options.stages:
        return
    print(f"without Python {result['kernel_us']} us: {result['stages_us']}")
    print(f"reading the features once {result['read_features_once_us']} us: {result['kernel_over_reading']}x that")


if __name__ == "__main__":
    main()
