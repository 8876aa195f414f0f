"""A run on a GPU, with the device's own time."""

from __future__ import annotations

from math import prod

from wgap.evaluate.latency import STAGES, Run, Settings
from wgap.images import decode, resize
from wgap.runtime.cuda.arrays import DeviceArray
from wgap.runtime.cuda.driver import READY, Memory, call, driver
from wgap.runtime.localizer import Localizer
from wgap.runtime.locator import Request
from wgap.runtime.network import no_device

__all__ = ["GpuRun"]


class GpuRun(Run):
    """:class:`Run` on a GPU. Its stage ``gpu`` is the time between two CUDA events, from images there to boxes.

    Where ``settings.transfers`` is false, ``total`` begins with those images too: nothing is decoded, resized or copied
    there, and only records come back.

    Args:
        as of :class:`Run`.

    Raises:
        DataError: the network is not on a GPU.
        BackendError: the device failed.
    """

    def __init__(self, localizer: Localizer, settings: Settings, encoded: bytes, open_ms: float | None = None) -> None:
        super().__init__(localizer, settings, encoded, open_ms)
        if localizer.network.context is None:
            raise no_device(localizer.network)
        self.stages = (*(STAGES[:-1] if settings.transfers else ()), "gpu", "total")
        self._context = localizer.network.context
        shape = (settings.batch, *localizer.bundle.manifest.model.input_size, 3)
        image = resize(decode(encoded), *shape[1:3])
        with self._context:
            self._memory = Memory(self._context, prod(shape))
            for n in range(settings.batch):
                call("cuMemcpyHtoD", self._memory.pointer + n * image.nbytes, image.ctypes.data, image.nbytes)
            self._stream = int(call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING))
            self._events = [call("cuEventCreate", 0) for _ in range(2)]
        self._images = DeviceArray(
            self._memory.pointer, shape, READY, self._memory, "uint8", self._context, self._context.device
        )

    def call(self) -> None:
        """Images on the GPU in, or bytes, and boxes out."""
        if self.settings.transfers:
            super().call()
        else:
            self.localizer.batch(self._images)

    def once(self) -> tuple[float, ...]:
        """See :meth:`Run.once`."""
        *parts, total = super().once() if self.settings.transfers else (self.whole(),)
        return (*parts, self._gpu_ms(), total)

    def _gpu_ms(self) -> float:
        start, end = self._events
        with self._context:
            call("cuEventRecord", start, self._stream)
            self.localizer.network.locate(self._images, self.localizer.locator, Request(), self._stream)
            call("cuEventRecord", end, self._stream)
            call("cuEventSynchronize", end)
            return float(call("cuEventElapsedTime", start, end))

    def close(self) -> None:
        """Free what it holds on the device."""
        with self._context:
            for event in self._events:
                call("cuEventDestroy", event)
            call("cuStreamDestroy", self._stream)
            self._memory.close()
