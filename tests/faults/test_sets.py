"""Folders as people have them: links, hidden files, other names of splits, what an archive leaves behind."""

from __future__ import annotations

import re
from os import mkfifo
from pathlib import Path

import pytest

from wgap.datasets import open_dataset
from wgap.errors import CheckpointError, DataError
from wgap.images import find_images


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"never decoded here")
    return path


def test_links_to_folders_are_followed_and_cycles_end(tmp_path: Path) -> None:
    elsewhere = picture(tmp_path / "elsewhere" / "deep" / "1.jpg").parents[1]
    root = tmp_path / "set"
    picture(root / "train" / "otter" / "2.jpg")
    (root / "train" / "otter" / "more").symlink_to(elsewhere)
    (root / "train" / "otter" / "again").symlink_to(elsewhere)
    (root / "train" / "otter" / "up").symlink_to(root)
    (root / "train" / "heron").symlink_to(elsewhere)
    found = open_dataset(root)
    names = [str(sample.path.relative_to(root / "train")) for sample in found]
    assert names == ["heron/deep/1.jpg", "otter/2.jpg", "otter/again/deep/1.jpg", "otter/more/deep/1.jpg"]
    assert len(find_images(root)) == 4


def test_two_names_of_one_file_are_two_images(tmp_path: Path) -> None:
    blob = picture(tmp_path / "blobs" / "0a1b2c")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(blob)
    assert [path.name for path in find_images(tmp_path / "set")] == ["a.jpg", "b.jpg"]
    assert len(find_images([tmp_path / "set", tmp_path / "set" / "a.jpg", f"{tmp_path}/set/../set/b.jpg"])) == 2


def test_what_is_hidden_is_left_out_everywhere(tmp_path: Path) -> None:
    for name in (
        "otter/1.jpg",
        "otter/.2.jpg",
        "otter/.thumbnails/3.jpg",
        "otter/__MACOSX/4.jpg",
        "__MACOSX/otter/5.jpg",
    ):
        picture(tmp_path / "train" / name)
    picture(tmp_path / "train" / ".git" / "6.jpg")
    found = open_dataset(tmp_path)
    assert found.classes == ["otter"]
    assert [sample.path.name for sample in found] == ["1.jpg"]
    assert [path.name for path in find_images(tmp_path)] == ["1.jpg"]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "Valid", "Test"), ("training", "validation", "testing"), ("TRAIN", "val", "TEST")],
)
@pytest.mark.parametrize("wrapper", ["", "images", "Data"])
def test_splits_have_many_names(train: str, val: str, test: str, wrapper: str, tmp_path: Path) -> None:
    for split, count in ((train, 3), (val, 2), (test, 1)):
        for number in range(count):
            picture(tmp_path / wrapper / split / "otter" / f"{number}.jpg")
    assert [len(open_dataset(tmp_path, split)) for split in ("train", "val", "test", "all")] == [3, 2, 1, 6]
    inside = f"{wrapper}/{test}".strip("/")
    (tmp_path / "boxes.csv").write_text(f"image,x0,y0,x1,y1\n{inside}/otter/0.jpg,0,0,5,6\n")
    assert open_dataset(tmp_path, "test").boxes() == [[(0, 0, 5, 6)]]


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "train" / "otter" / "1.jpg")
    (tmp_path / "train" / "otter" / "up").symlink_to(tmp_path)
    for name in ("otter/.DS_Store", "otter/notes.txt", "otter/Thumbs.db", "loose.jpg", "../extra/heron/2.jpg"):
        picture(tmp_path / "train" / name)
    (tmp_path / "train" / "otter" / "folder.jpg").mkdir()
    mkfifo(tmp_path / "train" / "otter" / "pipe.png")
    left = {str(path.relative_to(tmp_path)): reason for path, reason in open_dataset(tmp_path).left_out}
    assert left == {
        "extra": "beside the folders of splits",
        "train/loose.jpg": "beside the folders of classes",
        "train/otter/.DS_Store": "hidden",
        "train/otter/notes.txt": "without an image's ending",
        "train/otter/Thumbs.db": "without an image's ending",
        "train/otter/pipe.png": "not a file",
        "train/otter/up": "a link back to a folder that it lies in",
    }
    [record] = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "wgap.images")
    told = record.getMessage()
    assert told.startswith(f"{tmp_path}: left out: ")
    assert "1 hidden ('train/otter/.DS_Store')" in told
    assert re.search(r"2 without an image's ending \('train/otter/(notes.txt|Thumbs.db)'\)", told)
    caplog.clear()
    caplog.set_level("INFO", "wgap.images")
    find_images(tmp_path / "train" / "otter")
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_accents_written_either_way_are_one_name(tmp_path: Path) -> None:
    composed, apart = "h\u00e9ron", "he\u0301ron"
    picture(tmp_path / "train" / composed / "\u00e9.jpg")
    picture(tmp_path / "test" / apart / "e\u0301.jpg")
    (tmp_path / "classes.txt").write_text(f"{apart}\n")
    (tmp_path / "boxes.csv").write_text(f"image,x0,y0,x1,y1\ntest/{composed}/\u00e9.jpg,0,0,5,6\n")
    assert open_dataset(tmp_path, "train").classes == [composed]
    found = open_dataset(tmp_path, "test")
    assert (found.classes, found.boxes()) == ([composed], [[(0, 0, 5, 6)]])


LISTED = {
    "cub": (
        "test", "images/[]/[].jpg",
        {
            "images.txt": "1 {}/{}.jpg\n", "classes.txt": "1 bird\n", "image_class_labels.txt": "1 1\n",
            "train_test_split.txt": "1 0\n", "bounding_boxes.txt": "1 0 0 5 6\n",
        },
    ),
    "wsolevaluation": (
        "test", "images/[]/[].jpg",
        {
            "test/image_ids.txt": "{}/{}.jpg\n", "test/class_labels.txt": "[]/[].jpg,0\n",
            "test/localization.txt": "{}/[].jpg,0,0,5,6\n",
        },
    ),
    "ilsvrc, val.txt": (
        "val", "val/[]/[].JPEG",
        {
            "synsets.txt": "n00000001\n", "val.txt": "{}/{} 0\n",
            "Annotations/val/{}.xml": "<object><bndbox><xmin>0</xmin><ymin>0</ymin>"
            "<xmax>5</xmax><ymax>6</ymax></bndbox></object>",
        },
    ),
    "ilsvrc, solution": (
        "val", "val/[].JPEG",
        {"synsets.txt": "n00000001\n", "LOC_val_solution.csv": "ImageId,PredictionString\n{},n00000001 0 0 5 6\n"},
    ),
}  # fmt: skip
"""Layout to split, image and lists; ``[]`` is a name as the disk has it, ``{}`` as a list does."""


@pytest.mark.parametrize("layout", LISTED)
@pytest.mark.parametrize(("disk", "written"), [("\u00e9", "e\u0301"), ("e\u0301", "\u00e9")], ids=["apart", "composed"])
def test_lists_name_files_with_accents_written_either_way(layout: str, disk: str, written: str, tmp_path: Path) -> None:
    split, image, files = LISTED[layout]
    path = picture(tmp_path / image.replace("[]", disk))
    for template in files.items():
        name, text = (part.replace("[]", disk).replace("{}", written) for part in template)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = open_dataset(tmp_path, split)
    assert [sample.path for sample in found] == [path]
    assert found.boxes() == [[(0, 0, 5, 6)]]


def test_a_folder_that_is_no_synset_is_told(tmp_path: Path) -> None:
    (tmp_path / "synsets.txt").write_text("n00000001\n")
    for split in ("train", "val"):
        for folder in ("n00000001", "n1", "otter"):
            picture(tmp_path / split / folder / "1.JPEG")
        found = open_dataset(tmp_path, split, "ilsvrc")
        assert [sample.path.parent.name for sample in found] == ["n00000001"]
        left = {path.relative_to(tmp_path / split).as_posix(): reason for path, reason in found.left_out}
        assert left == {"n1": "not named as a synset", "otter": "not named as a synset"}


def test_two_folders_for_one_split_are_named(tmp_path: Path) -> None:
    for split in ("val", "validation"):
        picture(tmp_path / split / "otter" / "1.jpg")
    with pytest.raises(DataError, match="one folder for the split val, got val and validation"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize("text", ["otter\nheron\n", "\ufeffotter\r\nheron\r\n", "1 otter\n2 heron\n"])
def test_class_names_come_with_a_mark_and_with_numbers(text: str, tmp_path: Path) -> None:
    from wgap.export.onnx import read_classes

    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert read_classes(tmp_path / "classes.txt") == ["otter", "heron"]
    (tmp_path / "classes.txt").write_text("1 otter\n3 heron\n")  # no numbering: names
    assert read_classes(tmp_path / "classes.txt") == ["1 otter", "3 heron"]
    (tmp_path / "classes.txt").write_text("1 otter\n2 otter\n")
    with pytest.raises(CheckpointError, match="a second time"):
        read_classes(tmp_path / "classes.txt")
