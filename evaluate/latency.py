"""How long one image takes, stage by stage, and the whole way through :class:`wgap.Localizer`."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from wgap.bundle import Bundle
from wgap.errors import BundleError, DataError
from wgap.images import decode, resize
from wgap.runtime.localizer import Localizer
from wgap.runtime.network import Network
from wgap.runtime.postprocess import active_target

__all__ = ["STAGES", "BatchLatency", "LatencyReport", "StageLatency", "cpu_model", "measure_latency"]

STAGES = ("decode", "resize", "forward", "postprocess", "total")
"""``total`` is a call of the localizer on encoded bytes, timed on its own; the others its parts, one by one."""


@dataclass(frozen=True)
class StageLatency:
    """Milliseconds per batch of one stage: percentiles, mean and minimum over the timed iterations."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float


@dataclass(frozen=True)
class BatchLatency:
    """One batch size: a latency for each of ``STAGES``, and images per second (batch over the median total)."""

    batch: int
    stages: dict[str, StageLatency]
    images_per_second: float


@dataclass(frozen=True)
class LatencyReport:
    """What ``wgap bench`` measured, with everything it depends on.

    Attributes:
        image: what was decoded: source, encoded bytes, width, height.
        settings: backend, precision, device, threads (None: the backend's choice, every core), rule, warm-up and timed
            iterations.
        machine: CPU model, cores this process may use, the instruction set the kernel picked.
        versions: of wgap, Python and the libraries underneath.
        batches: one entry per batch size.
    """

    image: dict[str, Any]
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    batches: tuple[BatchLatency, ...]


def measure_latency(
    localizer: Localizer,
    image: Path | None = None,
    *,
    batches: Sequence[int] = (1, 8),
    iterations: int = 50,
    warmup: int = 5,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda rounds: rounds,
) -> LatencyReport:
    """Time a localizer's stages on one image.

    Each iteration times the parts (decode, resize, forward, postprocess) and then a whole call of the localizer, so
    that drift of the machine meets all of them alike. Network and kernel are the localizer's own, on the CPU or on a
    GPU; there, the outputs stay between the two. Reading the file is not timed.

    Args:
        localizer: what to time.
        image: the image file; None takes a JPEG made from the bundle's first golden image.
        batches: batch sizes, the same image repeated.
        iterations: timed iterations per batch size.
        warmup: untimed iterations before them.
        progress: wraps the iterations of each batch size, for a progress bar.

    Raises:
        ImageError: the image cannot be decoded.
        BundleError: no image was given and the bundle has no golden one.
        DataError: iterations, warm-up or a batch size are out of range.
    """
    if iterations < 1 or warmup < 0 or not batches or min(batches) < 1:
        raise DataError(
            "expected at least one iteration, a warm-up of 0 or more, and batch sizes of 1 or more, got "
            f"{iterations}, {warmup} and {list(batches)}"
        )
    bundle, network = localizer.bundle, localizer.network
    encoded, source = (_golden_jpeg(bundle), "golden image as JPEG") if image is None else _file(image)
    height, width = decode(encoded, source).shape[:2]
    results = []
    for batch in batches:
        sized = Localizer(bundle, batch_size=batch, rule=localizer.rule, network=network, locator=localizer.locator)
        times = _times(sized, [encoded] * batch, progress(range(warmup + iterations)))
        stages = {stage: _summary([row[n] for row in times[warmup:]]) for n, stage in enumerate(STAGES)}
        results.append(BatchLatency(batch, stages, 1000 * batch / stages["total"].p50_ms))
    gpu = localizer.locator.device
    target = active_target() if gpu is None else f"CUDA on GPU {gpu}"
    return LatencyReport(
        image={"source": source, "bytes": len(encoded), "width": int(width), "height": int(height)},
        settings={
            "backend": network.name,
            "precision": network.precision,
            "device": network.device,
            "threads": localizer.threads,
            "rule": localizer.rule.to_json(),
            "warmup": warmup,
            "iterations": iterations,
        },
        machine={"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0)), "kernel_target": target},
        versions=_versions(network),
        batches=tuple(results),
    )


def _times(localizer: Localizer, encoded: list[bytes], rounds: Iterable[int]) -> list[tuple[int, ...]]:
    """Nanoseconds per iteration, in the order of ``STAGES``."""
    import numpy as np

    size = localizer.bundle.manifest.model.input_size
    times: list[tuple[int, ...]] = []
    for _ in rounds:
        start = perf_counter_ns()
        images = [decode(data) for data in encoded]
        decoded = perf_counter_ns()
        resized = np.stack([resize(pixels, *size) for pixels in images])
        ready = perf_counter_ns()
        forwarding = boxing = 0
        for _, part in localizer.network.parts(resized):
            began = perf_counter_ns()
            with localizer.network.forward(part, outputs=localizer.rule.outputs) as outputs:
                forwarded = perf_counter_ns()
                localizer.locator.locate({**outputs, "picture": part})
                boxed = perf_counter_ns()
            forwarding, boxing = forwarding + forwarded - began, boxing + boxed - forwarded
        start_again = perf_counter_ns()
        for _result in localizer(encoded):
            pass
        end = perf_counter_ns()
        times.append((decoded - start, ready - decoded, forwarding, boxing, end - start_again))
    return times


def _summary(nanoseconds: list[int]) -> StageLatency:
    import numpy as np

    ms = np.asarray(nanoseconds) / 1e6
    p50, p90, p99 = (float(p) for p in np.percentile(ms, (50, 90, 99)))
    return StageLatency(p50, p90, p99, float(ms.mean()), float(ms.min()))


def _file(path: Path) -> tuple[bytes, str]:
    decode(path)  # says what is wrong with it, by name
    return path.read_bytes(), str(path)


def _golden_jpeg(bundle: Bundle) -> bytes:
    import cv2

    for case in bundle.golden():
        if "image" in case:
            encoded: bytes = cv2.imencode(".jpg", case["image"][..., ::-1])[1].tobytes()
            return encoded
    raise BundleError(f"{bundle.root} has no golden image to time; pass one with --image")


def cpu_model() -> str:
    """The processor's own name, or what the platform calls it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions(network: Network) -> dict[str, str]:
    import cv2
    import numpy as np

    return {
        "wgap": metadata.version("wgap"),
        "python": platform.python_version(),
        network.name: network.version,
        "opencv": str(cv2.__version__),
        "numpy": np.__version__,
    }
