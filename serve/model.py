"""A server's model: the pictures of several requests through one localizer, and each request's results back."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wgap.errors import CheckFailedError, DataError, ImageError, ServerError, WgapError
from wgap.images import decode
from wgap.runtime.localization import Failure, Localization
from wgap.runtime.selftest import selftest
from wgap.serve.repository import Options, open_served
from wgap.serve.tensors import INPUTS, tensors_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Model"]

_log = logging.getLogger("wgap.serve")


class Model:
    """A localizer as a server runs it: tested on this device, warm, and with limits on what it takes.

    Args:
        bundle: folder of the bundle.
        options: how to localize, and the limits.
        device: GPU of a backend on GPUs.

    Attributes:
        localizer: the localizer.
        counts: pictures by outcome: ``ok``, or the name of the error's class.
        seconds: spent so far by stage: ``decode``, and ``localize``, which is resize, network and kernel.

    Raises:
        CheckFailedError: the bundle's golden cases do not come out here as they should, unless ``options.untested``.
        WgapError: see :class:`wgap.runtime.localizer.Localizer`.
    """

    def __init__(self, bundle: Path, options: Options, device: int | None = None) -> None:
        self.options, self.localizer = options, open_served(bundle, options, device)
        self.counts: Counter[str] = Counter()
        self.seconds = {"decode": 0.0, "localize": 0.0}
        try:
            self._require_right()
            blank = np.zeros((*self.localizer.bundle.manifest.model.input_size, 3), np.uint8)
            for batch in (1, self.localizer.batch_size) * 2:  # a GPU captures its graph on the second
                list(self.localizer([blank] * batch, on_error="yield"))
        except BaseException:
            self.localizer.close()
            raise

    def _require_right(self) -> None:
        report = selftest(self.localizer)
        wrong = [f"case {one.case}, {one.stage}: {one.note or one.measured}" for one in report.checks if not one.ok]
        for warning in report.warnings:
            _log.warning("%s", warning)
        if not wrong:
            return
        text = (
            f"{self.localizer.bundle.root}: {len(wrong)} of {len(report.checks)} checks of the selftest failed on "
            f"{report.backend} {report.backend_version}, the first: {wrong[0]}; see `wgap selftest`"
        )
        if not self.options.untested:
            raise CheckFailedError(f"{text}, or write the model with --untested")
        _log.warning("%s", text)

    def close(self) -> None:
        """Free what it holds."""
        self.localizer.close()

    def answer(self, requests: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]] | WgapError]:
        """One answer for each request: its output tensors, or why it was refused. All pictures go through one call.

        Args:
            requests: inputs by name, see :data:`wgap.serve.tensors.INPUTS`, each with the batch first.
        """
        asked = [self._pictures(request) for request in requests]
        pictures: list[Any] = [picture for one in asked if not isinstance(one, WgapError) for picture in one]
        before, began = self.seconds["decode"], time.perf_counter()
        try:
            results = [
                _told(result, number) for number, result in enumerate(self.localizer(pictures, on_error="yield"))
            ]
        except Exception:  # noqa: BLE001  # a server goes on; clients learn that it failed, the log why
            _log.exception("a batch of %d pictures failed", len(pictures))
            self.counts["ServerError"] += len(pictures)
            failed = ServerError("the server could not run its network; its log says why")
            return [one if isinstance(one, WgapError) else failed for one in asked]
        self.seconds["localize"] += time.perf_counter() - began - (self.seconds["decode"] - before)
        self.counts.update(type(r.error).__name__ if isinstance(r, Failure) else "ok" for r in results)
        rest = iter(results)
        answers: list[dict[str, NDArray[Any]] | WgapError] = []
        for one in asked:
            if isinstance(one, WgapError):
                answers.append(one)
                continue
            own = [next(rest) for _ in one]
            answers.append(tensors_of(own, self.localizer.top_k, self.localizer.max_boxes))
        return answers

    def _pictures(self, request: Mapping[str, NDArray[Any]]) -> list[_Picture] | WgapError:
        """A request's pictures, or why it is none."""
        names, most = " or ".join(one.name for one in INPUTS), self.options.max_request
        if len(request) != 1:
            return DataError(f"a request: expected one input, {names}, got {' and '.join(request) or 'none'}")
        [(name, array)] = request.items()
        for one in INPUTS:
            if one.name != name:
                continue
            shape = array.shape[1:]
            fits = len(shape) == len(one.dims) and all(d in (-1, n) for d, n in zip(one.dims, shape, strict=True))
            if array.dtype != one.dtype or not fits or not len(array):
                return DataError(
                    f"{name}: expected {one.datatype} {['N', *one.dims]}, got {array.dtype} {[*array.shape]}"
                )
            rows = [row[0] if name == "IMAGE" else row for row in array]
            if (size := sum(row.nbytes if isinstance(row, np.ndarray) else len(row) for row in rows)) > most:
                return DataError(
                    f"{name}: {size} bytes exceed the limit of {most} bytes a request; send fewer pictures"
                )
            return [_Picture(self, row) for row in rows]
        return DataError(f"a request: expected one input, {names}, got {name}")


class _Picture:
    """A client's picture, decoded when the localizer comes to it: one at a time, and within the limits."""

    def __init__(self, model: Model, given: bytes | NDArray[np.uint8]) -> None:
        self._model, self._given = model, given

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        options, given = self._model.options, self._given
        if isinstance(given, np.ndarray):
            if given.shape[0] * given.shape[1] > options.max_pixels:
                height, width = given.shape[:2]
                raise ImageError(f"{width} x {height} pixels exceed the limit of {options.max_pixels} pixels")
            return given
        if len(given) > options.max_bytes:
            raise ImageError(f"IMAGE: {len(given)} bytes exceed the limit of {options.max_bytes} bytes")
        began = time.perf_counter()
        try:
            return decode(given, "IMAGE", options.max_pixels)
        finally:
            self._model.seconds["decode"] += time.perf_counter() - began


def _told(result: Localization | Failure, number: int) -> Localization | Failure:
    """A result for a client: of errors that another library had a word in, the server's log has the text."""
    if isinstance(result, Localization):
        return result
    error, text = result.error, str(result.error)
    if error.__cause__ is not None:
        _log.warning("a picture failed: %s", text)
        text = "the picture cannot be decoded; the server's log says why"
    return Failure(None, type(error)(text.removeprefix(f"image {number}: ")))
