"""How long one batch takes, stage by stage and as a whole, for several networks interleaved in one run.

:class:`Report` is what ``wgap bench`` prints and exports, and ``wgap-bench`` of the C++ runtime too.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Literal

from wgap.errors import BundleError, DataError
from wgap.evaluate.statistics import Summary, steady, summary
from wgap.images import decode, resize
from wgap.plain import PlainError, from_plain, read_json
from wgap.runtime.localizer import Localizer
from wgap.runtime.postprocess import active_target

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.evaluate.meters import Meter

__all__ = [
    "STAGES", "Cell", "LeftOut", "Report", "Run", "Settings", "cpu_model", "encoded_image", "environment", "measure",
    "read_report",
]  # fmt: skip

STAGES = ("decode", "resize", "forward", "postprocess", "total")
"""``total`` is a call of the localizer on encoded bytes, timed on its own; the others its parts, one by one."""

MOST_WARMUP, MOST_WARMUP_S = 100, 60
"""Where times do not become steady, warm-up ends after so many rounds or seconds, and the report says so."""


@dataclass(frozen=True)
class Settings:
    """What was timed. Two cells with equal settings are the same measurement.

    Attributes:
        bundle: its folder, as it was given.
        backend: that ran it, such as ``onnxruntime``.
        precision: of the model file.
        rule: as on the command line.
        map: of the rule.
        batch: images per call.
        threads: CPU threads; None: the backend's choice, every core.
        device: a GPU's ordinal, or a device's name; None for the CPU.
        hint: of OpenVINO.
        streams: of OpenVINO.
        load: ``rounds``: one call at a time, in turns with all other cells; ``closed``: ``callers`` that each call
            again as soon as they have an answer; ``open``: calls arrive whether or not earlier ones were answered.
        callers: threads that call.
        arrivals: of an open loop: images per second that arrive.
        transfers: whether images came from host memory; False: they lay on the GPU.
    """

    bundle: str
    backend: str
    precision: str
    rule: str
    map: str
    batch: int
    threads: int | None = None
    device: int | str | None = None
    hint: str | None = None
    streams: int | None = None
    load: Literal["rounds", "closed", "open"] = "rounds"
    callers: int = 1
    arrivals: float | None = None
    transfers: bool = True


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        settings: what was timed.
        stages: milliseconds per batch, by stage; ``total`` always.
        images_per_second: of rounds: batch over the median total; of a load: images over seconds.
        samples: milliseconds in the order in which they were measured, by stage; empty unless exported.
        warmup: untimed rounds before.
        steady: whether times had stopped falling by then; None where the number of rounds was given.
        open_ms: to open the bundle and its network.
        memory_mib: ``opened``: by how much the process grew from before opening to after the first call; on a GPU what
            the session holds there, by what holds it.
        joules_per_image: that the processor's package (``cpu``) and the GPU (``gpu``) used in ``total``, where
            readable.
        unserved: calls of an open loop that were still waiting when time was up.
    """

    settings: Settings
    stages: dict[str, Summary]
    images_per_second: float
    samples: dict[str, tuple[float, ...]] = field(default_factory=dict)
    warmup: int = 0
    steady: bool | None = None
    open_ms: float | None = None
    memory_mib: dict[str, float] = field(default_factory=dict)
    joules_per_image: dict[str, float] = field(default_factory=dict)
    unserved: int = 0


@dataclass(frozen=True)
class LeftOut:
    """Settings that could not be opened, and why."""

    settings: dict[str, Any]
    error: str


@dataclass(frozen=True)
class Report:
    """What was measured, with everything it depends on.

    Attributes:
        schema: of this JSON: 1.
        program: ``wgap bench`` or ``wgap-bench``.
        image: what was decoded: source, encoded bytes, width, height.
        plan: warm-up, timed rounds, pause between calls, seconds per load.
        machine: CPU model, cores this process may use, the instruction set of the kernel, load average, clocks.
        versions: of wgap and what is underneath.
        cells: one for each combination of settings.
        left_out: combinations that could not be opened.
        at_bound: throughput at a latency bound, where one was asked for.
        absent: what could not be read here, by name, and why.
    """

    schema: int
    program: str
    image: dict[str, Any]
    plan: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...] = ()
    at_bound: tuple[dict[str, Any], ...] = ()
    absent: dict[str, str] = field(default_factory=dict)


def read_report(path: Path) -> Report:
    """A report that was exported.

    Raises:
        DataError: it is no report, or one of another schema.
        OSError: it cannot be read.
    """
    try:
        value = read_json(path.read_text(encoding="utf-8"))
        found = value.get("schema") if isinstance(value, dict) else None
        if found != 1:
            raise DataError(
                f"{path}: expected a report of wgap bench or wgap-bench with schema 1, got {found!r}; "
                "write one with --export"
            )
        return from_plain(Report, value)
    except (PlainError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: expected a report of wgap bench or wgap-bench; {error}") from None


class Run:
    """One localizer on one batch size, ready to be timed.

    Args:
        localizer: what to time; its network is shared with other batch sizes.
        settings: of it.
        encoded: an image file's bytes, repeated for the batch.
        open_ms: how long the localizer took to open.
    """

    def __init__(self, localizer: Localizer, settings: Settings, encoded: bytes, open_ms: float | None = None) -> None:
        self.settings, self.open_ms, self.encoded = settings, open_ms, [encoded] * settings.batch
        self.localizer = Localizer(
            localizer.bundle, batch_size=settings.batch, rule=localizer.rule, network=localizer.network,
            locator=localizer.locator,
        )  # fmt: skip
        self.stages: tuple[str, ...] = STAGES
        self.memory_mib: dict[str, float] = {}
        self.meters: dict[str, Meter] = {}
        self.joules: dict[str, float] = {}

    def call(self) -> None:
        """What a caller does: bytes in, boxes out."""
        for _ in self.localizer(self.encoded):
            pass

    def whole(self) -> float:
        """Milliseconds of a call, metered."""
        with self.metered():
            start = perf_counter_ns()
            self.call()
            end = perf_counter_ns()
        return (end - start) / 1e6

    @contextmanager
    def metered(self) -> Iterator[None]:
        """Add the energy that is used meanwhile to ``joules``."""
        before = {name: meter.joules() for name, meter in self.meters.items()}
        yield
        for name, meter in self.meters.items():
            self.joules[name] = self.joules.get(name, 0.0) + meter.joules() - before[name]

    def joules_per_image(self, images: int) -> dict[str, float]:
        """Of so many images since this was asked last."""
        used, self.joules = self.joules, {}
        return {name: joules / images for name, joules in used.items()}

    def once(self) -> tuple[float, ...]:
        """Milliseconds of each of ``stages``: the parts one by one, then a whole call."""
        import numpy as np

        size, network = self.localizer.bundle.manifest.model.input_size, self.localizer.network
        start = perf_counter_ns()
        images = [decode(data) for data in self.encoded]
        decoded = perf_counter_ns()
        resized = np.stack([resize(pixels, *size) for pixels in images])
        ready = perf_counter_ns()
        forwarding = boxing = 0
        for _, part in network.parts(resized):
            began = perf_counter_ns()
            with network.forward(part, outputs=self.localizer.rule.outputs) as outputs:
                forwarded = perf_counter_ns()
                self.localizer.locator.locate({**outputs, "picture": part})
                boxed = perf_counter_ns()
            forwarding, boxing = forwarding + forwarded - began, boxing + boxed - forwarded
        parts = tuple(ns / 1e6 for ns in (decoded - start, ready - decoded, forwarding, boxing))
        return (*parts, self.whole())


def measure(
    runs: Sequence[Run],
    *,
    iterations: int = 50,
    warmup: int | None = None,
    pause_s: float = 0.0,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda rounds: rounds,
) -> list[Cell]:
    """Time every run once in each round, in an order that rotates, so that drift of the machine meets all alike.

    Args:
        runs: what to time.
        iterations: timed rounds.
        warmup: untimed rounds before them; None goes on until the times of every run are steady.
        pause_s: before each call, so that the threads of the one before have stopped spinning.
        progress: wraps the timed rounds, for a progress bar.

    Raises:
        DataError: iterations, warm-up or pause are out of range.
    """
    if iterations < 1 or (warmup is not None and warmup < 0) or not pause_s >= 0:
        raise DataError(
            "expected at least one iteration, and a warm-up and a pause of 0 or more, got "
            f"{iterations}, {warmup} and {pause_s}"
        )
    warm: list[list[float]] = [[] for _ in runs]
    began = time.monotonic()
    while not _is_warm(warm, warmup, began):
        for index, times in _round(runs, len(warm[0]), pause_s):
            warm[index].append(times[-1])
    for run in runs:
        run.joules.clear()  # of the warm-up
    rows: list[list[tuple[float, ...]]] = [[] for _ in runs]
    for number in progress(range(iterations)):
        for index, times in _round(runs, number, pause_s):
            rows[index].append(times)
    cells = []
    for run, before, timed in zip(runs, warm, rows, strict=True):
        samples = {stage: tuple(row[n] for row in timed) for n, stage in enumerate(run.stages)}
        stages = {stage: summary(values) for stage, values in samples.items()}
        per_second = 1000 * run.settings.batch / stages["total"].p50_ms
        is_steady = steady(before) if warmup is None else None
        joules = run.joules_per_image(iterations * run.settings.batch)
        told = (len(before), is_steady, run.open_ms, run.memory_mib, joules)
        cells.append(Cell(run.settings, stages, per_second, samples, *told))
    return cells


def _round(runs: Sequence[Run], number: int, pause_s: float) -> Iterable[tuple[int, tuple[float, ...]]]:
    for turn in range(len(runs)):
        index = (number + turn) % len(runs)
        if pause_s:
            time.sleep(pause_s)
        yield index, runs[index].once()


def _is_warm(warm: list[list[float]], rounds: int | None, began: float) -> bool:
    if rounds is not None:
        return len(warm[0]) >= rounds
    over = len(warm[0]) >= MOST_WARMUP or time.monotonic() - began > MOST_WARMUP_S
    return over or all(map(steady, warm))


def encoded_image(bundle: Bundle | None, path: Path | None) -> tuple[bytes, dict[str, Any]]:
    """An image file's bytes, or a JPEG of the bundle's first golden image, and what a report says of it.

    Raises:
        ImageError: the image cannot be decoded.
        BundleError: no image was given and the bundle has no golden one.
        DataError: there is neither an image nor a bundle.
    """
    if path is None:
        if bundle is None:
            raise DataError("expected a picture to send: --image FILE, or a bundle, whose golden image is taken")
        encoded, source = _golden_jpeg(bundle), "golden image as JPEG"
    else:
        decode(path)  # says what is wrong with it, by name
        encoded, source = path.read_bytes(), str(path)
    height, width = decode(encoded, source).shape[:2]
    return encoded, {"source": source, "bytes": len(encoded), "width": int(width), "height": int(height)}


def environment(localizers: Sequence[Localizer]) -> tuple[dict[str, Any], dict[str, str]]:
    """The machine, and the versions of wgap and of what is underneath."""
    import cv2
    import numpy as np

    gpus = sorted({one.locator.device for one in localizers if one.locator.device is not None})
    targets = [active_target()] if any(one.locator.device is None for one in localizers) else []
    machine = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel_target": ", ".join(targets + [f"CUDA on GPU {gpu}" for gpu in gpus]),
        "load_average": os.getloadavg()[0],
    }
    versions = {
        "wgap": metadata.version("wgap"),
        "python": platform.python_version(),
        **{one.network.name: one.network.version for one in localizers},
        "opencv": str(cv2.__version__),
        "numpy": np.__version__,
    }
    return machine, versions


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
