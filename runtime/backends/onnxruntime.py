"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wgap.errors import BackendError, BundleError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from wgap.bundle import Bundle

__all__ = ["OnnxRuntimeBackend", "open_bundle"]

_ADVICE = (
    "If the file is damaged, copy the bundle again or export it again",
    "On a GPU: check that the provider finds CUDA, cuDNN and TensorRT in the versions that onnxruntime-gpu was built "
    "for, and that this version has a GPU kernel for every operator of the file; nothing runs on the CPU instead",
)
_SILENT = 4  # the library's own log; whatever it has to say about a failure is in the exception


class OnnxRuntimeBackend:
    """A :class:`wgap.runtime.backends.Backend` over one inference session; sessions may be shared between threads."""

    name = "onnxruntime"

    def __init__(self, session: Any, precision: str, version: str, failures: tuple[type[Exception], ...]) -> None:
        self.precision = precision
        self.version = version
        self.session = session
        self.failures = failures

    def run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Forward uint8[N, H, W, 3] to logits float32[N, K] and features float32[N, C, h, w]."""
        try:
            logits, features = self.session.run(["logits", "features"], {"image": images})
        except self.failures as error:
            raise BackendError(f"ONNX Runtime failed on a batch of shape {images.shape}: {error}") from error
        return logits, features


def open_bundle(
    bundle: Bundle, precision: str = "fp32", threads: int | None = None, ungated: bool = False
) -> OnnxRuntimeBackend:
    """Open the bundle's ONNX file of that precision on the CPU.

    Raises:
        GateError: if the file's gate failed or never ran, unless ``ungated``.
        BackendError: if ONNX Runtime refuses the file, for instance because it is cut short.
        BundleError: if the bundle has no such file, or its inputs and outputs are not those of the manifest.
        MissingDependencyError: if ONNX Runtime is not installed.
    """
    path = bundle.root / bundle.model_file(precision, ungated).path
    if precision == "bf16":
        raise BackendError(
            f"{path}: ONNX Runtime's CPU provider has no bfloat16 convolution; run it as an engine (`wgap build "
            f"{bundle.root} --precision bf16`, backend tensorrt or tensorrt_rtx), or run another precision here"
        )
    return session_backend(bundle, path, precision, threads)


def session_backend(
    bundle: Bundle,
    path: Path,
    precision: str,
    threads: int | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    settings: dict[str, str] | None = None,
) -> OnnxRuntimeBackend:
    """A file with the bundle's inputs and outputs as a backend, whether the bundle lists it or not.

    Args:
        bundle: whose inputs and outputs the file must have.
        path: the ONNX file.
        precision: what it is called.
        threads: of one forward pass; None takes every core.
        providers: as ONNX Runtime takes them.
        settings: session configuration entries.

    Raises:
        BackendError, BundleError, MissingDependencyError: see :func:`open_bundle`.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise MissingDependencyError(
            "the onnxruntime backend needs ONNX Runtime, which is not installed: pip install 'wgap[cpu]'"
        ) from error
    failures = library_errors()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads or 0
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except failures as error:
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} refuses {path}: {error}. {_ADVICE[settings is not None]}"
        ) from error
    _check_signature(session, bundle, path)
    return OnnxRuntimeBackend(session, precision, str(onnxruntime.__version__), failures)


def library_errors() -> tuple[type[Exception], ...]:
    """The library's exceptions, which share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    members = (getattr(state, name) for name in dir(state))
    return tuple(m for m in members if isinstance(m, type) and issubclass(m, Exception))


def _check_signature(session: Any, bundle: Bundle, path: Path) -> None:
    model = bundle.manifest.model
    expected = {
        "image": ("tensor(uint8)", [*model.input_size, 3]),
        "logits": ("tensor(float)", [len(model.classes)]),
        "features": ("tensor(float)", list(model.feature_shape)),
    }
    found = {arg.name: (arg.type, list(arg.shape)) for arg in (*session.get_inputs(), *session.get_outputs())}
    for name, (dtype, shape) in expected.items():
        if name not in found or found[name][0] != dtype or found[name][1][1:] != shape:
            got = "no such tensor" if name not in found else f"{found[name][0]} {found[name][1]}"
            raise BundleError(
                f"{path}: the manifest promises {name} {dtype} {['N', *shape]}, got {got}; export the bundle again"
            )
    batch = found["image"][1][0]
    if isinstance(batch, int):
        raise BundleError(f"{path}: expected a dynamic batch, got {batch}; export the bundle again")
