"""What runs the network: images in, named outputs out, in host memory or on a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from wgap.errors import BackendError, DataError, FeatureError
from wgap.manifest import ModelInfo, require_signature
from wgap.runtime.cuda.arrays import DeviceArray, device_array, on_device, require_gpu, to_host

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap._native import BoxRecord
    from wgap.runtime.cuda.driver import Context
    from wgap.runtime.locator import Locator, Request

__all__ = ["CallableNetwork", "Network", "Outputs"]

Outputs: TypeAlias = Mapping[str, Any]
"""Outputs by name: NumPy arrays in host memory, or :class:`wgap.runtime.cuda.arrays.DeviceArray`."""


class Network(ABC):
    """The forward pass of one bundle. May be called from several threads at once.

    Attributes:
        name: of the backend, such as ``onnxruntime``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``: the file that was opened.
        version: of the library underneath.
        device: ordinal of the GPU where its outputs lie; None for host memory.
        context: the CUDA context they lie in; None for host memory.
        largest: images that one forward pass takes at most; None for any number.
        outputs: names of what it gives: ``logits``, ``features``, ``foreground``; empty where that is not known.
    """

    name: str
    precision: str
    version: str
    device: int | None = None
    context: Context | None = None
    largest: int | None = None
    outputs: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self, images: Any, stream: int | None = None, outputs: Sequence[str] | None = None
    ) -> AbstractContextManager[Outputs]:
        """Run one batch; the outputs are valid inside the ``with``.

        Args:
            images: uint8[N, H, W, 3] RGB at the input size of the bundle, C-contiguous, 1 <= N <= ``largest``; in host
                memory or, where ``device`` is not None, on that GPU.
            stream: of images on a GPU: handle of the stream they were made on, which the work is queued on; None takes
                one of the network's own, which first waits for the stream that the array names.
            outputs: those that are wanted; None for all. Others may be left out, and are then not fetched.

        Raises:
            BackendError: if the library fails to run the model.
            FeatureError: if images on a GPU are not as above.
        """

    def locate(
        self, images: Any, locator: Locator, request: Request, stream: int | None = None
    ) -> list[list[BoxRecord]]:
        """The network, and the locator behind it: one list of records for each image, each with its own status.

        Raises:
            as :meth:`forward` and :meth:`wgap.runtime.locator.Locator.locate`.
        """
        found: list[list[BoxRecord]] = []
        if int(images.shape[0]) == 0:
            return found
        for rows, part in self.parts(images):
            found += self.locate_part(part, locator, request.rows(rows), stream)
        return found

    def locate_part(self, images: Any, locator: Locator, request: Request, stream: int | None) -> list[list[BoxRecord]]:
        """:meth:`locate` for at most ``largest`` images; a network overrides it that can queue the kernel behind it."""
        with self.forward(images, stream, locator.rule.outputs) as outputs:
            return locator.locate({**outputs, "picture": images}, request)

    def run(self, images: Any, outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        """Outputs in host memory, the caller's; see :meth:`forward`."""
        import numpy as np

        parts = []
        for _, part in self.parts(images):
            with self.forward(part, outputs=outputs) as given:
                parts.append({name: to_host(value) for name, value in given.items()})
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def parts(self, images: Any) -> Iterator[tuple[slice, Any]]:
        """A batch, as many rows at a time as a forward pass takes; arrays on a GPU as :class:`DeviceArray`."""
        images = device_array(images, "uint8", "NHWC", "images") if on_device(images) else images
        count = int(images.shape[0])
        if self.largest is None or count <= self.largest:
            yield slice(0, count), images
            return
        for start in range(0, count, self.largest):
            rows = slice(start, min(start + self.largest, count))
            yield rows, images[rows]

    def memory(self) -> dict[str, int]:
        """Bytes that it holds, ``device`` on the GPU and ``pinned`` on the host; empty where nothing is counted."""
        return {}

    def close(self) -> None:
        """Free what it holds; no call may be under way."""
        return


class CallableNetwork(Network):
    """A function of one's own as a network.

    Args:
        function: uint8[N, H, W, 3] to a mapping with ``logits`` float32[N, K], ``features`` float32[N, C, h, w] and,
            for foreground rules, ``foreground`` float32[N, 1, h', w'], C-contiguous, in host memory. What a rule does
            not read may be missing.
        model: whose inputs and outputs they are; None leaves that to the kernel.
        name: what messages and reports call it.
        precision: likewise.
        version: likewise.

    Raises:
        DataError: if ``function`` cannot be called.
    """

    def __init__(
        self,
        function: Callable[[Any], Outputs],
        model: ModelInfo | None = None,
        name: str = "callable",
        precision: str = "fp32",
        version: str = "",
    ) -> None:
        if not callable(function):
            raise DataError(f"network: expected a Network or a function of images, got {type(function).__name__}")
        self.name, self.precision, self.version = name, precision, version
        self._function, self._model = function, model

    @contextmanager
    def forward(
        self, images: Any, stream: int | None = None, outputs: Sequence[str] | None = None
    ) -> Iterator[Outputs]:
        """See :meth:`Network.forward`; errors of the function pass through."""
        require_host(self, images, stream)
        made = self._function(images)
        if not isinstance(made, Mapping):
            raise BackendError(f"{self.name}: expected a mapping of names to arrays, got a {type(made).__name__}")
        for name, value in made.items():
            if not hasattr(value, "shape") or not hasattr(value, "dtype"):
                raise BackendError(f"{self.name}: {name} is a {type(value).__name__}; expected an array, as NumPy's")
        if self._model is not None:
            found = {name: (str(value.dtype), ("N", *value.shape[1:])) for name, value in made.items()}
            tensors = {tensor.name: (tensor.dtype, tensor.shape) for tensor in self._model.inputs}
            wanted = {*made, *(outputs or ())}
            require_signature(self._model, {**found, **tensors}, self.name, "give what it promises", wanted)
            if wrong := [name for name, value in made.items() if len(value) != len(images)]:
                raise BackendError(f"{self.name}: {wrong[0]} has {len(made[wrong[0]])} rows for {len(images)} images")
        yield made


def require_batch(images: Any, extents: tuple[int, ...], device: int) -> Any:
    """Images for a network on a GPU, on the host or there, then as :class:`wgap.runtime.cuda.arrays.DeviceArray`.

    Raises:
        FeatureError: they are not uint8 of these extents, or lie on another GPU.
    """
    given = device_array(images, "uint8", "NHWC", "images") if on_device(images) else images
    shape = tuple(given.shape)
    if str(given.dtype) != "uint8" or len(shape) != 4 or shape[1:] != extents:
        raise FeatureError(f"images: expected uint8{['N', *extents]}, got {given.dtype}{list(shape)}")
    if isinstance(given, DeviceArray):
        require_gpu(given, device, "images", "network")
    return given


def no_device(network: Network) -> DataError:
    """What to say where images on a GPU are given to a network that is not there."""
    return DataError(f"images on the GPU need a backend that is there too; {network.name} takes images in host memory")


def require_host(network: Network, images: Any, stream: int | None) -> None:
    """Refuse images on a GPU.

    Raises:
        DataError: they are there, or a stream was given.
    """
    if stream is not None or on_device(images):
        raise no_device(network)
