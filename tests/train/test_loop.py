"""The loop: it learns, repeats to the bit, refuses what it must, and reads labels alone."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from wgap.errors import CheckpointError, DataError, OutputExistsError, WgapError
from wgap.train.checkpoint import load_model
from wgap.train.loop import train
from wgap.train.views import Views


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics_of(config):
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("pooling", "optimizer", "lr"), [("wgap", "sgd", 0.02), ("wgap", "adamw", 2e-3), ("gap", "sgd", 0.1)]
)
def test_a_narrow_network_learns_textures_from_scratch(config, pooling, optimizer, lr):
    options = config(
        pooling=pooling, optimizer=optimizer, lr=lr, width=1 / 8, epochs=20, val_split="val", warmup=0.1, clip_norm=1.0
    )
    seen = []
    path = train(options, on_epoch=seen.append)
    assert seen == metrics_of(options)
    assert seen[-1]["train_acc"] >= 0.9
    assert seen[-1]["val_acc"] >= 0.8
    assert load_model(path).classes == ["checks", "rings", "stripes"]


def test_each_epoch_is_a_line_of_metrics(config):
    options = config(val_split="val")
    train(options)
    lines = metrics_of(options)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {"epoch", "loss", "train_acc", "val_acc", "lr", "seconds", "images_per_second", "skipped"}
    assert lines[1]["lr"] < lines[0]["lr"] < options.lr


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(config, tmp_path, weights_of):
    runs = {
        name: weights_of(train(config(out=tmp_path / name, seed=seed))) for name, seed in [("a", 3), ("b", 3), ("c", 4)]
    }
    assert same(runs["a"], runs["b"])
    assert not same(runs["a"], runs["c"])


def test_the_number_of_workers_changes_nothing(config, tmp_path, weights_of):
    alone = weights_of(train(config(out=tmp_path / "alone")))
    assert same(alone, weights_of(train(config(out=tmp_path / "helped", workers=2))))


def test_the_callers_random_numbers_are_left_alone(config):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train(config(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_full_folder_is_refused_and_force_replaces_only_the_run(config):
    options = config(epochs=1)
    train(options)
    (options.out / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="--resume"):
        train(options)
    before = (options.out / "model.safetensors").read_bytes()
    train(config(epochs=1, seed=9, force=True))
    assert (options.out / "model.safetensors").read_bytes() != before
    assert (options.out / "notes.txt").read_text() == "mine"


def test_boxes_are_never_read(config, cub10, tmp_path):
    """Labels of the real set, with a box file that nobody can read, and with none."""
    root = tmp_path / "cub"
    root.mkdir()
    lists = ("images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt")
    for name in lists:
        shutil.copyfile(cub10 / name, root / name)
    (root / "images").symlink_to((cub10 / "images").resolve())
    ids = {line.split()[0] for line in (root / "images.txt").read_text().splitlines()[::10]}
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        kept = [line for line in (root / name).read_text().splitlines() if line.split()[0] in ids]
        (root / name).write_text("\n".join(kept) + "\n")
    (root / "bounding_boxes.txt").write_bytes(b"\xff\xfe not boxes \x00")
    train(config(data=root, epochs=1, val_split="test", out=tmp_path / "garbage"))
    (root / "bounding_boxes.txt").unlink()
    train(config(data=root, epochs=1, val_split="test", out=tmp_path / "none"))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing"])
def test_unreadable_images_are_named_and_skipped_up_to_the_limit(config, images, damage, caplog, tmp_path):
    bad = sorted((images / "train" / "rings").iterdir())[:2]
    for path in bad:
        if damage == "missing":
            path.unlink()
            path.symlink_to(tmp_path / "nowhere.png")
        else:
            path.write_bytes({"cut": path.read_bytes()[:90], "empty": b"", "text": b"hello, I am text"}[damage])
    if (
        damage == "missing"
    ):  # the folder layout lists only files that exist; lists of other layouts can name missing ones
        (images / "train").rename(tmp_path / "pictures")
        lists = tmp_path / "listed"
        (lists / "images").parent.mkdir()
        (tmp_path / "pictures").rename(lists / "images")
        names = sorted(p.relative_to(lists / "images") for p in (lists / "images").rglob("*.png"))
        kinds = ["checks", "rings", "stripes"]
        (lists / "images.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(names, 1)))
        (lists / "classes.txt").write_text("".join(f"{i} {k}\n" for i, k in enumerate(kinds, 1)))
        (lists / "image_class_labels.txt").write_text(
            "".join(f"{i} {kinds.index(n.parts[0]) + 1}\n" for i, n in enumerate(names, 1))
        )
        (lists / "train_test_split.txt").write_text("".join(f"{i} 1\n" for i in range(1, len(names) + 1)))
        bad = [lists / "images" / "rings" / path.name for path in bad]
        images = lists
    options = config(data=images, max_bad=2, epochs=1)
    train(options)
    assert [str(path) in caplog.text for path in bad] == [True, True]
    assert metrics_of(options)[0]["skipped"] == 2
    assert sorted(json.loads((options.out / "run.json").read_text())["skipped"]) == [str(p) for p in bad]
    with pytest.raises(DataError, match="more than --max-bad 1") as caught:
        train(config(data=images, max_bad=1, out=tmp_path / "strict"))
    assert str(bad[0]) in str(caught.value)
    assert str(bad[1]) in str(caught.value)


def test_skipped_images_weigh_nothing(config, images, tmp_path, weights_of):
    """A batch with an unreadable image gives the mean loss of the others: as if the batch had been smaller."""
    whole = config(batch_size=100, epochs=1, out=tmp_path / "a", views=1)
    for path in sorted((images / "train" / "stripes").iterdir())[4:]:
        path.write_bytes(b"")
    damaged = weights_of(train(whole))
    for path in sorted((images / "train" / "stripes").iterdir())[4:]:
        path.unlink()
    removed = weights_of(train(config(batch_size=100, epochs=1, out=tmp_path / "b", views=1)))
    assert all(torch.allclose(damaged[k], removed[k], atol=1e-6) for k in damaged)


def test_preprocessing_comes_with_the_weights_or_from_the_user(config, narrow_weights, tmp_path):
    assert load_model(train(config(init=narrow_weights, epochs=1))).preprocessing == "caffe-bgr"
    with pytest.raises(CheckpointError, match="caffe-bgr"):
        train(config(init=narrow_weights, preprocessing="torchvision-rgb", out=tmp_path / "b"))
    bare = tmp_path / "bare.pth"
    torch.save(load_model(narrow_weights).model.state_dict(), bare)
    with pytest.raises(CheckpointError, match="give --preprocessing"):
        train(config(init=bare, out=tmp_path / "c"))
    path = train(config(init=bare, preprocessing="torchvision-rgb", epochs=1, out=tmp_path / "d"))
    assert load_model(path).preprocessing == "torchvision-rgb"


def test_a_diverging_run_ends_in_words(config):
    with pytest.raises(WgapError, match="diverged"):
        train(config(lr=1e9))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"views": -1}, {"optimizer": "lion"}, {"preprocessing": "bgr"},
        {"freeze_through": "block6", "init": "x"}, {"stride": 4}, {"pooling": "max"}, {"warmup": 1.0},
        {"clip_norm": 0.0}, {"precision": "fp8"},
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused_by_name(config, wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        config(**wrong)


def test_freezing_needs_weights_and_caching_needs_fixed_views(config, narrow_weights):
    with pytest.raises(ValueError, match="random layers"):
        config(freeze_through="block4", views=6)
    with pytest.raises(ValueError, match="views is 0"):
        config(freeze_through="block4", init=narrow_weights)


def test_every_epoch_has_its_own_order_and_augmentation(config, monkeypatch):
    seen = []
    get = Views.__getitem__
    monkeypatch.setattr(Views, "__getitem__", lambda self, draw: seen.append(draw) or get(self, draw))
    train(config(epochs=2))
    first, second = seen[:24], seen[24:]
    assert {draw.variant for draw in first} == {0}
    assert {draw.variant for draw in second} == {1}
    assert sorted(d.sample for d in first) == sorted(d.sample for d in second) == list(range(24))
    assert [d.sample for d in first] != [d.sample for d in second]


@pytest.mark.parametrize("frozen", [False, True])
def test_mixed_precision_trains_saves_float32_and_resumes(config, narrow_weights, weights_of, frozen):
    """Autocast on the CPU takes the same path through the loop as on a GPU, but for the gradient scaler."""
    options = {"lr": 1e-3, **({"freeze_through": "block2", "views": 2} if frozen else {})}
    mixed = config(precision="bf16-mixed", init=narrow_weights, epochs=2, **options)
    path = train(mixed)
    assert {v.dtype for v in weights_of(path).values()} == {torch.float32}
    whole = train(config(init=narrow_weights, epochs=2, out=mixed.out.with_name("whole"), **options))
    a, b = weights_of(path), weights_of(whole)
    assert not same(a, b)
    assert all(torch.allclose(a[k], b[k], atol=0.05) for k in a)
    assert same(weights_of(train(dataclasses.replace(mixed, resume=True))), a)


def test_the_seed_reaches_the_initial_weights(config, tmp_path, weights_of):
    still = {"lr": 1e-9, "epochs": 1}
    a, b = (weights_of(train(config(seed=seed, out=tmp_path / str(seed), **still))) for seed in (1, 2))
    assert (a["features.0.weight"] - b["features.0.weight"]).abs().max() > 0.1
