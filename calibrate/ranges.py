"""Activation ranges over the calibration set, by ONNX Runtime's own calibrators, and a cache named by content."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.atomic import atomic_file
from wgap.errors import CalibrationError, DataError
from wgap.extras import require

if TYPE_CHECKING:
    from wgap.calibrate.images import ImageSet

__all__ = ["METHODS", "Ranges", "activation_ranges", "toolkit"]

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""Our name and ONNX Runtime's for each way to choose a range."""

WATCHED = ("Conv", "Relu", "Clip", "Add")
"""Operators whose inputs' and outputs' ranges are measured."""

Ranges = dict[str, tuple[float, float]]
"""Tensor name to the (lowest, highest) value that its eight bits must hold."""


def toolkit() -> Any:
    """``onnxruntime.quantization``.

    Raises:
        MissingDependencyError: if onnx or ONNX Runtime is not installed.
    """
    require("calibrating", "onnx", "onnxruntime")
    from onnxruntime import quantization

    return quantization


def activation_ranges(
    graph: Path,
    images: ImageSet,
    method: str = "minmax",
    cache_dir: Path | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = lambda items: items,
) -> Ranges:
    """The range of each input and output of the operators ``WATCHED`` over the calibration set.

    One image at a time, so that memory stays at one image's activations whatever the size of the set.

    Args:
        graph: float32 ONNX file.
        images: the calibration set.
        method: ``minmax``, ``entropy`` or ``percentile`` (99.999).
        cache_dir: keep and reuse ranges here, under a name made of the graph's, the images' and the tool's identity.
        progress: wraps the list of images, for a progress bar.

    Raises:
        CalibrationError: if an activation is not finite.
        DataError: if the method is unknown.
        MissingDependencyError: see :func:`toolkit`.
    """
    if method not in METHODS:
        raise DataError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    toolkit()
    import onnxruntime

    names = (method, onnxruntime.__version__, *WATCHED)
    identity = [graph.read_bytes(), images.sha256.encode(), *(name.encode() for name in names)]
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in identity)).hexdigest()
    cached = None if cache_dir is None else cache_dir / f"ranges-{key[:32]}.json"
    if cached is not None and cached.is_file():
        return _read(cached, key)
    ranges = _collect(graph, images, method, progress)
    if cached is not None:
        with atomic_file(cached) as temporary:
            temporary.write_text(json.dumps({"key": key, "method": method, "ranges": ranges}, indent=1) + "\n")
    return ranges


def _collect(graph: Path, images: ImageSet, method: str, progress: Callable[[Sequence[Any]], Iterable[Any]]) -> Ranges:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    class One:  # what ONNX Runtime calls a data reader
        def __init__(self, pixels: Any) -> None:
            self._rest: list[Any] = [pixels]

        def get_next(self) -> dict[str, Any] | None:
            return {"image": self._rest.pop()[None]} if self._rest else None

    with tempfile.TemporaryDirectory(prefix="wgap-ranges-") as folder, silence():
        calibrator = create_calibrator(
            graph, list(WATCHED), str(Path(folder) / "augmented.onnx"), getattr(CalibrationMethod, METHODS[method]),
            extra_options={"symmetric": False},
        )  # fmt: skip
        for picture in progress(images.pictures):
            calibrator.collect_data(One(picture.pixels))
        found = calibrator.compute_data()
    ranges = {name: _pair(data) for name, data in sorted(found.items())}
    for name, (low, high) in ranges.items():
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise CalibrationError(f"activation {name} is not finite on the calibration set: [{low}, {high}]")
    return ranges


def _pair(data: Any) -> tuple[float, float]:
    low, high = (float(value.reshape(-1)[0]) if value.ndim else float(value) for value in data.range_value)
    return low, high


def _read(cached: Path, key: str) -> Ranges:
    try:
        content = json.loads(cached.read_text(encoding="utf-8"))
        if content["key"] != key:
            raise ValueError("it belongs to other inputs")
        return {name: (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{cached} is not a range cache written by wgap ({error}); delete it") from error


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep ONNX Runtime's tools from printing progress and advice that does not apply here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
