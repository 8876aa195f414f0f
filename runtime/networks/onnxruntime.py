"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.bundle import open_regular
from wgap.errors import BackendError, GateError, MissingDependencyError
from wgap.manifest import BundleFile, ModelInfo, require_signature
from wgap.onnx_wire import require_self_contained
from wgap.runtime.cpus import allowed_cpus, int8_sums
from wgap.runtime.network import Network, Outputs, require_host

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.rule import Rule
    from wgap.runtime.networks import NetworkOptions

__all__ = [
    "OnnxRuntimeNetwork", "file_network", "library_errors", "open_bundle", "open_session", "require_equal_sums",
]  # fmt: skip

LOWEST = (1, 23)
"""ONNX Runtime's oldest version that this package is tested with, as its metadata declares."""

_ADVICE = (
    "If the file is damaged, copy the bundle again or export it again",
    "On a GPU: check that the provider finds CUDA, cuDNN and TensorRT in the versions that onnxruntime-gpu was built "
    "for, and that this version has a GPU kernel for every operator of the file; nothing runs on the CPU instead",
)
_SILENT = 4  # the library's own log; whatever it has to say about a failure is in the exception


class OnnxRuntimeNetwork(Network):
    """One inference session on the CPU; sessions may be shared between threads."""

    advice = ""
    """What messages about a failed batch end with."""

    def __init__(self, session: Any, precision: str, name: str = "onnxruntime") -> None:
        import onnxruntime

        self.name, self.precision, self.version = name, precision, str(onnxruntime.__version__)
        self.session = session
        self.outputs = tuple(output.name for output in session.get_outputs())
        self._failures = library_errors()

    @contextmanager
    def forward(
        self, images: Any, stream: int | None = None, outputs: Sequence[str] | None = None
    ) -> Iterator[Outputs]:
        """See :meth:`wgap.runtime.network.Network.forward`."""
        require_host(self, images, stream)
        names = list(self.outputs if outputs is None else outputs)
        with self.translated(images):
            values = self.session.run(names, {"image": images})
        yield dict(zip(names, values, strict=True))

    @contextmanager
    def translated(self, images: Any) -> Iterator[None]:
        """Turn the library's exceptions into a BackendError."""
        try:
            yield
        except self._failures as error:
            raise BackendError(
                f"ONNX Runtime failed on a batch of shape {tuple(images.shape)}: {error}{self.advice}"
            ) from error


def open_bundle(bundle: Bundle, name: str, options: NetworkOptions) -> OnnxRuntimeNetwork:
    """Open the bundle's ONNX file of that precision on the CPU.

    Raises:
        GateError: see :meth:`wgap.bundle.Bundle.model_file`; or INT8 was judged on a processor that sums exactly, and
            this one does not.
        BackendError: if ONNX Runtime refuses the file, for instance because it is cut short.
        BundleError: if the bundle has no such file, or its inputs and outputs are not those of the manifest.
        DataError: if an option names a GPU.
        MissingDependencyError: if ONNX Runtime is not installed.
    """
    options.require_only(name, "threads")
    entry = bundle.model_file(options.precision, options.ungated, options.rule)
    path = bundle.root / entry.path
    if options.precision == "bf16":
        raise BackendError(
            f"{path}: ONNX Runtime's CPU provider has no bfloat16 convolution; run it as an engine (`wgap build "
            f"{bundle.root} --precision bf16`, backend tensorrt or tensorrt_rtx), or run another precision here"
        )
    if options.precision == "int8" and not options.ungated:
        require_equal_sums(bundle, entry, options.rule)
    session = open_session(path, bundle.manifest.model, options.threads, content=bundle.content(entry))
    return OnnxRuntimeNetwork(session, options.precision)


def require_equal_sums(bundle: Bundle, entry: BundleFile, rule: Rule | None, backend: str = "onnxruntime") -> None:
    """Refuse a file on a processor that saturates INT8's sums if the backend's gate ran on one that does not.

    Raises:
        GateError: it did, or what it ran on is not recorded.
    """
    gate = entry.verdict(backend)
    judged = gate.int8_sums if gate else None
    if int8_sums() == "saturating" != judged:
        where = "one that sums exactly" if judged else "a processor that is not recorded"
        raise GateError(
            f"{bundle.root / entry.path}: this processor has no VNNI, so INT8's sums saturate and boxes move; the gate "
            f"ran on {where}. Run {bundle.gate_command('int8', rule, backend)} here, or "
            "pass ungated=True (--ungated) to run it all the same"
        )


def file_network(bundle: Bundle, path: Path, precision: str, threads: int | None = None) -> OnnxRuntimeNetwork:
    """A file with the bundle's inputs and outputs as a network on the CPU, whether the bundle lists it or not.

    Raises:
        BackendError, BundleError, MissingDependencyError: see :func:`open_session`.
    """
    return OnnxRuntimeNetwork(open_session(path, bundle.manifest.model, threads), precision)


def open_session(
    path: Path,
    model: ModelInfo | None,
    threads: int | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    settings: Mapping[str, str] | None = None,
    optimised: Path | None = None,
    content: bytes | None = None,
    lean: bool = False,
) -> Any:
    """An ``onnxruntime.InferenceSession``; every session of this package is made here.

    Args:
        path: the ONNX file.
        model: whose inputs and outputs the file must have; None for any.
        threads: of one forward pass; None takes every core that affinity and control group leave to the process.
        providers: as ONNX Runtime takes them.
        settings: session configuration entries.
        optimised: write the optimised graph there.
        content: of the file, where it has been read already: what was hashed is what runs.
        lean: hold the weights once, without the file and a second layout: ONNX Runtime reads the path itself, and its
            convolutions are slower.

    Raises:
        BackendError: if ONNX Runtime refuses the file.
        BundleError: if its inputs and outputs are not the model's, or some of its values lie in another file.
        MissingDependencyError: if ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise MissingDependencyError(
            "the onnxruntime backend needs ONNX Runtime, which is not installed: pip install 'wgap[cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _SILENT
    allowed = allowed_cpus()
    options.intra_op_num_threads = threads or (allowed if allowed < (os.cpu_count() or 1) else 0)  # 0: physical cores
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    if lean:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    elif content is None:
        with open_regular(path) as stream:
            content = stream.read()
        require_self_contained(content, path)
    try:
        session = onnxruntime.InferenceSession(str(path) if lean else content, options, providers=list(providers))
    except library_errors() as error:
        version = onnxruntime.__version__
        advice = _ADVICE[tuple(providers) != ("CPUExecutionProvider",)]
        if tuple(map(int, version.split(".")[:2])) < LOWEST or "max supported IR version" in str(error):
            lowest = ".".join(map(str, LOWEST))
            advice = f"This ONNX Runtime is too old: expected {lowest} or newer, pip install --upgrade onnxruntime"
        raise BackendError(f"ONNX Runtime {version} refuses {path}: {error}. {advice}") from error
    session._model_bytes = None  # the wrapper keeps the file for providers that are set later, and none are
    if model is not None:
        arguments = (*session.get_inputs(), *session.get_outputs())
        require_signature(model, {arg.name: (_dtype(arg.type), arg.shape) for arg in arguments}, str(path))
    return session


def library_errors() -> tuple[type[Exception], ...]:
    """The library's exceptions, which share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    members = (getattr(state, name) for name in dir(state))
    return tuple(m for m in members if isinstance(m, type) and issubclass(m, Exception))


def _dtype(kind: str) -> str:
    """``tensor(float)`` as ``float32``."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
