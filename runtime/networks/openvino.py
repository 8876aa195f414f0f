"""OpenVINO: the bundle's ONNX files on Intel and AMD CPUs, and by name on the devices of its other plugins."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.bundle import open_regular
from wgap.errors import BackendError, DataError, GateError, MissingDependencyError
from wgap.manifest import ModelInfo, require_signature
from wgap.onnx_wire import require_self_contained
from wgap.runtime.cache import cache_folder, read_cached, require_own, write_cached
from wgap.runtime.cpus import allowed_cpus
from wgap.runtime.network import Network, Outputs, require_host
from wgap.runtime.networks.onnxruntime import require_equal_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wgap.bundle import Bundle
    from wgap.runtime.networks import NetworkOptions

__all__ = ["HINTS", "OpenVinoNetwork", "file_network", "open_bundle"]

HINTS = ("latency", "throughput")

KEPT = 4
"""Batch sizes that stay compiled, those used last."""

_ABLE = "OPTIMIZATION_CAPABILITIES"

_DTYPES = {"u8": "uint8", "f32": "float32"}

_log = logging.getLogger("wgap.openvino")


class OpenVinoNetwork(Network):
    """The model compiled for batches of one size each; any number of calls may run at once.

    Args:
        content: gives the ONNX file's bytes, the same each time.
        path: what messages call it.
        model: whose inputs and outputs it must have.
        options: precision, threads, device, hint and streams.

    Raises:
        BackendError: there is no such device, it has not the precision, or OpenVINO refuses the file.
        BundleError: the file's inputs and outputs are not the model's.
        DataError: the hint is unknown.
        MissingDependencyError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(self, content: Callable[[], bytes], path: Path, model: ModelInfo, options: NetworkOptions) -> None:
        try:
            import openvino
        except ModuleNotFoundError as error:
            if error.name != "openvino":
                raise
            raise MissingDependencyError(
                "the openvino backend needs OpenVINO, which is not installed: pip install 'wgap[openvino]'"
            ) from error
        self._library, self._path, self._model, self._content = openvino, path, model, content
        self.precision, self.version = options.precision, str(openvino.get_version()).partition("-")[0]
        self.outputs = tuple(tensor.name for tensor in model.outputs)
        with _signal_stack_kept():
            self._core = openvino.Core()
            self.plugin = self._plugin(options.device)
            self.properties = self._properties(options)
        whole = content()
        self._digest, self._graph = hashlib.sha256(whole).hexdigest(), None
        self._compiled: OrderedDict[int, _Compiled] = OrderedDict()
        self._lock = threading.Lock()
        self._cache = self._open_cache()
        if self.plugin != "CPU" and self._cache is not None:  # OpenVINO knows what its other plugins' models depend on
            self.properties["CACHE_DIR"], self._cache = str(self._cache), None
        self._for(1, whole)  # the usual batch: what can fail does so now

    @contextmanager
    def forward(
        self, images: Any, stream: int | None = None, outputs: Sequence[str] | None = None
    ) -> Iterator[Outputs]:
        """See :meth:`wgap.runtime.network.Network.forward`."""
        import numpy as np

        require_host(self, images, stream)
        compiled = self._for(len(images))
        request = compiled.take()
        try:
            shared = np.require(images, requirements=["C", "W"])  # what a Tensor can share; else a copy
            request.set_tensor("image", self._library.Tensor(shared, shared_memory=True))
            request.infer()
            given = {name: request.get_tensor(name).data for name in (self.outputs if outputs is None else outputs)}
        except (RuntimeError, TypeError, ValueError) as error:
            raise BackendError(f"OpenVINO failed on a batch of shape {tuple(images.shape)}: {error}") from error
        try:
            yield given
        finally:
            compiled.idle.append(request)

    def run(self, images: Any, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """See :meth:`wgap.runtime.network.Network.run`; copies, since the request's memory is used again."""
        with self.forward(images, outputs=outputs) as given:
            return {name: value.copy() for name, value in given.items()}

    def close(self) -> None:
        """Free the compiled models; no call may be under way."""
        self._compiled.clear()
        self._graph = None

    def _plugin(self, device: int | str | None) -> str:
        """The plugin's name for a device: CPU where none is named."""
        there = list(self._core.available_devices)
        names = {name.partition(".")[0] for name in there} | set(there)
        if device is not None and device not in names:
            raise BackendError(f"OpenVINO has no device {device!r} here; expected one of: {', '.join(sorted(names))}")
        return "CPU" if device is None else str(device)

    def _properties(self, options: NetworkOptions) -> dict[str, str]:
        """What the model is compiled with: the file's own types, whatever else the processor could compute in."""
        if (hint := options.hint or HINTS[0]) not in HINTS:
            raise DataError(f"hint: expected {' or '.join(HINTS)}, got {hint!r}")
        able = self._core.get_property(self.plugin, _ABLE)
        if options.precision == "bf16" and "BF16" not in able:
            raise BackendError(
                f"{self._path}: {self.plugin} ({self._core.get_property(self.plugin, 'FULL_DEVICE_NAME')}) does not "
                "compute in bfloat16, and OpenVINO would take float32 in its place; run another precision here"
            )
        # Without a hint, a processor that has bfloat16 computes float32 models in it.
        half = options.precision == "fp16" and self.plugin != "CPU"
        found = {"INFERENCE_PRECISION_HINT": "f16" if half else "f32", "PERFORMANCE_HINT": hint.upper()}
        if self.plugin == "CPU":
            allowed = allowed_cpus()
            threads = options.threads or (allowed if allowed < (os.cpu_count() or 1) else 0)  # 0: physical cores
            found["INFERENCE_NUM_THREADS"] = str(threads)
        elif options.threads is not None:
            raise DataError(f"threads= are the CPU's, and the device is {self.plugin}; leave them out")
        if options.streams is not None:
            found["NUM_STREAMS"] = str(options.streams)
        return found

    def _open_cache(self) -> Path | None:
        """The folder for compiled models; None, with a warning, where nothing can be written."""
        folder = cache_folder() / "openvino"
        try:
            require_own(folder.parent, "compiled models are kept there")
            require_own(folder, "compiled models are kept there")
        except OSError as error:
            _log.warning("%s: compiled models cannot be kept (%s); name a folder in WGAP_CACHE", folder, error.strerror)
            return None
        return folder

    def _for(self, count: int, content: bytes | None = None) -> _Compiled:
        """The model compiled for batches of that size."""
        with self._lock:
            if count not in self._compiled:
                with _signal_stack_kept():
                    self._compiled[count] = _Compiled(self._compile(count, content))
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(count)
            return self._compiled[count]

    def _compile(self, count: int, content: bytes | None) -> Any:
        try:
            path = self._cache and self._cache / f"{self._key(count)}.blob"
            if path is not None and (blob := read_cached(path)) is not None:
                compiled = self._core.import_model(blob, self.plugin, self.properties)
                require_signature(self._model, _signature(self._model, compiled, count), str(self._path))
            else:
                graph = self._read(content)
                graph.reshape({"image": [count, *self._model.signature()["image"].extents]})
                compiled = self._core.compile_model(graph, self.plugin, self.properties)
                if path is not None:
                    self._keep(path, compiled)
        except RuntimeError as error:
            raise self._refused(error) from error
        ran = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if ran != (asked := self.properties["INFERENCE_PRECISION_HINT"]):
            raise BackendError(f"{self._path}: OpenVINO {self.version} computes in {ran} on {self.plugin}, not {asked}")
        return compiled

    def _read(self, content: bytes | None) -> Any:
        """The graph, its batch free, read once."""
        if self._graph is None:
            graph = self._core.read_model(content or self._content(), b"")
            require_signature(self._model, _signature(self._model, graph), str(self._path))
            self._graph = graph
        return self._graph

    def _keep(self, path: Path, compiled: Any) -> None:
        try:
            blob = compiled.export_model()
            write_cached(path, blob if isinstance(blob, bytes) else blob.getvalue())
        except OSError as error:
            _log.warning("%s could not be kept (%s)", path, error.strerror)

    def _key(self, count: int) -> str:
        """Of what a compiled model is made: the file, OpenVINO, the device, and how it is compiled."""
        processor = [self._core.get_property(self.plugin, name) for name in ("FULL_DEVICE_NAME", _ABLE)]
        made_of = (self._digest, self._library.get_version(), processor, self.properties, count)
        return hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]

    def _refused(self, error: Exception) -> BackendError:
        return BackendError(
            f"OpenVINO {self.version} refuses {self._path}: {str(error).strip()}. If the file is damaged, copy the "
            "bundle again or export it again"
        )


class _SignalStack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Leave the thread its alternate signal stack: OpenVINO sets one to ask for AMX and frees it.

    Python's handlers run there, so that the next signal, Ctrl-C or a child's end, would end the process.
    """
    libc, kept = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(kept))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(kept), None)


class _Compiled:
    """A compiled model, and those of its requests that no call holds."""

    def __init__(self, model: Any) -> None:
        self.model, self.idle = model, list[Any]()

    def take(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            return self.model.create_infer_request()


def open_bundle(bundle: Bundle, name: str, options: NetworkOptions) -> OpenVinoNetwork:
    """Open the bundle's ONNX file of that precision.

    Raises:
        GateError: see :meth:`wgap.bundle.Bundle.model_file`; or it was judged on the CPU and is to run elsewhere, or
            INT8 on a processor that sums exactly, and this one does not.
        BackendError, DataError, GateError, MissingDependencyError: see :class:`OpenVinoNetwork`.
    """
    options.require_only(name, "threads", "device", "hint", "streams")
    entry = bundle.model_file(options.precision, options.ungated, options.rule, name)
    if options.precision != "fp32" and options.device not in (None, "CPU") and not options.ungated:
        raise GateError(
            f"{bundle.root / entry.path}: its gate ran on the CPU, which says nothing of {options.device}; run fp32 "
            "there, or pass ungated=True (--ungated) to run it all the same"
        )
    if options.precision == "int8" and not options.ungated:
        require_equal_sums(bundle, entry, options.rule, name)
    return OpenVinoNetwork(lambda: bundle.content(entry), bundle.root / entry.path, bundle.manifest.model, options)


def file_network(bundle: Bundle, path: Path, options: NetworkOptions) -> OpenVinoNetwork:
    """A file with the bundle's inputs and outputs as a network, whether the bundle lists it or not.

    Raises:
        BackendError, DataError, GateError, MissingDependencyError: see :class:`OpenVinoNetwork`.
    """

    def content() -> bytes:
        with open_regular(path) as stream:
            whole = stream.read()
        require_self_contained(whole, path)
        return whole

    return OpenVinoNetwork(content, path, bundle.manifest.model, options)


def _signature(model: ModelInfo, graph: Any, batch: int | None = None) -> Mapping[str, tuple[str, Sequence[Any]]]:
    """The graph's types and shapes under the model's names; a compiled one has a batch in place of a free extent."""
    found = {}
    ports = {name: port for port in (*graph.inputs, *graph.outputs) for name in port.get_names()}
    for name in model.signature():
        if (port := ports.get(name)) is None:
            continue
        kind = port.get_element_type().get_type_name()
        shape = [extent.get_length() if extent.is_static else None for extent in port.get_partial_shape()]
        if batch is not None and shape[0] == batch:
            shape[0] = None
        found[name] = _DTYPES.get(kind, kind), shape
    return found
