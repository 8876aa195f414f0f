"""Images in, classes and boxes out: decoding, resizing, the forward pass and the kernel behind one callable."""

from __future__ import annotations

import operator
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TypeAlias, cast, overload

from wgap import _native
from wgap.bundle import Bundle
from wgap.errors import DataError, FeatureError, ImageError, WgapError
from wgap.geometry import scaled
from wgap.images import Source, decode, resize
from wgap.rule import Map, Rule
from wgap.runtime.localization import Failure, Localization
from wgap.runtime.locator import Locator, Request, open_locator
from wgap.runtime.network import CallableNetwork, Network, Outputs, no_device
from wgap.runtime.networks import NetworkOptions, open_network

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from wgap._native import BoxRecord

__all__ = ["Failure", "Localization", "Localizer", "Stages", "chosen_rule"]

Image: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | NDArray[np.uint8]"
"""A path, the bytes of an image file, or a decoded image uint8[H, W, 3] RGB (any object NumPy can view as one)."""

Images: TypeAlias = "Image | Iterable[Image]"
Classes: TypeAlias = "int | str | Iterable[int | str] | None"


class _Prepared(NamedTuple):
    """One image at the network's input size, or the reason why it is not."""

    image: str | None  # its path
    label: str  # what messages call it
    size: tuple[int, int]  # original (height, width)
    class_id: int | None
    pixels: Any  # uint8[H, W, 3], or None
    error: WgapError | None


@dataclass
class Stages:
    """What a localizer's calls spent their time on, in seconds; those of several calls add up.

    Attributes:
        prepare: decoding and resizing, summed over the threads that do it.
        wait: that the network had nothing to do, for want of prepared images.
        network: forward passes and kernel.
    """

    prepare: float = 0.0
    wait: float = 0.0
    network: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, stage: str, since: float) -> None:
        """The time from ``since``, of ``perf_counter``, until now."""
        with self._lock:
            setattr(self, stage, getattr(self, stage) + perf_counter() - since)


class Localizer:
    """Localizes objects with a bundle.

    ::

        with Localizer("bundle/") as localizer:
            for result in localizer(["a.jpg", "b.jpg"]):
                print(result.class_name, result.score, result.box)

    A localizer is a network and a locator behind it. It may be called from several threads at once: nothing in it
    changes after construction, and results do not depend on batch size or threads beyond what the backend's own float32
    sums do. It can be pickled: the bundle is opened again on the other side, with the same options.

    Args:
        bundle: a bundle folder, or one already opened (then taken as verified).
        backend: ``onnxruntime`` or ``openvino`` on the CPU; ``onnxruntime_cuda``, ``onnxruntime_tensorrt``,
            ``tensorrt`` or ``tensorrt_rtx`` on an NVIDIA GPU, where the kernel runs behind the network (docs/gpu.md);
            ``auto`` for what runs best here, whose name is then in the attribute ``backend`` (docs/runtime.md).
        precision: which of the bundle's model files to run: ``fp32``; ``int8``, ``fp16`` or ``bf16`` once calibrated.
        rule: ``adaptive`` (Sec. 4.3), ``fixed:ETA`` with ETA in [0, 0.999], ``foreground``, ``foreground+colour``
            (docs/foreground.md), or a :class:`wgap.rule.Rule`; None takes the manifest's.
        map: ``recombined`` (Eq. 3), ``positive`` or ``signed``, or ``none`` of a foreground rule; None takes the
            manifest's, or the ``Rule``'s own.
        top_k: how many classes to localize per image, when no class is given.
        max_boxes: how many boxes a class may have, 1 to 64: of the heaviest components of its mask, each of at least a
            tenth of the heaviest's weight.
        batch_size: images per forward pass. 1 has the lowest latency and, on a CPU, nearly the highest throughput.
        prepare: threads that decode and resize ahead of the network, at most ``prepare + 2 * batch_size`` images, which
            must stay readable until their result is there; 0: as it needs them, in the calling thread.
        threads: CPU threads, of the forward pass and of the kernel; None lets the backend take every core, the kernel
            one. Refused by backends on GPUs.
        device: of a backend on GPUs: an ordinal, or a UUID as ``nvidia-smi -L`` prints it; None for the first GPU. Of
            OpenVINO a device by name, such as ``GPU`` or ``NPU``; None for the CPU.
        slots: of a backend on GPUs: how many calls may be on the device at the same time; None for 4.
        memory_limit: of ONNX Runtime on GPUs: bytes that it may hold; None for 4 GiB.
        hint: of OpenVINO: ``latency`` or ``throughput``; None for latency.
        streams: of OpenVINO: forward passes side by side, for calls from several threads; None follows the hint.
        verify: compare every file of the bundle with its hash before anything is loaded.
        ungated: run a lower-precision file even if its gate failed, never ran or judged another rule.
        network: a :class:`wgap.runtime.network.Network`, or a function from uint8[N, H, W, 3] to a mapping with
            the outputs that the rule reads, in place of the backend.
        locator: a :class:`wgap.runtime.locator.Locator` in place of the bundle's own; its rule is the localizer's.
        threshold: the old name of ``rule``.

    Raises:
        GateError: the lower-precision file's gate failed, never ran or judged another rule, and ``ungated`` is false.
        BundleError: the bundle is incomplete, inconsistent, or one of its files was changed (HashMismatchError).
        BackendError: the backend is unknown or refuses the model, or there is no such GPU.
        DataError: an option is out of range, or has no meaning for this backend.
        MissingDependencyError: the backend's library is not installed.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        backend: str = "onnxruntime",
        *,
        precision: str = "fp32",
        rule: Rule | str | None = None,
        map: Map | None = None,  # noqa: A002  (the method's word for it)
        top_k: int = 1,
        max_boxes: int = 1,
        batch_size: int = 1,
        prepare: int = 0,
        threads: int | None = None,
        device: int | str | None = None,
        slots: int | None = None,
        memory_limit: int | None = None,
        hint: str | None = None,
        streams: int | None = None,
        verify: bool = True,
        ungated: bool = False,
        network: Network | Callable[[Any], Outputs] | None = None,
        locator: Locator | None = None,
        threshold: str | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle), verify=verify)
        model = self.bundle.manifest.model
        if threshold is not None:
            if rule is not None:
                raise DataError("threshold= is the old name of rule=; give rule= alone")
            warnings.warn("threshold= is now rule=", DeprecationWarning, stacklevel=2)
            rule = threshold
        if locator is not None and rule is None and map is None:
            rule = locator.rule
        self.rule = chosen_rule(self.bundle, rule, map)
        self.bundle.manifest.require_rule(self.rule)
        if locator is not None and locator.rule != self.rule:
            raise DataError(
                f"the locator's rule is {locator.rule} on the {locator.rule.map} map, and {self.rule} on the "
                f"{self.rule.map} map was asked for; leave rule= and map= out, or take locator.with_rule"
            )
        self.classes: tuple[str, ...] = model.classes
        self.top_k = _in_range("top_k", top_k, 1, len(self.classes))
        self.max_boxes = _in_range("max_boxes", max_boxes, 1, _native.MAX_BOXES)
        self.batch_size = _in_range("batch_size", batch_size, 1, 4096)
        self.prepare = _in_range("prepare", prepare, 0, 1024)
        self.threads = None if threads is None else _in_range("threads", threads, 1, 1024)
        for name, value, most in (
            ("slots", slots, 1024),
            ("memory_limit", memory_limit, 1 << 50),
            ("streams", streams, 1024),
        ):
            if value is not None:
                _in_range(name, value, 1, most)
        options = NetworkOptions(precision, ungated, self.rule, threads, device, slots, memory_limit, hint, streams)
        sizes = {"top_k": top_k, "max_boxes": max_boxes, "batch_size": batch_size, "prepare": prepare}
        self._reopen = None if network or locator else (backend, options, sizes)
        if network is None:
            network = open_network(backend, self.bundle, options)
        else:
            options.require_only("of your own (network=)", "threads")
            if (backend, precision, ungated) != ("onnxruntime", "fp32", False):
                raise DataError(
                    "backend=, precision= and ungated= choose the bundle's own network; leave them out with network="
                )
        self.network = network if isinstance(network, Network) else CallableNetwork(network, model)
        try:
            self.locator = locator or open_locator(
                self.bundle, self.rule, self.network.device, threads, self.network.context
            )
        except BaseException:
            self.network.close()
            raise
        self.backend = self.network.name
        self._input_size = model.input_size
        self._class_ids = {name: index for index, name in enumerate(self.classes)}

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise TypeError(
                "a localizer over a network or locator of one's own cannot be pickled; make it where it runs"
            )
        return _reopened, (self.bundle.root.absolute(), *self._reopen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what network and locator hold on a GPU, if they are on one. No call may be under way."""
        self.locator.close()
        self.network.close()

    def memory(self) -> dict[str, int]:
        """Bytes that the session holds on a GPU, by what holds them (docs/gpu.md); empty on the CPU."""
        return self.network.memory()

    @overload
    def __call__(
        self, images: Images, classes: Classes = ..., heatmap: bool = ..., *, on_error: Literal["raise"] = ...,
        stages: Stages | None = ...,
    ) -> Iterator[Localization]: ...  # fmt: skip
    @overload
    def __call__(
        self, images: Images, classes: Classes = ..., heatmap: bool = ..., *, on_error: Literal["yield"],
        stages: Stages | None = ...,
    ) -> Iterator[Localization | Failure]: ...  # fmt: skip
    def __call__(
        self, images: Images, classes: Classes = None, heatmap: bool = False, *, on_error: str = "raise",
        stages: Stages | None = None,
    ) -> Iterator[Localization | Failure]:  # fmt: skip
        """Localize images, lazily: one result per image, in order.

        Args:
            images: one image, a batch uint8[N, H, W, 3], or any iterable of images; a generator is consumed one batch
                at a time, or as far ahead as ``prepare`` says. Arrays are RGB.
            classes: the class to localize, by id or name, for all images or one per image (``GT-known``); None takes
                the top-1, or the ``top_k`` best.
            heatmap: also return the normalised map of each result.
            on_error: ``yield`` puts a :class:`Failure` in the place of an image that cannot be localized and goes on;
                ``raise`` raises its error when the iteration reaches it.
            stages: receives what the time went to.

        Raises:
            ImageError: an image is missing, damaged, or not uint8[H, W, 3].
            FeatureError: the network gave NaN or infinity for an image; the message names it.
            DataError: a class is unknown, or there are fewer classes than images.
            BackendError: the forward pass failed.
        """
        _require_known(on_error)
        raising, stages = on_error == "raise", stages or Stages()
        return self._results(_each(images), self._each_class(classes), heatmap, raising, stages)

    def one(self, image: Image, class_: int | str | None = None, heatmap: bool = False) -> Localization:
        """Localize one image; arguments and errors as in :meth:`__call__`."""
        item = self._prepare(0, image, None if class_ is None else self._class_id(class_))
        return _raised(self._localize([item], heatmap)[0])

    def _results(
        self, images: Iterator[Image], class_ids: Iterator[int | None], heatmap: bool, raising: bool, stages: Stages
    ) -> Iterator[Localization | Failure]:
        def prepared(index: int, image: Image, class_id: int | None) -> _Prepared:
            began = perf_counter()
            try:
                return self._prepare(index, image, class_id)
            finally:
                stages.add("prepare", began)

        work = ((index, image, _following(class_ids, index)) for index, image in enumerate(images))
        items: Generator[_Prepared, None, None]
        if self.prepare:
            items = _ahead(prepared, work, self.prepare, self.prepare + 2 * self.batch_size)
        else:
            items = (prepared(*one) for one in work)
        with closing(items):
            while True:
                began = perf_counter()
                batch = list(islice(items, self.batch_size))
                stages.add("wait", began)
                if not batch:
                    return
                began = perf_counter()
                results = self._localize(batch, heatmap)
                stages.add("network", began)
                for result in results:
                    yield _raised(result) if raising else _released(result)

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
        except Exception as error:  # noqa: BLE001  # whatever an object that is taken for an image raises is that image's failure
            failed = ImageError(f"{label}: cannot be taken as an image ({type(error).__name__}: {error})")
            failed.__cause__ = error
            return _Prepared(path, label, (0, 0), class_id, None, failed)
        return _Prepared(path, label, (height, width), class_id, pixels, None)

    def _localize(self, items: Sequence[_Prepared], heatmap: bool) -> list[Localization | Failure]:
        """The forward pass and the kernel on the images of one batch that could be prepared."""
        import numpy as np

        good = [item for item in items if item.error is None]
        found: Iterator[list[BoxRecord]] = iter(())
        if good:
            batch = good[0].pixels[None] if len(good) == 1 else np.stack([item.pixels for item in good])
            given = [item.class_id for item in good if item.class_id is not None]
            request = Request(given or None, self.top_k, heatmap, max_boxes=self.max_boxes)
            found = iter(self.network.locate(batch, self.locator, request))
        return [Failure(item.image, item.error) if item.error else self._result(item, next(found)) for item in items]

    @overload
    def batch(
        self, images: Any, classes: Classes = ..., heatmap: bool = ..., stream: int | None = ..., *,
        on_error: Literal["raise"] = ...,
    ) -> list[Localization]: ...  # fmt: skip
    @overload
    def batch(
        self, images: Any, classes: Classes = ..., heatmap: bool = ..., stream: int | None = ..., *,
        on_error: Literal["yield"],
    ) -> list[Localization | Failure]: ...  # fmt: skip
    def batch(
        self, images: Any, classes: Classes = None, heatmap: bool = False, stream: int | None = None, *,
        on_error: str = "raise",
    ) -> list[Any]:  # fmt: skip
        """Localize images that already lie on the GPU, without a copy to the host.

        Args:
            images: uint8[N, H, W, 3] RGB at the network's input size, C-contiguous: anything with
                ``__cuda_array_interface__`` or DLPack (PyTorch, CuPy, PyCUDA's GPUArray).
            classes: as in :meth:`__call__`.
            heatmap: likewise.
            stream: handle of the stream that the images were made on and that the work is to be queued on; None takes
                one of the backend's own, which first waits for them. The call returns when the boxes are known.
            on_error: as in :meth:`__call__`; the images that can be localized are.

        Returns:
            one result per image, in order; boxes in pixels of the given images.

        Raises:
            FeatureError: the array does not fit, or the network gave NaN or infinity for an image; it is named.
            DataError: a class is unknown, or there are fewer classes than images; or the backend is not on a GPU.
            BackendError: the device failed.
        """
        _require_known(on_error)
        if self.network.device is None:
            raise no_device(self.network)
        if not hasattr(images, "shape"):
            raise FeatureError(f"images: expected an array uint8[N, H, W, 3], got {type(images).__name__}")
        class_ids = self._each_class(classes)
        ids = [_following(class_ids, n) for n in range(int(images.shape[0]))]
        asked = None if classes is None else cast("list[int]", ids)
        request = Request(asked, self.top_k, heatmap, max_boxes=self.max_boxes)
        found = [
            self._result(_Prepared(None, f"image {n}", self._input_size, None, None, None), records)
            for n, records in enumerate(self.network.locate(images, self.locator, request, stream))
        ]
        return [_raised(result) if on_error == "raise" else _released(result) for result in found]

    def _result(self, item: _Prepared, records: Sequence[BoxRecord]) -> Localization | Failure:
        """Records as a result; an image with NaN or infinity fails alone."""
        if records[0].error is not None:
            return Failure(item.image, FeatureError(f"{item.label}: {records[0].error}; check the model and its input"))
        best, *others = (self._localization(item, record) for record in records)
        return replace(best, others=tuple(others)) if others else best

    def _localization(self, item: _Prepared, record: BoxRecord) -> Localization:
        import numpy as np

        return Localization(
            class_id=record.class_id, class_name=self.classes[record.class_id], score=record.score,
            boxes=tuple(scaled(box, self._input_size, item.size) for box in record.boxes), threshold=record.threshold,
            level=record.level,
            degenerate=record.degenerate, heatmap=None if record.heatmap is None else np.asarray(record.heatmap),
            image=item.image,
        )  # fmt: skip

    def _each_class(self, classes: Classes) -> Iterator[int | None]:
        if classes is None:
            return repeat(None)
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            return repeat(self._class_id(classes))
        return map(self._class_id, classes)

    def class_name(self, given: int | str) -> str:
        """The name of a class given by id or by name.

        Raises:
            DataError: there is no such class.
        """
        return self.classes[self._class_id(given)]

    def _class_id(self, given: int | str) -> int:
        """The index of a class given by index or by name."""
        if isinstance(given, str):
            if given in self._class_ids:
                return self._class_ids[given]
        elif hasattr(given, "__index__") and 0 <= operator.index(given) < len(self.classes):
            return operator.index(given)
        names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        raise DataError(f"no class {given!r}; expected a name ({names}) or an id of 0..{len(self.classes) - 1}")


def _ahead(
    function: Callable[..., _Prepared], work: Iterator[tuple[Any, ...]], threads: int, bound: int
) -> Generator[_Prepared, None, None]:
    """``starmap`` in threads, in order, at most ``bound`` ahead; what ``work`` raises comes behind the last result."""
    pool = ThreadPoolExecutor(threads, "wgap-prepare")
    futures: deque[Future[_Prepared]] = deque()
    failure = None
    try:
        while True:
            try:
                while len(futures) < bound:
                    futures.append(pool.submit(function, *next(work)))
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001  (raised below)
                failure = error
                break
            yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def _each(images: Images) -> Iterator[Image]:
    """One image, a batch or an iterable as an iterator of images."""
    if isinstance(images, str | os.PathLike | bytes | bytearray) or hasattr(images, "read"):
        return iter((cast("Image", images),))
    if _is_array(images):
        import numpy as np

        try:
            array = np.asarray(images)
        except Exception:  # noqa: BLE001  (it is one image then, which says why it cannot be taken)
            return iter((cast("Image", images),))
        if array.dtype.kind in "OUT":  # paths, as NumPy and Pandas hold them
            return iter(array.ravel().tolist())
        return iter(array if array.ndim == 4 else (array,))
    if not isinstance(images, Iterable) or isinstance(images, memoryview):
        raise ImageError(f"expected a path, an image, a batch or an iterable of them, got {type(images).__name__}")
    return iter(images)


def _is_array(value: Any) -> bool:
    return isinstance(value, memoryview) or hasattr(value, "__array_interface__") or hasattr(value, "__array__")


def _pixels(image: Image, label: str) -> NDArray[np.uint8]:
    """One image as C-contiguous uint8[H, W, 3], decoded if need be."""
    if isinstance(image, str | os.PathLike | bytes | bytearray) or hasattr(image, "read"):
        return decode(cast("Source", image), label)
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


def _released(result: Localization | Failure) -> Localization | Failure:
    """The result without the frames that its error went through: they hold the picture, the network and its threads."""
    errors: list[BaseException] = [result.error] if isinstance(result, Failure) else []
    for error in errors:
        error.__traceback__ = None
        errors += [e for e in (error.__cause__, error.__context__) if e is not None and e not in errors]
    return result


def _raised(result: Localization | Failure) -> Localization:
    """The result of an image that could be localized; the error of another is raised."""
    if isinstance(result, Failure):
        raise result.error
    return result


def _require_known(on_error: str) -> None:
    if on_error not in ("raise", "yield"):
        raise DataError(f"on_error must be 'raise' or 'yield', got {on_error!r}")


def _reopened(root: Path, backend: str, options: NetworkOptions, sizes: dict[str, Any]) -> Localizer:
    """A pickled localizer on the other side; the bundle was verified on this one."""
    return Localizer(root, backend, verify=False, **sizes, **vars(options))


def chosen_rule(bundle: Bundle, rule: Rule | str | None = None, map: str | None = None) -> Rule:  # noqa: A002
    """The rule that is asked for: the bundle's own in what is left out.

    Raises:
        RuleError: the rule or the map is unknown.
    """
    own = bundle.manifest.rule
    if isinstance(rule, Rule):
        return rule if map is None else replace(rule, map=cast("Map", map))
    asked = Rule.parse(str(own) if rule is None else rule, map)
    return replace(asked, map=own.map) if map is None and asked.on_scores == own.on_scores else asked


def _in_range(name: str, value: int, low: int, high: int) -> int:
    if not hasattr(value, "__index__") or not low <= value <= high:
        raise DataError(f"{name} must be a whole number in {low}..{high}, got {value!r}")
    return operator.index(value)
