"""Networks by name: a bundle's model on ONNX Runtime, OpenVINO, TensorRT or TensorRT-RTX."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wgap.errors import BackendError, DataError

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.rule import Rule
    from wgap.runtime.network import Network

__all__ = ["BACKENDS", "NetworkOptions", "open_network"]

BACKENDS = {
    "auto": "wgap.runtime.networks.auto:open_bundle",
    "onnxruntime": "wgap.runtime.networks.onnxruntime:open_bundle",
    "openvino": "wgap.runtime.networks.openvino:open_bundle",
    "onnxruntime_cuda": "wgap.runtime.networks.onnxruntime_gpu:OnnxRuntimeGpuNetwork",
    "onnxruntime_tensorrt": "wgap.runtime.networks.onnxruntime_gpu:OnnxRuntimeGpuNetwork",
    "tensorrt": "wgap.runtime.networks.tensorrt:TensorRtNetwork",
    "tensorrt_rtx": "wgap.runtime.networks.tensorrt:TensorRtNetwork",
}
"""Name of each backend, and what opens it, called with (bundle, name, options); modules load on first use."""


@dataclass(frozen=True)
class NetworkOptions:
    """How to open a network. What has no meaning for a backend is refused by it.

    Attributes:
        precision: which of the bundle's model files to run.
        ungated: run a lower-precision file even if its gate failed or never ran.
        rule: that the boxes will be made under, which a gate must have judged; None for the bundle's own.
        threads: CPU threads of one forward pass; None leaves the choice to the library (all cores).
        device: a GPU's ordinal, or its UUID as ``nvidia-smi -L`` prints it; None for the first. Of OpenVINO a
            plugin's device, such as ``GPU``; None for the CPU.
        slots: how many calls may be on the GPU at the same time; further ones wait. None for 4.
        memory_limit: bytes that ONNX Runtime may hold on the GPU; None for 4 GiB.
        hint: what OpenVINO compiles for, ``latency`` or ``throughput``; None for latency.
        streams: forward passes that OpenVINO runs side by side; None follows the hint.
    """

    precision: str = "fp32"
    ungated: bool = False
    rule: Rule | None = None
    threads: int | None = None
    device: int | str | None = None
    slots: int | None = None
    memory_limit: int | None = None
    hint: str | None = None
    streams: int | None = None

    def require_only(self, backend: str, *names: str) -> None:
        """Refuse the machine's options that are given but not among ``names``.

        Raises:
            DataError: naming the option and the backend.
        """
        for name in ("threads", "device", "slots", "memory_limit", "hint", "streams"):
            if name not in names and getattr(self, name) is not None:
                have = " and ".join(f"{known}=" for known in names) or "none of these options"
                raise DataError(f"the backend {backend} has no {name}=; it takes {have}")


def open_network(name: str, bundle: Bundle, options: NetworkOptions | None = None) -> Network:
    """The network of that backend over a bundle.

    Raises:
        BackendError: if the name is unknown, the library refuses the model, or there is no such GPU.
        DataError: if an option has no meaning for this backend.
        GateError: if the file's gate failed, never ran or judged another rule, unless ``options.ungated``.
        BundleError: if the bundle has no such file, or its inputs and outputs are not those of the manifest.
        MissingDependencyError: if the library is not installed.
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; expected one of: {', '.join(sorted(BACKENDS))}")
    module, _, opener = BACKENDS[name].partition(":")
    network: Network = getattr(importlib.import_module(module), opener)(bundle, name, options or NetworkOptions())
    return network
