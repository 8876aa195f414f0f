"""What is not as its layout promises is refused by file, line, expectation and finding."""

from __future__ import annotations

from pathlib import Path

import pytest

from wgap.datasets import open_dataset
from wgap.errors import DataError

CUB = {
    "images.txt": "1 a/1.jpg\n2 b/2.jpg\n",
    "classes.txt": "1 a\n2 b\n",
    "image_class_labels.txt": "1 1\n2 2\n",
    "train_test_split.txt": "1 1\n2 0\n",
    "bounding_boxes.txt": "1 0 0 5 5\n2 1 1 5 5\n",
}
FOLDER = {
    "train/a/1.jpg": "",
    "train/b/2.jpg": "",
    "test/a/3.jpg": "",
    "boxes.csv": "image,x0,y0,x1,y1\ntest/a/3.jpg,0,0,5,5\n",
}
ILSVRC = {
    "train/n00000001/a.JPEG": "",
    "train/n00000002/b.JPEG": "",
    "val/c.JPEG": "",
    "val.txt": "c.JPEG 1\n",
    "Annotations/val/c.xml": "<annotation><object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>"
    "<ymax>2</ymax></bndbox></object></annotation>",
}
WSOL = {
    "test/image_ids.txt": "x.jpg\n",
    "test/class_labels.txt": "x.jpg,0\n",
    "test/localization.txt": "x.jpg,1,2,3,4\n",
}


def make(root: Path, files: dict[str, str], changes: dict[str, str | None]) -> Path:
    for name, content in {**files, **changes}.items():
        if content is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode("latin-1"))
    return root


REFUSED_ON_OPENING = {
    "cub: image without label": (CUB, "test", {"image_class_labels.txt": "1 1\n"}, r"image_class_labels.*image id 2"),
    "cub: label of no class": (CUB, "test", {"image_class_labels.txt": "1 1\n2 7\n"}, r"image id 2.*1\.\.2.*'7'"),
    "cub: line without value": (CUB, "test", {"images.txt": "1 a/1.jpg\n2\n"}, r"images\.txt:2: expected.*'2'"),
    "cub: id twice": (CUB, "test", {"images.txt": "1 a/1.jpg\n1 b/2.jpg\n"}, r"images\.txt:2.*not occurred"),
    "cub: class twice": (CUB, "test", {"classes.txt": "1 a\n2 a\n"}, r"classes\.txt.*'a' twice"),
    "cub: split neither 0 nor 1": (CUB, "test", {"train_test_split.txt": "1 1\n2 2\n"}, r"train_test_split.*id 2.*'2'"),
    "cub: split list missing": (CUB, "test", {"train_test_split.txt": None}, r"train_test_split\.txt: expected"),
    "cub: list that is no text": (CUB, "test", {"classes.txt": "1 \xe9\n"}, r"classes\.txt.*UTF-8"),
    "cub: no validation split": (CUB, "val", {}, r"train and test.*--split"),
    "cub: empty split": (CUB, "test", {"train_test_split.txt": "1 1\n2 1\n"}, r"'test'.*no images"),
    "folder: missing split": (FOLDER, "val", {}, r"expected a folder 'val'.*train, test"),
    "folder: unknown class in test": (FOLDER, "test", {"test/c/4.jpg": ""}, r"test/c.*2 classes"),
    "folder: class without images": (FOLDER, "train", {"train/c/readme.txt": ""}, r"train/c: expected images"),
    "folder: class not in the list": (FOLDER, "train", {"classes.txt": "a\n"}, r"train/b.*classes\.txt"),
    "folder: flat, test asked for": ({"a/1.jpg": ""}, "test", {}, r"without train, val.*--split all"),
    "ilsvrc: label beyond the classes": (ILSVRC, "val", {"val.txt": "c.JPEG 2\n"}, r"val\.txt:1.*0\.\.1.*'2'"),
    "ilsvrc: line of three words": (ILSVRC, "val", {"val.txt": "c.JPEG 1 2\n"}, r"val\.txt:1.*`<image> <label>`"),
    "ilsvrc: no validation list": (ILSVRC, "val", {"val.txt": None}, r"LOC_val_solution\.csv or val\.txt"),
    "ilsvrc: folder that is no synset": (ILSVRC, "train", {"train/dog/a.JPEG": ""}, r"synset names.*'dog'"),
    "ilsvrc: test split": (ILSVRC, "test", {}, r"splits train and val"),
    "wsol: image without label": (
        WSOL,
        "test",
        {"test/image_ids.txt": "x.jpg\ny.jpg\n"},
        r"image_ids\.txt:2.*'y\.jpg'",
    ),
    "wsol: label that is no number": (WSOL, "test", {"test/class_labels.txt": "x.jpg,bird\n"}, r"class_labels\.txt:1"),
    "wsol: split that is not there": (WSOL, "val", {}, r"splits found: test"),
    "wsol: too few class names": (
        WSOL,
        "test",
        {"test/class_labels.txt": "x.jpg,1\n", "classes.txt": "a\n"},
        r"at least 2",
    ),
}
REFUSED_ON_BOXES = {
    "cub: image without box": (CUB, "test", {"bounding_boxes.txt": "1 0 0 5 5\n"}, r"no box for .*b/2\.jpg \(1 of 1"),
    "cub: box of no width": (CUB, "test", {"bounding_boxes.txt": "2 1 1 0 5\n"}, r"bounding_boxes\.txt:1.*x0 < x1"),
    "cub: word for a number": (
        CUB,
        "test",
        {"bounding_boxes.txt": "2 1 one 5 5\n"},
        r"bounding_boxes\.txt:1.*four numbers",
    ),
    "cub: no box file": (CUB, "test", {"bounding_boxes.txt": None}, r"bounding_boxes\.txt: expected"),
    "folder: no box file": (FOLDER, "test", {"boxes.csv": None}, r"boxes\.csv: expected ground-truth boxes"),
    "folder: other header": (FOLDER, "test", {"boxes.csv": "file,x,y,w,h\n"}, r"boxes\.csv:1.*header"),
    "folder: nan": (
        FOLDER,
        "test",
        {"boxes.csv": "image,x0,y0,x1,y1\ntest/a/3.jpg,0,0,nan,5\n"},
        r"boxes\.csv:2.*x0 < x1",
    ),
    "folder: infinity": (FOLDER, "test", {"boxes.csv": "image,x0,y0,x1,y1\ntest/a/3.jpg,0,0,inf,5\n"}, r"boxes\.csv:2"),
    "folder: path of no image": (
        FOLDER,
        "test",
        {"boxes.csv": "image,x0,y0,x1,y1\na/3.jpg,0,0,5,5\n"},
        r"no box for .*3\.jpg",
    ),
    "ilsvrc: xml cut short": (ILSVRC, "val", {"Annotations/val/c.xml": "<annotation><obj"}, r"c\.xml: expected XML"),
    "ilsvrc: xml without box": (
        ILSVRC,
        "val",
        {"Annotations/val/c.xml": "<annotation/>"},
        r"c\.xml.*at least one object",
    ),
    "ilsvrc: xml missing": (
        ILSVRC,
        "val",
        {"Annotations/val/c.xml": None, "Annotations/val/d.xml": ""},
        r"c\.xml: expected",
    ),
    "wsol: masks instead of boxes": (
        WSOL,
        "test",
        {"test/localization.txt": "x.jpg,m.png,\n"},
        r"localization\.txt:1.*masks",
    ),
}


@pytest.mark.parametrize(("files", "split", "changes", "message"), REFUSED_ON_OPENING.values(), ids=REFUSED_ON_OPENING)
def test_refused_on_opening(
    tmp_path: Path, files: dict[str, str], split: str, changes: dict[str, str | None], message: str
) -> None:
    root = make(tmp_path, files, changes)
    with pytest.raises(DataError, match=message):
        open_dataset(root, split)


@pytest.mark.parametrize(("files", "split", "changes", "message"), REFUSED_ON_BOXES.values(), ids=REFUSED_ON_BOXES)
def test_refused_when_boxes_are_asked_for(
    tmp_path: Path, files: dict[str, str], split: str, changes: dict[str, str | None], message: str
) -> None:
    dataset = open_dataset(make(tmp_path, files, changes), split)
    with pytest.raises(DataError, match=message):
        dataset.boxes()


def test_nothing_there_a_file_and_an_empty_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing"):
        open_dataset(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="found a file"):
        open_dataset(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no known layout"):
        open_dataset(tmp_path / "empty")


def test_unknown_names_of_splits_and_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown split 'tset'; expected one of train"):
        open_dataset(tmp_path, "tset")
    with pytest.raises(DataError, match="unknown layout 'voc'; expected one of auto"):
        open_dataset(tmp_path, layout="voc")
