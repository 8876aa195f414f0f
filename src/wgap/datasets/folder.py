"""One folder per class: ``root/train/CLASS/*.jpg`` and so on, or ``root/CLASS/*.jpg`` without splits."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from wgap.datasets.dataset import Dataset, Sample, bad_line, box_from_text, composed, indexed, lines, per_sample
from wgap.errors import DataError
from wgap.geometry import Box
from wgap.images import SUFFIXES, LeftOut, images_below, shown

BOX_HEADER = ["image", "x0", "y0", "x1", "y1"]
_SPLITS = {
    "train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing"),
}  # fmt: skip
"""Split to the names that its folder may have."""


def class_folders(folder: Path, left_out: list[LeftOut] | None = None) -> list[Path]:
    """Sub-folders, sorted by name, hidden ones left out; ``left_out`` receives those, and images beside them."""
    left_out = [] if left_out is None else left_out
    paths = [folder / name for name in sorted(shown(folder, os.listdir(folder), left_out))]  # noqa: PTH208  (names)
    images = [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    left_out += [LeftOut(path, "beside the folders of classes") for path in images]
    return [path for path in paths if path.is_dir()]


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of a set that are its splits: train, val and test, or the usual other names of them, in any case.

    Raises:
        DataError: two folders are one split.
    """
    found: dict[str, Path] = {}
    for folder in class_folders(root):
        split = next((s for s, names in _SPLITS.items() if folder.name.casefold() in names), None)
        if split is None:
            continue
        if split in found:
            both = f"{found[split].name} and {folder.name}"
            raise DataError(f"{root}: expected one folder for the split {split}, got {both}")
        found[split] = folder
    return {split: found[split] for split in _SPLITS if split in found}


def has_splits(root: Path) -> bool:
    """Whether classes lie in folders of splits."""
    return bool(split_folders(_inside(root)))


def _inside(root: Path) -> Path:
    """The set's own folder: one that lies alone in another, ``images`` or ``data``, is it."""
    folders = class_folders(root)
    alone = len(folders) == 1 and folders[0].name.casefold() in ("images", "data")
    return folders[0] if alone and class_folders(folders[0]) else root


def recognises(root: Path) -> bool:
    """Whether some sub-folder (of a split, if there are splits) holds an image."""
    root = _inside(root)
    splits = split_folders(root)
    return any(images_below(c) for s in splits.values() or [root] for c in class_folders(s))


def _class_names(root: Path, folders: list[Path]) -> list[str]:
    """classes.txt (one name per line) if there, else the sorted folder names; in composed form."""
    file = root / "classes.txt"
    if file.is_file():
        names = [composed(line) for _, line in lines(file)]
        if stray := next((f for f in folders if composed(f.name) not in names), None):
            raise DataError(f"{stray}: expected a class of {file} ({len(names)} names), got {stray.name!r}")
        return names
    return sorted({composed(f.name) for f in folders})


def open_split(root: Path, split: str) -> Dataset:
    """Splits: the sub-folders train, val and test that exist, and ``all``. Without such sub-folders: train and all."""
    outer, root = root, _inside(root)
    present = split_folders(root)
    if present:
        if split != "all" and split not in present:
            raise DataError(f"{root}: expected a folder {split!r}; the splits here are {', '.join(present)} (and all)")
        wanted = list(present.values()) if split == "all" else [present[split]]
        reference = present.get("train")
        names = _class_names(
            root, class_folders(reference) if reference else [c for w in wanted for c in class_folders(w)]
        )
    else:
        if split in ("val", "test"):
            raise DataError(
                f"{root}: split {split!r} asked for, but the classes lie directly in the folder, without train, val "
                "or test folders; use --split all if every image is meant"
            )
        wanted = [root]
        names = _class_names(root, class_folders(root))
    index = indexed(root, names)
    samples: list[Sample] = []
    left_out: list[LeftOut] = []
    if present:
        beside = [f for f in class_folders(root, left_out) if f not in present.values()]
        left_out += [LeftOut(f, "beside the folders of splits") for f in beside]
    for part in wanted:
        for folder in class_folders(part, left_out):
            name = composed(folder.name)
            if name not in index:
                raise DataError(
                    f"{folder}: expected one of the {len(names)} classes of {root / 'train'}, got {folder.name!r}"
                )
            found = images_below(folder, left_out)
            if not found and split != "all":
                raise DataError(f"{folder}: expected images ({', '.join(sorted(SUFFIXES))}), found none")
            samples += [Sample(path, index[name]) for path in found]

    def read_boxes(wanted_samples: Sequence[Sample]) -> list[list[Box]]:
        return per_sample(wanted_samples, _boxes(outer, [root, *wanted]), outer / "boxes.csv")

    return Dataset(root, "folder", split, names, samples, read_boxes, left_out)


def _boxes(root: Path, parts: list[Path]) -> dict[Path, list[Box]]:
    """``boxes.csv`` of the root and of the split folders: paths relative to the file, half-open pixels."""
    files = [f for f in dict.fromkeys([root / "boxes.csv", *(p / "boxes.csv" for p in parts)]) if f.is_file()]
    if not files:
        raise DataError(
            f"{root / 'boxes.csv'}: expected ground-truth boxes there, one `{','.join(BOX_HEADER)}` line per box "
            "(half-open pixels, path relative to the file); found nothing"
        )
    found: dict[Path, list[Box]] = {}
    for file in files:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream)
            if (header := next(rows, [])) != BOX_HEADER:
                raise bad_line(file, 1, f"the header `{','.join(BOX_HEADER)}`", ",".join(header))
            for row in rows:
                if not row:
                    continue
                if len(row) != 5:
                    raise bad_line(file, rows.line_num, f"`{','.join(BOX_HEADER)}`", ",".join(row))
                box = box_from_text(file, rows.line_num, row[1:])
                found.setdefault(file.parent / row[0], []).append(box)
    return found
