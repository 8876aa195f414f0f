"""Images in, classes and boxes out: decoding, resizing, the forward pass and the kernel behind one callable."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast, overload

from wgap.bundle import Bundle
from wgap.errors import DataError, FeatureError, ImageError, WgapError
from wgap.geometry import scaled
from wgap.images import decode, resize
from wgap.runtime.backends import Backend, DeviceBackend, open_backend
from wgap.runtime.localization import Failure, Localization

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.runtime.cuda.postprocess import Options
    from wgap.runtime.postprocess import BoxRecord, Map

__all__ = ["Failure", "Localization", "Localizer"]

Image: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8]"
"""A path, the bytes of an image file, or a decoded image uint8[H, W, 3] RGB (any object NumPy can view as one)."""


_Find: TypeAlias = "Callable[[slice, Sequence[int] | None], list[list[BoxRecord]]]"
"""Records of some rows of a batch, for the given classes."""


class _Prepared(NamedTuple):
    """One image at the network's input size, or the reason why it is not."""

    image: str | None  # its path
    label: str  # what messages call it
    size: tuple[int, int]  # original (height, width)
    class_id: int | None
    pixels: Any  # uint8[H, W, 3], or None
    error: WgapError | None


class Localizer:
    """Localizes objects with a bundle.

    ::

        localizer = Localizer("bundle/")
        for result in localizer(["a.jpg", "b.jpg"]):
            print(result.class_name, result.score, result.box)

    One localizer may be called from several threads at once: nothing in it changes after construction, and results do
    not depend on batch size or threads beyond what the backend's own float32 sums do.

    Args:
        bundle: a bundle folder, or one already opened (then taken as verified).
        backend: ``onnxruntime`` on the CPU; ``onnxruntime_cuda``, ``onnxruntime_tensorrt``, ``tensorrt`` or
            ``tensorrt_rtx`` on an NVIDIA GPU, where the kernel runs behind the network (docs/gpu.md).
        precision: which of the bundle's model files to run: ``fp32``; ``int8``, ``fp16`` or ``bf16`` once calibrated.
        threads: of the forward pass and of the kernel; None lets the backend take every core, the kernel one.
        top_k: how many classes to localize per image, when no class is given.
        map: ``recombined`` (Eq. 3), ``positive`` or ``signed``; None takes the manifest's.
        threshold: ``adaptive`` (Sec. 4.3) or ``fixed:ETA`` with ETA in [0, 1); None takes the manifest's.
        batch_size: images per forward pass. 1 has the lowest latency and, on a CPU, nearly the highest throughput.
        verify: compare every file of the bundle with its hash before anything is loaded.
        ungated: run a lower-precision file even if its gate failed or never ran.

    Raises:
        GateError: the lower-precision file's gate failed or never ran, and ``ungated`` is false.
        BundleError: the bundle is incomplete, inconsistent, or one of its files was changed (HashMismatchError).
        BackendError: the backend is unknown or refuses the model.
        DataError: an option is out of range.
        MissingDependencyError: the backend's library is not installed.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        backend: str = "onnxruntime",
        *,
        precision: str = "fp32",
        threads: int | None = None,
        top_k: int = 1,
        map: Map | None = None,  # noqa: A002  (the method's word for it)
        threshold: str | None = None,
        batch_size: int = 1,
        verify: bool = True,
        ungated: bool = False,
    ) -> None:
        from wgap.runtime.postprocess import Classifier

        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle), verify=verify)
        info, defaults = self.bundle.manifest.model, self.bundle.manifest.postprocessing
        self.classes: tuple[str, ...] = info.classes
        self.map = cast("Map", map or defaults.map)  # the kernel judges it below
        self.threshold = threshold or defaults.threshold
        self.top_k = _in_range("top_k", top_k, 1, len(self.classes))
        self.batch_size = _in_range("batch_size", batch_size, 1, 4096)
        self.threads = None if threads is None else _in_range("threads", threads, 1, 4096)
        self.backend: Backend = open_backend(backend, self.bundle, precision, self.threads, ungated)
        self._classifier = Classifier(self.bundle.classifier()[0])
        self._input_size = info.input_size
        self._class_ids = {name: index for index, name in enumerate(self.classes)}
        self._check_options(info.feature_shape[0])

    def _check_options(self, channels: int) -> None:
        """Let the kernel judge map and threshold now, on a flat map, rather than at the first image."""
        import numpy as np

        try:
            self.boxes(np.zeros((1, len(self.classes)), np.float32), np.zeros((1, channels, 1, 1), np.float32))
        except ValueError as error:
            raise DataError(str(error)) from error

    @overload
    def __call__(
        self,
        images: Image | Iterable[Image],
        classes: int | str | Iterable[int | str] | None = ...,
        heatmap: bool = ...,
        *,
        on_error: Literal["raise"] = ...,
    ) -> Iterator[Localization]: ...
    @overload
    def __call__(
        self,
        images: Image | Iterable[Image],
        classes: int | str | Iterable[int | str] | None = ...,
        heatmap: bool = ...,
        *,
        on_error: Literal["yield"],
    ) -> Iterator[Localization | Failure]: ...
    def __call__(
        self,
        images: Image | Iterable[Image],
        classes: int | str | Iterable[int | str] | None = None,
        heatmap: bool = False,
        *,
        on_error: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Localization | Failure]:
        """Localize images, lazily: one result per image, in order.

        Args:
            images: one image, a batch uint8[N, H, W, 3], or any iterable of images; a generator is consumed one batch
                at a time. Arrays are RGB.
            classes: the class to localize, by id or name, for all images or one per image (``GT-known``); None takes
                the top-1, or the ``top_k`` best.
            heatmap: also return the normalised map of each result.
            on_error: ``yield`` puts a :class:`Failure` in the place of an image that cannot be localized and goes on;
                ``raise`` raises its error when the iteration reaches it.

        Raises:
            ImageError: an image is missing, damaged, or not uint8[H, W, 3].
            FeatureError: the network gave NaN or infinity for an image; the message names it.
            DataError: a class is unknown, or there are fewer classes than images.
            BackendError: the forward pass failed.
        """
        if on_error not in ("raise", "yield"):
            raise DataError(f"on_error must be 'raise' or 'yield', got {on_error!r}")
        return self._results(_each(images), self._each_class(classes), heatmap, on_error == "raise")

    def one(self, image: Image, class_: int | str | None = None, heatmap: bool = False) -> Localization:
        """Localize one image; arguments and errors as in :meth:`__call__`."""
        item = self._prepare(0, image, None if class_ is None else self._class_id(class_))
        found = self._localize([item], heatmap)[0]
        if isinstance(found, Failure):
            raise found.error
        return found

    def _results(
        self, images: Iterator[Image], class_ids: Iterator[int | None], heatmap: bool, raising: bool
    ) -> Iterator[Localization | Failure]:
        numbered = enumerate(images)
        while batch := list(islice(numbered, self.batch_size)):
            items = [self._prepare(index, image, _following(class_ids, index)) for index, image in batch]
            for result in self._localize(items, heatmap):
                if raising and isinstance(result, Failure):
                    raise result.error
                yield result

    def _prepare(self, index: int, image: Image, class_id: int | None) -> _Prepared:
        """Decode and resize one image; the only work outside the graph before it."""
        path = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        label = f"image {index}" if path is None else path
        try:
            pixels = _pixels(image, label)
            height, width = int(pixels.shape[0]), int(pixels.shape[1])
            if (height, width) != self._input_size:
                pixels = resize(pixels, *self._input_size)
        except WgapError as error:
            return _Prepared(path, label, (0, 0), class_id, None, error)
        return _Prepared(path, label, (height, width), class_id, pixels, None)

    def _localize(self, items: Sequence[_Prepared], heatmap: bool) -> list[Localization | Failure]:
        """The forward pass and the kernel on the images of one batch that could be prepared."""
        import numpy as np

        good = [item for item in items if item.error is None]
        found: Iterator[Localization | Failure] = iter(())
        if good:
            batch = good[0].pixels[None] if len(good) == 1 else np.stack([item.pixels for item in good])
            found = iter(self._results_of(good, self._finder(batch, heatmap)))
        return [next(found) if item.error is None else Failure(item.image, item.error) for item in items]

    def boxes(
        self,
        logits: NDArray[np.float32],
        features: NDArray[np.float32],
        classes: Sequence[int] | None = None,
        heatmap: bool = False,
    ) -> list[list[BoxRecord]]:
        """The kernel alone: what a backend returned to boxes in map pixels, with this localizer's settings.

        Args:
            logits: float32[N, K].
            features: float32[N, C, h, w].
            classes: N class ids, or None for the top-1 (or the ``top_k`` best).
            heatmap: also return the normalised maps.

        Returns:
            for each image its classes, best first.

        Raises:
            FeatureError: NaN or infinity in features or logits, or shapes that do not fit the bundle.
        """
        from wgap.runtime.postprocess import postprocess

        return postprocess(
            features,
            logits,
            self._classifier,
            size=self._input_size,
            classes=classes,
            top_k=1 if classes is not None else self.top_k,
            map=self.map,
            threshold=self.threshold,
            heatmaps=heatmap,
            threads=self.threads or 1,
        )

    def _finder(self, batch: Any, heatmap: bool) -> _Find:
        """The kernel on rows of a batch that has been, or on a GPU will be, forwarded."""
        backend = self.backend
        if isinstance(backend, DeviceBackend):
            return lambda rows, classes: backend.records(batch[rows], self._options(classes, heatmap))
        logits, features = backend.run(batch)
        return lambda rows, classes: self.boxes(logits[rows], features[rows], classes, heatmap)

    def _results_of(self, items: Sequence[_Prepared], find: _Find, first: int = 0) -> list[Localization | Failure]:
        """Kernel results of consecutive rows as records; an image with NaN or infinity fails alone."""
        given = [item.class_id for item in items if item.class_id is not None]
        try:
            found = find(slice(first, first + len(items)), given or None)
        except FeatureError as error:
            if len(items) == 1:
                return [Failure(items[0].image, FeatureError(f"{items[0].label}: {_cause(error)}"))]
            return [self._results_of([item], find, first + n)[0] for n, item in enumerate(items)]
        return [self._record(item, *records) for item, records in zip(items, found, strict=True)]

    def _options(self, classes: Sequence[int] | None, heatmap: bool) -> Options:
        from wgap.runtime.cuda.postprocess import Options

        top_k = 1 if classes is not None else self.top_k
        return Options(self._input_size, self.map, self.threshold, top_k, classes, heatmap)

    def batch(
        self,
        images: Any,
        classes: int | str | Iterable[int | str] | None = None,
        heatmap: bool = False,
        stream: int | None = None,
    ) -> list[Localization]:
        """Localize images that already lie on the GPU, without a copy to the host.

        Args:
            images: uint8[N, H, W, 3] RGB at the network's input size, C-contiguous: anything with
                ``__cuda_array_interface__`` or DLPack (PyTorch, CuPy, PyCUDA's GPUArray).
            classes: as in :meth:`__call__`.
            heatmap: likewise.
            stream: handle of the stream that the images were made on and that the work is to be queued on; None takes
                one of the backend's own, which first waits for them. The call returns when the boxes are known.

        Returns:
            one result per image, in order; boxes in pixels of the given images.

        Raises:
            FeatureError: the array does not fit, or the network gave NaN or infinity for an image; it is named.
            DataError: a class is unknown, or there are not as many as images; or the backend is not on a GPU.
            BackendError: the device failed.
        """
        if not isinstance(self.backend, DeviceBackend):
            raise DataError(
                f"images on the GPU need a backend that is there too; {self.backend.name} takes images in host memory"
            )
        class_ids = self._each_class(classes)
        count = int(images.shape[0])
        ids = [_following(class_ids, n) for n in range(count)]
        given = None if classes is None else cast("list[int]", ids)
        found = self.backend.records(images, self._options(given, heatmap), stream)
        item = _Prepared(None, "", self._input_size, None, None, None)
        return [self._record(item, *records) for records in found]

    def close(self) -> None:
        """Free what the backend holds on a GPU; without one there is nothing to free. No call may be under way."""
        if isinstance(self.backend, DeviceBackend):
            self.backend.close()

    def _record(self, item: _Prepared, best: BoxRecord, *others: BoxRecord) -> Localization:
        import numpy as np

        return Localization(
            class_id=best.class_id,
            class_name=self.classes[best.class_id],
            score=best.score,
            box=scaled(best.box, self._input_size, item.size),
            threshold=best.threshold,
            level=best.level,
            degenerate=best.degenerate,
            heatmap=None if best.heatmap is None else np.asarray(best.heatmap),
            others=tuple(self._record(item, other) for other in others),
            image=item.image,
        )

    def _each_class(self, classes: int | str | Iterable[int | str] | None) -> Iterator[int | None]:
        if classes is None:
            return repeat(None)
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            return repeat(self._class_id(classes))
        return map(self._class_id, classes)

    def _class_id(self, given: int | str) -> int:
        """The index of a class given by index or by name."""
        if isinstance(given, str):
            if given in self._class_ids:
                return self._class_ids[given]
        elif hasattr(given, "__index__") and 0 <= operator.index(given) < len(self.classes):
            return operator.index(given)
        names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        raise DataError(f"no class {given!r}; expected a name ({names}) or an id of 0..{len(self.classes) - 1}")


def _each(images: Image | Iterable[Image]) -> Iterator[Image]:
    """One image, a batch or an iterable as an iterator of images."""
    if isinstance(images, str | os.PathLike | bytes | bytearray):
        return iter((images,))
    if _is_array(images):
        import numpy as np

        array = np.asarray(images)
        return iter(array if array.ndim == 4 else (array,))
    if not isinstance(images, Iterable) or isinstance(images, memoryview):
        raise ImageError(f"expected a path, an image, a batch or an iterable of them, got {type(images).__name__}")
    return iter(images)


def _is_array(value: Any) -> bool:
    return isinstance(value, memoryview) or hasattr(value, "__array_interface__") or hasattr(value, "__array__")


def _pixels(image: Image, label: str) -> NDArray[np.uint8]:
    """One image as C-contiguous uint8[H, W, 3], decoded if need be."""
    if isinstance(image, str | os.PathLike | bytes | bytearray):
        return decode(image, label)
    import numpy as np

    array = np.asarray(image)
    if array.ndim == 1 and array.dtype == np.uint8:
        return decode(array.data, label)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        got = f"{array.dtype}{list(array.shape)}" if array.ndim else type(image).__name__
        raise ImageError(
            f"{label}: expected a path, the bytes of an image file, or RGB pixels uint8[H, W, 3], got {got}; "
            "convert to 0..255 bytes, three channels, channels last"
        )
    return np.ascontiguousarray(array)


def _following(class_ids: Iterator[int | None], index: int) -> int | None:
    try:
        return next(class_ids)
    except StopIteration:
        raise DataError(f"expected one class per image, got {index} classes and more images than that") from None


def _cause(error: FeatureError) -> str:
    """The kernel's message without its own name for the image, which is its place in the batch."""
    return str(error).removeprefix("image 0 of the batch: ")


def _in_range(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise DataError(f"{name} must be in {low}..{high}, got {value}")
    return value
