"""TensorRT and TensorRT-RTX: a checked engine, the kernel behind it on the same stream, boxes back."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from wgap.errors import BackendError, BundleError, FeatureError
from wgap.runtime.cuda.arrays import device_array, on_device
from wgap.runtime.cuda.driver import Memory, call, driver, quiet
from wgap.runtime.cuda.postprocess import CudaPostprocess, Options, Plan, wait_for
from wgap.runtime.engine import Host, engine_file, preflight
from wgap.runtime.library import library_log

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from wgap.bundle import Bundle
    from wgap._native import BoxRecord

__all__ = ["TensorRtBackend", "open_bundle", "open_rtx"]

_MOST_BATCHES = 4
"""Batch sizes for which one slot keeps an execution context; a further one takes the place of the oldest."""

_MOST_FAILURES = 3
"""Captures that may fail before a session goes on without graphs: another library's waiting may spoil one."""


class TensorRtBackend:
    """A :class:`wgap.runtime.backends.DeviceBackend` over one engine of the bundle.

    Each call takes a slot, a stream with buffers of its own, so that calls from several threads run at the same time.
    In it is an execution context for each of the last few batch sizes, since a graph is tied to its context's state. A
    batch and its options are captured into a CUDA graph when they come for the second time: copy in, network, kernel
    and copy of the records are then one launch. Batches beyond the profile are split.

    Args:
        bundle: the bundle.
        flavor: ``tensorrt`` or ``tensorrt_rtx``.
        precision: of the engine.
        slots: how many calls may run at the same time; further ones wait.
        ungated: take an engine whose model's gate failed or never ran.
        device: CUDA device number.
        graphs: capture CUDA graphs; None: with TensorRT, not with TensorRT-RTX, which compiles kernels as it runs.

    Raises:
        EngineError, EngineMismatchError, GateError: see :func:`wgap.runtime.engine.preflight`.
        BackendError: if there is no GPU, or the library refuses the plan.
        MissingDependencyError: if the library or cuda-core is not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        flavor: str,
        precision: str,
        slots: int = 4,
        ungated: bool = False,
        device: int = 0,
        graphs: bool | None = None,
    ) -> None:
        info = bundle.manifest.model
        host = Host.here(flavor)
        entry = engine_file(bundle, host, precision)
        plan = preflight(bundle, entry.path, host, ungated=ungated)
        self.name, self.precision, self.version = flavor, precision, host.version
        self.graphs = flavor == "tensorrt" if graphs is None else graphs
        self.failures = 0
        self.largest = int(entry.provenance["profile"]["max"])
        self.shapes: dict[str, tuple[int, ...]] = {
            "image": (*info.input_size, 3),
            "logits": (len(info.classes),),
            "features": tuple(info.feature_shape),
        }
        self._library, self._log = host.library, library_log(host.library)
        self.kernel = CudaPostprocess(bundle.classifier()[0], device)
        with self.kernel.context:
            self._runtime = host.library.Runtime(self._log)
            if entry.provenance["options"].get("version_compatible"):
                self._runtime.engine_host_code_allowed = True  # such a plan brings the runtime it needs
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise BackendError(f"{flavor} {host.version} refuses {bundle.root / entry.path}: {self.reason()}")
            if entry.provenance["options"].get("strip_weights"):
                self._refit(bundle.root / bundle.model_file(precision, ungated).path)
            self._check_signature(str(bundle.root / entry.path))
        self._free: list[_Slot] = []
        self._made, self._slots, self._closed = 0, slots, False
        self._changed = threading.Condition()

    def reason(self) -> str:
        """What the library told last at severity error."""
        return "; ".join(self._log.errors[-3:]) or "it gives no reason"

    def _refit(self, onnx: Path) -> None:
        """Give a plan without weights those of the file it was built from, which the preflight has compared."""
        refitter = self._library.Refitter(self._engine, self._log)
        parser = self._library.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
            raise BackendError(f"{self.name} {self.version} cannot refit its engine from {onnx}: {self.reason()}")

    def _check_signature(self, path: str) -> None:
        types = self._library.DataType
        wanted = {"image": types.UINT8, "logits": types.FLOAT, "features": types.FLOAT}
        names = [self._engine.get_tensor_name(n) for n in range(self._engine.num_io_tensors)]
        for name, shape in self.shapes.items():
            if name not in names:
                raise BundleError(f"{path} has no tensor {name!r}; it has: {', '.join(names)}; build it again")
            found, kind = tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name)
            if found[1:] != shape or kind != wanted[name]:
                raise BundleError(
                    f"{path}: expected {name} {wanted[name].name}{['N', *shape]}, got {kind.name}{list(found)}; "
                    "build it again"
                )

    @contextmanager
    def slot(self) -> Iterator[_Slot]:
        """A slot that nobody else uses, in the current context; waits until one is free."""
        with self._changed:
            while not self._free and self._made >= self._slots:
                self._changed.wait()
            found = self._free.pop() if self._free else None
            self._made += found is None
        try:
            with self.kernel.context:
                if found is None:
                    found = _Slot(self, self._engine)
                yield found
        finally:
            with self._changed:
                if found is None:
                    self._made -= 1
                else:
                    self._free.append(found)
                self._changed.notify()

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Forward uint8[N, H, W, 3] in host memory to logits float32[N, K] and features float32[N, C, h, w] there."""
        import numpy as np

        outputs = {n: np.empty((len(images), *self.shapes[n]), np.float32) for n in ("logits", "features")}
        with self.slot() as slot:
            for start in range(0, len(images), self.largest):
                part = images[start : start + self.largest]
                slot.forward(part)
                for name, whole in outputs.items():
                    target = whole[start : start + len(part)]
                    call("cuMemcpyDtoH", target.ctypes.data, slot.device[name].pointer, target.nbytes)
        return outputs["logits"], outputs["features"]

    def records(self, images: Any, options: Options, stream: int | None = None) -> list[list[BoxRecord]]:
        """Forward a batch and localize on the device; only the records come back.

        Args:
            images: uint8[N, H, W, 3] at the network's input size, C-contiguous, in host memory or on the GPU.
            options: of the kernel.
            stream: handle of the stream on which images on the GPU were made and the work is to be queued; None takes
                the slot's own, which first waits for what the array names.

        Raises:
            FeatureError: an image's features or logits are not finite; its index is named. Or ``images`` does not fit.
            BackendError: the device or the library failed.
        """
        given = device_array(images, "uint8", "NHWC", "images") if on_device(images) else None
        shape = tuple(images.shape) if given is None else given.shape
        if len(shape) != 4 or shape[1:] != self.shapes["image"]:
            raise FeatureError(f"images: expected uint8{['N', *self.shapes['image']]}, got {list(shape)}")
        found: list[list[BoxRecord]] = []
        with self.slot() as slot:
            if given is not None and stream is None:
                wait_for(given)
            for start in range(0, shape[0], self.largest):
                rows = slice(start, start + self.largest)
                classes = None if options.classes is None else options.classes[rows]
                part = replace(options, classes=classes)
                count = min(self.largest, shape[0] - start)
                if given is None:
                    slot.stage(images[rows])
                else:
                    slot.take(given.pointer + start * prod(shape[1:]), count, stream)
                found += slot.records(count, given is None, part, stream)
        return found

    def close(self) -> None:
        """Free everything on the device; no call may be under way."""
        if self._closed:
            return
        self._closed = True
        with self._changed:
            slots, self._free, self._made = self._free, [], 0
        with self.kernel.context:
            for slot in slots:
                slot.close()
            self._engine = self._runtime = None
        self.kernel.close()

    def __del__(self) -> None:
        if getattr(self, "_changed", None) is not None:
            with contextlib.suppress(Exception):  # the driver may be gone at exit, and a destructor has no caller
                self.close()


class _Slot:
    """A stream, buffers for the largest batch, and for each batch size an execution context, plans and graphs."""

    def __init__(self, owner: TensorRtBackend, engine: Any) -> None:
        self.owner, self._engine = owner, engine
        self.device: dict[str, Memory] = {}
        self._staging: Memory | None = None
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[tuple[Any, ...], Any] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self.stream = int(call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING))
        try:
            for name, shape in owner.shapes.items():
                self.device[name] = Memory(owner.largest * prod(shape) * (1 if name == "image" else 4))
        except BaseException:
            self.close()
            raise

    def stage(self, images: Any) -> None:
        """A batch in the caller's host memory into pinned memory, which a copy engine and a graph can read."""
        import numpy as np

        if self._staging is None:
            self._staging = Memory(self.device["image"].size, pinned=True)
        source = np.ascontiguousarray(images, np.uint8)
        self._staging.view()[: source.nbytes] = source.reshape(-1).data

    def take(self, pointer: int, count: int, stream: int | None) -> None:
        """A batch on the device into the slot's own buffer, whose address graphs hold."""
        size = count * prod(self.owner.shapes["image"])
        target = self.stream if stream is None else stream
        call("cuMemcpyDtoDAsync", self.device["image"].pointer, pointer, size, target)

    def _context(self, count: int) -> Any:
        """The execution context for a batch size, whose state nothing changes afterwards."""
        if count in self._contexts:
            return self._contexts[count]
        if len(self._contexts) >= _MOST_BATCHES:
            self._forget(next(iter(self._contexts)))
        context = self._engine.create_execution_context()
        if context is None:
            raise BackendError(f"{self.owner.name} makes no execution context: {self.owner.reason()}")
        shape = (count, *self.owner.shapes["image"])
        if not context.set_input_shape("image", shape):
            raise BackendError(f"{self.owner.name} takes no batch of shape {shape}: {self.owner.reason()}")
        for name, memory in self.device.items():
            context.set_tensor_address(name, memory.pointer)
        self._contexts[count] = context
        return context

    def _forget(self, count: int) -> None:
        """Drop a batch size: its graphs, its plans, then its context."""
        for key in [key for key in self._graphs if key[1] == count]:
            call("cuGraphExecDestroy", self._graphs.pop(key))
        for key in [key for key in self._plans if key[1] == count]:
            self._plans.pop(key).close()
        self._seen = {key for key in self._seen if key[1] != count}
        self._contexts.pop(count, None)

    def _enqueue(self, count: int, staged: bool, stream: int) -> None:
        """Copy in what is staged, then the network."""
        shape = (count, *self.owner.shapes["image"])
        context = self._context(count)
        if staged and self._staging is not None:
            call("cuMemcpyHtoDAsync", self.device["image"].pointer, self._staging.pointer, prod(shape), stream)
        if not context.execute_async_v3(stream):
            raise BackendError(f"{self.owner.name} failed on a batch of shape {shape}: {self.owner.reason()}")

    def forward(self, images: NDArray[np.uint8]) -> None:
        """A batch in host memory through the network; the outputs stay in ``device``."""
        self.stage(images)
        self._enqueue(len(images), True, self.stream)
        call("cuStreamSynchronize", self.stream)

    def records(self, count: int, staged: bool, options: Options, borrowed: int | None) -> list[list[BoxRecord]]:
        """The batch that was staged or taken through network and kernel."""
        key = (staged, count, *options.key())
        self._context(count)  # may drop the plans of another batch size
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = Plan(self.owner.kernel, (count, *self.owner.shapes["features"]), options)
            plan.bind(self.device["features"].pointer, self.device["logits"].pointer)
        plan.choose(options.classes)
        stream = self.stream if borrowed is None else borrowed
        graph = self._graph(key, plan)
        if graph is None:
            self._enqueue(count, staged, stream)
            plan.enqueue(stream)
        else:
            call("cuGraphLaunch", graph, stream)
        call("cuStreamSynchronize", stream)
        return plan.records()

    def _graph(self, key: tuple[Any, ...], plan: Plan) -> Any:
        """The graph of this combination; None the first time, since a library compiles or chooses on the first run."""
        if not self.owner.graphs or key in self._graphs:
            return self._graphs.get(key)
        if key not in self._seen:
            self._seen.add(key)
            return None
        try:
            graph = self._capture(key, plan)
        except BackendError as error:
            self.owner.failures += 1
            if self.owner.failures == _MOST_FAILURES:
                self.owner.graphs = False
                warnings.warn(
                    f"{self.owner.name} cannot be captured into a CUDA graph ({error}); it goes on without graphs",
                    RuntimeWarning, stacklevel=2,
                )  # fmt: skip
            return None
        self._graphs[key] = graph
        return graph

    def _capture(self, key: tuple[Any, ...], plan: Plan) -> Any:
        self._enqueue(key[1], key[0], self.stream)  # what a change of shape sets off must not happen while capturing
        call("cuStreamSynchronize", self.stream)
        with quiet:
            mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            call("cuStreamBeginCapture", self.stream, mode)
            try:
                self._enqueue(key[1], key[0], self.stream)
                plan.enqueue(self.stream)
            finally:  # a capture must be ended whatever happened within it
                captured = call("cuStreamEndCapture", self.stream)
        try:
            return call("cuGraphInstantiate", captured, 0)
        finally:
            call("cuGraphDestroy", captured)

    def close(self) -> None:
        """Free its memory; nothing may run on its stream."""
        for count in list(self._contexts):
            self._forget(count)
        for memory in (*self.device.values(), *([self._staging] if self._staging else [])):
            memory.close()
        call("cuStreamDestroy", self.stream)


def open_bundle(
    bundle: Bundle, precision: str = "fp32", threads: int | None = None, ungated: bool = False
) -> TensorRtBackend:
    """The bundle's TensorRT engine of that precision; ``threads`` is how many calls may run at the same time (4)."""
    return TensorRtBackend(bundle, "tensorrt", precision, threads or 4, ungated)


def open_rtx(
    bundle: Bundle, precision: str = "fp32", threads: int | None = None, ungated: bool = False
) -> TensorRtBackend:
    """Likewise its TensorRT-RTX engine."""
    return TensorRtBackend(bundle, "tensorrt_rtx", precision, threads or 4, ungated)
