"""CUB-200-2011's own layout: numbered lists beside an ``images`` folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wgap.datasets.dataset import Dataset, Sample, bad_line, box_from_text, composed, indexed, lines, listed, per_sample
from wgap.errors import DataError
from wgap.geometry import Box


def recognises(root: Path) -> bool:
    """Whether the folder holds CUB's lists."""
    return (root / "images.txt").is_file() and (root / "image_class_labels.txt").is_file()


def _numbered(path: Path, what: str) -> dict[int, str]:
    """``<id> <value>`` per line, each id once."""
    table: dict[int, str] = {}
    for number, line in lines(path):
        key, _, value = line.partition(" ")
        if not key.isdecimal() or not value.strip():
            raise bad_line(path, number, f"`<id> <{what}>`", line)
        if int(key) in table:
            raise bad_line(path, number, "an id that has not occurred before", key)
        table[int(key)] = value.strip()
    return table


def _aligned(path: Path, table: dict[int, str], images: dict[int, str], source: Path) -> None:
    """Every image has a line and every line an image."""
    for one, other, where, whence in ((images, table, path, source), (table, images, source, path)):
        if odd := one.keys() - other.keys():
            raise DataError(f"{where}: expected a line for image id {min(odd)}, which {whence.name} has; got none")


def open_split(root: Path, split: str) -> Dataset:
    """Splits ``train`` (1 in train_test_split.txt), ``test`` (0) and ``all``."""
    if split == "val":
        raise DataError(f"{root}: the cub layout has splits train and test (and all), no val; choose one with --split")
    images = _numbered(root / "images.txt", "path")
    classes = _numbered(root / "classes.txt", "class name")
    ids = sorted(classes)
    names = [composed(classes[i]) for i in ids]
    indexed(root / "classes.txt", names)
    position = {class_id: index for index, class_id in enumerate(ids)}
    labels = _numbered(root / "image_class_labels.txt", "class id")
    _aligned(root / "image_class_labels.txt", labels, images, root / "images.txt")
    if split == "all":
        chosen = list(images)
    else:
        parts = _numbered(root / "train_test_split.txt", "0 or 1")
        _aligned(root / "train_test_split.txt", parts, images, root / "images.txt")
        if odd := next((i for i, part in parts.items() if part not in ("0", "1")), None):
            raise DataError(
                f"{root / 'train_test_split.txt'}: image id {odd}: expected 1 (train) or 0 (test), got {parts[odd]!r}"
            )
        chosen = [i for i in images if parts[i] == ("1" if split == "train" else "0")]
    samples: list[Sample] = []
    path_ids: dict[Path, int] = {}
    for i in chosen:
        if not labels[i].isdecimal() or int(labels[i]) not in position:
            raise DataError(
                f"{root / 'image_class_labels.txt'}: image id {i}: expected a class id of classes.txt "
                f"({ids[0]}..{ids[-1]}), got {labels[i]!r}"
            )
        sample = Sample(listed(root / "images", images[i]), position[int(labels[i])])
        samples.append(sample)
        path_ids[sample.path] = i

    def read_boxes(wanted: Sequence[Sample]) -> list[list[Box]]:
        file = root / "bounding_boxes.txt"
        paths = {i: path for path, i in path_ids.items()}
        found: dict[Path, list[Box]] = {}
        for number, line in lines(file):
            fields = line.split()
            if len(fields) != 5 or not fields[0].isdecimal():
                raise bad_line(file, number, "`<image id> <x> <y> <width> <height>`", line)
            if int(fields[0]) in paths:
                found.setdefault(paths[int(fields[0])], []).append(_corners(file, number, fields[1:]))
        return per_sample(wanted, found, file)

    return Dataset(root, "cub", split, names, samples, read_boxes)


def _corners(path: Path, number: int, values: list[str]) -> Box:
    """(x, y, width, height) as corners."""
    try:
        x, y, width, height = (float(value) for value in values)
    except ValueError:
        raise bad_line(path, number, "four numbers x y width height", " ".join(values)) from None
    return box_from_text(path, number, [str(x), str(y), str(x + width), str(y + height)])
