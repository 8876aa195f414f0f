"""Two processes under torchrun: one network, the gradients of the global batch, one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wgap.train.loop import train
from wgap.train.views import Draw, EpochBatches, PlainBatches

SCRIPT = """
import json, os, sys, torch
from wgap.train import loop
from wgap.train.config import TrainConfig
torch.set_num_threads(1)
runs = []
fit = loop._Run.fit
loop._Run.fit = lambda self, *a: (runs.append(self), fit(self, *a))[1]
loop.train(TrainConfig.from_json(json.loads(sys.argv[1])))
torch.save(runs[0].model.state_dict(), sys.argv[2] + "/rank" + os.environ["RANK"] + ".pt")
"""


def torchrun(config, folder) -> subprocess.CompletedProcess[str]:
    script = folder / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(script), json.dumps(config.to_json()), str(folder)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.parametrize("cached", [False, True])
def test_two_processes_train_the_network_that_one_would(config, narrow_weights, tmp_path, weights_of, cached):
    options = {"batch_size": 10, "val_split": "val"}  # 24 images: a last batch of 4; 5 + 5 in the others
    if cached:
        options |= {"init": narrow_weights, "freeze_through": "block2", "views": 3, "batch_size": 7}
    single = config(out=tmp_path / "single", **options)
    expected = weights_of(train(single))
    double = config(out=tmp_path / "double", **options)
    result = torchrun(double, tmp_path)
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    written = weights_of(double.out / "model.safetensors")
    moved = weights_of(narrow_weights) if cached else None
    for key, value in expected.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        assert torch.equal(ranks[0][key], written[key]), key
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-3, atol=1e-5)
    if moved is not None:
        assert not torch.equal(written["features.28.weight"], moved["features.28.weight"])
    lines = [
        [json.loads(line) for line in (c.out / "metrics.jsonl").read_text().splitlines()] for c in (single, double)
    ]
    for a, b in zip(*lines, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["val_acc"] == b["val_acc"]
    assert json.loads((double.out / "run.json").read_text())["processes"] == 2


def test_the_verb_under_torchrun_speaks_once_and_knows_every_processs_bad_images(images, tmp_path):
    bad = sorted((images / "train").rglob("*.png"))[::4]
    for path in bad:
        path.write_bytes(b"")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--no-python", str(Path(sys.executable).with_name("wgap"))]
    arguments = ["train", images, "--out", tmp_path / "run", "--width", 1 / 32, "--input-size", 32, "--epochs", 1]
    result = subprocess.run(
        [*command, *map(str, arguments), "--json", "--max-bad", str(len(bad))],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    metrics, files = map(json.loads, result.stdout.splitlines())
    assert metrics["skipped"] == len(bad)
    assert sorted(json.loads((tmp_path / "run" / "run.json").read_text())["skipped"]) == [str(path) for path in bad]
    assert Path(files["model"]).exists()


@pytest.mark.parametrize(
    ("samples", "views", "batch_size", "world"), [(10, 0, 4, 1), (10, 3, 7, 2), (5, 2, 4, 3), (2, 0, 9, 4)]
)
def test_every_draw_of_an_epoch_is_dealt_once_and_ranks_take_equal_steps(samples, views, batch_size, world):
    ranks = [EpochBatches(samples, views, batch_size, 7, rank, world) for rank in range(world)]
    for r in ranks:
        r.epoch = 3
    dealt = [list(r) for r in ranks]
    assert {len(d) for d in dealt} == {len(ranks[0])}
    assert {len(b) for step in zip(*dealt, strict=True) for b in step if len({len(x) for x in step}) != 1} == set()
    draws = [draw for d in dealt for batch in d for draw in batch if draw.sample >= 0]
    variants = range(views) if views else [3]
    assert sorted(draws) == [Draw(i, v) for i in range(samples) for v in variants]


def test_validation_sees_every_sample_once():
    draws = [d for rank in range(3) for batch in PlainBatches(10, 2, rank, 3) for d in batch]
    assert sorted(draws) == [Draw(i, -1) for i in range(10)]
