"""Everything that needs an NVIDIA GPU in one go: tests, parity, timings, a profile of the kernel.

    python benchmarks/gpu_check.py [--bundle BUNDLE] [--data CUB] [--out benchmarks/results] [--maps 10000]
                                   [--only PART ...] [--batches 1,8,64,256]

Parts: environment, tests, parity, kernel, profile, network, end_to_end. One that cannot run here is reported by name
with its reason and does not stop the rest; the exit code is 1 if a part *failed*. Writes ``gpu-<device>.json`` and
``gpu-<device>.md``.

Times are medians over rounds in which the peers take turns; p25 and p75 beside them. The kernel's time is that of one
launch among fifty in a replayed CUDA graph, between two events. Without ``--bundle`` a bundle of the full network with
random weights is exported, on which times mean the same and boxes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import synthetic

from wgap import Bundle, Localizer
from wgap.errors import BackendError, EngineError, GateError, MissingDependencyError
from wgap import _native
from wgap.runtime.backends import BACKENDS
from wgap.runtime.cuda.driver import LEGACY, Context, Memory, attribute, call, device_arch, driver
from wgap.runtime.cuda.postprocess import CudaPostprocess, Options, Plan
from wgap.runtime.library import running_gpu
from wgap.runtime.postprocess import Classifier, postprocess

ROOT = Path(__file__).resolve().parents[1]
SHAPE, SIZE = (512, 14, 14), (224, 224)
LAUNCHES = 50


class AbsentError(Exception):
    """A part that cannot run here; the text says why."""


def main() -> int:
    """Run the parts, write both files, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("WGAP_DATA", ROOT.parent / "shared")) / "data/cub10"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--maps", type=int, default=10_000)
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS))
    arguments = parser.parse_args()
    arguments.batches = [int(n) for n in arguments.batches.split(",")]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        arguments.scratch = Path(folder)
        for name, part in PARTS.items():
            if arguments.only and name not in arguments.only and name != "environment":
                continue
            print(f"== {name}", flush=True)
            start = time.perf_counter()
            try:
                if found and found["environment"]["state"] != "ran":
                    raise AbsentError(found["environment"]["reason"])
                found[name] = {"state": "ran", **part(arguments)}
            except (AbsentError, MissingDependencyError, ImportError) as error:
                found[name] = {"state": "absent", "reason": str(error)}
            except Exception as error:  # noqa: BLE001  (a part's failure is a result, and the next part still counts)
                found[name] = {"state": "failed", "reason": repr(error), "trace": traceback.format_exc()}
            found[name]["seconds"] = round(time.perf_counter() - start, 1)
            print(json.dumps(found[name], indent=1, default=str), flush=True)
            write(found, arguments.out)
    print(table(found))
    return int(any(part["state"] == "failed" for part in found.values()))


def environment(_: argparse.Namespace) -> dict[str, Any]:
    """Device, driver, libraries."""
    gpu = running_gpu()
    if gpu is None:
        raise AbsentError("no NVIDIA driver or GPU on this machine")
    versions = {}
    for name in (
        "wgap", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cuda-core",
        "cuda-bindings", "nvidia-cuda-nvrtc", "cupy-cuda13x", "pycuda", "numpy",
    ):  # fmt: skip
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
        "cuda": gpu.cuda,
        "multiprocessors": attribute("MULTIPROCESSOR_COUNT", 0),
        "shared_memory_per_block": attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", 0),
        "python": platform.python_version(),
        "versions": versions,
    }


def tests(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every GPU test; a skip for want of a library is told, one for want of a GPU fails."""
    variables = {**os.environ, "WGAP_REQUIRE_GPU": "1", "WGAP_GPU_MAPS": str(arguments.maps)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short", "tests/gpu"],
        cwd=ROOT, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if re.match(r"(FAILED|ERROR|SKIPPED)", line)]
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]
    state = "failed" if done.returncode else "ran"
    return {"state": state, "summary": summary, "told": lines, "tail": done.stdout[-6000:]}


def parity(arguments: argparse.Namespace) -> dict[str, Any]:
    """Levels and boxes of all test photographs, the kernel here against the kernel on the CPU."""
    if arguments.bundle is None or not arguments.data.is_dir():
        raise AbsentError("needs --bundle and --data with real photographs")
    from wgap.datasets import open_dataset
    from wgap.images import decode, resize

    bundle = Bundle.open(arguments.bundle)
    plain = Localizer(bundle)
    weight, classifier = bundle.classifier()[0], Classifier(bundle.classifier()[0])
    kernel, counts = CudaPostprocess(weight), {"images": 0, "levels": 0, "boxes": 0, "scores": 0}
    for sample in open_dataset(arguments.data, "test"):
        batch = resize(decode(sample.path), *bundle.manifest.model.input_size)[None]
        logits, features = plain.backend.run(batch)
        [[expected]] = postprocess(features, logits, classifier, size=bundle.manifest.model.input_size)
        [[found]] = on_device(kernel, features, logits, bundle.manifest.model.input_size)
        counts["images"] += 1
        counts["levels"] += expected.level == found.level
        counts["boxes"] += expected.box == found.box
        counts["scores"] += expected.score == found.score
    if not counts["images"] == counts["levels"] == counts["boxes"]:
        raise AssertionError(f"levels or boxes differ: {counts}")
    return counts


def on_device(kernel: CudaPostprocess, features: Any, logits: Any, size: tuple[int, int]) -> Any:
    """The kernel on host arrays, copied there for the occasion."""
    with kernel.context:
        memory = [Memory(array.nbytes) for array in (features, logits)]
        try:
            for piece, array in zip(memory, (features, logits), strict=True):
                call("cuMemcpyHtoD", piece.pointer, array.ctypes.data, array.nbytes)
            call("cuStreamSynchronize", LEGACY)
            return kernel.run(memory[0].pointer, memory[1].pointer, features.shape, Options(size))
        finally:
            for piece in memory:
                piece.close()


class Bench:
    """The kernel on a batch of synthetic maps, ready to launch."""

    def __init__(self, images: int, threads: int, profile: bool = False) -> None:
        few = min(images, 32)
        features, logits, weight = synthetic(few, *SHAPE[:2], 10)
        repeat = -(-images // few)
        features, logits = (np.concatenate([array] * repeat)[:images] for array in (features, logits))
        self.kernel = CudaPostprocess(weight, threads=threads, profile=profile)
        self.images, self.bytes = images, features.nbytes
        with self.kernel.context:
            self.memory = [Memory(array.nbytes) for array in (features, logits)]
            for piece, array in zip(self.memory, (features, logits), strict=True):
                call("cuMemcpyHtoD", piece.pointer, array.ctypes.data, array.nbytes)
            call("cuStreamSynchronize", LEGACY)
            self.stream = int(call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING))
            self.plan = Plan(self.kernel, features.shape, Options(SIZE))
            self.plan.bind(self.memory[0].pointer, self.memory[1].pointer)
            self.graph = self._graph(self.plan.launch)

    def _graph(self, launch: Callable[[int], None]) -> Any:
        mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        launch(self.stream)
        call("cuStreamSynchronize", self.stream)
        call("cuStreamBeginCapture", self.stream, mode)
        for _ in range(LAUNCHES):
            launch(self.stream)
        captured = call("cuStreamEndCapture", self.stream)
        graph = call("cuGraphInstantiate", captured, 0)
        call("cuGraphDestroy", captured)
        return graph

    def microseconds(self) -> float:
        """One launch among fifty."""
        with self.kernel.context:
            return 1e3 * between_events(lambda: call("cuGraphLaunch", self.graph, self.stream), self.stream) / LAUNCHES

    def close(self) -> None:
        """Free the device."""
        with self.kernel.context:
            call("cuGraphExecDestroy", self.graph)
            self.plan.close()
            for piece in self.memory:
                piece.close()
            call("cuStreamDestroy", self.stream)
        self.kernel.close()


def between_events(work: Callable[[], Any], stream: int) -> float:
    """Milliseconds between two events around the work."""
    start, end = (call("cuEventCreate", 0) for _ in range(2))
    call("cuEventRecord", start, stream)
    work()
    call("cuEventRecord", end, stream)
    call("cuEventSynchronize", end)
    ms = float(call("cuEventElapsedTime", start, end))
    for event in (start, end):
        call("cuEventDestroy", event)
    return ms


def copy_bandwidth(size: int = 1 << 28) -> float:
    """Bytes per second that a copy on the device moves, those read and those written."""
    context = Context()
    with context:
        one, two = Memory(size), Memory(size)
        stream = int(call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING))

        def copy() -> None:
            for _ in range(10):
                call("cuMemcpyDtoDAsync", two.pointer, one.pointer, size, stream)

        times = [between_events(copy, stream) for _ in range(12)][2:]
        call("cuStreamDestroy", stream)
        one.close(), two.close()
    context.close()
    return 2 * 10 * size / (float(np.median(times)) / 1e3)


def kernel(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time at batch 1 and more, for two block sizes, against reading the features once."""
    bandwidth = copy_bandwidth()
    benches = {(images, threads): Bench(images, threads) for images in arguments.batches for threads in (256, 512)}
    times: dict[Any, list[float]] = {key: [] for key in benches}
    for _ in range(arguments.rounds + 3):
        for key, bench in benches.items():
            times[key].append(bench.microseconds())
    rows = []
    for (images, threads), bench in benches.items():
        row = quartiles(times[images, threads][3:])
        read = 1e6 * bench.bytes / bandwidth
        rows.append(
            {"images": images, "threads": threads, **row, "read_once_us": read, "times_that": row["p50"] / read}
        )
        bench.close()
    return {"copy_bytes_per_second": bandwidth, "unit": "us", "rows": rows}


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    return {name: float(np.percentile(values, p)) for name, p in (("p25", 25), ("p50", 50), ("p75", 75))}


def bundle_of(arguments: argparse.Namespace) -> Bundle:
    """The given bundle, copied, since engines are built into it; or one of random weights."""
    import shutil

    target: Path = arguments.scratch / "bundle"
    if target.is_dir():
        return Bundle.open(target)
    if arguments.bundle is not None:
        shutil.copytree(arguments.bundle, target)
        return Bundle.open(target)
    import torch
    from safetensors.torch import save_file

    from wgap.export.onnx import bundle_from_checkpoint
    from wgap.train.model import WgapVgg16

    torch.manual_seed(0)
    save_file(WgapVgg16(10).state_dict(), arguments.scratch / "random.safetensors")
    classes = arguments.scratch / "classes.txt"
    classes.write_text("\n".join(f"class {n}" for n in range(10)) + "\n")
    bundle_from_checkpoint(arguments.scratch / "random.safetensors", target, classes=classes, preprocessing="caffe-bgr")
    return Bundle.open(target)


def torch_peers(images: Any) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """PyTorch eager and compiled, on a batch that is already on the device."""
    import torch

    from wgap.train.model import WgapVgg16

    if not torch.cuda.is_available():
        raise AbsentError("this PyTorch has no CUDA")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    batch = torch.from_numpy(images).cuda().permute(0, 3, 1, 2).float()
    peers: dict[str, Callable[[], Any]] = {}
    absent = {}
    for name in ("torch eager fp32", "torch compile fp32", "torch eager fp16", "torch compile fp16"):
        try:
            model = WgapVgg16(10).cuda().eval()
            half = name.endswith("16")
            run = torch.compile(model) if "compile" in name else model

            def once(run: Any = run, half: bool = half) -> None:
                with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
                    run(batch)
                torch.cuda.synchronize()

            once()
            peers[name] = once
        except Exception as error:  # noqa: BLE001  (a compiler that does not work here is a result, not the end)
            absent[name] = repr(error)[:300]
    return peers, absent


def network(arguments: argparse.Namespace) -> dict[str, Any]:
    """Forward pass through every backend that runs here, wall clock with the device waited for."""
    rng = np.random.default_rng(0)
    rows, absent = [], {}
    for images in arguments.batches:
        batch = rng.integers(0, 256, (images, *SIZE, 3), dtype=np.uint8)
        peers: dict[str, Callable[[], Any]] = {}
        try:
            found, missing = torch_peers(batch)
            peers |= found
            absent |= missing
        except (ImportError, AbsentError) as error:
            absent["torch"] = str(error)
        try:
            opened, missing = sessions(arguments, images)
        except ImportError as error:
            opened, missing = {}, {"sessions": str(error)}
        absent |= missing
        peers |= {name: forward(made, batch) for name, made in opened.items()}
        rows += timed(peers, images, arguments.rounds)
        for made in opened.values():
            made.close()
    return {"unit": "ms", "rows": rows, "absent": absent}


def forward(made: Localizer, batch: Any) -> Callable[[], Any]:
    """The network alone on a batch in the device's memory, where the backend is TensorRT; else from host memory."""
    backend: Any = made.backend
    if not hasattr(backend, "slot"):
        return lambda: backend.run(batch)

    def once() -> None:
        with backend.slot() as slot:
            slot.forward(batch)

    return once


def sessions(arguments: argparse.Namespace, images: int) -> tuple[dict[str, Localizer], dict[str, str]]:
    """A localizer over every GPU backend and precision that runs here."""
    from wgap.export.engine import BuildOptions, engine_from_bundle

    bundle, made, absent = bundle_of(arguments), {}, {}
    precisions = [entry.precision for entry in bundle.manifest.files if entry.role == "onnx"]
    for name in BACKENDS:
        for precision in precisions if name != "onnxruntime" else []:
            label = f"{name} {precision}"
            try:
                if not name.startswith("onnxruntime"):
                    options = BuildOptions(batch=(1, min(8, images), max(images, 8)))
                    engine_from_bundle(Bundle.open(bundle.root), name, str(precision), options, ungated=True)
                made[label] = Localizer(bundle.root, name, precision=str(precision), batch_size=images, ungated=True)
            except (MissingDependencyError, EngineError, GateError, BackendError) as error:
                absent[label] = str(error)[:400]
    return made, absent


def timed(peers: dict[str, Callable[[], Any]], images: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each peer, in turns."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(rounds + 5):
        for name, once in peers.items():
            start = time.perf_counter()
            once()
            if number >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return [{"images": images, "peer": name, **quartiles(values)} for name, values in times.items()]


def end_to_end(arguments: argparse.Namespace) -> dict[str, Any]:
    """Image bytes on the device to boxes on the host, against the network alone."""
    rows, absent = [], {}
    rng = np.random.default_rng(0)
    for images in arguments.batches:
        batch = rng.integers(0, 256, (images, *SIZE, 3), dtype=np.uint8)
        opened, missing = sessions(arguments, images)
        absent |= missing
        peers: dict[str, Callable[[], Any]] = {}
        held: list[Any] = []
        for name, made in opened.items():
            guest = Guest(batch)
            held.append(guest)
            peers[f"{name}, network"] = forward(made, batch)
            peers[f"{name}, to boxes"] = lambda made=made, guest=guest: made.batch(guest, stream=1)  # type: ignore[misc]
        found = {row["peer"]: row for row in timed(peers, images, arguments.rounds)}
        for name in opened:
            ratio = found[f"{name}, to boxes"]["p50"] / found[f"{name}, network"]["p50"]
            rows.append({"images": images, "peer": name, "ratio": ratio, **found[f"{name}, to boxes"]})
        for guest in held:
            guest.close()
        for made in opened.values():
            made.close()
    if not rows:
        raise AbsentError("no GPU backend runs here: " + "; ".join(f"{k}: {v}" for k, v in absent.items()))
    return {"unit": "ms", "rows": rows, "absent": absent}


class Guest:
    """A batch of images in the device's memory."""

    def __init__(self, images: Any) -> None:
        self.context, self.shape = Context(), images.shape
        with self.context:
            self.memory = Memory(images.nbytes)
            call("cuMemcpyHtoD", self.memory.pointer, images.ctypes.data, images.nbytes)
            call("cuStreamSynchronize", LEGACY)
        self.__cuda_array_interface__ = {
            "shape": images.shape, "typestr": "|u1", "data": (self.memory.pointer, False), "version": 3, "stream": 1,
        }  # fmt: skip

    def close(self) -> None:
        """Free it."""
        with self.context:
            self.memory.close()
        self.context.close()


def profile(_: argparse.Namespace) -> dict[str, Any]:
    """Share of each stage in the clock ticks of a block, at batch 1."""
    bench = Bench(1, 512, profile=True)
    bench.kernel.ticks()
    for _ in range(5):
        bench.microseconds()
    ticks = bench.kernel.ticks()
    bench.close()
    whole = sum(ticks.values())
    resources = {"result_bytes": _native._CUDA_RESULT_BYTES, "architecture": device_arch()}
    return {"share": {stage: count / whole for stage, count in ticks.items()}, **resources}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "environment": environment,
    "tests": tests,
    "parity": parity,
    "kernel": kernel,
    "profile": profile,
    "network": network,
    "end_to_end": end_to_end,
}


def write(found: dict[str, Any], out: Path) -> None:
    """Both files, after every part: a run that is cut has left what it had."""
    from wgap.atomic import atomic_file

    device = re.sub(r"[^a-z0-9]+", "-", str(found["environment"].get("device", "none")).lower()).strip("-")
    for suffix, text in (("json", json.dumps(found, indent=1, default=str)), ("md", table(found))):
        with atomic_file(out / f"gpu-{device}.{suffix}") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """What was found, for people."""
    about = found["environment"]
    lines = [f"# {about.get('device', 'no GPU')}", ""]
    if about["state"] == "ran":
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
        lines += [f"Driver {about['driver']}, CUDA {about['cuda']}, Python {about['python']}; {versions}.", ""]
    lines += ["| part | state | |", "|---|---|---|"]
    for name, part in found.items():
        told = part.get("reason") or part.get("summary") or ""
        lines.append(f"| {name} | {part['state']} | {' '.join(str(told).split())[:300]} |")
    for name in ("kernel", "network", "end_to_end"):
        if rows := found.get(name, {}).get("rows"):
            keys = list(rows[0])
            lines += ["", f"## {name}, {found[name]['unit']}", "", f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
            for row in rows:
                cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
                lines.append(f"| {' | '.join(cells)} |")
        if absent := found.get(name, {}).get("absent"):
            lines += ["", *(f"- {peer}: {' '.join(reason.split())}" for peer, reason in absent.items())]
    if share := found.get("profile", {}).get("share"):
        lines += ["", "## Where the kernel's time goes", "", "| stage | share |", "|---|---|"]
        lines += [f"| {stage} | {value:.3f} |" for stage, value in share.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
