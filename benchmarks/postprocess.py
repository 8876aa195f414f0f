"""One image's feature map (512x14x14) or score map (28x28) to a box: our kernel, OpenCV with NumPy, the reference.

    python benchmarks/postprocess.py [--json] [--targets] [--stages] [--features FILE.npz]

All run on one thread, in one process, in interleaved rounds on the same maps, through their Python interfaces, from
float32 arrays to class, score, threshold and box: the rule ``adaptive`` on features, ``foreground`` and
``foreground+colour`` on scores and pictures. They must agree on the level and the box before anything is timed.

Without ``--features`` the maps are synthetic: every channel a smooth bump, most of them near a common object, cut off
so that about one value in seven is positive (VGG16's last ReLU gives 0.14), which yields maps with about as many edge
pixels as real ones (4 to 6 thousand at 224x224). With it: an ``.npz`` with ``features`` float32[N, C, h, w], ``logits``
float32[N, K] and ``weight`` float32[K, C], and, or they are synthetic too, ``foreground`` float32[N, 1, 28, 28] and
``pictures`` uint8[N, 224, 224, 3].

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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy loads its BLAS

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from synthetic import synthetic, synthetic_scores  # noqa: E402

from wgap import _native  # noqa: E402
from wgap.rule import Rule  # noqa: E402
from wgap.runtime import postprocess  # noqa: E402
from wgap.train import reference  # noqa: E402

Array = NDArray[np.float32]
Found = tuple[int, float, int, tuple[int, ...]]
SIZE = (224, 224)
LEVELS = 20
RULES = {"": Rule("adaptive"), "foreground": Rule("foreground"), "foreground_colour": Rule("foreground+colour")}
"""Under which the kernel is timed; names begin with it in what is printed."""


class Data(NamedTuple):
    """What the contenders are given, as benchmarks/postprocess.py describes it."""

    features: Array
    logits: Array
    weight: Array
    foreground: Array
    pictures: NDArray[np.uint8]


def top_class(logits: Array) -> tuple[int, float]:
    """Class and softmax score."""
    k = int(logits.argmax())
    return k, float(1 / np.exp(logits - logits[k]).sum())


class OpenCv:
    """The method in OpenCV and NumPy calls: per level a comparison, an erosion, a masked mean; then the labelling."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        self.mask, self.inside, self.edge = (np.empty(size, np.uint8) for _ in range(3))

    def __call__(self, features: Array, logits: Array, absolute: Array) -> Found:
        """Class, score, level and box of the top class; ``absolute`` is |W|."""
        channels, height, width = features.shape
        k, score = top_class(logits)
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
        return k, score, *self.box(u, self.level(means))

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

    def __call__(self, features: Array, logits: Array, absolute: Array) -> Found:
        """Class, score, level and box of the top class; ``absolute`` is |W|."""
        channels, height, width = features.shape
        k, score = top_class(logits)
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
        return k, score, *self.box(u, self.level(means))


class OpenCvForeground:
    """The foreground rules in OpenCV and NumPy calls: resize, colours by quadrant, labelling, mass by component."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.quadrant = (
            (np.arange(4, dtype=np.int32) * 512).reshape(2, 2).repeat(size[0] // 2, 0).repeat(size[1] // 2, 1)
        )

    def __call__(self, scores: Array, logits: Array, picture: NDArray[np.uint8] | None) -> Found:
        """Class, score, -1 and the box of the heaviest component."""
        k, score = top_class(logits)
        if not np.isfinite(scores).all() or not np.isfinite(logits).all():
            raise ValueError("not finite")
        u = cv2.resize(scores, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
        mask = u > 0
        inside = int(np.count_nonzero(mask))
        if picture is not None and 0 < inside < mask.size:
            mask = self.by_colour(u, mask, inside, picture)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
        if count == 1:
            return k, score, -1, (0, 0, *SIZE[::-1])
        heaviest = 1
        if count > 2:
            mass = np.bincount(labels.ravel(), np.maximum(u, 0).ravel(), count)
            heaviest = 1 + int(mass[1:].argmax())
        x, y, w, h, _ = stats[heaviest].tolist()
        return k, score, -1, (x, y, x + w, y + h)

    def by_colour(
        self, u: Array, mask: NDArray[np.bool_], inside: int, picture: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """The mask after the colour step."""
        top = (picture >> 5).astype(np.int32)
        colour = top[..., 0] * 64 + top[..., 1] * 8 + top[..., 2]
        key = self.quadrant + colour
        every = np.bincount(key.ravel(), minlength=4 * 512).reshape(4, 512)
        a = np.bincount(key[mask], minlength=4 * 512).reshape(4, 512)
        b = every - a

        def ratio(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.float64]:
            smooth = [np.log((x + 1) / (x.sum(-1, keepdims=True) + 512)) for x in (ours, theirs)]
            return np.rint(2**16 * (smooth[0] - smooth[1]))

        whole_a, whole_b = a.sum(0), b.sum(0)
        others = ratio(whole_a - a, whole_b - b)
        outside = mask.size - inside
        skill = int(a[others > 0].sum()) * outside + int(b[others <= 0].sum()) * inside - inside * outside
        weight = 256 * max(0, skill) // (inside * outside)
        evidence = np.floor(weight * ratio(whole_a, whole_b) / 256) / 2**16
        return u + evidence.astype(np.float32)[colour] > 0


def torch_reference(rule: Rule, tensors: list[torch.Tensor], i: int) -> Found:
    """train/reference.py as it stands."""
    features, logits, weight, foreground, pictures = tensors
    k = int(logits[i].argmax())
    outputs = {"features": features[i], "foreground": foreground[i]}
    found = reference.by_rule(rule, SIZE, outputs, weight[k], pictures[i])
    return k, float(torch.softmax(logits[i], 0)[k]), found.level, found.box


def microseconds(call: Callable[[int], object], image: int) -> float:
    """Time of one call."""
    start = time.perf_counter_ns()
    call(image)
    return (time.perf_counter_ns() - start) / 1e3


def spread(times: list[float]) -> dict[str, float]:
    """Median with the tenth and ninetieth percentile."""
    tenths = statistics.quantiles(times, n=10)
    return {"p10": round(tenths[0], 2), "p50": round(statistics.median(times), 2), "p90": round(tenths[-1], 2)}


def contenders(data: Data, targets: list[str]) -> dict[str, dict[str, Callable[[int], Found]]]:
    """Of each of RULES: name to a function from image number to (class, score, level, box)."""
    classifier, absolute = postprocess.Classifier(data.weight), np.abs(data.weight)
    tensors = [torch.from_numpy(array) for array in data]
    per_level, one_pass, foreground = OpenCv(SIZE), OpenCvOnePass(SIZE), OpenCvForeground(SIZE)

    def ours(rule: Rule, target: str = "") -> Callable[[int], Found]:
        def call(i: int) -> Found:
            one = slice(i, i + 1)
            [[r]] = postprocess.postprocess(
                data.logits[one], None if rule.on_scores else data.features[one], classifier, size=SIZE, rule=rule,
                scores=data.foreground[one] if rule.on_scores else None,
                pictures=data.pictures[one] if rule.reads_picture else None, target=target,
            )  # fmt: skip
            return r.class_id, r.score, r.level, r.box

        return call

    def scored(picture: bool) -> Callable[[int], Found]:
        return lambda i: foreground(data.foreground[i, 0], data.logits[i], data.pictures[i] if picture else None)

    peers: dict[str, dict[str, Callable[[int], Found]]] = {
        "": {
            "opencv": lambda i: per_level(data.features[i], data.logits[i], absolute),
            "opencv_one_pass": lambda i: one_pass(data.features[i], data.logits[i], absolute),
        },
        "foreground": {"opencv": scored(False)},
        "foreground_colour": {"opencv": scored(True)},
    }
    return {
        name: {"wgap": ours(rule), **peers[name], "torch": partial(torch_reference, rule, tensors)}
        | {f"wgap[{target}]": ours(rule, target) for target in targets}
        for name, rule in RULES.items()
    }


def check_agreement(calls: dict[str, Callable[[int], Found]], images: int) -> None:
    """Stops unless every contender gives the reference's class, level and box on every image, and its score to 1e-5."""
    for i in range(images):
        k, score, level, box = calls["torch"](i)
        for name, call in calls.items():
            found = call(i)
            if (found[0], *found[2:]) != (k, level, box) or abs(found[1] - score) > 1e-5:
                raise SystemExit(f"error: image {i}: {name} found {found}, the reference {(k, score, level, box)}")


def measure(data: Data, rounds: int, targets: list[str]) -> dict[str, Any]:
    """Interleaved rounds: in each, every contender does one image five times in a row (the reference, slow, once).

    A round's time is the median of the five; the first of them, with the others' data in the caches, is told apart.
    """
    images = len(data.logits)
    rules = contenders(data, targets)
    for calls in rules.values():
        check_agreement(calls, images)
    every = {f"{rule}_{name}".strip("_"): call for rule, calls in rules.items() for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in every}
    first: dict[str, list[float]] = {name: [] for name in every}
    for i in range(rounds):
        for name, call in every.items():
            elapsed = [microseconds(call, i % images) for _ in range(1 if "torch" in name else 5)]
            first[name].append(elapsed[0])
            times[name].append(statistics.median(elapsed))
    median = {name: statistics.median(values) for name, values in times.items()}
    features, foreground = (array[0].nbytes for array in (data.features, data.foreground))
    result = {
        **{f"{name}_us": round(median[name], 2) for name in ("wgap", "opencv", "torch")},
        "speedup_opencv": round(median["opencv"] / median["wgap"], 1),
        "speedup_torch": round(median["torch"] / median["wgap"], 1),
        "opencv_one_pass_us": round(median["opencv_one_pass"], 2),
        "speedup_opencv_one_pass": round(median["opencv_one_pass"] / median["wgap"], 1),
    }
    for rule in list(RULES)[1:]:
        ours, peer, slow = (median[f"{rule}_{name}"] for name in ("wgap", "opencv", "torch"))
        result |= {
            f"{rule}_us": round(ours, 2),
            f"{rule}_opencv_us": round(peer, 2),
            f"speedup_{rule}_opencv": round(peer / ours, 1),
            f"speedup_{rule}_torch": round(slow / ours, 1),
            f"{rule}_targets_us": {t: spread(times[f"{rule}_wgap[{t}]"]) for t in targets},
        }
    return result | {
        "first_call_us": {name: round(statistics.median(v), 2) for name, v in first.items() if "[" not in name},
        "spread_us": {name: spread(values) for name, values in times.items() if "[" not in name},
        "targets_us": {n[len("wgap[") : -1]: spread(v) for n, v in times.items() if n.startswith("wgap[")},
        "bytes_per_image": {
            "adaptive": features + data.logits[0].nbytes,
            "foreground": foreground + data.logits[0].nbytes,
        },
        "rounds": rounds,
        "images": images,
        "features": list(data.features.shape[1:]),
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


def kernel_stages(data: Data) -> dict[str, Any]:
    """What the kernel takes without Python, stage by stage: benchmarks/kernel_stages.cpp, built and run."""
    root = Path(__file__).resolve().parents[1]
    for command in (["cmake", "--preset", "benchmark"], ["cmake", "--build", "--preset", "benchmark"]):
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("features", "logits", "weight")]
        for file, array in zip(files, data[:3], strict=True):
            array.tofile(file)
        sizes = [*map(str, data.features.shape), str(data.weight.shape[0]), str(SIZE[0])]
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
    data = Data(*synthetic(images=8, channels=512, side=14, classes=200), *synthetic_scores(8, SIZE[0]))
    if options.features is not None:
        with np.load(options.features) as file:
            given = {n: np.ascontiguousarray(file[n], getattr(data, n).dtype) for n in Data._fields if n in file}
        few = len(given["logits"])
        data = data._replace(
            **{n: np.resize(getattr(data, n), (few, *getattr(data, n).shape[1:])) for n in Data._fields[3:]} | given
        )
    targets = postprocess.cpu_targets() if options.targets else []
    result = measure(data, options.rounds, targets) | (kernel_stages(data) if options.stages else {})
    if options.json:
        print(json.dumps(result))
        return
    instruction_sets = {
        f"{rule} wgap, {target}".strip(): times
        for rule in RULES
        for target, times in result[f"{rule}_targets_us".strip("_")].items()
    }
    for name, times in (result["spread_us"] | instruction_sets).items():
        print(f"{name:32} {times['p50']:10.1f} us   (p10 {times['p10']:.1f}, p90 {times['p90']:.1f})")
    print(f"adaptive: {result['speedup_opencv']}x OpenCV, {result['speedup_torch']}x PyTorch")
    for rule in list(RULES)[1:]:
        print(f"{rule}: {result[f'speedup_{rule}_opencv']}x OpenCV, {result[f'speedup_{rule}_torch']}x PyTorch")
    print(
        "bytes that leave the network: {adaptive} under adaptive, {foreground} under foreground".format(
            **result["bytes_per_image"]
        )
    )
    print(f"on {result['cpu']}, {result['target']}")
    print(f"first call after the others' {result['first_call_us']['wgap']} us")
    if not options.stages:
        return
    print(f"without Python {result['kernel_us']} us: {result['stages_us']}")
    print(f"reading the features once {result['read_features_once_us']} us: {result['kernel_over_reading']}x that")


if __name__ == "__main__":
    main()
