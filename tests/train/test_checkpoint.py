"""Weights files: read whole or refused by name, and never executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wgap.errors import CheckpointError
from wgap.train import checkpoint
from wgap.train.checkpoint import initialise, load_model, read_weights, save
from wgap.train.model import WgapVgg16

NAMES = ["ant", "bee", "cat"]


def narrow(**options: object) -> WgapVgg16:
    torch.manual_seed(1)
    return WgapVgg16(3, **{"width": 1 / 32, "input_size": 32, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"stride": 8}, {"neck": "conv1024"}, {"pooling": "gap"}])
def test_a_checkpoint_remembers_weights_architecture_classes_and_preprocessing(tmp_path, options):
    model = narrow(**options)
    save(model, tmp_path / "m.safetensors", classes=NAMES, preprocessing="caffe-bgr", note="kept")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.model.arch() == model.arch()
    assert (loaded.classes, loaded.preprocessing, loaded.input_size) == (NAMES, "caffe-bgr", 32)
    assert loaded.metadata["note"] == "kept"
    assert not loaded.model.training
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded.model(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("neck", ["none", "conv1024"])
def test_a_bare_state_dict_tells_width_neck_and_classes_by_its_shapes(tmp_path, neck):
    model = narrow(neck=neck)
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    loaded = load_model(tmp_path / "bare.safetensors", NAMES, "torchvision-rgb", stride=8, input_size=64)
    assert loaded.model.arch() == {**model.arch(), "stride": 8, "input_size": 64}


def test_a_bare_state_dict_is_taken_for_stride_16_at_224(cub10_weights):
    loaded = load_model(cub10_weights, [str(i) for i in range(10)], "caffe-bgr")
    assert loaded.model.feature_shape == (512, 14, 14)
    assert loaded.model.pooling == "wgap"


def test_a_bare_state_dict_without_its_facts_is_refused(tmp_path):
    save_file(narrow().state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match=r"classes and preprocessing.*--classes FILE.*--preprocessing NAME"):
        load_model(tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="3 classes, but 2"):
        load_model(tmp_path / "bare.safetensors", ["ant", "bee"], "caffe-bgr")
    with pytest.raises(CheckpointError, match="unknown preprocessing"):
        load_model(tmp_path / "bare.safetensors", NAMES, "caffe")


def test_facts_that_contradict_the_checkpoint_are_refused(tmp_path):
    save(narrow(), tmp_path / "m.safetensors", classes=NAMES, preprocessing="caffe-bgr")
    with pytest.raises(CheckpointError, match="preprocessing = 'caffe-bgr'"):
        load_model(tmp_path / "m.safetensors", preprocessing="torchvision-rgb")
    with pytest.raises(CheckpointError, match="stride = 16"):
        load_model(tmp_path / "m.safetensors", stride=8)


def test_float16_storage_becomes_float32(tmp_path):
    save_file({k: v.half() for k, v in narrow().state_dict().items()}, tmp_path / "half.safetensors")
    loaded = load_model(tmp_path / "half.safetensors", NAMES, "caffe-bgr")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert {v.dtype for v in read_weights(tmp_path / "half.safetensors")[0].values()} == {torch.float32}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_missing_unexpected_and_misshapen_key_is_listed(tmp_path, suffix):
    state = narrow().state_dict()
    del state["features.5.weight"], state["features.26.bias"]
    state["features.30.weight"] = torch.zeros(1)
    state["features.0.bias"] = torch.zeros(7)
    path = tmp_path / f"wrong{suffix}"
    torch.save(dict(state), path) if suffix == ".pth" else save_file(state, path)
    with pytest.raises(CheckpointError) as caught:
        initialise(narrow(), path)
    message = str(caught.value)
    assert "missing: features.5.weight, features.26.bias" in message
    assert "unexpected: features.30.weight" in message
    assert "features.0.bias: expected shape [2], got [7]" in message


def test_weights_of_another_width_are_refused_with_their_shapes(imagenet_weights):
    with pytest.raises(CheckpointError, match=r"features.0.weight: expected shape \[2, 3, 3, 3\], got \[64, 3, 3, 3\]"):
        initialise(narrow(), imagenet_weights)


def test_a_file_of_something_else_is_not_a_network(tmp_path):
    save_file({"embedding": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"not a WGAP-VGG16.*got embedding"):
        load_model(tmp_path / "other.safetensors", NAMES, "caffe-bgr")


def test_torchvisions_file_layout_initialises_the_convolutions_alone(tmp_path):
    source, model = narrow(), narrow()
    torch.nn.init.normal_(source.features[0].weight)
    state = {k: v for k, v in source.state_dict().items() if k.startswith("features.")}
    state |= {f"classifier.{i}.{p}": torch.zeros(2) for i in (0, 3, 6) for p in ("weight", "bias")}
    torch.save(state, tmp_path / "vgg16.pth")
    torch.save(state, tmp_path / "vgg16-old.pth", _use_new_zipfile_serialization=False)
    before = model.classifier.weight.clone()
    for name in ("vgg16.pth", "vgg16-old.pth"):
        assert initialise(model, tmp_path / name) == {}
        assert torch.equal(model.features[0].weight, source.features[0].weight)
        assert torch.equal(model.classifier.weight, before)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 2000, -10])
def test_files_cut_short_are_refused(tmp_path, suffix, keep):
    path = tmp_path / f"whole{suffix}"
    torch.save(narrow().state_dict(), path) if suffix == ".pth" else save_file(narrow().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="whole"):
        read_weights(path)


class Trap:
    """A pickle of this touches a file when it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_are_refused_and_never_executed(tmp_path, protocol):
    target = tmp_path / "executed"
    torch.save(
        {"features.0.weight": torch.zeros(1), "extra": Trap(target)}, tmp_path / "trap.pth", pickle_protocol=protocol
    )
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(target), protocol=protocol))
    for name in ("trap.pth", "plain.pth"):
        with pytest.raises(CheckpointError):
            read_weights(tmp_path / name)
    assert not target.exists()


def test_a_training_state_is_told_from_a_state_dict(tmp_path):
    torch.save({"model": narrow().state_dict(), "epoch": 3}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"expected a state dict .*got keys model, epoch"):
        read_weights(tmp_path / "state.pt")


@pytest.mark.parametrize("name", ["nothing.safetensors", "weights.h5"])
def test_missing_and_foreign_files_are_refused(tmp_path, name):
    (tmp_path / "weights.h5").write_bytes(b"hdf")
    with pytest.raises(CheckpointError, match=r"\.safetensors"):
        read_weights(tmp_path / name)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(narrow(), path, classes=NAMES, preprocessing="caffe-bgr")
    before = path.read_bytes()

    def full_disk(state, target, metadata):
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(narrow(), path, classes=NAMES, preprocessing="caffe-bgr")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
