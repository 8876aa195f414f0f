"""A set whose classes the model calls otherwise, or does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.calibrate.images import image_set
from wgap.cli import app
from wgap.datasets import open_dataset, with_label_map
from wgap.errors import DataError
from wgap.evaluate.protocol import ImageResult, evaluate_localizer
from wgap.evaluate.public_protocol import Protocol, evaluate_protocol

NAMES = ("cat", "dog", "eel")
MODEL = ("disc", "ring", "cross")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Twelve noisy pictures, four of each class, with boxes."""
    root, rng = tmp_path / "animals", np.random.default_rng(3)
    lines = ["image,x0,y0,x1,y1"]
    for name in NAMES:
        (root / "test" / name).mkdir(parents=True)
        for number in range(4):
            cv2.imwrite(str(root / f"test/{name}/{number}.png"), rng.integers(0, 256, (80, 100, 3), dtype=np.uint8))
            lines.append(f"test/{name}/{number}.png,10,20,60,70")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


def written(folder: Path, content: object) -> Path:
    path = folder / "map.json"
    path.write_text(json.dumps(content))
    return path


def by_name(image: ImageResult) -> tuple[Any, ...]:
    return image.label, image.path.name, image.predicted, image.box, str(image.scores)


def test_a_map_gives_what_equal_names_give(tiny_bundle: Path, animals: Path, tmp_path: Path) -> None:
    localizer, dataset = Localizer(tiny_bundle), open_dataset(animals, "test")
    path = written(tmp_path, {"eel": 2, "cat": "ring", "dog": ["disc"]})  # a number, a name, a list of one
    found = evaluate_localizer(localizer, with_label_map(dataset, path))
    assert [MODEL[image.label or 0] for image in found.images] == ["ring"] * 4 + ["disc"] * 4 + ["cross"] * 4
    for old, new in zip(NAMES, ("ring", "disc", "cross"), strict=True):
        (animals / "test" / old).rename(animals / "test" / new)
    boxes = (animals / "boxes.csv").read_text()
    for old, new in zip(NAMES, ("ring", "disc", "cross"), strict=True):
        boxes = boxes.replace(f"test/{old}/", f"test/{new}/")
    (animals / "boxes.csv").write_text(boxes)
    renamed = evaluate_localizer(localizer, open_dataset(animals, "test"))
    assert found.to_json()["labelled"] == 12
    assert sorted(map(by_name, renamed.images)) == sorted(map(by_name, found.images))


def test_of_several_classes_the_most_probable_is_the_label_and_of_none_the_top_one(
    tiny_bundle: Path, animals: Path, tmp_path: Path
) -> None:
    localizer = Localizer(tiny_bundle)
    dataset = with_label_map(
        open_dataset(animals, "test"), written(tmp_path, {"cat": ["disc", "cross"], "dog": None, "eel": "ring"})
    )
    found = evaluate_localizer(localizer, dataset)
    for image in found.images:
        tried = {name: localizer.one(image.path, MODEL.index(name)) for name in MODEL}
        name, score = image.path.parent.name, image.scores[0]
        if name == "cat":
            best = max(("disc", "cross"), key=lambda one: tried[one].score)
            assert (image.label, score.correct) == (MODEL.index(best), image.predicted != 1)
            assert image.box == pytest.approx(tried[best].box)
        elif name == "dog":
            assert (image.label, score.correct, score.gt_iou) == (None, None, score.top1_iou)
            assert image.box == pytest.approx(tried[MODEL[image.predicted]].box)
    report = found.to_json()
    known = [image.scores[0] for image in found.images if image.label is not None]
    assert (report["labelled"], len(known)) == (8, 8)
    assert report["top1_cls"] == sum(bool(score.correct) for score in known) / 8


def test_without_a_map_a_model_that_knows_no_name_is_judged_by_its_top_class_and_it_is_said(
    tiny_bundle: Path, animals: Path
) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(tiny_bundle), str(animals), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["labelled"], report["top1_cls"], report["top1_loc"]) == (0, None, None)
    assert 0 <= report["gt_known_loc"] <= 1
    assert "12 of 12 images are of classes that the model does not have" in done.stderr
    done = CliRunner().invoke(app, ["evaluate", str(tiny_bundle), str(animals)])
    assert done.exit_code == 0, done.output


def test_figures_by_class_want_one_class_each(tiny_bundle: Path, animals: Path, tmp_path: Path) -> None:
    localizer, protocol = Localizer(tiny_bundle), Protocol.parse("maxboxacc")
    dataset = open_dataset(animals, "test")
    with pytest.raises(DataError, match="expected one class of the model's for 'cat', got 0"):
        evaluate_protocol(localizer, dataset, protocol)
    several = with_label_map(dataset, written(tmp_path, {"cat": 0, "dog": ["ring", "cross"], "eel": 1}))
    with pytest.raises(DataError, match="expected one class of the model's for 'dog', got 2"):
        evaluate_protocol(localizer, several, protocol)
    one = with_label_map(dataset, written(tmp_path, {"cat": 0, "dog": 0, "eel": 1}))
    figures = evaluate_protocol(localizer, one, protocol).to_json()
    assert [row["images"] for row in figures["per_class"]] == [8, 4, 0]


def test_calibration_and_gate_take_the_map(tiny_bundle: Path, animals: Path, tmp_path: Path) -> None:
    bundle, path = Bundle.open(tiny_bundle), written(tmp_path, {"cat": 1, "dog": None, "eel": "disc"})
    chosen = image_set(bundle, animals, split="test", with_boxes=True, label_map=path)
    assert [picture.label for picture in chosen.pictures] == [1] * 4 + [None] * 4 + [0] * 4
    assert all(picture.boxes == ((10, 20, 60, 70),) for picture in chosen.pictures)
    assert "labels of 1 of 3 classes are left out, of 'dog' first" in chosen.warnings[0]
    plain = image_set(bundle, animals, split="test", with_boxes=True)
    assert {picture.label for picture in plain.pictures} == {None}
    with pytest.raises(DataError, match="a label map is for a labelled set"):
        image_set(bundle, animals / "test" / "cat", split="test", label_map=path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"cat": 0, "dog": 1}, "every class of .*: 'eel'"),
        ({"cat": 0, "dog": 1, "eel": 2, "fox": 0}, "has no class: 'fox'"),
        ({"cat": 0, "dog": 1, "eel": 1.5}, "'eel' has 1.5"),
        ({"cat": 0, "dog": 1, "eel": True}, "'eel' has True"),
        ({"cat": 0, "dog": 1, "eel": [{"a": 1}]}, "'eel' has"),
        (["cat"], "expected a JSON object .* got list"),
        ({"cat": 0, "dog": 1, "eel": 3}, "names 3, which is no class of the 3"),
        ({"cat": 0, "dog": 1, "eel": -1}, "names -1, which is no class"),
        ({"cat": 0, "dog": 1, "eel": "Ring"}, "names 'Ring', which is no class .* disc, ring, cross"),
    ],
)
def test_a_bad_map_is_named(tiny_bundle: Path, animals: Path, tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        evaluate_localizer(
            Localizer(tiny_bundle), with_label_map(open_dataset(animals, "test"), written(tmp_path, content))
        )


def test_a_file_that_is_no_json_is_named(animals: Path, tmp_path: Path) -> None:
    for content in ("{", '{"cat": 0, "cat": 1}'):
        (tmp_path / "map.json").write_text(content)
        with pytest.raises(DataError, match=r"map\.json: expected a JSON object"):
            with_label_map(open_dataset(animals, "test"), tmp_path / "map.json")
    with pytest.raises(DataError, match="expected a JSON object"):
        with_label_map(open_dataset(animals, "test"), tmp_path / "none.json")


def test_a_class_that_stands_there_in_both_forms_of_its_accents_is_refused(animals: Path, tmp_path: Path) -> None:
    (animals / "test" / "eel").rename(animals / "test" / "\u00e9el")
    path = tmp_path / "map.json"
    path.write_text('{"cat": 0, "dog": 1, "\u00e9el": 2, "e\u0301el": 0}', encoding="utf-8-sig")
    with pytest.raises(DataError, match="stands there twice"):
        with_label_map(open_dataset(animals, "test"), path)
