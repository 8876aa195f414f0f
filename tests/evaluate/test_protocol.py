"""The published figures on real photographs, and what evaluation refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from wgap import Localizer
from wgap.cli import app
from wgap.datasets import open_dataset
from wgap.errors import DataError, OutputExistsError
from wgap.evaluate.protocol import Evaluation, ablation_rules, evaluate_localizer


@pytest.fixture(scope="module")
def cub10_evaluation(cub10: Path, cub10_bundle: Path) -> Evaluation:
    localizer = Localizer(cub10_bundle)
    return evaluate_localizer(localizer, open_dataset(cub10, split="test"), ablation_rules(localizer.bundle))


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Six images of the tiny bundle's three classes, in folders, with boxes; one class never appears in order."""
    root = tmp_path / "shapes"
    rng = np.random.default_rng(0)
    lines = ["image,x0,y0,x1,y1"]
    for name in ("cross", "disc", "ring"):
        (root / "test" / name).mkdir(parents=True)
        for number in range(2):
            picture = rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)
            cv2.imwrite(str(root / "test" / name / f"{number}.png"), picture)
            lines.append(f"test/{name}/{number}.png,10,20,60,70")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.slow
@pytest.mark.data
def test_the_given_weights_score_as_published(cub10_evaluation: Evaluation) -> None:
    report = cub10_evaluation.to_json()
    assert report["images"] == 122
    assert report["top1_cls"] == pytest.approx(0.852, abs=0.01)
    assert report["gt_known_loc"] == pytest.approx(0.861, abs=0.01)
    assert report["top1_loc"] == pytest.approx(0.746, abs=0.01)
    assert report["skipped"] == []
    assert sum(report["levels"].values()) == 122


@pytest.mark.slow
@pytest.mark.data
def test_the_ablation_shows_what_each_part_is_worth(cub10_evaluation: Evaluation) -> None:
    report = cub10_evaluation.to_json()
    table = {(row["map"], row["threshold"]): row["gt_known_loc"] for row in report["ablation"]}
    assert len(table) == 9
    assert table["signed", "fixed:0.15"] == pytest.approx(0.607, abs=0.01)
    assert table["recombined", "adaptive"] == report["gt_known_loc"]
    assert table["recombined", "adaptive"] > table["positive", "adaptive"] > table["signed", "adaptive"]
    assert report["oracle"]["gt_known_loc"] == pytest.approx(0.984, abs=0.01)
    assert report["oracle"]["uses_ground_truth"] is True
    for bound in report["upper_bounds"]:
        rows = [value for (kind, _), value in table.items() if kind == bound["map"]]
        assert max(rows) <= bound["oracle"]["gt_known_loc"]
        assert bound["best_fixed"]["gt_known_loc"] <= bound["oracle"]["gt_known_loc"]
    assert report["centred_box"]["gt_known_loc"] < report["gt_known_loc"]


def test_labels_are_matched_by_name_not_by_position(tiny_bundle: Path, shapes: Path) -> None:
    """The folder's classes are sorted, the bundle's are disc, ring, cross."""
    localizer = Localizer(tiny_bundle)
    report = evaluate_localizer(localizer, open_dataset(shapes, split="test"))
    names = [localizer.classes[image.label] for image in report.images]
    assert names == [image.path.parent.name for image in report.images]
    assert len(set(names)) == 3


def test_batch_size_changes_nothing(tiny_bundle: Path, shapes: Path) -> None:
    localizer, data = Localizer(tiny_bundle), open_dataset(shapes, split="test")
    one, many = (evaluate_localizer(localizer, data, batch_size=size) for size in (1, 5))
    assert [image.box for image in one.images] == [image.box for image in many.images]
    assert one.summary() == many.summary()


def test_unreadable_images_are_named_and_counted_up_to_a_limit(tiny_bundle: Path, shapes: Path) -> None:
    localizer = Localizer(tiny_bundle)
    broken = shapes / "test" / "disc" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    report = evaluate_localizer(localizer, open_dataset(shapes, split="test"))
    assert [path for path, _ in report.skipped] == [str(broken)]
    assert report.summary().images == 5
    assert report.to_json()["skipped"][0]["image"] == str(broken)
    with pytest.raises(DataError, match="1 unreadable images, at most 0 allowed"):
        evaluate_localizer(localizer, open_dataset(shapes, split="test"), max_bad=0)


def test_other_classes_and_missing_boxes_are_refused(tiny_bundle: Path, shapes: Path) -> None:
    localizer = Localizer(tiny_bundle)
    (shapes / "boxes.csv").unlink()
    with pytest.raises(DataError, match="box"):
        evaluate_localizer(localizer, open_dataset(shapes, split="test"))
    shutil.move(shapes / "test" / "ring", shapes / "test" / "star")
    with pytest.raises(DataError, match="does not know: star"):
        evaluate_localizer(localizer, open_dataset(shapes, split="test"))


def test_the_command_writes_pictures_and_lines_and_never_over_something_else(
    tiny_bundle: Path, shapes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(tiny_bundle), str(shapes), "--json", "--ablation", "--out", str(out)]
    first = CliRunner().invoke(app, [*command, "--plot", "worst", "--plot", "0.png"])
    assert first.exit_code == 0, first.output
    printed = json.loads(first.stdout)
    assert {"images", "top1_cls", "gt_known_loc", "top1_loc", "mean_iou", "levels"} <= printed.keys()
    assert json.loads((out / "report.json").read_text()) == printed
    lines = [json.loads(line) for line in (out / "per_image.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert {"worst.png", "spread.png"} <= set(pictures)
    assert sum(name.startswith("levels-") for name in pictures) == 4
    for name in pictures:
        picture = cv2.imread(str(out / name))
        assert picture is not None
        assert picture.std() > 10, f"{name} is blank"
    assert isinstance(CliRunner().invoke(app, command).exception, OutputExistsError)
    precious = tmp_path / "precious"
    precious.mkdir()
    refused = CliRunner().invoke(app, [*command[:-1], str(precious), "--force"])
    assert isinstance(refused.exception, OutputExistsError)
    assert precious.is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--map", "inverted"], "expected 'recombined', 'positive' or 'signed', got 'inverted'"),
        (["--rule", "fixed:2"], "fixed"),
        (["--rule", "otsu"], "otsu"),
        (["--plot", "worst"], "--out DIR"),
        (["--split", "validation"], "unknown split"),
    ],
)
def test_wrong_options_say_what_is_possible(
    arguments: list[str], message: str, tiny_bundle: Path, shapes: Path
) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(tiny_bundle), str(shapes), *arguments])
    assert isinstance(result.exception, DataError), result.output
    assert message in str(result.exception)
