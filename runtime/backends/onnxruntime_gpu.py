"""ONNX Runtime on an NVIDIA GPU, with its CUDA or its TensorRT provider; features and logits stay on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wgap.errors import BackendError, MissingDependencyError
from wgap.runtime.backends.onnxruntime import OnnxRuntimeBackend, session_backend
from wgap.runtime.cuda.arrays import device_array, on_device
from wgap.runtime.cuda.driver import call
from wgap.runtime.cuda.postprocess import CudaPostprocess, Options, wait_for

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap._native import BoxRecord

__all__ = ["OnnxRuntimeGpuBackend", "open_cuda", "open_tensorrt"]

_PROVIDERS = {"onnxruntime_cuda": "CUDAExecutionProvider", "onnxruntime_tensorrt": "TensorrtExecutionProvider"}


class OnnxRuntimeGpuBackend(OnnxRuntimeBackend):
    """A :class:`wgap.runtime.backends.DeviceBackend` over one session of ONNX Runtime.

    Args:
        bundle: the bundle.
        name: ``onnxruntime_cuda`` or ``onnxruntime_tensorrt``.
        precision: which of the bundle's models.
        ungated: run a lower-precision file whose gate failed or never ran.
        device: CUDA device number.

    Raises:
        BackendError: if the provider is not in this build of ONNX Runtime or does not start, or there is no GPU;
            nothing runs on the CPU instead.
        GateError, BundleError: see :func:`wgap.runtime.backends.onnxruntime.open_bundle`.
        MissingDependencyError: if ONNX Runtime or cuda-core is not installed.
    """

    def __init__(self, bundle: Bundle, name: str, precision: str, ungated: bool = False, device: int = 0) -> None:
        path = bundle.root / bundle.model_file(precision, ungated).path
        wanted = _PROVIDERS[name]
        # TF32 is the provider's default: off, so that float32 is float32. TensorRT leaves some nodes to CUDA.
        providers: list[Any] = [("CUDAExecutionProvider", {"device_id": device, "use_tf32": 0})]
        if name == "onnxruntime_tensorrt":
            providers.insert(0, (wanted, {"device_id": device}))
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingDependencyError(f"{name} needs ONNX Runtime for GPUs: pip install 'wgap[gpu]'") from error
        if wanted not in (offered := onnxruntime.get_available_providers()):
            raise BackendError(
                f"this build of ONNX Runtime has no {wanted}; it has: {', '.join(offered)}. "
                "Install onnxruntime-gpu in place of onnxruntime: pip install 'wgap[gpu]'"
            )
        getattr(onnxruntime, "preload_dlls", lambda: None)()  # CUDA and cuDNN from wheels, where they are wheels
        self.kernel = CudaPostprocess(bundle.classifier()[0], device, primary=True)  # which ONNX Runtime works in
        settings = {"session.disable_cpu_ep_fallback": "1"}
        network = session_backend(bundle, path, precision, None, providers, settings)
        super().__init__(network.session, precision, network.version, network.failures)
        self.name, self._device = name, device
        if wanted not in (started := self.session.get_providers()):
            raise BackendError(
                f"{wanted} did not start and ONNX Runtime would run on {', '.join(started)}; check "
                "that CUDA, cuDNN and TensorRT are the versions that onnxruntime-gpu was built for"
            )

    def records(self, images: Any, options: Options, stream: int | None = None) -> list[list[BoxRecord]]:
        """As :meth:`wgap.runtime.backends.tensorrt.TensorRtBackend.records`; the network runs on ONNX Runtime's stream.

        Raises:
            FeatureError: an image's features or logits are not finite; its index is named.
            BackendError: the library or the device failed.
        """
        import numpy as np

        binding = self.session.io_binding()
        if on_device(images):
            given = device_array(images, "uint8", "NHWC", "images")
            with self.kernel.context:
                wait_for(given) if stream is None else call("cuStreamSynchronize", stream)
            binding.bind_input("image", "cuda", self._device, np.uint8, list(given.shape), given.pointer)
        else:
            binding.bind_cpu_input("image", np.ascontiguousarray(images))
        for name in ("logits", "features"):
            binding.bind_output(name, "cuda", self._device)
        try:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except self.failures as error:
            raise BackendError(f"ONNX Runtime failed on a batch of shape {tuple(images.shape)}: {error}") from error
        logits, features = binding.get_outputs()
        with self.kernel.context:
            return self.kernel.run(features.data_ptr(), logits.data_ptr(), features.shape(), options, stream)

    def close(self) -> None:
        """Free what is on the device; no call may be under way."""
        self.session = None
        self.kernel.close()


def open_cuda(
    bundle: Bundle, precision: str = "fp32", threads: int | None = None, ungated: bool = False
) -> OnnxRuntimeGpuBackend:
    """The bundle's model on ONNX Runtime's CUDA provider; ``threads`` has no meaning here."""
    return OnnxRuntimeGpuBackend(bundle, "onnxruntime_cuda", precision, ungated)


def open_tensorrt(
    bundle: Bundle, precision: str = "fp32", threads: int | None = None, ungated: bool = False
) -> OnnxRuntimeGpuBackend:
    """The bundle's model on ONNX Runtime's TensorRT provider, the rest on CUDA."""
    return OnnxRuntimeGpuBackend(bundle, "onnxruntime_tensorrt", precision, ungated)
