"""The kernel alone: its time among fifty launches of a replayed CUDA graph, and which of its stages takes it."""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from benchmarks.gpu_check import SHAPE, SIZE
from benchmarks.gpu_check.timing import between_events, quartiles
from benchmarks.synthetic import DeviceCopy, synthetic, synthetic_scores

from wgap import _native
from wgap.rule import Rule
from wgap.runtime.cuda.driver import Context, Memory, call, driver
from wgap.runtime.cuda.postprocess import CudaPostprocess, Launch
from wgap.runtime.locator import Request

LAUNCHES = 50
STAGES = (
    "class",
    "recombine",
    "upsample_columns",
    "quantise",
    "edges",
    "level",
    "component",
    "heatmap",
    "scores",
    "colour",
)  # wgap::Stage


class ProfilingKernel(CudaPostprocess):
    """A kernel that counts the clock ticks of each stage; slower."""

    macros = ("WGAP_CUDA_PROFILE",)

    def ticks(self) -> dict[str, int]:
        """Clock ticks of each block's first thread, by stage, since the last call."""
        with self.context:
            pointer, size = call("cuModuleGetGlobal", self._module, b"wgap_cuda_ticks")
            ticks = (ctypes.c_uint64 * (int(size) // 8))()
            call("cuMemcpyDtoH", ctypes.addressof(ticks), pointer, int(size))
            call("cuMemsetD8", pointer, 0, int(size))
        return dict(zip(STAGES, ticks, strict=True))


class Bench:
    """The kernel on a batch of synthetic maps, ready to launch."""

    def __init__(
        self, images: int, threads: int, kernel: type[CudaPostprocess] = CudaPostprocess, rule: Rule | None = None
    ) -> None:
        few, rule = min(images, 32), rule or Rule()
        features, logits, weight = synthetic(few, *SHAPE[:2], 10)
        scores, pictures = synthetic_scores(few, SIZE[0])
        given = {"logits": logits, "features": features, "foreground": scores, "picture": pictures}
        names = (*rule.outputs, *(["picture"] if rule.reads_picture else []))
        repeat = -(-images // few)
        arrays = {name: np.concatenate([given[name]] * repeat)[:images] for name in names}
        self.kernel = kernel(weight, threads=threads)
        self.images, self.bytes = images, sum(array.nbytes for array in arrays.values())
        with self.kernel.context:
            copies = {name: DeviceCopy(array) for name, array in arrays.items()}
            self.inputs = list(copies.values())
            self.stream = int(call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING))
            shapes = {name: array.shape for name, array in arrays.items()}
            self.launch = Launch(self.kernel, shapes, SIZE, rule, Request())
            self.launch.bind({name: copy.pointer for name, copy in copies.items()}, rule)
            self.graph = self._graph(self.launch.enqueue)

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
            self.launch.close()
            for copy in self.inputs:
                copy.close()
            call("cuStreamDestroy", self.stream)
        self.kernel.close()


def copy_bandwidth(size: int = 1 << 28) -> float:
    """Bytes per second that a copy on the device moves, those read and those written."""
    context = Context()
    with context:
        one, two = Memory(context, size), Memory(context, size)
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
    """Time at batch 1 and more, for two block sizes and every kind of rule, against reading the inputs once."""
    bandwidth = copy_bandwidth()
    benches = {
        (images, threads, str(rule)): Bench(images, threads, rule=rule)
        for images in arguments.batches
        for threads in (256, 512)
        for rule in (Rule(), Rule("foreground"), Rule("foreground+colour"))
    }
    times: dict[Any, list[float]] = {key: [] for key in benches}
    for _ in range(arguments.rounds + 3):
        for key, bench in benches.items():
            times[key].append(bench.microseconds())
    rows = []
    for (images, threads, rule), bench in benches.items():
        row = quartiles(times[images, threads, rule][3:])
        read = 1e6 * bench.bytes / bandwidth
        rows.append(
            {
                "images": images,
                "threads": threads,
                "rule": rule,
                **row,
                "read_once_us": read,
                "times_that": row["p50"] / read,
            }
        )
        bench.close()
    return {"copy_bytes_per_second": bandwidth, "unit": "us", "rows": rows}


def profile(_: argparse.Namespace) -> dict[str, Any]:
    """Share of each stage in the clock ticks of a block, at batch 1."""
    bench = Bench(1, 512, ProfilingKernel)
    counted = cast("ProfilingKernel", bench.kernel)
    counted.ticks()
    for _ in range(5):
        bench.microseconds()
    ticks = counted.ticks()
    bench.close()
    whole = sum(ticks.values())
    resources = {"record_bytes": _native._CUDA_RECORD_BYTES, "architecture": bench.kernel.arch}
    return {"share": {stage: count / whole for stage, count in ticks.items()}, **resources}
