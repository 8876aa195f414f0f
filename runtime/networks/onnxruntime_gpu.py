"""ONNX Runtime on an NVIDIA GPU, with its CUDA or its TensorRT provider; the outputs stay on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from wgap.errors import BackendError, MissingDependencyError
from wgap.runtime.cuda.arrays import DeviceArray
from wgap.runtime.cuda.driver import READY, Context, call, wait_for
from wgap.runtime.library import gpu
from wgap.runtime.network import require_batch
from wgap.runtime.networks.onnxruntime import OnnxRuntimeNetwork, open_session

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.runtime.network import Outputs
    from wgap.runtime.networks import NetworkOptions

__all__ = ["OnnxRuntimeGpuNetwork"]

_PROVIDERS = {"onnxruntime_cuda": "CUDAExecutionProvider", "onnxruntime_tensorrt": "TensorrtExecutionProvider"}

MEMORY_LIMIT = 4 << 30
"""Bytes that a session's arena may hold on the GPU, by default; the library's own default has no limit."""


class OnnxRuntimeGpuNetwork(OnnxRuntimeNetwork):
    """One session of ONNX Runtime on a GPU, in the device's primary context.

    Raises:
        BackendError: if the provider is not in this build of ONNX Runtime or does not start, or there is no such GPU;
            nothing runs on the CPU instead.
        DataError: if ``threads`` or ``slots`` are given, which have no meaning here.
        GateError, BundleError: see :func:`wgap.runtime.networks.onnxruntime.open_bundle`.
        MissingDependencyError: if ONNX Runtime or cuda-core is not installed.
    """

    context: Context

    def __init__(self, bundle: Bundle, name: str, options: NetworkOptions) -> None:
        options.require_only(name, "device", "memory_limit")
        entry = bundle.model_file(options.precision, options.ungated, options.rule)
        wanted = _PROVIDERS[name]
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingDependencyError(f"{name} needs ONNX Runtime for GPUs: pip install 'wgap[gpu]'") from error
        if wanted not in (offered := onnxruntime.get_available_providers()):
            raise BackendError(
                f"this build of ONNX Runtime has no {wanted}; it has: {', '.join(offered)}. "
                "Install onnxruntime-gpu in place of onnxruntime: pip install 'wgap[gpu]'"
            )
        device, self._extents = gpu(options.device).ordinal, bundle.manifest.model.signature()["image"].extents
        getattr(onnxruntime, "preload_dlls", lambda: None)()  # CUDA and cuDNN from wheels, where they are wheels
        self.memory_limit = MEMORY_LIMIT if options.memory_limit is None else options.memory_limit
        session = open_session(
            bundle.root / entry.path, bundle.manifest.model, None, _providers(name, device, self.memory_limit),
            {"session.disable_cpu_ep_fallback": "1"}, content=bundle.content(entry),
        )  # fmt: skip
        super().__init__(session, options.precision, name)
        if wanted not in (started := session.get_providers()):
            raise BackendError(
                f"{wanted} did not start and ONNX Runtime would run on {', '.join(started)}; check "
                "that CUDA, cuDNN and TensorRT are the versions that onnxruntime-gpu was built for"
            )
        self.device, self.context = device, Context(device, primary=True)
        self.advice = f". It may hold {self.memory_limit} bytes on the GPU; memory_limit= raises that"

    @contextmanager
    def forward(
        self, images: Any, stream: int | None = None, outputs: Sequence[str] | None = None
    ) -> Iterator[Outputs]:
        """See :meth:`wgap.runtime.network.Network.forward`; the network runs on ONNX Runtime's own stream."""
        import numpy as np

        if self.session is None:
            raise BackendError(f"this {self.name} session was closed; open another")
        binding, given = self.session.io_binding(), require_batch(images, self._extents, self.context.device)
        if isinstance(given, DeviceArray):
            with self.context:
                wait_for(given) if stream is None else call("cuStreamSynchronize", stream)
            binding.bind_input("image", "cuda", self.device, np.uint8, list(given.shape), given.pointer)
        else:
            binding.bind_cpu_input("image", np.ascontiguousarray(given))
        names = list(self.outputs if outputs is None else outputs)
        for name in names:
            binding.bind_output(name, "cuda", self.device)
        with self.translated(images):
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        values = binding.get_outputs()
        yield {
            name: DeviceArray(v.data_ptr(), tuple(v.shape()), READY, v, context=self.context)
            for name, v in zip(names, values, strict=True)
        }

    def memory(self) -> dict[str, int]:
        """Bytes of the kernel, and the bound of the session, since ONNX Runtime does not report what it holds."""
        return {**self.context.held, "device_limit": self.memory_limit}

    def close(self) -> None:
        """Free what is on the device; no call may be under way."""
        if self.session is not None:
            self.session = None
            self.context.close()


def _providers(name: str, device: int, limit: int) -> list[Any]:
    """TF32 is the CUDA provider's default: off, so that float32 is float32. TensorRT leaves some nodes to CUDA."""
    cuda = {
        "device_id": device, "use_tf32": 0, "gpu_mem_limit": limit, "arena_extend_strategy": "kSameAsRequested",
    }  # fmt: skip
    providers: list[Any] = [("CUDAExecutionProvider", cuda)]
    if name == "onnxruntime_tensorrt":
        providers.insert(0, (_PROVIDERS[name], {"device_id": device, "trt_max_workspace_size": limit}))
    return providers
