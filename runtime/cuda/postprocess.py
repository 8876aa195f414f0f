"""Feature maps and logits on a GPU to boxes: one launch, one small record per image and class back to the host."""

from __future__ import annotations

import contextlib
import ctypes
import operator
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.errors import BackendError, FeatureError
from wgap import _native
from wgap.runtime.cuda.arrays import DeviceArray, device_array
from wgap.runtime.cuda.compiler import SYMBOL, THREADS, cache_folder, compile_kernel, nvrtc_version
from wgap.runtime.cuda.driver import LEGACY, Context, Memory, attribute, call, device_arch, driver, quiet

if TYPE_CHECKING:
    from wgap._native import BoxRecord
    from wgap.runtime.postprocess import Map

__all__ = ["CudaPostprocess", "Options", "Plan", "class_ids", "wait_for"]

STAGES = ("class", "recombine", "upsample_columns", "quantise", "edges", "level", "component", "heatmap")
"""``wgap::Stage``."""

_LARGEST = 1 << 20  # pixels of a map, as in problem.h


class CudaPostprocess:
    """The kernel of :func:`wgap.runtime.postprocess.postprocess` on one GPU: the same levels and boxes, bit for bit.

    ::

        boxes = CudaPostprocess(weight)
        records = boxes(features, logits, size=(224, 224))  # PyTorch, CuPy or PyCUDA arrays

    May be called from several threads at once: each call works in memory of its own, which is kept for the next.

    Args:
        weight: the classifier's weights, float32[K, C], in host memory.
        device: CUDA device number.
        threads: of a CUDA block, a multiple of 32 up to 512.
        cache: folder for the compiled kernel; None takes :func:`wgap.runtime.cuda.compiler.cache_folder`.
        profile: count clock ticks by stage, see :meth:`ticks`; slower.
        primary: work in the device's primary context, whichever is current.

    Raises:
        BackendError: if there is no GPU, or its architecture cannot be compiled for.
        FeatureError: if ``weight`` is not finite or not float32[K, C].
        MissingDependencyError: if cuda-core is not installed.
    """

    def __init__(
        self,
        weight: Any,
        device: int = 0,
        threads: int = THREADS,
        cache: Path | None = None,
        profile: bool = False,
        primary: bool = False,
    ) -> None:
        classifier = _native.Classifier(weight)
        self.classes, self.channels, self.threads = int(classifier.num_classes), int(classifier.channels), threads
        self.arch = device_arch(device)
        require_driver()
        sm = f"sm_{self.arch.replace('.', '')}"
        cubin = compile_kernel(sm, cache or cache_folder(), threads, profile).cubin
        self._lock = threading.Lock()
        self._idle: dict[tuple[Any, ...], list[Plan]] = {}
        self.weight: Memory | None = None
        self._module = self._stream = None
        self.context = Context(device, primary)
        self._closed = False
        flat = memoryview(weight).cast("B")
        try:
            with self.context:
                self._module = call("cuModuleLoadData", cubin)
                self.function = call("cuModuleGetFunction", self._module, SYMBOL)
                kinds = driver().CUfunction_attribute
                fixed = call("cuFuncGetAttribute", kinds.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, self.function)
                self.room = attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", device) - int(fixed)
                self.blocks = attribute("MULTIPROCESSOR_COUNT", device)
                dynamic = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                call("cuFuncSetAttribute", self.function, dynamic, self.room)
                self.weight = Memory(flat.nbytes)
                call("cuMemcpyHtoD", self.weight.pointer, bytes(flat), flat.nbytes)
                call("cuStreamSynchronize", LEGACY)  # a copy from pageable memory may return before it has arrived
                self._stream = call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING)
        except BaseException:
            self.close()
            raise

    def __call__(
        self,
        features: Any,
        logits: Any,
        *,
        size: tuple[int, int],
        classes: int | Iterable[int] | None = None,
        top_k: int = 1,
        map: Map = "recombined",  # noqa: A002
        threshold: str = "adaptive",
        heatmaps: bool = False,
        stream: int | None = None,
    ) -> list[list[BoxRecord]]:
        """As :func:`wgap.runtime.postprocess.postprocess`, with features and logits in the GPU's memory.

        Args:
            features: float32[N, C, h, w], C-contiguous, ``__cuda_array_interface__`` or DLPack.
            logits: float32[N, K], likewise.
            size: (H, W) of the map.
            classes: one class id for each image, or one for all; None for the ``top_k`` classes by logit.
            top_k: records per image when ``classes`` is None.
            map: as there.
            threshold: as there.
            heatmaps: also copy each normalised map back, as a memoryview float32[H, W].
            stream: handle of the stream to work on; None takes one of its own, which first waits for the streams that
                the arrays name.

        Raises:
            FeatureError: a shape, dtype or layout is not as above, or an image's features or logits are not finite.
            ValueError: an option is not as above.
            BackendError: the device failed.
        """
        maps = device_array(features, "float32", "NChw", "features")
        scores = device_array(logits, "float32", "NK", "logits")
        images = maps.shape[0]
        if scores.shape != (images, self.classes):
            raise FeatureError(f"logits: expected float32[{images}, {self.classes}], got float32{list(scores.shape)}")
        if maps.shape[1] != self.channels or 0 in maps.shape[1:]:
            raise FeatureError(f"features: expected float32[N, {self.channels}, h, w], got float32{list(maps.shape)}")
        if images == 0:
            return []
        options = Options(size, map, threshold, top_k, class_ids(classes, images, self.classes), heatmaps)
        with self.context:
            if stream is None:
                wait_for(maps, scores)
            return self.run(maps.pointer, scores.pointer, maps.shape, options, stream)

    def run(
        self, features: int, logits: int, shape: Sequence[int], options: Options, stream: int | None = None
    ) -> list[list[BoxRecord]]:
        """Features and logits at two addresses, in the current context, on ``stream`` (None: its own), waited for."""
        key = (tuple(shape), *options.key())
        with self._lock:
            idle = self._idle.get(key)
            plan = idle.pop() if idle else None
        plan = plan or Plan(self, shape, options)
        try:
            plan.bind(features, logits)
            plan.choose(options.classes)
            handle = int(self._stream or 0) if stream is None else stream
            plan.enqueue(handle)
            call("cuStreamSynchronize", handle)
            return plan.records()
        finally:
            with self._lock:
                self._idle.setdefault(key, []).append(plan)

    def ticks(self) -> dict[str, int]:
        """Clock ticks of each block's first thread, by stage, since the last call; of a profiling kernel alone."""
        with self.context:
            pointer, size = call("cuModuleGetGlobal", self._module, b"wgap_cuda_ticks")
            told = (ctypes.c_uint64 * (int(size) // 8))()
            call("cuMemcpyDtoH", ctypes.addressof(told), pointer, int(size))
            call("cuMemsetD8", pointer, 0, int(size))
        return dict(zip(STAGES, told, strict=True))

    def close(self) -> None:
        """Free everything on the device; no call may be under way."""
        if self._closed:
            return
        self._closed = True
        with self.context:
            for plan in (plan for plans in self._idle.values() for plan in plans):
                plan.close()
            self._idle.clear()
            if self.weight is not None:
                self.weight.close()
            if self._stream is not None:
                call("cuStreamDestroy", self._stream)
            if self._module is not None:
                call("cuModuleUnload", self._module)
        self.context.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            with contextlib.suppress(Exception):  # the driver may be gone at exit, and a destructor has no caller
                self.close()


@dataclass(frozen=True)
class Options:
    """What is asked of a batch; as the arguments of :meth:`CudaPostprocess.__call__`."""

    size: tuple[int, int]
    map: Map = "recombined"
    threshold: str = "adaptive"
    top_k: int = 1
    classes: Sequence[int] | None = None
    heatmaps: bool = False

    def per_image(self) -> int:
        """Records per image."""
        return 1 if self.classes is not None else self.top_k

    def key(self) -> tuple[Any, ...]:
        """What a plan is made for; the class ids themselves may change."""
        return self.size, self.map, self.threshold, self.per_image(), self.classes is not None, self.heatmaps


class Plan:
    """One launch for fixed shapes and options, with its memory: what a CUDA graph captures.

    Made and used in the owner's context, by one thread at a time.
    """

    def __init__(self, owner: CudaPostprocess, features: Sequence[int], options: Options) -> None:
        (images, channels, height, width), size, top_k = features, options.size, options.per_image()
        if (
            min(size) < 1
            or size[0] * size[1] > _LARGEST
            or height * width > _LARGEST
            or height * size[1] > 64 * _LARGEST
        ):
            raise ValueError(f"size: expected (height, width) of at least 1x1 and at most 2^20 pixels, got {size}")
        if not 1 <= top_k <= owner.classes:
            raise ValueError(f"top_k: expected 1..{owner.classes}, got {top_k}")
        self._owner, self._options = owner, (options.map, options.threshold)
        self._shape = [channels, height, width, *size, owner.classes]
        self._size, self._images, self._per_image = size, images, top_k
        tasks = images * top_k
        self._grid = min(tasks, owner.blocks)
        self._shared, scratch = _native._cuda_layout(self._shape, owner.room)
        self._task(0, 0, (0, 0, 0, 0))  # judges map and threshold before anything is allocated
        self._memory: list[Memory] = []
        self._argument: Any = None
        pixels, records = size[0] * size[1] * 4, tasks * _native._CUDA_RESULT_BYTES
        given, mapped = options.classes is not None, options.heatmaps
        try:
            self._scratch, self._results = self._new(scratch * self._grid), self._new(records)
            self._told = self._new(records, pinned=True)
            self._classes = self._new(images * 8) if given else None
            self._ids = self._new(images * 8, pinned=True) if given else None
            self._maps = self._new(tasks * pixels) if mapped else None
            self._maps_told = self._new(tasks * pixels, pinned=True) if mapped else None
        except BaseException:
            self.close()
            raise

    def _new(self, size: int, pinned: bool = False) -> Memory:
        self._memory.append(Memory(size, pinned))
        return self._memory[-1]

    def _task(self, features: int, logits: int, own: tuple[int, int, int, int]) -> bytes:
        weight = self._owner.weight.pointer if self._owner.weight else 0
        pointers = [features, logits, weight, *own]
        task: bytes = _native._cuda_task(
            self._shape, self._images, self._per_image, *self._options, self._owner.room, pointers
        )
        return task

    def choose(self, classes: Sequence[int] | None) -> None:
        """Set the class ids, where the plan takes them."""
        if self._ids is not None and classes is not None:
            self._ids.view()[:] = bytes((ctypes.c_int64 * self._images)(*classes))

    def bind(self, features: int, logits: int) -> None:
        """Set where features and logits lie on the device."""
        optional = [0 if memory is None else memory.pointer for memory in (self._classes, self._maps)]
        task = self._task(features, logits, (*optional, self._results.pointer, self._scratch.pointer))  # type: ignore[arg-type]
        content = ctypes.create_string_buffer(task, len(task))
        self._argument = content, (ctypes.c_void_p * 1)(ctypes.addressof(content))

    def launch(self, stream: int) -> None:
        """Queue the kernel alone."""
        _, argument = self._argument
        call(
            "cuLaunchKernel", self._owner.function, self._grid, 1, 1, self._owner.threads, 1, 1, self._shared, stream,
            ctypes.addressof(argument), 0,
        )  # fmt: skip

    def enqueue(self, stream: int) -> None:
        """Queue the copy of the class ids, the kernel and the copy of its records; nothing is waited for."""
        if self._classes is not None and self._ids is not None:
            call("cuMemcpyHtoDAsync", self._classes.pointer, self._ids.pointer, self._ids.size, stream)
        self.launch(stream)
        call("cuMemcpyDtoHAsync", self._told.pointer, self._results.pointer, self._results.size, stream)
        if self._maps is not None and self._maps_told is not None:
            call("cuMemcpyDtoHAsync", self._maps_told.pointer, self._maps.pointer, self._maps.size, stream)

    def records(self) -> list[list[BoxRecord]]:
        """What the last launch wrote, once its stream has been waited for.

        Raises:
            FeatureError: an image's features or logits are not finite; its index is named.
        """
        maps = None
        if self._maps_told is not None:
            height, width = self._size
            floats = memoryview(bytes(self._maps_told.view())).cast("f")
            pixels = height * width
            maps = [
                floats[n * pixels : (n + 1) * pixels].cast("B").cast("f", (height, width))
                for n in range(self._images * self._per_image)
            ]
        adaptive = self._options[1] == "adaptive"
        found: list[list[BoxRecord]] = _native._cuda_records(
            bytes(self._told.view()), self._images, self._per_image, adaptive, maps
        )
        return found

    def close(self) -> None:
        """Free its memory."""
        for memory in self._memory:
            memory.close()
        self._memory.clear()


def require_driver() -> None:
    """Raise BackendError if the driver is older than the code that NVRTC makes."""
    served, made = int(call("cuDriverGetVersion")), nvrtc_version()
    if served // 1000 < made[0]:
        raise BackendError(
            f"the NVIDIA driver serves CUDA {served // 1000}.{served % 1000 // 10}; the code that NVRTC "
            f"{made[0]}.{made[1]} makes needs {made[0]}.0: update the driver (R580 serves 13.0)"
        )


def class_ids(classes: int | Iterable[int] | None, images: int, known: int) -> list[int] | None:
    """One class id for each image, None for None.

    Raises:
        ValueError: if there are not as many, or one is not among the ``known``.
    """
    if classes is None:
        return None
    ids = [operator.index(n) for n in classes] if isinstance(classes, Iterable) else [operator.index(classes)] * images
    if len(ids) != images:
        raise ValueError(f"classes: expected one class id for each of {images} images, got {len(ids)}")
    for n, class_id in enumerate(ids):
        if not 0 <= class_id < known:
            raise ValueError(f"classes[{n}] is {class_id}, expected 0..{known - 1}")
    return ids


def wait_for(*arrays: DeviceArray) -> None:
    """Until what the arrays hold has been computed; an array that names no stream may be under work on any."""
    if any(array.stream is None for array in arrays):
        with quiet:
            call("cuCtxSynchronize")
        return
    for stream in {array.stream for array in arrays}:
        call("cuStreamSynchronize", stream)
