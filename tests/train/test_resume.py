"""A run killed at any moment, resumed, ends with the weights of one that was never stopped."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from wgap.errors import CheckpointError
from wgap.train.config import TrainConfig, stored_options
from wgap.train.loop import train

SCRIPT = """
import json, sys, torch
from wgap.train.config import TrainConfig
from wgap.train.loop import train
torch.set_num_threads(1)
train(TrainConfig.from_json(json.loads(sys.argv[1])))
"""


def start(config) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, json.dumps(config.to_json())])


def epochs_done(config) -> int:
    file = config.out / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


class Stop(Exception):
    pass


def stop_after(epochs: int):
    def on_epoch(metrics):
        if metrics["epoch"] == epochs:
            raise Stop

    return on_epoch


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_ends_with_the_same_bits(config, tmp_path, weights_of, optimizer):
    options = {"optimizer": optimizer, "epochs": 4, "val_split": "val"}
    whole = config(out=tmp_path / "whole", **options)
    expected = weights_of(train(whole))
    parts = config(out=tmp_path / "parts", **options)
    for epoch in (1, 3):
        with pytest.raises(Stop):
            train(parts if epoch == 1 else dataclasses.replace(parts, resume=True), on_epoch=stop_after(epoch))
    path = train(dataclasses.replace(parts, resume=True))
    assert all(torch.equal(v, expected[k]) for k, v in weights_of(path).items())
    assert path.read_bytes() == (whole.out / "model.safetensors").read_bytes()
    kept = [json.loads(line) for line in (parts.out / "metrics.jsonl").read_text().splitlines()]
    assert [(m["epoch"], m["loss"]) for m in kept] == [
        (m["epoch"], m["loss"]) for m in map(json.loads, (whole.out / "metrics.jsonl").read_text().splitlines())
    ]


def test_a_run_that_replaced_another_can_be_resumed(config, tmp_path):
    options = config(out=tmp_path / "run", epochs=2, force=True)
    with pytest.raises(Stop):
        train(options, on_epoch=stop_after(1))
    again = TrainConfig.from_json({**stored_options(options.out), "resume": True})
    assert train(again).exists()


def test_more_epochs_make_a_finished_run_longer(config, tmp_path):
    options = config(out=tmp_path / "run", epochs=2)
    train(options)
    first = (options.out / "metrics.jsonl").read_text()
    longer = dataclasses.replace(options, epochs=4, resume=True)
    with pytest.raises(Stop):
        train(longer, on_epoch=stop_after(3))
    path = train(dataclasses.replace(longer, epochs=stored_options(options.out)["epochs"]))
    lines = (options.out / "metrics.jsonl").read_text()
    assert lines.startswith(first)
    assert [json.loads(line)["epoch"] for line in lines.splitlines()] == [1, 2, 3, 4]
    other = config(out=tmp_path / "other", epochs=2)
    train(other)
    again = train(dataclasses.replace(other, epochs=4, resume=True))
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(CheckpointError, match="epochs was 4, now 3"):
        train(dataclasses.replace(options, epochs=3, resume=True))


def test_a_run_killed_with_sigkill_resumes_to_the_same_bits(config, narrow_weights, tmp_path, weights_of):
    options = {"init": narrow_weights, "freeze_through": "block1", "views": 4, "epochs": 12}
    expected = weights_of(train(config(out=tmp_path / "whole", **options)))
    killed = config(out=tmp_path / "killed", **options)
    process = start(killed)
    deadline = time.monotonic() + 60
    while epochs_done(killed) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert not killed.out.joinpath("model.safetensors").exists()
    before = epochs_done(killed)
    assert before >= 3
    lines = []
    path = train(dataclasses.replace(killed, resume=True), on_epoch=lines.append)
    assert lines[0]["epoch"] in (before + 1, before + 2), "resume lost more than the epoch that was under way"
    assert all(torch.equal(v, expected[k]) for k, v in weights_of(path).items())
    assert not list(killed.out.glob(".*")), "temporary files of the killed run are still there"


def test_a_run_stopped_before_its_first_epoch_starts_over(config, tmp_path, weights_of, monkeypatch):
    expected = weights_of(train(config(out=tmp_path / "whole")))
    options = config(out=tmp_path / "stopped")
    monkeypatch.setattr("wgap.train.loop._Run._train_epoch", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        train(options)
    monkeypatch.undo()
    path = train(dataclasses.replace(options, resume=True))
    assert all(torch.equal(v, expected[k]) for k, v in weights_of(path).items())


def test_resuming_a_finished_run_changes_nothing(config):
    options = config()
    before = train(options).read_bytes()
    assert train(dataclasses.replace(options, resume=True), on_epoch=stop_after(1)).read_bytes() == before


def test_resume_refuses_other_options_and_names_them(config, tmp_path):
    train(config(epochs=1))
    with pytest.raises(CheckpointError, match=r"lr was 0\.01, now 0\.5.*seed was 0, now 3"):
        train(config(epochs=1, lr=0.5, seed=3, resume=True))
    train(config(epochs=1, workers=1, resume=True))
    with pytest.raises(CheckpointError, match="no run to resume"):
        train(config(out=tmp_path / "nothing", resume=True))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half"])
def test_a_damaged_state_is_refused(config, content):
    options = config(epochs=1)
    train(options)
    (options.out / "last.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt.*--force"):
        train(dataclasses.replace(options, resume=True))
