"""Learning rates: new layers ten times as fast, the classifier's compensation, warm-up and cosine."""

from __future__ import annotations

import pytest
import torch

from wgap.train.model import WgapVgg16
from wgap.train.optim import optimizer_for, parameter_groups, rate_fraction


def rates(config, **model_options):
    model = WgapVgg16(3, width=1 / 32, input_size=64, **model_options)
    return {g["name"]: (g["lr"], g["weight_decay"]) for g in parameter_groups(model, config)}


def test_new_layers_learn_ten_times_as_fast_beside_pretrained_ones(config, narrow_weights):
    options = config(init=narrow_weights, lr=1e-3, weight_decay=5e-4)
    assert rates(options, neck="conv1024") == {
        "backbone": (1e-3, 5e-4),
        "neck": (1e-2, 5e-4),
        "classifier.weight": (1e-2, 5e-4),
        "classifier.bias": (1e-2, 5e-4),
    }


@pytest.mark.parametrize(("optimizer", "power"), [("sgd", 2), ("adamw", 1)])
def test_from_scratch_the_classifier_learns_as_if_the_division_came_after_it(config, optimizer, power):
    """One step on W = (h*w) W' at the derived rate is one step on W' at the plain one."""
    options = config(lr=1e-2, weight_decay=0.1, optimizer=optimizer)
    torch.manual_seed(0)
    inside, outside = (WgapVgg16(3, width=1 / 32, input_size=64, pooling="wgap") for _ in range(2))
    outside.load_state_dict(inside.state_dict())
    inside.compensate_pooling()
    assert inside.pooling_gain == 16
    pooled = torch.rand(5, inside.classifier.in_features)
    ours = optimizer_for(inside, options)
    plain_groups = [{"params": [p], "lr": 1e-2, "weight_decay": 0.1} for p in outside.classifier.parameters()]
    plain = torch.optim.SGD(plain_groups, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(plain_groups)
    for _ in range(3):
        for model, step, x in ((inside, ours, pooled / 16), (outside, plain, pooled)):
            step.zero_grad()
            torch.nn.functional.cross_entropy(model.classifier(x), torch.tensor([0, 1, 2, 0, 1])).backward()
            step.step()
    torch.testing.assert_close(inside.classifier.weight / 16, outside.classifier.weight, rtol=1e-3, atol=1e-5)
    assert rates(options)["classifier.weight"] == pytest.approx((1e-2 * 16**power, 0.1 / 16**power))


def test_an_explicit_classifier_rate_is_taken_as_it_is(config):
    assert rates(config(lr=1e-2, classifier_rate=3.0))["classifier.weight"] == pytest.approx((3e-2, 5e-4))


def test_frozen_layers_are_in_no_group(config, narrow_weights):
    model = WgapVgg16(3, width=1 / 32, input_size=64)
    model.features.requires_grad_(False)
    groups = parameter_groups(model, config(init=narrow_weights))
    assert [g["name"] for g in groups] == ["classifier.weight", "classifier.bias"]


def test_rates_rise_over_the_warm_up_and_fall_along_half_a_cosine():
    plain = [rate_fraction(step, 100) for step in range(100)]
    assert plain[0] == 1
    assert plain[50] == pytest.approx(0.5)
    assert plain[-1] < 0.001
    assert plain == sorted(plain, reverse=True)
    warm = [rate_fraction(step, 100, 0.1) for step in range(100)]
    assert warm[0] == pytest.approx(0.1, rel=0.01)
    assert warm[:10] == sorted(warm[:10])
    assert warm[10:] == plain[10:]
