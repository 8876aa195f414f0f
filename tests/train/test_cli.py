"""``wgap train``: options reach the run, mistakes are usage errors, a resumed run keeps its options."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
import typer
from typer.testing import CliRunner

from wgap.cli.train import train
from wgap.errors import CheckpointError, OutputExistsError
from wgap.train.checkpoint import load_model
from wgap.train.config import TrainConfig

app = typer.Typer()
app.command()(train)
SMALL = ["--width", "0.03125", "--input-size", "32", "--batch-size", "8", "--accelerator", "cpu"]


def wgap_train(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_every_option_of_a_run_is_on_the_command_line_with_its_default():
    options = {name: p.default for name, p in inspect.signature(train).parameters.items()}
    for field in dataclasses.fields(TrainConfig):
        if field.name != "momentum":
            assert field.name in options
        if field.default is not dataclasses.MISSING and field.name in options:
            assert options[field.name] == field.default, field.name


def test_json_lines_are_the_metrics_and_then_the_files(images, tmp_path):
    result = wgap_train(images, "--out", tmp_path / "run", *SMALL, "--epochs", 2, "--json", "--pooling", "gap")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["epoch"] for line in lines[:-1]] == [1, 2]
    assert load_model(lines[-1]["model"]).model.pooling == "gap"
    assert lines[-1]["metrics"] == str(tmp_path / "run" / "metrics.jsonl")


def test_the_path_of_the_checkpoint_is_all_that_people_get_on_stdout(images, tmp_path):
    result = wgap_train(images, "--out", tmp_path / "run", *SMALL, "--epochs", 1)
    assert result.stdout.strip() == str(tmp_path / "run" / "model.safetensors")


def test_a_resumed_run_keeps_its_options_and_refuses_others(images, tmp_path):
    assert wgap_train(images, "--out", tmp_path / "run", *SMALL, "--epochs", 1, "--seed", 4).exit_code == 0
    assert wgap_train(images, "--out", tmp_path / "run", "--resume", "--workers", 1).exit_code == 0
    result = wgap_train(images, "--out", tmp_path / "run", "--resume", "--seed", 5)
    assert isinstance(result.exception, CheckpointError)
    assert "seed was 4, now 5" in str(result.exception)


def test_a_full_folder_is_an_error(images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("...")
    result = wgap_train(images, "--out", tmp_path / "run", *SMALL)
    assert isinstance(result.exception, OutputExistsError)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--stride", "12"], "stride is 12"),
        (["--optimizer", "lion"], "lion"),
        (["--freeze-through", "block4"], "--init FILE"),
        (["--resume", "--force"], "no run to resume"),
    ],
)
def test_mistakes_are_usage_errors(images, tmp_path, wrong, said):
    result = wgap_train(images, "--out", tmp_path / "run", *wrong)
    assert result.exit_code != 0
    assert said in result.output + str(result.exception)
    assert not (tmp_path / "run").exists()
