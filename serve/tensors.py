"""Pictures and results as the named tensors that a server takes and gives, in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wgap import errors
from wgap.errors import ServerError, WgapError
from wgap.runtime.localization import Failure, Localization

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["INPUTS", "Tensor", "outputs", "results_of", "tensors_of"]


class Tensor(NamedTuple):
    """One input or output, without the batch that goes before its dimensions.

    Attributes:
        name: upper case.
        datatype: as the KServe v2 protocol calls it: ``INT32``, ``FP64``, ``BYTES``.
        dims: -1 is any.
        dtype: of the NumPy array; ``object`` holds bytes.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    dtype: Any


INPUTS = (Tensor("IMAGE", "BYTES", (1,), np.object_), Tensor("PIXELS", "UINT8", (-1, -1, 3), np.uint8))
"""A request has one of them: the bytes of image files, or decoded RGB pictures of one size."""


def outputs(top_k: int, max_boxes: int) -> tuple[Tensor, ...]:
    """What each picture gives: a row for each of the ``top_k`` best classes.

    ``BOXES`` are (x0, y0, x1, y1) in pixels of the original, half-open, and zero behind the first ``BOX_COUNT``.
    ``ERROR`` and ``CODE`` are empty, or say why the picture could not be localized; all else of it is zero then.
    """
    return (
        Tensor("CLASS_ID", "INT32", (top_k,), np.int32),
        Tensor("CLASS_NAME", "BYTES", (top_k,), np.object_),
        Tensor("SCORE", "FP64", (top_k,), np.float64),
        Tensor("BOXES", "FP64", (top_k, max_boxes, 4), np.float64),
        Tensor("BOX_COUNT", "INT32", (top_k,), np.int32),
        Tensor("THRESHOLD", "FP64", (top_k,), np.float64),
        Tensor("LEVEL", "INT32", (top_k,), np.int32),
        Tensor("DEGENERATE", "BOOL", (top_k,), np.bool_),
        Tensor("ERROR", "BYTES", (1,), np.object_),
        Tensor("CODE", "BYTES", (1,), np.object_),
    )


def tensors_of(results: Sequence[Localization | Failure], top_k: int, max_boxes: int) -> dict[str, NDArray[Any]]:
    """Results as :func:`outputs`, a row for each picture."""
    made = {one.name: np.zeros((len(results), *one.dims), one.dtype) for one in outputs(top_k, max_boxes)}
    for name in ("CLASS_NAME", "ERROR", "CODE"):
        made[name][:] = b""
    for row, result in enumerate(results):
        if isinstance(result, Failure):
            made["ERROR"][row], made["CODE"][row] = str(result.error).encode(), type(result.error).__name__.encode()
            continue
        for place, one in enumerate((result, *result.others)):
            made["CLASS_NAME"][row, place] = one.class_name.encode()
            made["BOXES"][row, place, : len(one.boxes)] = one.boxes
            made["BOX_COUNT"][row, place] = len(one.boxes)
            for name in ("CLASS_ID", "SCORE", "THRESHOLD", "LEVEL", "DEGENERATE"):
                made[name][row, place] = getattr(one, name.lower())
    return made


def results_of(tensors: Mapping[str, NDArray[Any]], images: Sequence[str | None]) -> list[Localization | Failure]:
    """The results that :func:`tensors_of` was given, as equal objects.

    Args:
        tensors: each of :func:`outputs`, by name.
        images: each picture's path, or None.

    Raises:
        ServerError: there are other rows than pictures.
    """
    if len(tensors["CODE"]) != len(images):
        raise ServerError(f"expected results of {len(images)} pictures, got {len(tensors['CODE'])}")
    return [_result({name: value[row] for name, value in tensors.items()}, image) for row, image in enumerate(images)]


def _result(row: Mapping[str, NDArray[Any]], image: str | None) -> Localization | Failure:
    if code := row["CODE"][0].decode():
        kind = getattr(errors, code, None)
        known = isinstance(kind, type) and issubclass(kind, WgapError)
        return Failure(image, (kind if known else ServerError)(row["ERROR"][0].decode()))  # type: ignore[misc]
    classes = [
        Localization(
            class_id=int(row["CLASS_ID"][place]), class_name=row["CLASS_NAME"][place].decode(),
            score=float(row["SCORE"][place]), threshold=float(row["THRESHOLD"][place]), level=int(row["LEVEL"][place]),
            degenerate=bool(row["DEGENERATE"][place]), image=image,
            boxes=tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in row["BOXES"][place, : row["BOX_COUNT"][place]].tolist()),
        )
        for place in range(len(row["CLASS_ID"]))
    ]  # fmt: skip
    best, *others = classes
    return Localization(**{**vars(best), "others": tuple(others)})
