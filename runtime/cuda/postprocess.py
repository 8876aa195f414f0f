"""Logits and feature maps on a GPU to boxes: one launch, one small record for each image and class back to the host."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wgap import _native
from wgap.errors import BackendError, FeatureError
from wgap.rule import Rule
from wgap.runtime.cache import cache_folder
from wgap.runtime.cuda.arrays import DeviceArray, device_array, on_device, require_gpu
from wgap.runtime.cuda.compiler import SYMBOL, THREADS, compile_kernel, nvrtc_version
from wgap.runtime.cuda.driver import LEGACY, READY, Context, Memory, attribute, call, driver, wait_for
from wgap.runtime.library import gpu
from wgap.runtime.locator import Locator, Request, require_outputs
from wgap.runtime.postprocess import require_finite

if TYPE_CHECKING:
    from wgap._native import BoxRecord
    from wgap.runtime.network import Outputs

__all__ = ["CudaLocator", "CudaPostprocess", "Launch"]

_KINDS = {
    "logits": ("float32", "NK"), "features": ("float32", "NChw"), "foreground": ("float32", "NChw"),
    "picture": ("uint8", "NHWC"),
}  # fmt: skip

MOST_IDLE = 8
"""Launches whose memory is kept for the next call of their shape, the last used ones; a further one is freed."""


class CudaPostprocess:
    """The kernel of :func:`wgap.runtime.postprocess.postprocess` on one GPU: the same levels and boxes, bit for bit.

    ::

        boxes = CudaPostprocess(weight)
        records = boxes(logits, features, size=(224, 224))  # PyTorch, CuPy or PyCUDA arrays

    May be called from several threads at once: each call works in memory of its own, which is kept for the next.

    Args:
        weight: the classifier's weights, float32[K, C], in host memory.
        device: a GPU's ordinal, or its UUID as ``nvidia-smi -L`` prints it.
        threads: of a CUDA block, a multiple of 32 up to 512.
        cache: folder for the compiled kernel; None takes :func:`wgap.runtime.cache.cache_folder`.
        context: to work in, shared with its owner; None for the caller's own if that is current and on this device,
            else the device's primary one.

    Raises:
        BackendError: if there is no such GPU, or its architecture cannot be compiled for.
        FeatureError: if ``weight`` is not finite or not float32[K, C].
        MissingDependencyError: if cuda-core is not installed.
    """

    macros: tuple[str, ...] = ()  # that the kernel is compiled with

    def __init__(
        self,
        weight: Any,
        device: int | str = 0,
        threads: int = THREADS,
        cache: Path | None = None,
        context: Context | None = None,
    ) -> None:
        self.classifier, self.threads = _native.Classifier(weight), threads
        found = gpu(device)
        self.device, self.arch = found.ordinal, found.compute_capability
        require_driver()
        sm = f"sm_{self.arch.replace('.', '')}"
        cubin = compile_kernel(sm, cache or cache_folder(), threads, self.macros).cubin
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[Any, ...], Launch]] = []  # the last used one last
        self.weight: Memory | None = None
        self._logs: Memory | None = None
        self._module = self._stream = None
        self.context = context.shared() if context else Context(self.device)
        self._closed = False
        flat = memoryview(weight).cast("B")
        try:
            with self.context:
                self._module = call("cuModuleLoadData", cubin)
                self.function = call("cuModuleGetFunction", self._module, SYMBOL)
                kinds = driver().CUfunction_attribute
                fixed = call("cuFuncGetAttribute", kinds.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, self.function)
                self.room = attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", self.device) - int(fixed)
                self.blocks = attribute("MULTIPROCESSOR_COUNT", self.device)
                dynamic = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                call("cuFuncSetAttribute", self.function, dynamic, self.room)
                self.weight = Memory(self.context, flat.nbytes)
                call("cuMemcpyHtoD", self.weight.pointer, bytes(flat), flat.nbytes)
                call("cuStreamSynchronize", LEGACY)  # a copy from pageable memory may return before it has arrived
                self._stream = call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING)
        except BaseException:
            self.close()
            raise

    def __call__(
        self,
        logits: Any,
        features: Any,
        *,
        size: tuple[int, int],
        rule: Rule | None = None,
        classes: int | Iterable[int] | None = None,
        top_k: int = 1,
        heatmaps: bool = False,
        edge_means: bool = False,
        stream: int | None = None,
        scores: Any = None,
        pictures: Any = None,
        max_boxes: int = 1,
    ) -> list[list[BoxRecord]]:
        """As :func:`wgap.runtime.postprocess.postprocess`, with the outputs in the GPU's memory.

        Args:
            logits: float32[N, K], C-contiguous, ``__cuda_array_interface__`` or DLPack.
            features: float32[N, C, h, w], likewise; None for a rule whose map is ``none``.
            size: (H, W) of the map.
            rule: as there.
            classes: one class id for each image, or one for all; None for the ``top_k`` classes by logit.
            top_k: records per image when ``classes`` is None.
            heatmaps: also return each normalised map, as a memoryview float32[H, W].
            edge_means: as there.
            stream: handle of the stream to work on; None takes one of its own, which first waits for the streams that
                the arrays name.
            scores: for the foreground rules: float32[N, 1, h', w'].
            pictures: for ``foreground+colour``: uint8[N, H, W, 3] RGB of the map's size.
            max_boxes: as there.

        Raises:
            FeatureError: a shape, dtype or layout is not as above, something that the rule reads is missing, or an
                image's outputs are not finite.
            ValueError: an option is not as above.
            BackendError: the device failed.
        """
        ids = None
        if classes is not None:
            checked = _native._cuda_class_ids(classes, int(logits.shape[0]), self.classifier.num_classes)
            ids = memoryview(checked).cast("q").tolist()
        request = Request(ids, top_k, heatmaps, edge_means, max_boxes)
        given = {"logits": logits, "features": features, "foreground": scores, "picture": pictures}
        outputs = {name: value for name, value in given.items() if value is not None}
        return require_finite(self.locate(outputs, size, rule or Rule(), request, stream))

    def locate(
        self, outputs: Outputs, size: tuple[int, int], rule: Rule, request: Request, stream: int | None = None
    ) -> list[list[BoxRecord]]:
        """Boxes of outputs on this GPU; those in host memory are copied there first. See :meth:`Locator.locate`."""
        with self.context, contextlib.ExitStack() as copies:
            here = {
                name: self._here(value, name, *_KINDS[name], copies)
                for name, value in require_outputs(outputs, rule).items()
            }
            images = here["logits"].shape[0]
            for name, value in here.items():
                if value.shape[0] != images:
                    raise FeatureError(
                        f"{name}: expected those of {images} images, as the logits, got {value.shape[0]}"
                    )
            if images == 0:
                return []
            with self.launch({name: value.shape for name, value in here.items()}, size, rule, request) as launch:
                if stream is None:
                    wait_for(*here.values())
                launch.bind({name: value.pointer for name, value in here.items()}, rule)
                launch.choose(request.classes)
                handle = int(self._stream or 0) if stream is None else stream
                launch.enqueue(handle)
                call("cuStreamSynchronize", handle)
                return launch.records()

    def _here(self, value: Any, name: str, dtype: str, axes: str, copies: contextlib.ExitStack) -> DeviceArray:
        if on_device(value):
            there = device_array(value, dtype, axes, name)
            require_gpu(there, self.device, name, "kernel")
            return there
        import numpy as np

        array = np.asarray(value)
        if str(array.dtype) != dtype or array.ndim != len(axes) or not array.flags.c_contiguous:
            raise FeatureError(
                f"{name}: expected C-contiguous {dtype}[{', '.join(axes)}], got {array.dtype}{list(array.shape)}"
            )
        memory = Memory(self.context, array.nbytes)
        copies.callback(memory.close)
        call("cuMemcpyHtoD", memory.pointer, array.ctypes.data, array.nbytes)
        call("cuStreamSynchronize", LEGACY)
        return DeviceArray(memory.pointer, array.shape, READY, memory)

    @contextlib.contextmanager
    def launch(
        self, shapes: Mapping[str, Sequence[int]], size: tuple[int, int], rule: Rule, request: Request
    ) -> Iterator[Launch]:
        """A launch for these shapes that nobody else uses, in the current context; its memory is kept for the next."""
        if self._closed:
            raise BackendError("this kernel was closed; make another")
        kept = request.classes is not None, request.heatmaps, request.edge_means, request.max_boxes
        key = (tuple((name, tuple(shape)) for name, shape in shapes.items()), size, request.per_image, *kept)
        with self._lock:
            found = next((n for n in reversed(range(len(self._idle))) if self._idle[n][0] == key), None)
            launch = None if found is None else self._idle.pop(found)[1]
        launch = launch or Launch(self, shapes, size, rule, request)
        try:
            yield launch
        finally:
            with self._lock:
                self._idle.append((key, launch))
                excess = self._idle.pop(0)[1] if len(self._idle) > MOST_IDLE else None
            if excess is not None:
                excess.close()

    def logs(self) -> int:
        """Where the table of logarithms lies that colours need, for maps of any size; made at the first call."""
        with self._lock:
            if self._logs is None:
                table = _native._cuda_logs()
                memory = Memory(self.context, len(table))
                call("cuMemcpyHtoD", memory.pointer, table, len(table))
                call("cuStreamSynchronize", LEGACY)
                self._logs = memory
            return self._logs.pointer

    def close(self) -> None:
        """Free everything on the device; no call may be under way."""
        if self._closed:
            return
        self._closed = True
        with self.context:
            for _, launch in self._idle:
                launch.close()
            self._idle.clear()
            for memory in (self.weight, self._logs):
                if memory is not None:
                    memory.close()
            if self._stream is not None:
                call("cuStreamDestroy", self._stream)
            if self._module is not None:
                call("cuModuleUnload", self._module)
        self.context.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            with contextlib.suppress(Exception):  # the driver may be gone at exit, and a destructor has no caller
                self.close()


class CudaLocator(Locator):
    """The kernel on one GPU.

    Args:
        kernel: which, with the classifier's weights.
        size: (H, W) of the map.
        rule: which map, and where it is cut.
    """

    def __init__(self, kernel: CudaPostprocess, size: tuple[int, int], rule: Rule) -> None:
        self.kernel, self.size, self.rule, self.device = kernel, size, rule, kernel.device

    def locate(self, outputs: Outputs, request: Request | None = None) -> list[list[BoxRecord]]:
        """See :meth:`wgap.runtime.locator.Locator.locate`; outputs in host memory are copied to the device first."""
        return self.kernel.locate(outputs, self.size, self.rule, request or Request())

    def with_rule(self, rule: Rule) -> CudaLocator:
        """See :meth:`wgap.runtime.locator.Locator.with_rule`."""
        return CudaLocator(self.kernel, self.size, rule)

    def close(self) -> None:
        """Free everything on the device; no call may be under way."""
        self.kernel.close()


class Launch:
    """One launch for fixed shapes, with its memory: what a CUDA graph captures.

    Made and used in the owner's context, by one thread at a time. The kernel writes its records into pinned memory and
    reads class ids there, so that nothing is copied behind it.
    """

    def __init__(
        self,
        owner: CudaPostprocess,
        shapes: Mapping[str, Sequence[int]],
        size: tuple[int, int],
        rule: Rule,
        request: Request,
    ) -> None:
        logits, top_k = shapes["logits"], request.per_image
        images = logits[0]
        self._owner = cast("CudaPostprocess", weakref.proxy(owner))  # a cycle would keep a dropped kernel on the GPU
        self._size, self._images, self._per_image, self._max_boxes = size, images, top_k, request.max_boxes
        scores, picture = shapes.get("foreground", ()), shapes.get("picture", (images, *size, 3))
        if len(scores) == 4 and scores[1] != 1:
            raise FeatureError(f"foreground: expected one channel, float32[N, 1, h, w], got float32{list(scores)}")
        if tuple(picture) != (images, *size, 3):
            raise FeatureError(f"picture: expected uint8{[images, *size, 3]}, the map's size, got uint8{list(picture)}")
        self._shape, self._shared, self._scratch = _native._cuda_layout(
            owner.classifier, logits, shapes.get("features", ())[1:], scores[2:], size, rule, top_k, request.max_boxes,
            owner.room,
        )  # fmt: skip
        self._logs = owner.logs() if rule.reads_picture else 0
        tasks = images * top_k
        self._grid = min(tasks, owner.blocks)
        self._memory: dict[str, Memory] = {}
        self._argument: Any = None
        pinned = {"records": tasks * request.max_boxes * _native._CUDA_RECORD_BYTES}
        if request.classes is not None:
            pinned["class_ids"] = images * 8
        if request.heatmaps:
            pinned["heatmaps"] = tasks * prod(size) * 4
        if request.edge_means:
            pinned["edge_means"] = tasks * (_native.LEVELS + 1) * 8
        try:
            self._memory["scratch"] = Memory(owner.context, self._scratch * self._grid)
            for name, bytes_ in pinned.items():
                self._memory[name] = Memory(owner.context, bytes_, pinned=True)
        except BaseException:
            self.close()
            raise

    def choose(self, classes: Sequence[int] | None) -> None:
        """Set the class ids, where the launch takes them.

        Raises:
            ValueError: if there is not one for each image, or one is out of range.
        """
        if classes is None:
            return
        ids = _native._cuda_class_ids(classes, self._images, self._owner.classifier.num_classes)
        self._memory["class_ids"].view()[:] = ids

    def bind(self, inputs: Mapping[str, int], rule: Rule) -> None:
        """Set where outputs and picture lie on the device, and the rule: one that reads what this was made for."""
        weight = self._owner.weight.pointer if self._owner.weight else 0
        addresses = {**inputs, "weight": weight, "logs": self._logs}
        addresses |= {name: memory.pointer for name, memory in self._memory.items()}
        task = _native._cuda_task(
            self._shape, self._images, self._per_image, rule, self._shared, self._scratch, addresses, self._max_boxes
        )
        content = ctypes.create_string_buffer(task, len(task))
        self._argument = content, (ctypes.c_void_p * 1)(ctypes.addressof(content))

    def enqueue(self, stream: int) -> None:
        """Queue the kernel; nothing is waited for."""
        _, argument = self._argument
        call(
            "cuLaunchKernel", self._owner.function, self._grid, 1, 1, self._owner.threads, 1, 1, self._shared, stream,
            ctypes.addressof(argument), 0,
        )  # fmt: skip

    def records(self) -> list[list[BoxRecord]]:
        """What the last launch wrote, once its stream has been waited for; each image with its own status."""
        written = {
            name: bytes(self._memory[name].view())
            for name in ("records", "heatmaps", "edge_means")
            if name in self._memory
        }
        maps = None
        if "heatmaps" in written:
            floats, pixels = memoryview(written["heatmaps"]).cast("f"), prod(self._size)
            maps = [
                floats[n * pixels : (n + 1) * pixels].cast("B").cast("f", self._size)
                for n in range(self._images * self._per_image)
            ]
        return _native._cuda_records(
            written["records"], self._images, self._per_image, maps, written.get("edge_means", b""), self._max_boxes
        )

    def close(self) -> None:
        """Free its memory."""
        for memory in self._memory.values():
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
