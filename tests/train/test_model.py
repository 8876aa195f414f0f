"""WGAP-VGG16: names, shapes, pooling by the definition, and parts that fit together."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from wgap.train.model import BLOCK_ENDS, CONVOLUTIONS, WgapVgg16, weighted_average_pool


def small(**options: object) -> WgapVgg16:
    torch.manual_seed(0)
    return WgapVgg16(3, **{"width": 1 / 32, "input_size": 64, **options}).eval()  # type: ignore[arg-type]


def test_convolutions_carry_torchvisions_names_and_vgg16s_shapes(imagenet_weights):
    pretrained = load_file(imagenet_weights)
    state = WgapVgg16(10).state_dict()
    assert {k: v.shape for k, v in state.items() if k.startswith("features.")} == {
        k: v.shape for k, v in pretrained.items()
    }
    assert {int(k.split(".")[1]) for k in pretrained} == set(CONVOLUTIONS)


@pytest.mark.parametrize(("stride", "side"), [(16, 14), (8, 28)])
def test_maps_at_224_are_14_or_28_wide(stride, side):
    model = WgapVgg16(3, stride=stride, width=1 / 32)
    logits, features = model(torch.randn(2, 3, 224, 224))
    assert logits.shape == (2, 3)
    assert features.shape == (2, *model.feature_shape) == (2, 16, side, side)
    assert features.min() >= 0


def test_neck_makes_1024_channels_and_ends_in_a_relu():
    assert WgapVgg16(3, neck="conv1024", width=1.0).feature_shape == (1024, 14, 14)
    model = small(neck="conv1024")
    _, features = model(torch.randn(1, 3, 64, 64))
    assert features.shape == (1, 32, 4, 4)
    assert features.min() == 0


def test_stride_8_has_the_same_parameters_as_stride_16():
    assert small(stride=8).state_dict().keys() == small(stride=16).state_dict().keys()


def test_weighted_pooling_is_the_definition_division_included():
    features = torch.rand(2, 4, 3, 5, dtype=torch.float64) * 50
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for n in range(2):
        for c in range(4):
            weight = torch.exp(features[n, c]) / torch.exp(features[n, c]).sum()
            expected[n, c] = (features[n, c] * weight).sum() / (3 * 5)
    torch.testing.assert_close(weighted_average_pool(features), expected, rtol=1e-12, atol=0)


def test_weighted_pooling_survives_activations_that_overflow_an_exponential():
    pooled = weighted_average_pool(torch.full((1, 1, 2, 2), 1000.0))
    assert pooled.item() == 250.0


def test_logits_are_the_classifier_on_pooled_features():
    for pooling in ("wgap", "gap"):
        model = small(pooling=pooling)
        logits, features = model(torch.randn(2, 3, 64, 64))
        pooled = weighted_average_pool(features) if pooling == "wgap" else features.mean((2, 3))
        torch.testing.assert_close(logits, model.classifier(pooled))


@pytest.mark.parametrize("block", BLOCK_ENDS)
def test_a_network_cut_after_any_block_is_the_whole_network(block):
    model = small(neck="conv1024")
    x = torch.randn(2, 3, 64, 64)
    end = BLOCK_ENDS[block]
    logits, features = model.head(model.run_blocks(model.run_blocks(x, 0, end), end, len(model.features)))
    torch.testing.assert_close((logits, features), model(x), rtol=0, atol=0)


def test_blocks_end_after_their_pooling():
    sides = [small().run_blocks(torch.zeros(1, 3, 64, 64), 0, end).shape[-1] for end in BLOCK_ENDS.values()]
    assert sides == [32, 16, 8, 4, 4]


def test_from_scratch_the_compensated_head_gives_logits_of_order_one():
    model = small(input_size=224, width=1 / 8)
    x = torch.randn(4, 3, 224, 224)
    plain = (model(x)[0] - model.classifier.bias).std()
    model.compensate_pooling()
    assert plain < 0.05 < 0.1 < (model(x)[0] - model.classifier.bias).std() < 10


@pytest.mark.parametrize(
    "wrong",
    [{"stride": 32}, {"neck": "fat"}, {"pooling": "max"}, {"width": 0}, {"input_size": 100}, {"num_classes": 0}],
)
def test_impossible_networks_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        WgapVgg16(**{"num_classes": 3, **wrong})
