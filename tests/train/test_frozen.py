"""The frozen cache: the same result as without it, and nothing stale, half-written or damaged is ever used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from wgap.errors import CheckpointError, DataError
from wgap.train.frozen import CHUNK, cache_key, frozen_outputs
from wgap.train.loop import _fabric, _Run, train
from wgap.train.model import BLOCK_ENDS, WgapVgg16
from wgap.train.views import Draw, Views, crop_and_flip


@pytest.fixture
def frozen(config, narrow_weights, tmp_path):
    def make(**changes):
        return config(
            **{
                "init": narrow_weights,
                "freeze_through": "block3",
                "views": 2,
                "cache_dir": tmp_path / "cache",
                **changes,
            }
        )

    return make


def caches(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("block", ["block1", "block4", "block5"])
def test_cached_and_uncached_runs_end_with_the_same_bits(frozen, tmp_path, weights_of, block, narrow_weights):
    options = {"freeze_through": block, "batch_size": 9, "val_split": "val"}
    cached = weights_of(train(frozen(out=tmp_path / "cached", **options)))
    again = weights_of(train(frozen(out=tmp_path / "again", **options)))
    uncached = weights_of(train(frozen(out=tmp_path / "uncached", cache=False, **options)))
    start = weights_of(narrow_weights)
    for key, value in cached.items():
        assert torch.equal(value, uncached[key]), key
        assert torch.equal(value, again[key]), key
        if key.startswith("features."):
            frozen_here = int(key.split(".")[1]) < BLOCK_ENDS[block]
            assert torch.equal(value, start[key]) == frozen_here, key
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("cached", "uncached")]
    for a, b in zip(*([json.loads(line) for line in run] for run in lines), strict=True):
        assert (a["loss"], a["train_acc"], a["val_acc"]) == (b["loss"], b["train_acc"], b["val_acc"])


def test_frozen_outputs_do_not_depend_on_the_batch_they_come_in():
    torch.manual_seed(0)
    model = WgapVgg16(2, width=1 / 8, input_size=64)
    x = torch.randn(CHUNK + 3, 3, 64, 64)
    whole = frozen_outputs(model, x, 24)
    assert all(torch.equal(frozen_outputs(model, x[i : i + 1], 24)[0], whole[i]) for i in range(len(x)))


def test_a_cache_is_shared_by_what_does_not_change_it(frozen, tmp_path):
    train(frozen(epochs=1))
    kept = caches(tmp_path)
    stamp = (tmp_path / "cache" / kept[0] / "outputs.npy").stat().st_mtime_ns
    train(frozen(epochs=1, force=True, pooling="gap", lr=2e-3, batch_size=4, workers=1))
    assert caches(tmp_path) == kept
    assert (tmp_path / "cache" / kept[0] / "outputs.npy").stat().st_mtime_ns == stamp


def key_of(options) -> str:
    run = _Run(options, _fabric(options), False)
    samples = run.data.samples
    views = Views([s.path for s in samples], [s.label for s in samples], options.input_size, options.seed)
    return cache_key(run._frozen_part(), views, list(range(options.views)))


def test_a_cache_is_another_one_wherever_its_contents_would_differ(frozen, images, narrow_weights, tmp_path):
    train(frozen(epochs=1))
    keys = [key_of(frozen(force=True))]
    assert keys == caches(tmp_path)
    for change in (
        {"seed": 1},
        {"views": 3},
        {"freeze_through": "block2"},
        {"input_size": 48},
        {"stride": 8},
    ):
        keys.append(key_of(frozen(force=True, **change)))
    picture = sorted((images / "train" / "rings").iterdir())[0]
    shutil.copyfile(sorted((images / "train" / "checks").iterdir())[0], picture)
    keys.append(key_of(frozen(force=True)))
    other = tmp_path / "other.pth"
    state = torch.load(_as_pth(narrow_weights, other), weights_only=True)
    keys.append(key_of(frozen(force=True, init=other, preprocessing="caffe-bgr")))
    assert keys[-1] == keys[-2]
    keys.append(key_of(frozen(force=True, init=other, preprocessing="torchvision-rgb")))
    state["features.0.bias"] += 1e-3
    torch.save(state, other)
    keys.append(key_of(frozen(force=True, init=other, preprocessing="caffe-bgr")))
    assert len(set(keys)) == len(keys) - 1


def _as_pth(source: Path, target: Path) -> Path:
    from wgap.train.checkpoint import read_weights

    torch.save(read_weights(source)[0], target)
    return target


def test_an_interrupted_cache_is_not_used(frozen, tmp_path, monkeypatch):
    calls = []

    def dies(model, x, end):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return frozen_outputs(model, x, end)

    monkeypatch.setattr("wgap.train.frozen.frozen_outputs", dies)
    with pytest.raises(KeyboardInterrupt):
        train(frozen())
    assert caches(tmp_path) == []
    monkeypatch.undo()
    train(frozen(resume=True))
    assert len(caches(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["byte", "cut", "rows", "errors"])
def test_a_damaged_cache_is_refused_by_name(frozen, tmp_path, damage):
    train(frozen(epochs=1))
    folder = tmp_path / "cache" / caches(tmp_path)[0]
    outputs = folder / "outputs.npy"
    content = bytearray(outputs.read_bytes())
    if damage == "byte":
        content[-5] ^= 1
        outputs.write_bytes(content)
    elif damage == "cut":
        outputs.write_bytes(content[:-100])
    elif damage == "rows":
        np.save(outputs, np.load(outputs)[:-1])
    else:
        (folder / "errors.json").write_text("[")
    with pytest.raises(DataError, match=rf"{folder.name}.*damaged.*delete it"):
        train(frozen(epochs=1, force=True))


def test_unreadable_images_are_remembered_by_the_cache(frozen, images, tmp_path, caplog):
    bad = sorted((images / "train" / "rings").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:50])
    train(frozen(epochs=1))
    caplog.clear()
    train(frozen(epochs=1, force=True))
    assert str(bad) in caplog.text
    with pytest.raises(DataError, match="more than --max-bad 0"):
        train(frozen(epochs=1, force=True, max_bad=0))


def test_a_disk_too_small_is_said_before_the_work(frozen, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match=r"needs .* GiB .* --cache-dir"):
        train(frozen())


def test_the_default_cache_leaves_with_the_run(frozen, tmp_path):
    options = frozen(cache_dir=None)
    train(options)
    assert sorted(p.name for p in options.out.iterdir()) == [
        "last.pt",
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
    ]


def test_views_are_functions_of_seed_view_and_sample(images):
    paths = sorted((images / "train").rglob("*.png"))
    labels = [0] * len(paths)
    a, b = (Views(paths, labels, 32, seed=1, keep_bytes=keep) for keep in (0, 1 << 20))
    draws = [Draw(i, v) for i in (0, 5) for v in range(4)]
    assert all(torch.equal(a[d].inputs, b[d].inputs) for d in draws + draws[::-1])
    other = Views(paths, labels, 32, seed=2)
    assert not all(torch.equal(a[d].inputs, other[d].inputs) for d in draws)
    assert len({a[Draw(0, v)].inputs.numpy().tobytes() for v in range(8)}) > 4
    assert len({crop_and_flip(1, Draw(i, 0), 32) for i in range(8)}) > 4


def test_resuming_on_other_images_is_refused(config, images):
    train(config(epochs=1))
    sorted((images / "train" / "rings").iterdir())[0].unlink()
    with pytest.raises(CheckpointError, match="other images"):
        train(config(epochs=1, resume=True))
