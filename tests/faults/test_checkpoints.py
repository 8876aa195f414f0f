"""Checkpoints that say what is not so: an error that names the field, and no memory for a network that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.faults.fuzz import attacks

from wgap.errors import CheckpointError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("arch", None, "arch: expected an object, got None"),
        ("arch.stride", True, "arch.stride: expected a whole number, got True"),
        ("arch.stride", 7, "stride is 7; expected 16"),
        ("arch.width", "1", "arch.width: expected a number"),
        ("arch.width", 1e300, "cannot be built"),
        ("arch.width", 40.0, "features.0.weight: expected shape [2560, 3, 3, 3]"),
        ("arch.num_classes", 10**30, "arch.num_classes: expected a whole number of 64 bits"),
        ("arch.extra", 1, "arch.extra: no such field"),
        ("classes", "abc", "classes: expected a list, got 'abc'"),
        ("classes", ["a", "a", "b"], "each once; got ['a']"),
        ("classes", ["a", "", "b"], "none of them empty"),
        ("classes", ["a", 7, "b"], "classes[1]: expected text, got 7"),
        ("classes", ["a", "b\0", "c"], "classes[1]: expected text without control characters"),
        ("input_size", 64, "input_size: 64, but arch says 32"),
        ("preprocessing", 5, "preprocessing: expected text, got 5"),
        ("preprocessing", "imagenet", "unknown preprocessing 'imagenet'"),
        ("format", "1", "checkpoint format '1'"),
    ],
)
def test_each_field_is_judged(field: str, value: Any, said: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from wgap.train.checkpoint import load_model
    from wgap.train.model import WgapVgg16

    model = WgapVgg16(3, width=1 / 64, input_size=32)
    facts: dict[str, Any] = {
        "format": 1, "arch": model.arch(), "preprocessing": "caffe-bgr", "classes": ["a", "b", "c"], "input_size": 32,
        "note": {"anything": 1},
    }  # fmt: skip
    path, *keys = tmp_path / "m.safetensors", *field.split(".")
    save_file(model.state_dict(), path, metadata={"wgap": json.dumps(facts)})
    assert load_model(path).classes == ["a", "b", "c"]
    place = facts
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    save_file(model.state_dict(), path, metadata={"wgap": json.dumps(facts)})
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    from wgap.train.checkpoint import load_model, save
    from wgap.train.model import WgapVgg16

    model = WgapVgg16(3, width=1 / 64, input_size=32)
    with torch.no_grad():
        model.features[5].bias[0] = value
    save(model, tmp_path / "m.safetensors", classes=["a", "b", "c"], preprocessing="caffe-bgr")
    with pytest.raises(CheckpointError, match=r"expected finite .* got others in features\.5\.bias"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(("kind", "count"), [("checkpoint", 1000), ("tensors", 20_000)])
def test_damage_is_refused_or_harmless(kind: str, count: int, tmp_path: Path) -> None:
    outcomes, found = attacks(tmp_path)[kind](range(count))
    assert found == []
    assert sum(outcomes.values()) == count
    assert outcomes["refused"] > count / 2
