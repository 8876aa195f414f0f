"""TensorRT and TensorRT-RTX: a checked engine, the kernel behind it on the same stream, boxes back."""

from __future__ import annotations

import contextlib
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from wgap.errors import BackendError
from wgap.manifest import require_signature
from wgap.runtime.cuda.arrays import DeviceArray
from wgap.runtime.cuda.driver import READY, Context, Memory, call, capture_lock, driver, wait_for
from wgap.runtime.cuda.postprocess import CudaLocator, Launch
from wgap.runtime.engine import Host, about, built_outputs, engine_file, preflight
from wgap.runtime.library import dtype_name, gpu, library_log
from wgap.runtime.network import Network, Outputs, require_batch

if TYPE_CHECKING:
    from pathlib import Path

    from wgap._native import BoxRecord
    from wgap.bundle import Bundle
    from wgap.runtime.locator import Locator, Request
    from wgap.runtime.networks import NetworkOptions

__all__ = ["TensorRtNetwork"]

SLOTS = 4
"""Calls on the GPU at the same time, by default."""

MOST_BATCHES = 4
"""Batch sizes for which one slot keeps an execution context; a further one takes the place of the oldest."""

MOST_LAUNCHES = 8
"""Combinations of batch size and request for which one slot keeps a launch and its graph; likewise."""

_MOST_FAILURES = 3
"""Captures that may fail before a session goes on without graphs: another library's waiting may spoil one."""

_Key: TypeAlias = tuple[Any, ...]
"""(images come from the host, batch size, rule and request): what a graph is captured for."""


class TensorRtNetwork(Network):
    """One engine of the bundle.

    Each call takes a slot, a stream with buffers of its own, so that calls from several threads run at the same time.
    Each slot keeps one execution context per batch size, the last four, since a graph is tied to its context's state.
    On its second use a combination of batch size and request is captured as a CUDA graph: copy in, network and kernel
    are then one launch.

    Args:
        bundle: the bundle.
        flavor: ``tensorrt`` or ``tensorrt_rtx``.
        options: precision, device and slots.

    Raises:
        EngineError, EngineMismatchError, GateError: see :func:`wgap.runtime.engine.preflight`.
        BackendError: if there is no such GPU, or the library refuses the plan.
        DataError: if ``threads`` or ``memory_limit`` are given, which have no meaning here.
        MissingDependencyError: if the library or cuda-core is not installed.
    """

    context: Context

    def __init__(self, bundle: Bundle, flavor: str, options: NetworkOptions) -> None:
        options.require_only(flavor, "device", "slots")
        host = Host.here(flavor, options.device)
        entry = engine_file(bundle, host, options.precision, options.rule)
        self.device = gpu(options.device).ordinal
        made = about(entry)
        self.name, self.precision, self.version = flavor, options.precision, host.version
        self.largest = made.profile.max
        self.graphs = flavor == "tensorrt"  # TensorRT-RTX compiles kernels as it runs
        self.failures = 0
        model = bundle.manifest.model
        self.outputs = built_outputs(bundle, entry)
        self.shapes = {name: model.signature()[name].extents for name in ("image", *self.outputs)}
        self._library, self._log = host.library, library_log(host.library)
        self._free: list[_Slot] = []
        self._made, self._slots, self._closed = 0, options.slots or SLOTS, False
        self._changed = threading.Condition()
        self.context = Context(self.device)
        with self.context:  # which the library checks the plan against
            plan = preflight(bundle, entry.path, host, ungated=options.ungated, rule=options.rule)
            self._plan_bytes = len(plan)
            self._runtime = host.library.Runtime(self._log)
            if made.options.get("version_compatible"):
                self._runtime.engine_host_code_allowed = True  # such a plan brings the runtime it needs
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise BackendError(f"{flavor} {host.version} refuses {bundle.root / entry.path}: {self.reason()}")
            if made.options.get("strip_weights"):
                source = bundle.model_file(options.precision, ungated=True)
                self._refit(bundle.content(source), bundle.root / source.path)
            require_signature(model, _tensors(self._engine), str(bundle.root / entry.path), outputs=self.outputs)

    def reason(self) -> str:
        """What the library reported last at severity ERROR."""
        return "; ".join(self._log.errors[-3:]) or "it gives no reason"

    def _refit(self, graph: bytes, onnx: Path) -> None:
        """Give a plan without weights those of the file it was built from, which the preflight has compared."""
        refitter = self._library.Refitter(self._engine, self._log)
        parser = self._library.OnnxParserRefitter(refitter, self._log)
        if not parser.refit_from_bytes(graph) or not refitter.refit_cuda_engine():
            raise BackendError(f"{self.name} {self.version} cannot refit its engine from {onnx}: {self.reason()}")

    @contextmanager
    def _slot(self, stream: int | None) -> Iterator[_Slot]:
        """A slot that nobody else uses, in the current context; waits until one is free."""
        if self._closed:
            raise BackendError(f"this {self.name} session was closed; open another")
        with self._changed:
            while not self._free and self._made >= self._slots:
                self._changed.wait()
            found = self._free.pop() if self._free else None
            self._made += found is None
        try:
            with self.context:
                if found is None:
                    found = _Slot(self, self._engine)
                try:
                    yield found
                except BaseException:  # nothing may still run in buffers that the next call takes
                    with contextlib.suppress(BackendError):
                        call("cuStreamSynchronize", found.stream if stream is None else stream)
                    raise
        finally:
            with self._changed:
                if found is None:
                    self._made -= 1
                else:
                    self._free.append(found)
                self._changed.notify()

    @contextmanager
    def forward(
        self, images: Any, stream: int | None = None, outputs: Sequence[str] | None = None
    ) -> Iterator[Outputs]:
        """See :meth:`wgap.runtime.network.Network.forward`; all outputs of the engine lie on the device anyway."""
        given = require_batch(images, self.shapes["image"], self.context.device)
        with self._slot(stream) as slot:
            slot.take(given, stream)
            yield slot.forward(int(given.shape[0]), not isinstance(given, DeviceArray), stream)

    def locate_part(self, images: Any, locator: Locator, request: Request, stream: int | None) -> list[list[BoxRecord]]:
        """Network and kernel on one stream; only the records come back."""
        if not isinstance(locator, CudaLocator) or locator.kernel.context is not self.context:
            return super().locate_part(images, locator, request, stream)
        given = require_batch(images, self.shapes["image"], self.context.device)
        with self._slot(stream) as slot:
            slot.take(given, stream)
            return slot.records(int(given.shape[0]), not isinstance(given, DeviceArray), locator, request, stream)

    def memory(self) -> dict[str, int]:
        """Bytes of buffers and launches, of the plan's weights, and what each execution context asks for."""
        with self._changed:
            contexts = sum(len(slot.contexts) for slot in self._free)
        each = int(getattr(self._engine, "device_memory_size_v2", 0) or getattr(self._engine, "device_memory_size", 0))
        return {**self.context.held, "engine": self._plan_bytes, "execution_contexts": contexts * each}

    def close(self) -> None:
        """Free everything on the device; no call may be under way."""
        if self._closed:
            return
        self._closed = True
        with self._changed:
            slots, self._free, self._made = self._free, [], 0
        with self.context:
            for slot in slots:
                slot.close()
            self._engine = self._runtime = None
        self.context.close()

    def __del__(self) -> None:
        if hasattr(self, "context"):
            with contextlib.suppress(Exception):  # the driver may be gone at exit, and a destructor has no caller
                self.close()


class _Slot:
    """A stream, buffers for the largest batch, and for each batch size an execution context, launches and graphs."""

    def __init__(self, owner: TensorRtNetwork, engine: Any) -> None:
        self.owner: TensorRtNetwork = weakref.proxy(owner)  # a cycle would keep a dropped session on the GPU
        self._engine = engine
        self.device: dict[str, Memory] = {}
        self.contexts: dict[int, Any] = {}
        self._staging: Memory | None = None
        self._launches: OrderedDict[_Key, Launch] = OrderedDict()  # the last used one last
        self._graphs: dict[_Key, Any] = {}  # None: has run, so that the library has chosen what to run
        self.stream = int(call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING))
        try:
            for name, shape in owner.shapes.items():
                size = (owner.largest or 1) * prod(shape) * (1 if name == "image" else 4)
                self.device[name] = Memory(owner.context, size)
        except BaseException:
            self.close()
            raise

    def take(self, images: Any, stream: int | None) -> None:
        """A batch into the slot's own buffers, whose addresses graphs hold.

        From the host into pinned memory, which a copy engine and a graph can read; on the device from buffer to buffer.
        """
        if isinstance(images, DeviceArray):
            if stream is None:
                wait_for(images)
            target = self.stream if stream is None else stream
            call("cuMemcpyDtoDAsync", self.device["image"].pointer, images.pointer, prod(images.shape), target)
            return
        import numpy as np

        if self._staging is None:
            self._staging = Memory(self.owner.context, self.device["image"].size, pinned=True)
        source = np.ascontiguousarray(images)
        self._staging.view()[: source.nbytes] = source.reshape(-1).data

    def forward(self, count: int, staged: bool, stream: int | None) -> Outputs:
        """The batch that was taken through the network, waited for."""
        target = self.stream if stream is None else stream
        self._enqueue(count, staged, target)
        call("cuStreamSynchronize", target)
        shapes = {name: (count, *self.owner.shapes[name]) for name in self.owner.outputs}
        return {
            name: DeviceArray(self.device[name].pointer, shape, READY, self, context=self.owner.context)
            for name, shape in shapes.items()
        }

    def records(
        self, count: int, staged: bool, locator: CudaLocator, request: Request, borrowed: int | None
    ) -> list[list[BoxRecord]]:
        """The batch that was taken through network and kernel."""
        key: _Key = (
            staged, count, locator.kernel, locator.size, locator.rule, replace(request, classes=None),
            request.classes is None,
        )  # fmt: skip
        self._context(count)  # may drop the launches of another batch size
        launch = self._launch(key, locator, request)
        launch.choose(request.classes)
        stream = self.stream if borrowed is None else borrowed
        graph = self._graph(key, launch) if self.owner.graphs else None
        if graph is None:
            self._enqueue(count, staged, stream)
            launch.enqueue(stream)
        else:
            call("cuGraphLaunch", graph, stream)
        call("cuStreamSynchronize", stream)
        self._graphs.setdefault(key)
        return launch.records()

    def _launch(self, key: _Key, locator: CudaLocator, request: Request) -> Launch:
        """The launch for a key."""
        if key in self._launches:
            self._launches.move_to_end(key)
            return self._launches[key]
        if len(self._launches) >= MOST_LAUNCHES:
            self._drop(next(iter(self._launches)))
        rule = locator.rule
        names = {name: name for name in rule.outputs} | ({"picture": "image"} if rule.reads_picture else {})
        shapes = {name: (key[1], *self.owner.shapes[own]) for name, own in names.items()}
        launch = Launch(locator.kernel, shapes, locator.size, rule, request)
        launch.bind({name: self.device[own].pointer for name, own in names.items()}, rule)
        self._launches[key] = launch
        return launch

    def _context(self, count: int) -> Any:
        """The execution context for a batch size, whose state nothing changes afterwards."""
        if count in self.contexts:
            return self.contexts[count]
        if len(self.contexts) >= MOST_BATCHES:
            self._forget(next(iter(self.contexts)))
        context = self._engine.create_execution_context()
        if context is None:
            raise BackendError(f"{self.owner.name} makes no execution context: {self.owner.reason()}")
        shape = (count, *self.owner.shapes["image"])
        if not context.set_input_shape("image", shape):
            raise BackendError(f"{self.owner.name} takes no batch of shape {shape}: {self.owner.reason()}")
        for name, memory in self.device.items():
            context.set_tensor_address(name, memory.pointer)
        self.contexts[count] = context
        return context

    def _drop(self, key: _Key) -> None:
        """Drop a launch and its graph."""
        if (graph := self._graphs.pop(key, None)) is not None:
            call("cuGraphExecDestroy", graph)
        self._launches.pop(key).close()

    def _forget(self, count: int) -> None:
        """Drop a batch size: its graphs, its launches, then its context."""
        for key in [key for key in self._launches if key[1] == count]:
            self._drop(key)
        self.contexts.pop(count, None)

    def _enqueue(self, count: int, staged: bool, stream: int) -> None:
        """Copy in what is staged, then the network."""
        shape = (count, *self.owner.shapes["image"])
        context = self._context(count)
        if staged and self._staging is not None:
            call("cuMemcpyHtoDAsync", self.device["image"].pointer, self._staging.pointer, prod(shape), stream)
        if not context.execute_async_v3(stream):
            raise BackendError(f"{self.owner.name} failed on a batch of shape {shape}: {self.owner.reason()}")

    def _graph(self, key: _Key, launch: Launch) -> Any:
        """The graph of this combination; None where it has not run yet or cannot be captured."""
        if key not in self._graphs or self._graphs[key] is not None:
            return self._graphs.get(key)
        try:
            self._graphs[key] = self._capture(key, launch)
        except BackendError as error:
            self.owner.failures += 1
            if self.owner.failures == _MOST_FAILURES:
                self.owner.graphs = False
                warnings.warn(
                    f"{self.owner.name} cannot be captured into a CUDA graph ({error}); it goes on without graphs",
                    RuntimeWarning, stacklevel=2,
                )  # fmt: skip
        return self._graphs[key]

    def _capture(self, key: _Key, launch: Launch) -> Any:
        staged, count = key[:2]
        captured = None
        try:
            with capture_lock:
                mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
                call("cuStreamBeginCapture", self.stream, mode)
                try:
                    self._enqueue(count, staged, self.stream)
                    launch.enqueue(self.stream)
                finally:  # a capture must be ended whatever happened within it
                    captured = call("cuStreamEndCapture", self.stream)
            return call("cuGraphInstantiate", captured, 0)
        finally:
            if captured is not None:
                call("cuGraphDestroy", captured)

    def close(self) -> None:
        """Free its memory; nothing may run on its stream."""
        for count in list(self.contexts):
            self._forget(count)
        for memory in (*self.device.values(), *([self._staging] if self._staging else [])):
            memory.close()
        call("cuStreamDestroy", self.stream)
        self._engine = None  # outputs that somebody still holds keep the slot, and must not keep the engine


def _tensors(engine: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name to dtype and shape of an engine's inputs and outputs."""
    names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
    return {n: (dtype_name(engine.get_tensor_dtype(n)), tuple(engine.get_tensor_shape(n))) for n in names}
