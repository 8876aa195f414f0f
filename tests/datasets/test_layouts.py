"""Each layout opens as its own documentation says: classes, labels, order, splits, and boxes in half-open pixels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wgap.datasets import open_dataset

Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Files by relative path and content; images may be empty, since nothing here decodes them."""

    def make(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


CUB = {
    "images.txt": "1 001.Auk/a.jpg\n2 002.Jay/b c.jpg\n4 001.Auk/d.jpg\n",
    "classes.txt": "1 001.Auk\n2 002.Jay\n",
    "image_class_labels.txt": "1 1\n2 2\n4 1\n",
    "train_test_split.txt": "1 0\n2 1\n4 0\n",
    "bounding_boxes.txt": "1 10.0 20.5 30.0 40.0\n2 0.0 0.0 5.0 5.0\n4 1.0 2.0 3.0 4.0\n",
}


def test_cub_reads_its_lists_and_turns_widths_into_corners(write: Write) -> None:
    root = write(CUB)
    test = open_dataset(root, "test")
    assert test.layout == "cub"
    assert test.classes == ["001.Auk", "002.Jay"]
    assert [s.path.relative_to(root).as_posix() for s in test] == ["images/001.Auk/a.jpg", "images/001.Auk/d.jpg"]
    assert [s.label for s in test] == [0, 0]
    assert test.boxes() == [[(10.0, 20.5, 40.0, 60.5)], [(1.0, 2.0, 4.0, 6.0)]]
    (only,) = open_dataset(root, "train")
    assert (only.path.name, only.label) == ("b c.jpg", 1)
    assert len(open_dataset(root, "all")) == 3


def test_cub10_has_its_published_rows(cub10: Path) -> None:
    train, test = open_dataset(cub10, "train"), open_dataset(cub10, "test")
    assert (len(train), len(test), len(train.classes)) == (300, 122, 10)
    assert all(s.path.is_file() for s in (*train, *test))
    assert {s.path for s in train}.isdisjoint(s.path for s in test)
    assert test.boxes()[0] == [(60.0, 27.0, 385.0, 331.0)]
    assert all(s.path.parent.name == test.classes[s.label] for s in test)


FOLDERS = {
    "train/cat/1.jpg": "",
    "train/cat/deep/2.PNG": "",
    "train/cat/notes.txt": "",
    "train/dog/1.jpeg": "",
    "train/.cache/1.jpg": "",
    "val/dog/9.jpg": "",
    "boxes.csv": "image,x0,y0,x1,y1\nval/dog/9.jpg,1,2,3.5,4\nval/dog/9.jpg,5,6,7,8\n",
}


def test_folders_give_classes_sorted_and_images_sorted_and_several_boxes_per_image(write: Write) -> None:
    root = write(FOLDERS)
    train = open_dataset(root)
    assert (train.layout, train.classes) == ("folder", ["cat", "dog"])
    assert [(s.path.relative_to(root / "train").as_posix(), s.label) for s in train] == [
        ("cat/1.jpg", 0),
        ("cat/deep/2.PNG", 0),
        ("dog/1.jpeg", 1),
    ]
    val = open_dataset(root, "val")
    assert val.classes == train.classes, "a split with fewer classes keeps the labels of training"
    assert [s.label for s in val] == [1]
    assert val.boxes() == [[(1.0, 2.0, 3.5, 4.0), (5.0, 6.0, 7.0, 8.0)]]
    assert len(open_dataset(root, "all")) == 4


def test_folders_take_the_class_order_of_a_class_list(write: Write) -> None:
    root = write({**FOLDERS, "classes.txt": "dog\ncat\nowl\n"})
    train = open_dataset(root)
    assert train.classes == ["dog", "cat", "owl"]
    assert [s.label for s in train] == [1, 1, 0]


def test_folders_without_splits_are_training_images_or_all_of_them(write: Write) -> None:
    root = write(
        {"cat/1.jpg": "", "dog/1.jpg": "", "boxes.csv": "image,x0,y0,x1,y1\ncat/1.jpg,0,0,1,1\ndog/1.jpg,0,0,2,2\n"}
    )
    assert len(open_dataset(root, "train")) == 2
    assert open_dataset(root, "all").boxes() == [[(0.0, 0.0, 1.0, 1.0)], [(0.0, 0.0, 2.0, 2.0)]]


def _xml(*boxes: tuple[int, int, int, int]) -> str:
    objects = "".join(
        f"<object><name>n1</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return f"<annotation><size><width>500</width><height>375</height></size>{objects}</annotation>"


DISTRIBUTED = {
    "Data/CLS-LOC/train/n01440764/n01440764_18.JPEG": "",
    "Data/CLS-LOC/train/n01443537/n01443537_2.JPEG": "",
    "Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": "",
    "Data/CLS-LOC/val/ILSVRC2012_val_00000002.JPEG": "",
    "Annotations/CLS-LOC/train/n01440764/n01440764_18.xml": _xml((1, 2, 30, 40)),
    "Annotations/CLS-LOC/train/n01443537/n01443537_2.xml": _xml((5, 6, 7, 8)),
    "Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": _xml((111, 108, 441, 193), (0, 0, 10, 10)),
    "Annotations/CLS-LOC/val/ILSVRC2012_val_00000002.xml": _xml((3, 4, 499, 374)),
    "ImageSets/CLS-LOC/val.txt": "ILSVRC2012_val_00000001 1\nILSVRC2012_val_00000002 2\n",  # counters, not labels
    "LOC_synset_mapping.txt": "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n",
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    "ILSVRC2012_val_00000001,n01443537 111 108 441 193 n01443537 0 0 10 10 \n"
    "ILSVRC2012_val_00000002,n01440764 3 4 499 374 \n",
}


def test_ilsvrc_as_distributed(write: Write) -> None:
    root = write(DISTRIBUTED)
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert (train.layout, train.classes) == ("ilsvrc", ["n01440764", "n01443537"])
    assert [s.label for s in train] == [0, 1]
    assert train.boxes() == [[(1.0, 2.0, 30.0, 40.0)], [(5.0, 6.0, 7.0, 8.0)]]
    assert [(s.path.name, s.label) for s in val] == [
        ("ILSVRC2012_val_00000001.JPEG", 1),
        ("ILSVRC2012_val_00000002.JPEG", 0),
    ]
    assert all(s.path.is_file() for s in val)
    assert val.boxes() == [[(111.0, 108.0, 441.0, 193.0), (0.0, 0.0, 10.0, 10.0)], [(3.0, 4.0, 499.0, 374.0)]]


def test_ilsvrc_boxes_of_the_solution_file_serve_where_there_is_no_xml(write: Write) -> None:
    root = write({name: text for name, text in DISTRIBUTED.items() if not name.startswith("Annotations")})
    assert open_dataset(root, "val").boxes()[0] == [(111.0, 108.0, 441.0, 193.0), (0.0, 0.0, 10.0, 10.0)]


@pytest.mark.parametrize("label", ["1", "n01443537"], ids=["number from 0", "synset"])
def test_ilsvrc_with_plain_folders_and_a_validation_list(write: Write, label: str) -> None:
    root = write(
        {
            "train/n01440764/a.JPEG": "",
            "train/n01443537/b.JPEG": "",
            "val/c.JPEG": "",
            "val.txt": f"c.JPEG {label}\n",
            "Annotations/val/c.xml": _xml((1, 1, 9, 9)),
        }
    )
    val = open_dataset(root, "val")
    assert val.layout == "ilsvrc"
    assert [(s.path, s.label) for s in val] == [(root / "val" / "c.JPEG", 1)]
    assert val.boxes() == [[(1.0, 1.0, 9.0, 9.0)]]


def test_ilsvrc_validation_images_somebody_sorted_into_synset_folders(write: Write) -> None:
    root = write({"train/n01440764/a.JPEG": "", "train/n01443537/b.JPEG": "", "val/n01443537/c.JPEG": ""})
    assert [s.label for s in open_dataset(root, "val")] == [1]


WSOL = {
    "metadata/val/image_ids.txt": "val2/0/x.jpeg\nval2/1/y.jpeg\n",
    "metadata/val/class_labels.txt": "val2/1/y.jpeg,1\nval2/0/x.jpeg,0\n",
    "metadata/val/image_sizes.txt": "val2/0/x.jpeg,500,300\nval2/1/y.jpeg,500,375\n",
    "metadata/val/localization.txt": "val2/0/x.jpeg,156,163,318,230\nval2/0/x.jpeg,23,12,101,259\n"
    "val2/1/y.jpeg,0,0,499,374\n",
    "metadata/test/image_ids.txt": "val/z.JPEG\n",
    "metadata/test/class_labels.txt": "val/z.JPEG,2\n",
    "metadata/test/localization.txt": "val/z.JPEG,1,2,3,4\n",
}


def test_wsolevaluation_metadata(write: Write) -> None:
    root = write(WSOL)
    val = open_dataset(root, "val")
    assert val.layout == "wsolevaluation"
    assert val.classes == ["0", "1", "2"], "classes are counted over all splits, so that labels mean the same in each"
    assert [(s.path, s.label) for s in val] == [(root / "val2/0/x.jpeg", 0), (root / "val2/1/y.jpeg", 1)]
    assert val.boxes() == [[(156.0, 163.0, 318.0, 230.0), (23.0, 12.0, 101.0, 259.0)], [(0.0, 0.0, 499.0, 374.0)]]
    assert open_dataset(root, "test").samples[0].label == 2


def test_wsolevaluation_takes_names_from_a_class_list_and_images_from_their_folder(write: Write) -> None:
    root = write({**WSOL, "classes.txt": "tench\ngoldfish\nshark\n", "images/val2/0/x.jpeg": ""})
    val = open_dataset(root, "val")
    assert val.classes == ["tench", "goldfish", "shark"]
    assert val.samples[0].path.is_file()


def test_masks_are_listed_as_openimages_are_and_opened_by_masks_alone(write: Write) -> None:
    lists = {
        "test/image_ids.txt": "test/a.jpg\ntest/b.jpg\n",
        "test/class_labels.txt": "test/a.jpg,0\ntest/b.jpg,1\n",
        "test/localization.txt": "test/b.jpg,m/b.png,\ntest/a.jpg,m/1.png,m/i.png\ntest/a.jpg,m/2.png,\n",
    }
    root = write({**lists, **dict.fromkeys(("m/b.png", "m/1.png", "m/2.png", "m/i.png"), "")})
    first, second = open_dataset(root, "test").masks()
    assert (first.objects, first.ignored) == ((root / "m/1.png", root / "m/2.png"), root / "m/i.png")
    assert (second.objects, second.ignored) == ((root / "m/b.png",), None)
    write(dict.fromkeys(("masks/m/b.png", "masks/m/1.png", "masks/m/2.png", "masks/m/i.png"), ""))
    assert open_dataset(root, "test").masks()[1].objects == (root / "masks/m/b.png",)
    assert open_dataset(root, "test").masks(root)[1].objects == (root / "m/b.png",)
    (root / "test/localization.txt").write_text("not a list of masks")
    assert len(open_dataset(root, "test")) == 2


@pytest.mark.parametrize(
    ("files", "split", "box_files"),
    [
        (CUB, "test", ["bounding_boxes.txt"]),
        (FOLDERS, "val", ["boxes.csv"]),
        (DISTRIBUTED, "train", [n for n in DISTRIBUTED if n.endswith(".xml")]),
        (WSOL, "val", ["metadata/val/localization.txt"]),
    ],
    ids=["cub", "folder", "ilsvrc", "wsolevaluation"],
)
def test_box_files_are_opened_by_boxes_alone(
    write: Write, files: dict[str, str], split: str, box_files: list[str]
) -> None:
    """What training does works with unreadable boxes; asking for them does not."""
    root = write({**files, **dict.fromkeys(box_files, "not a box file")})
    dataset = open_dataset(root, split)
    assert dataset.samples
    with pytest.raises(Exception, match=r"expected|no box"):
        dataset.boxes()


def test_datasets_need_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, wgap.datasets; print(sorted({'numpy', 'cv2', 'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
