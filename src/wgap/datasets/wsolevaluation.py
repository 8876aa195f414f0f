"""The metadata text files of the public wsolevaluation code: one folder of comma-separated lists per split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wgap.datasets.dataset import (
    Dataset,
    Masks,
    Sample,
    bad_line,
    box_from_text,
    composed,
    indexed,
    lines,
    listed,
    per_sample,
)
from wgap.errors import DataError
from wgap.geometry import Box

_SPLITS = ("train", "val", "test")


def _metadata(root: Path, split: str) -> Path | None:
    """``root/metadata/split``, ``root/split`` or, for a set with one split only, ``root``: where image_ids.txt lies."""
    places = (root / "metadata" / split, root / split, root / "metadata" if split == "test" else root / split)
    return next((p for p in places if (p / "image_ids.txt").is_file()), None)


def recognises(root: Path) -> bool:
    """Whether some split has an image_ids.txt."""
    return any(_metadata(root, s) for s in _SPLITS)


def _labels(path: Path) -> dict[str, int]:
    """``<image id>,<label from 0>`` per line."""
    table: dict[str, int] = {}
    for number, line in lines(path):
        image, _, label = line.rpartition(",")
        if not image or not label.isdecimal():
            raise bad_line(path, number, "`<image id>,<label from 0>`", line)
        table[composed(image)] = int(label)
    return table


def _classes(root: Path, count: int) -> list[str]:
    """classes.txt in the root if there, else the label numbers: these files carry no names."""
    file = root / "classes.txt"
    if not file.is_file():
        return [str(i) for i in range(count)]
    names = [composed(line) for _, line in lines(file)]
    if len(names) < count:
        raise DataError(
            f"{file}: expected at least {count} class names (the largest label is {count - 1}), got {len(names)}"
        )
    indexed(file, names)
    return names


def open_split(root: Path, split: str) -> Dataset:
    """Splits ``train``, ``val`` and ``test``, as far as their folders exist."""
    metadata = _metadata(root, split) if split in _SPLITS else None
    if metadata is None:
        present = [s for s in _SPLITS if _metadata(root, s)]
        raise DataError(
            f"{root}: expected metadata/{split}/image_ids.txt or {split}/image_ids.txt; splits found: "
            f"{', '.join(present) or 'none'}"
        )
    labels = _labels(metadata / "class_labels.txt")
    elsewhere = [_labels(m / "class_labels.txt") for s in _SPLITS if s != split and (m := _metadata(root, s))]
    largest = max((label for table in [labels, *elsewhere] for label in table.values()), default=-1)
    names = _classes(root, largest + 1)
    images = root / "images" if (root / "images").is_dir() else root
    samples: list[Sample] = []
    for number, image in lines(metadata / "image_ids.txt"):
        if composed(image) not in labels:
            raise bad_line(
                metadata / "image_ids.txt", number, f"an image that {metadata / 'class_labels.txt'} labels", image
            )
        samples.append(Sample(listed(images, image), labels[composed(image)]))

    def read_boxes(wanted: Sequence[Sample]) -> list[list[Box]]:
        file = metadata / "localization.txt"
        found: dict[Path, list[Box]] = {}
        for number, line in lines(file):
            fields = line.rsplit(",", 4)
            if len(fields) != 5:
                expected = "`<image id>,<x0>,<y0>,<x1>,<y1>` (masks are scored by `wgap evaluate --protocol pxap`)"
                raise bad_line(file, number, expected, line)
            found.setdefault(images / fields[0], []).append(box_from_text(file, number, fields[1:]))
        return per_sample(wanted, found, file)

    def read_masks(wanted: Sequence[Sample], folder: Path | None) -> list[Masks]:
        file = metadata / "localization.txt"
        inside = folder or (root / "masks" if (root / "masks").is_dir() else images)
        listing: dict[Path, list[tuple[Path, Path | None]]] = {}
        for number, line in lines(file):
            fields = line.split(",")
            if len(fields) != 3 or not all(fields[:2]):
                raise bad_line(file, number, "`<image id>,<mask file>,<file of what is ignored, or nothing>`", line)
            image, mask, ignored = fields
            if ignored and images / image in listing:
                raise bad_line(file, number, "a file of what is ignored beside the image's first mask alone", ignored)
            lines_of = listing.setdefault(images / image, [])
            lines_of.append((listed(inside, mask), listed(inside, ignored) if ignored else None))
        found = [
            Masks(tuple(mask for mask, _ in masks), masks[0][1]) for masks in per_sample(wanted, listing, file, "mask")
        ]
        files = (path for masks in found for path in (*masks.objects, masks.ignored) if path is not None)
        if absent := next((path for path in files if not path.is_file()), None):
            raise DataError(f"{absent}: expected a mask that {file} names, found nothing; --masks says where they lie")
        return found

    return Dataset(root, "wsolevaluation", split, names, samples, read_boxes, read_masks=read_masks)
