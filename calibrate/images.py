"""Which images calibrate and which judge, by content: hashes prove that the two sets share none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.bundle import Bundle
from wgap.datasets import layout_of, open_dataset, with_label_map
from wgap.datasets.folder import has_splits
from wgap.datasets.label_map import class_ids
from wgap.errors import CalibrationError, DataError, ImageError
from wgap.geometry import Box
from wgap.images import decode, find_images, read_file, resize
from wgap.manifest import ImageHashes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FEWEST", "ImageSet", "Picture", "image_set", "require_disjoint"]

FEWEST = 8
"""Fewer images than this neither calibrate nor judge."""


@dataclass(frozen=True)
class Picture:
    """One image as the network sees it.

    Attributes:
        path: the file.
        label: class id in the bundle, or None where it is not known.
        boxes: true boxes, half-open, original pixels; empty where none are known.
        size: original (H, W) in pixels.
        pixels: uint8[H, W, 3] RGB at the network's input size.
        sha256: of the file's bytes.
        pixels_sha256: of ``pixels``: a copy in another container or with other metadata has the same.
    """

    path: Path
    label: int | None
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    sha256: str
    pixels_sha256: str


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, with what was noticed while reading them; none of them by default.

    Attributes:
        pictures: the images.
        sha256: of the network inputs in order: equal for equal content, whatever the files are called.
        warnings: what a reader of the figures should know.
    """

    pictures: tuple[Picture, ...] = ()
    sha256: str = hashlib.sha256().hexdigest()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: slice | None = None) -> NDArray[np.uint8]:
        """Network inputs uint8[N, H, W, 3]."""
        import numpy as np

        return np.stack([picture.pixels for picture in self.pictures[rows or slice(None)]])

    def listing(self) -> tuple[ImageHashes, ...]:
        """Name and hashes of every image, for the manifest."""
        return tuple(ImageHashes(p.path.name, p.sha256, p.pixels_sha256) for p in self.pictures)


def image_set(
    bundle: Bundle,
    source: Path,
    *,
    split: str,
    count: int | None = None,
    with_boxes: bool = False,
    purpose: str = "calibration",
    fewest: int = FEWEST,
    at_most: bool = False,
    max_bad: int = 0,
    label_map: Path | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = lambda items: items,
) -> ImageSet:
    """Read images for calibration or for the gate.

    Args:
        bundle: gives the input size and the class names.
        source: a labelled set in any layout of ``wgap.datasets``, or a folder or pattern of images.
        split: which split of a labelled set; a folder per class without splits is taken whole.
        count: at most so many, every class in turn, in the set's own order; without labels evenly spaced over the
            sorted paths. None takes all.
        with_boxes: also read true boxes, where the set has them.
        purpose: what messages call the set.
        fewest: that will do.
        at_most: say nothing where the set has fewer than ``count``.
        max_bad: at most so many images that cannot be read are left out, with a warning.
        label_map: of a labelled set whose classes the model calls otherwise (:func:`wgap.datasets.with_label_map`).
        progress: wraps the list of images, for a progress bar.

    Raises:
        CalibrationError: fewer than ``fewest`` images; the same picture under two names counts once, with a warning.
        DataError: ``source`` holds no images, or the label map does not fit it.
        ImageError: more than ``max_bad`` images are missing, cut short or corrupt.
    """
    entries, warnings = _entries(bundle, source, split, with_boxes, label_map)
    chosen = _spread(entries, count)
    if len(chosen) < fewest:
        raise CalibrationError(
            f"{source}: expected at least {fewest} {purpose} images, got {len(chosen)}; "
            "the more there are, the surer the figures"
        )
    if count is not None and len(chosen) < count and not at_most:
        warnings.append(f"{source} has {len(chosen)} {purpose} images, {count} were asked for")
    if any(label is not None for _, label, _ in chosen) and len({label for _, label, _ in chosen}) == 1:
        name = bundle.manifest.model.classes[chosen[0][1] or 0]
        warnings.append(f"all {len(chosen)} {purpose} images are of one class, {name}")
    pictures, bad = [], []
    for path, label, boxes in progress(chosen):
        try:
            pictures.append(_picture(path, label, boxes, bundle.manifest.model.input_size))
        except ImageError as error:
            bad.append(error)
            if len(bad) > max_bad:
                raise ImageError(
                    f"{error}; {len(bad)} of the {purpose} images cannot be read, --max-bad allows {max_bad}"
                ) from error
    if bad:
        warnings.append(f"{len(bad)} of {len(chosen)} {purpose} images cannot be read and are left out; {bad[0]}")
    if len(pictures) < fewest:
        raise CalibrationError(f"{source}: expected at least {fewest} {purpose} images, got {len(pictures)} whole ones")
    once = {picture.pixels_sha256: picture for picture in reversed(pictures)}
    if again := [picture for picture in pictures if once[picture.pixels_sha256] is not picture]:
        first = once[again[0].pixels_sha256].path
        text = f"{len(again)} of {len(pictures)} {purpose} images come again, {again[0].path} for one is {first}"
        if len(once) < fewest:
            raise CalibrationError(f"{text}; expected at least {fewest} pictures, got {len(once)}")
        warnings.append(f"{text}; each counts once")
        pictures = [picture for picture in pictures if once[picture.pixels_sha256] is picture]
    digest = hashlib.sha256("".join(p.pixels_sha256 for p in pictures).encode()).hexdigest()
    return ImageSet(tuple(pictures), digest, tuple(warnings))


def require_disjoint(calibration: Iterable[ImageHashes], gate: ImageSet) -> None:
    """Prove that no gate image took part in calibration, by the hashes of files and of network inputs.

    Raises:
        CalibrationError: naming the first image that did, and how many did.
    """
    seen = {digest for image in calibration for digest in (image.sha256, image.pixels_sha256)}
    shared = [p for p in gate.pictures if p.sha256 in seen or p.pixels_sha256 in seen]
    if shared:
        raise CalibrationError(
            f"{len(shared)} of {len(gate)} gate images took part in calibration, the first: {shared[0].path}. A gate "
            "measures nothing on images it was fitted to; give it others, such as the test split"
        )


_Entry = tuple[Path, "int | None", tuple[Box, ...]]


def _entries(
    bundle: Bundle, source: Path, split: str, with_boxes: bool, label_map: Path | None
) -> tuple[list[_Entry], list[str]]:
    """(path, class id, boxes) of every image, and what is not known about them."""
    layout = layout_of(source) if source.is_dir() else None
    if layout is None:
        if label_map is not None:
            raise DataError(f"{source}: a label map is for a labelled set, and this is none; leave --label-map out")
        return [(path, None, ()) for path in find_images([source])], (
            [f"{source}: no boxes known"] if with_boxes else []
        )
    if layout == "folder" and not has_splits(source):
        split = "all"
    dataset, warnings = with_label_map(open_dataset(source, split, layout), label_map), []
    try:
        ids = class_ids(bundle.manifest.model.classes, dataset)
    except DataError:
        if label_map is not None:
            raise
        ids = [()] * len(dataset.classes)
    known = [one[0] if len(one) == 1 else None for one in ids]
    if None in known:
        name = dataset.classes[known.index(None)]
        warnings.append(
            f"{source}: labels are left out, the bundle does not know class {name!r}"
            if label_map is None
            else f"{source}: labels of {known.count(None)} of {len(known)} classes are left out, of {name!r} first: "
            "the label map has none or several of the model's for them"
        )
    truths: list[list[Box]] = [[] for _ in dataset.samples]
    if with_boxes and any(label is not None for label in known):
        try:
            truths = dataset.boxes()
        except DataError as error:
            warnings.append(f"no boxes known: {error}")
    rows = zip(dataset.samples, (known[sample.label] for sample in dataset.samples), truths, strict=True)
    return [(sample.path, label, tuple(boxes)) for sample, label, boxes in rows], warnings


def _spread(entries: list[_Entry], count: int | None) -> list[_Entry]:
    """``count`` entries: every class in turn, or evenly spaced where labels are unknown."""
    if count is None or len(entries) <= count:
        return entries
    if any(label is None for _, label, _ in entries):
        return [entries[index * len(entries) // count] for index in range(count)]
    groups: dict[int | None, list[_Entry]] = {}
    for entry in entries:
        groups.setdefault(entry[1], []).append(entry)
    order = [
        group[turn] for turn in range(max(map(len, groups.values()))) for group in groups.values() if turn < len(group)
    ]
    return order[:count]


def _picture(path: Path, label: int | None, boxes: tuple[Box, ...], side: tuple[int, int]) -> Picture:
    import numpy as np

    data = read_file(path)
    image = decode(data, str(path))
    pixels = np.ascontiguousarray(resize(image, *side) if image.shape[:2] != side else image)
    return Picture(
        path, label, boxes, (image.shape[0], image.shape[1]), pixels,
        hashlib.sha256(data).hexdigest(), hashlib.sha256(pixels.tobytes()).hexdigest(),
    )  # fmt: skip
