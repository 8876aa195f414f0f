"""The backend for a bundle's model on this machine, at the precision asked for, by the rule of docs/runtime.md."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from wgap.errors import EngineError, GateError, MissingDependencyError
from wgap.runtime.engine import Host, about, engine_file, engines, mismatches
from wgap.runtime.library import gpus

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.runtime.network import Network
    from wgap.runtime.networks import NetworkOptions

__all__ = ["ON_CPU", "open_bundle"]

ON_CPU = {
    "fp32": ("onnxruntime", "openvino"),
    "fp16": ("onnxruntime", "openvino"),
    "bf16": ("openvino",),
    "int8": ("openvino", "onnxruntime"),
}
"""Backends for each precision on a CPU, the faster one first. Measured: docs/results.md; C++ has the same table."""

_log = logging.getLogger("wgap.auto")


def open_bundle(bundle: Bundle, name: str, options: NetworkOptions) -> Network:
    """Open the first backend that can run the model: an engine on a GPU, else the first of :data:`ON_CPU`.

    One is passed over whose library is not installed or whose gate has not passed the model, and an engine that does
    not fit; the log says so. Any other error is an error.

    Raises:
        GateError, MissingDependencyError: of the last backend, where none is left.
        BackendError, BundleError, DataError: see :func:`wgap.runtime.networks.open_network`.
    """
    from wgap.runtime.networks import open_network

    on_cpu = ON_CPU.get(options.precision, ON_CPU["fp32"])
    candidates = (*_flavors(bundle, options), *on_cpu)
    for backend in candidates:
        try:
            network = open_network(backend, bundle, options)
        except (GateError, MissingDependencyError) as error:
            _log.info("%s %s is passed over: %s", backend, options.precision, error)
            if backend == candidates[-1]:
                raise
        else:
            _log.info("%s %s runs %s", network.name, options.precision, bundle.root)
            return network
    raise AssertionError(candidates)  # the last one has returned or raised


def _flavors(bundle: Bundle, options: NetworkOptions) -> list[str]:
    """Those with an engine that fits this GPU."""
    if options.threads is not None or options.hint is not None or options.streams is not None:
        return []  # options of the CPU
    found = []
    for flavor in ("tensorrt", "tensorrt_rtx"):
        if not any((about(e).flavor, e.precision) == (flavor, options.precision) for e in engines(bundle)):
            continue
        try:
            if not gpus():
                raise EngineError("there is no GPU")
            host = Host.here(flavor, options.device)
            entry = engine_file(bundle, host, options.precision, options.rule)
            if rows := mismatches(bundle, entry, host, rule=options.rule):
                raise EngineError("; ".join(f"{row.what}: {row.expected}, not {row.found}" for row in rows))
            found.append(flavor)
        except (EngineError, MissingDependencyError) as error:
            _log.info("%s %s is passed over: %s", flavor, options.precision, error)
    return found
