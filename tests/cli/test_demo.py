"""The demo's images are what its page says, and the demo tells a missed promise by its exit code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from wgap.bundle import Bundle
from wgap.cli import app
from wgap.cli.demo import run as demo
from wgap.cli.demo.images import CLASSES, make_image, write_demo_set
from wgap.cli.demo.report import commands
from wgap.datasets import open_dataset
from wgap.errors import OutputExistsError
from wgap.geometry import RIGHT, best_iou, centred_box


def test_the_same_seed_gives_the_same_pictures(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_demo_set(tmp_path / name, {"train": 1, "test": 1}, seed)
    a, b, c = ({p.relative_to(r): p.read_bytes() for p in r.rglob("*.*")} for r in map(tmp_path.joinpath, "abc"))
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)


def test_the_set_opens_as_folders_with_its_boxes_apart(tmp_path: Path) -> None:
    write_demo_set(tmp_path, {"train": 2, "test": 1}, seed=0)
    train = open_dataset(tmp_path, "train")
    assert (train.layout, tuple(train.classes), len(train)) == ("folder", CLASSES, 12)
    assert all(len(boxes) == 1 for boxes in open_dataset(tmp_path, "test").boxes())
    (tmp_path / "boxes.csv").unlink()
    assert len(open_dataset(tmp_path, "train")) == 12


def test_a_box_is_tight_around_its_pebble() -> None:
    """Two pictures of one seed differ by their texture alone: inside the box, and up to its rim."""
    for seed in range(8):
        one, other = (make_image(label, np.random.default_rng(seed)) for label in (0, 4))
        assert one.box == other.box
        different = np.abs(one.pixels.astype(int) - other.pixels).max(2) > 60
        ys, xs = np.nonzero(different)
        x0, y0, x1, y1 = one.box
        assert x0 - 2 <= xs.min() <= x0 + 4
        assert y0 - 2 <= ys.min() <= y0 + 4
        assert x1 - 4 <= xs.max() + 1 <= x1 + 2
        assert y1 - 4 <= ys.max() + 1 <= y1 + 2


def test_a_centred_box_will_not_do() -> None:
    rng = np.random.default_rng(0)
    right = 0
    for number in range(60):
        image = make_image(number % len(CLASSES), rng)
        height, width = image.pixels.shape[:2]
        x0, y0, x1, y1 = image.box
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        right += best_iou(centred_box((height, width)), [image.box], (height, width)) >= RIGHT
    assert right / 60 < 0.5


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that is over in seconds and learns nothing."""
    monkeypatch.setattr(demo, "PER_CLASS", {"train": 5, "test": 2})
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, "epochs": 1, "input_size": 64})


@pytest.mark.usefixtures("small")
def test_a_demo_that_does_not_localize_says_so_and_fails(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the demo trains a network")
    out = tmp_path / "demo"
    done = CliRunner().invoke(app, ["demo", "--out", str(out), "--json"])
    assert done.exit_code == 1, done.output
    assert "GT-known localization is below 0.85" in done.stderr
    result = json.loads(done.stdout)
    assert (result["ok"], result["parity"]) == (False, True)
    assert set(result["seconds"]) == {
        "generate",
        "train",
        "export",
        "foreground",
        "check",
        "localize",
        "evaluate",
        "pictures",
    }
    assert json.loads((out / "demo.json").read_text()) == result
    assert len((out / "localized.jsonl").read_text().splitlines()) == 12
    bundle = Bundle.open(out / "bundle")
    assert {str(case["rule"]) for case in bundle.golden()} == {"foreground", "foreground+colour"}
    assert str(bundle.manifest.rule) == "foreground+colour"
    page = (out / "report.md").read_text()
    assert "**MISSED**" in page
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        picture = cv2.imread(str(out / name))
        assert picture.std() > 10, f"{name} is blank"
    assert (out / "montage.png").stat().st_size < 300_000
    figures = [f"{result['scores'][key]:.3f}" for key in ("gt_known_loc", "top1_cls", "mean_iou")]
    assert all(figure in page for figure in figures)


def test_a_demo_replaces_an_earlier_demo_only_and_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for arguments in ([], ["--force"]):
        refused = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *arguments])
        assert isinstance(refused.exception, OutputExistsError)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "demo.json").write_text("{}")
    refused = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert isinstance(refused.exception, OutputExistsError)
    assert "--force" in str(refused.exception)


def test_the_commands_on_the_page_are_commands() -> None:
    group = typer.main.get_command(app)
    for line in commands(seed=3):
        program, verb, *arguments = shlex.split(line)
        assert program == "wgap"
        command = group.commands[verb]  # type: ignore[attr-defined]
        command.make_context(verb, arguments)  # refuses an option that is not there, or a value of the wrong type


def test_the_page_trains_with_the_settings_of_the_demo() -> None:
    words = shlex.split(commands(seed=3)[0])
    for name, value in demo.SETTINGS.items():
        given = words[words.index(f"--{name.replace('_', '-')}") + 1]
        assert type(value)(given) == value
