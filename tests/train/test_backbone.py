"""Backbones: torchvision's names, stages that can be cut, and batch normalisation that keeps the loop's promises."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.train.test_distributed import torchrun
from tests.train.test_resume import Stop, stop_after

from wgap.errors import CheckpointError, WgapError
from wgap.train.backbone import BACKBONES, folded, scaled
from wgap.train.checkpoint import METADATA_KEY, initialise, load_model, save
from wgap.train.loop import train
from wgap.train.model import WgapNetwork, WgapVgg16

WIDTH = 1 / 32
NAMES = ["ant", "bee", "cat"]
LAYOUTS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "mobilenet_v2": 2_223_872,
}


def small(backbone: str = "resnet18", **options: object) -> WgapNetwork:
    """A narrow network whose statistics are not those of a fresh one."""
    torch.manual_seed(0)
    model = WgapNetwork(3, backbone=backbone, **{"width": WIDTH, "input_size": 64, **options})  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias)
    return model.eval()


def published(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state dict, in its order and without ``fc``, from the published layout."""

    def normalised(prefix: str, shape: tuple[int, ...], norm: str) -> dict[str, tuple[int, ...]]:
        vectors = {f"{norm}.{k}": shape[:1] for k in ("weight", "bias", "running_mean", "running_var")}
        return {f"{prefix}.weight": shape, **vectors, f"{norm}.num_batches_tracked": ()}

    if name == "mobilenet_v2":
        shapes, before, block = normalised("features.0.0", (32, 3, 3, 3), "features.0.1"), 32, 1
        rows = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
        for factor, after, count in rows:
            for _ in range(count):
                at, inner, n = f"features.{block}.conv", factor * before, int(factor > 1)
                if n:
                    shapes |= normalised(f"{at}.0.0", (inner, before, 1, 1), f"{at}.0.1")
                shapes |= normalised(f"{at}.{n}.0", (inner, 1, 3, 3), f"{at}.{n}.1")
                shapes |= normalised(f"{at}.{n + 1}", (after, inner, 1, 1), f"{at}.{n + 2}")
                before, block = after, block + 1
        return shapes | normalised("features.18.0", (1280, 320, 1, 1), "features.18.1")
    bottleneck = name in ("resnet50", "resnet101")
    shapes = normalised("conv1", (64, 3, 7, 7), "bn1")
    before = 64
    for layer, (count, channels) in enumerate(zip(LAYOUTS[name], (64, 128, 256, 512), strict=True), start=1):
        after = 4 * channels if bottleneck else channels
        for block in range(count):
            at = f"layer{layer}.{block}"
            if bottleneck:
                shapes |= normalised(f"{at}.conv1", (channels, before, 1, 1), f"{at}.bn1")
                shapes |= normalised(f"{at}.conv2", (channels, channels, 3, 3), f"{at}.bn2")
                shapes |= normalised(f"{at}.conv3", (after, channels, 1, 1), f"{at}.bn3")
            else:
                shapes |= normalised(f"{at}.conv1", (channels, before, 3, 3), f"{at}.bn1")
                shapes |= normalised(f"{at}.conv2", (channels, channels, 3, 3), f"{at}.bn2")
            if before != after:
                shapes |= normalised(f"{at}.downsample.0", (after, before, 1, 1), f"{at}.downsample.1")
            before = after
    return shapes


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_have_torchvisions_names_shapes_and_number(name):
    with torch.device("meta"):
        model = WgapNetwork(10, backbone=name)
    own = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    assert list(own.items()) == list(published(name).items())
    assert sum(p.numel() for p in model.backbone_parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_stage_is_as_wide_and_as_coarse_as_it_says_and_can_be_cut_after(name):
    backbone = BACKBONES[name]
    model = small(name, stride=backbone.strides[0], neck="conv1024")
    x = torch.randn(2, 3, 64, 64)
    whole = model(x)
    for stage in backbone.stages:
        cut = model.run_blocks(x, 0, stage.end)
        assert cut.shape == (2, scaled(stage.channels, WIDTH), 64 // stage.stride, 64 // stage.stride), stage.name
        torch.testing.assert_close(
            model.head(model.run_blocks(cut, stage.end, len(model.layers))), whole, rtol=0, atol=0
        )
    assert cut.shape[1] == backbone.channels(WIDTH)
    assert cut.min() >= 0
    assert stage.stride == backbone.strides[0]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_a_smaller_stride_is_that_of_the_last_stages_dropped_and_changes_no_parameter(name):
    x = torch.randn(1, 3, 64, 64)
    sides = {}
    for stride in BACKBONES[name].strides:
        model = small(name, stride=stride)
        sides[stride] = [model.run_blocks(x, 0, stage.end).shape[-1] for stage in BACKBONES[name].stages]
        assert model(x)[1].shape[1:] == model.feature_shape
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in small(name, stride=32).state_dict().items()
        }
    stem = 32 if name == "mobilenet_v2" else 16
    assert sides == {32: [stem, 16, 8, 4, 2], 16: [stem, 16, 8, 4, 4], 8: [stem, 16, 8, 8, 8]}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_block_is_the_sum_of_its_convolutions_and_its_projected_input(name):
    model = small(name, stride=32)
    block, state = model.layer2[0].double(), model.layer2[0].double().state_dict()
    x = torch.rand(2, model.layer1(torch.zeros(1, 2, 8, 8)).shape[1] if name == "resnet18" else 8, 8, 8).double()

    def step(x, convolution, norm, stride=1):
        weight = state[f"{convolution}.weight"]
        x = torch.nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, scale, shift = (
            state[f"{norm}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    if name == "resnet18":
        out = step(step(x, "conv1", "bn1", 2).relu(), "conv2", "bn2")
    else:
        out = step(step(step(x, "conv1", "bn1").relu(), "conv2", "bn2", 2).relu(), "conv3", "bn3")
    expected = (out + step(x, "downsample.0", "downsample.1", 2)).relu()
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50", "mobilenet_v2"])
def test_a_folded_network_computes_the_same_without_batch_normalisation(name):
    model = small(name, neck="conv1024")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    twin = folded(model)
    assert not [m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(twin(x), model(x), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    if name == "vgg16":
        assert all(torch.equal(v, before[k]) for k, v in twin.state_dict().items())


def test_an_inverted_residual_adds_its_input_to_a_linear_output_but_in_the_first_block_of_a_row():
    model = small("mobilenet_v2", width=1 / 8).double()
    first, second = model.features[2], model.features[3]
    x = torch.randn(2, 3, 8, 8).double()
    for block, stride, added in ((first, 2, False), (second, 1, True)):
        state, out = block.state_dict(), x[:, :2] if block is first else x

        def step(x, convolution, norm, **options):
            x = torch.nn.functional.conv2d(x, state[f"{convolution}.weight"], **options)  # noqa: B023
            mean, var, scale, shift = (
                state[f"{norm}.{k}"][:, None, None]  # noqa: B023
                for k in ("running_mean", "running_var", "weight", "bias")
            )
            return (x - mean) / (var + 1e-5).sqrt() * scale + shift

        given = out
        out = step(out, "conv.0.0", "conv.0.1").clamp(0, 6)
        out = step(out, "conv.1.0", "conv.1.1", stride=stride, padding=1, groups=out.shape[1]).clamp(0, 6)
        out = step(out, "conv.2", "conv.3")
        torch.testing.assert_close(block(given), out + given if added else out, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("counters", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_file_is_loaded_without_its_classifier(tmp_path, suffix, counters):
    source, model = small(), WgapNetwork(5, backbone="resnet18", width=WIDTH, input_size=64)
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("classifier.")}
    state = {k: v for k, v in state.items() if counters or not k.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.zeros(1000, 16), "fc.bias": torch.zeros(1000)}
    path = tmp_path / f"resnet18{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    before = model.classifier.weight.clone()
    assert initialise(model, path) == {}
    for key in ("conv1.weight", "bn1.running_var", "layer4.1.bn2.running_mean", "layer3.0.downsample.0.weight"):
        assert torch.equal(model.state_dict()[key], state[key]), key
    assert torch.equal(model.classifier.weight, before)
    del state["layer2.1.bn1.running_mean"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"\(resnet18, width 0.03125\):\s+missing: layer2.1.bn1.running_mean$"):
        initialise(model, tmp_path / "less.pth")


@pytest.mark.parametrize("found", BACKBONES)
@pytest.mark.parametrize("wanted", ["vgg16", "resnet34"])
def test_weights_of_another_backbone_are_refused_by_its_name(tmp_path, found, wanted):
    save_file(small(found).state_dict(), tmp_path / "w.safetensors")
    if found == wanted:
        initialise(small(wanted), tmp_path / "w.safetensors")
        return
    with pytest.raises(CheckpointError, match=rf"holds a {found}, expected a {wanted}; give --backbone {found}$"):
        initialise(small(wanted), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50", "mobilenet_v2"])
def test_checkpoints_and_bare_state_dicts_tell_their_backbone(tmp_path, name):
    model = small(name, stride=8, pooling="gap", neck="conv1024")
    save(model, tmp_path / "m.safetensors", classes=NAMES, preprocessing="torchvision-rgb")
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    x = torch.randn(1, 3, 64, 64)
    facts = {"stride": 8, "pooling": "gap", "input_size": 64}
    for loaded in (
        load_model(tmp_path / "m.safetensors"),
        load_model(tmp_path / "bare.safetensors", NAMES, "torchvision-rgb", **facts),
    ):
        assert loaded.model.arch() == model.arch()
        assert loaded.model.backbone.name == name
        torch.testing.assert_close(loaded.model(x), model(x), rtol=0, atol=0)


def test_a_checkpoint_that_names_no_backbone_is_a_vgg16(tmp_path):
    """As older ones are, and older readers want it."""
    model = WgapVgg16(3, width=WIDTH, input_size=32)
    arch = model.arch()
    assert arch == {
        "num_classes": 3, "stride": 16, "neck": "none", "pooling": "wgap", "width": WIDTH, "input_size": 32
    }  # fmt: skip
    facts = {"format": 1, "arch": arch, "preprocessing": "caffe-bgr", "classes": NAMES, "input_size": 32}
    path = tmp_path / "old.safetensors"
    save_file(model.state_dict(), path, metadata={METADATA_KEY: json.dumps(facts)})
    assert load_model(path).model.arch() == model.arch()
    facts["arch"] = {**arch, "backbone": "resnet18"}
    save_file(model.state_dict(), path, metadata={METADATA_KEY: json.dumps(facts)})
    with pytest.raises(
        CheckpointError, match=r"not the network it looks like \(.*backbone resnet18.*\):\s+missing: conv1"
    ):
        load_model(path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"backbone": "resnet"},
            "backbone is 'resnet'; expected one of vgg16, resnet18, resnet34, resnet50, resnet101",
        ),
        ({"backbone": "vgg16", "stride": 32}, r"stride is 32; expected 16 \(14x14 maps at 224\) or 8 .* of vgg16"),
        ({"stride": 4}, r"stride is 4; expected 32 \(7x7 maps at 224\), 16 .* or 8 .* of resnet18"),
        ({"stride": 32, "input_size": 48}, "input_size is 48; expected a multiple of the stride, 32"),
        (
            {"freeze_through": "block4"},
            "freeze_through is 'block4'; expected one of resnet18's: stem, layer1, .*, layer4",
        ),
        ({"freeze_through": "layer2", "views": 1}, "--init FILE"),
        ({"batch_norm": "sync"}, "batch_norm is 'sync'; expected one of auto, batch, stored"),
        ({"batch_norm": "stored"}, "without initial weights nothing is stored"),
    ],
)
def test_what_does_not_fit_a_backbone_is_refused(config, wrong, said):
    with pytest.raises(ValueError, match=said):
        config(**{"backbone": "resnet18", **wrong})


@pytest.fixture
def resnet(config):
    """Options of a short run of a narrow resnet18."""
    return lambda **changes: config(**{"backbone": "resnet18", "lr": 1e-3, "optimizer": "adamw", **changes})


@pytest.fixture
def weights(tmp_path) -> Path:
    """A narrow resnet18 to start from."""
    save(small(input_size=32), tmp_path / "start.safetensors", classes=NAMES, preprocessing="torchvision-rgb")
    return tmp_path / "start.safetensors"


def losses(config) -> list[tuple[float, ...]]:
    lines = map(json.loads, (config.out / "metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["train_acc"], line["val_acc"]) for line in lines]


def test_a_narrow_resnet_learns_textures_from_scratch(resnet):
    options = resnet(width=1 / 8, stride=8, lr=2e-3, epochs=20, warmup=0.1, clip_norm=1.0, val_split="val")
    model = load_model(train(options)).model
    assert losses(options)[-1][1] >= 0.9
    assert losses(options)[-1][2] >= 0.8
    assert (model.backbone.name, model.stride) == ("resnet18", 8)


@pytest.mark.parametrize(("stage", "statistics"), [("stem", "batch"), ("layer2", "stored"), ("layer4", "batch")])
def test_frozen_stages_keep_their_weights_and_statistics_and_a_cache_changes_no_bit(
    resnet, weights, weights_of, tmp_path, stage, statistics
):
    options = {
        "init": weights, "freeze_through": stage, "views": 2, "batch_size": 9, "val_split": "val",
        "batch_norm": statistics,
    }  # fmt: skip
    cached = resnet(out=tmp_path / "cached", **options)
    uncached = resnet(out=tmp_path / "uncached", cache=False, **options)
    first, second, start = weights_of(train(cached)), weights_of(train(uncached)), weights_of(weights)
    assert losses(cached) == losses(uncached)
    stages = [s.name for s in BACKBONES["resnet18"].stages]
    trained = stages[stages.index(stage) + 1 :]
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        if key.startswith("classifier."):
            continue
        learns = key.partition(".")[0] in trained
        if "running" in key:
            assert torch.equal(value, start[key]) == (statistics == "stored" or not learns), key
        else:
            assert torch.equal(value, start[key]) != learns, key


def test_statistics_are_the_batchs_from_scratch_and_the_stored_ones_beside_weights(
    resnet, weights, weights_of, tmp_path
):
    scratch = weights_of(train(resnet(epochs=1, out=tmp_path / "scratch")))
    assert scratch["bn1.running_mean"].abs().max() > 0
    tuned, start = weights_of(train(resnet(epochs=1, init=weights))), weights_of(weights)
    assert torch.equal(tuned["layer4.1.bn2.running_var"], start["layer4.1.bn2.running_var"])
    assert not torch.equal(tuned["layer4.1.bn2.weight"], start["layer4.1.bn2.weight"])


def test_a_resumed_run_ends_with_the_same_bits(resnet, tmp_path):
    whole = resnet(out=tmp_path / "whole", epochs=3, val_split="val")
    train(whole)
    parts = dataclasses.replace(whole, out=tmp_path / "parts")
    with pytest.raises(Stop):
        train(parts, on_epoch=stop_after(2))
    path = train(dataclasses.replace(parts, resume=True))
    assert path.read_bytes() == (whole.out / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="backbone was 'resnet18', now 'resnet34'"):
        train(dataclasses.replace(parts, resume=True, backbone="resnet34"))


def test_skipped_images_count_in_no_statistic(resnet, images, tmp_path, weights_of):
    """A batch with unreadable images is the batch of the others: its mean and variance are theirs."""
    bad = sorted((images / "train" / "stripes").iterdir())[4:]
    for path in bad:
        path.write_bytes(b"")
    options = {"batch_size": 100, "epochs": 1, "views": 1}
    damaged = weights_of(train(resnet(out=tmp_path / "a", **options)))
    for path in bad:
        path.unlink()
    removed = weights_of(train(resnet(out=tmp_path / "b", **options)))
    assert all(torch.allclose(damaged[k], removed[k], atol=1e-5) for k in damaged)


def test_a_last_batch_of_one_image_is_normalised_by_the_running_statistics(resnet, tmp_path):
    """Maps are 1x1 here: a single image has no variance at all."""
    options = resnet(stride=32, batch_size=23, epochs=1)
    train(options)
    assert losses(options)[0][0] < 10
    assert load_model(options.out / "model.safetensors").model.feature_shape[1:] == (1, 1)


def test_two_processes_end_with_one_network_and_the_statistics_of_all_images(resnet, weights_of, tmp_path):
    """At a rate of nothing the first layer's means are those that one process finds, in two steps of twelve images."""
    options = {"batch_size": 12, "epochs": 1, "lr": 1e-12, "val_split": "val"}
    expected = weights_of(train(resnet(out=tmp_path / "single", **options)))
    double = resnet(out=tmp_path / "double", **options)
    result = torchrun(double, tmp_path)
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    for key, value in weights_of(double.out / "model.safetensors").items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        assert torch.equal(ranks[0][key], value), key
    means = (state["bn1.running_mean"] for state in (ranks[0], expected))
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-6)


def test_one_image_a_batch_has_no_statistics(resnet, weights):
    with pytest.raises(WgapError, match=r"batch_size is 1 .* at least two images .* --batch-size"):
        train(resnet(batch_size=1))
    train(resnet(batch_size=1, epochs=1, init=weights, force=True))
