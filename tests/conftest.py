"""Real images and weights, found through WGAP_DATA; WGAP_REQUIRE_DATA=1 turns their absence into a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("WGAP_DATA", ROOT.parent / "shared"))


def _needed(path: Path) -> Path:
    if path.exists():
        return path
    reason = f"{path} not found: set WGAP_DATA to the folder that holds data/cub10 and weights/"
    if os.environ.get("WGAP_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cub10() -> Path:
    """Ten classes of CUB-200-2011 in the dataset's own layout."""
    return _needed(DATA / "data" / "cub10")


@pytest.fixture(scope="session")
def cub10_weights() -> Path:
    """WGAP-VGG16 fine-tuned on cub10, a bare state dict."""
    return _needed(DATA / "weights" / "wgap_vgg16_cub10.safetensors")


@pytest.fixture(scope="session")
def imagenet_weights() -> Path:
    """The 13 convolutions of VGG16 trained on ImageNet, Caffe preprocessing."""
    return _needed(DATA / "weights" / "vgg16_imagenet.safetensors")
