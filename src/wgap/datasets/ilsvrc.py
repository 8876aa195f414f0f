"""ILSVRC: synset folders for training, a flat validation folder with a label list, VOC-style XML boxes."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from wgap.datasets.dataset import Dataset, Sample, bad_line, box_from_text, composed, indexed, lines, listed
from wgap.datasets.folder import class_folders
from wgap.errors import DataError
from wgap.geometry import Box
from wgap.images import LeftOut, images_below

_SYNSET = re.compile(r"n\d{8}")
_CLASS_LISTS = ("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt")
_LABEL_LISTS = ("LOC_val_solution.csv", "val.txt")


def _folder(root: Path, kind: str, split: str) -> Path:
    """``root/Data/CLS-LOC/split`` as distributed, or plain ``root/split``; ``kind`` is Data or Annotations."""
    distributed = root / kind / "CLS-LOC" / split
    if distributed.is_dir():
        return distributed
    return root / split if kind == "Data" else root / kind / split


def recognises(root: Path) -> bool:
    """Whether there are synset folders for training, or a validation list with a class list."""
    train = _folder(root, "Data", "train")
    if train.is_dir() and any(_SYNSET.fullmatch(f.name) for f in class_folders(train)):
        return True
    return any((root / n).is_file() for n in _LABEL_LISTS) and any((root / n).is_file() for n in _CLASS_LISTS)


def _classes(root: Path) -> list[str]:
    """Synset names in label order: from a class list if there is one, else the sorted training folders."""
    for name in _CLASS_LISTS:
        if (root / name).is_file():
            synsets = [line.split()[0] for _, line in lines(root / name)]
            break
    else:
        train = _folder(root, "Data", "train")
        if not train.is_dir():
            raise DataError(f"{root}: expected synset folders in {train} or a class list ({', '.join(_CLASS_LISTS)})")
        synsets = [f.name for f in class_folders(train)]
    for synset in synsets:
        if not _SYNSET.fullmatch(synset):
            raise DataError(f"{root}: expected synset names such as n01440764 as classes, got {synset!r}")
    return synsets


def open_split(root: Path, split: str) -> Dataset:
    """Splits ``train`` (synset folders) and ``val`` (label list, or synset folders if somebody sorted it)."""
    if split not in ("train", "val"):
        raise DataError(f"{root}: the ilsvrc layout has splits train and val, not {split!r}; choose one with --split")
    names = _classes(root)
    index = indexed(root, names)
    folder = _folder(root, "Data", split)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected the {split} images, found nothing")
    left_out: list[LeftOut] = []
    folders = class_folders(folder, left_out)
    synsets = [f for f in folders if _SYNSET.fullmatch(f.name)]
    left_out += [LeftOut(f, "not named as a synset") for f in folders if not _SYNSET.fullmatch(f.name)]
    if split == "train" or synsets:
        samples = []
        for synset in synsets:
            if synset.name not in index:
                raise DataError(f"{synset}: expected one of the {len(names)} classes, got {synset.name!r}")
            samples += [Sample(path, index[synset.name]) for path in images_below(synset, left_out)]
    else:
        left_out.clear()  # a list names the images
        samples = _labelled(root, folder, index)

    def read_boxes(wanted: Sequence[Sample]) -> list[list[Box]]:
        annotations = _folder(root, "Annotations", split)
        if annotations.is_dir():
            return [_xml_boxes(_xml_path(annotations, folder, s.path)) for s in wanted]
        solution = root / "LOC_val_solution.csv"
        if split == "val" and solution.is_file():
            rows = _solution(solution)
            found = {composed(image): _solution_boxes(solution, number, text) for number, image, text in rows}
            if absent := next((s for s in wanted if composed(s.path.stem) not in found), None):
                raise DataError(f"{solution}: no box for {absent.path}")
            return [found[composed(s.path.stem)] for s in wanted]
        raise DataError(f"{annotations}: expected XML annotations there (or boxes in {solution.name}), found nothing")

    return Dataset(root, "ilsvrc", split, names, samples, read_boxes, left_out)


def _labelled(root: Path, folder: Path, index: dict[str, int]) -> list[Sample]:
    """Validation images by ``LOC_val_solution.csv`` or ``val.txt`` (`image label`, a number from 0 or a synset)."""
    file = next((root / name for name in _LABEL_LISTS if (root / name).is_file()), None)
    if file is None:
        raise DataError(f"{root}: expected a validation list ({' or '.join(_LABEL_LISTS)}), found none")
    samples = []
    if file.suffix == ".csv":
        for number, image, text in _solution(file):
            label = text.split()[0]
            if label not in index:
                raise bad_line(file, number, f"one of {len(index)} synsets", label)
            samples.append(Sample(listed(folder, f"{image}.JPEG"), index[label]))
        return samples
    for number, line in lines(file):
        fields = line.split()
        if len(fields) != 2:
            raise bad_line(file, number, "`<image> <label>`", line)
        image, label = fields
        if label in index:
            label_index = index[label]
        elif label.isdecimal() and int(label) < len(index):
            label_index = int(label)
        else:
            raise bad_line(file, number, f"a label 0..{len(index) - 1} or a known synset", label)
        samples.append(Sample(listed(folder, image if Path(image).suffix else f"{image}.JPEG"), label_index))
    return samples


def _solution(path: Path) -> list[tuple[int, str, str]]:
    """(line, image, prediction string) of ``ImageId,PredictionString`` rows."""
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        if (header := next(reader, [])) != ["ImageId", "PredictionString"]:
            raise bad_line(path, 1, "the header `ImageId,PredictionString`", ",".join(header))
        for row in reader:
            if len(row) != 2 or not row[1].strip():
                raise bad_line(path, reader.line_num, "`<image>,<synset x0 y0 x1 y1 ...>`", ",".join(row))
            rows.append((reader.line_num, row[0], row[1]))
    return rows


def _solution_boxes(path: Path, number: int, text: str) -> list[Box]:
    fields = text.split()
    if len(fields) % 5:
        raise bad_line(path, number, "groups of `synset x0 y0 x1 y1`", text)
    return [box_from_text(path, number, fields[i + 1 : i + 5]) for i in range(0, len(fields), 5)]


def _xml_path(annotations: Path, folder: Path, image: Path) -> Path:
    """Beside each other: Annotations/.../val/X.xml and Data/.../val/X.JPEG, with or without the synset folder."""
    nested = listed(annotations, str(image.relative_to(folder).with_suffix(".xml")))
    return nested if nested.is_file() else listed(annotations, f"{image.stem}.xml")


def _xml_boxes(path: Path) -> list[Box]:
    try:
        tree = ET.parse(path)  # noqa: S314  (expat >= 2.4.1 refuses entity bombs by itself)
    except FileNotFoundError:
        raise DataError(f"{path}: expected the image's annotation, found nothing") from None
    except ET.ParseError as error:
        raise DataError(f"{path}: expected XML: {error}") from None
    boxes = []
    for box in tree.iter("bndbox"):
        corners = [box.findtext(tag) for tag in ("xmin", "ymin", "xmax", "ymax")]
        values = [c.strip() for c in corners if c is not None]
        if len(values) != 4:
            raise DataError(f"{path}: expected xmin, ymin, xmax and ymax in each bndbox, got {corners}")
        boxes.append(box_from_text(path, None, values))
    if not boxes:
        raise DataError(f"{path}: expected at least one object with a bndbox, got none")
    return boxes
