"""A tiny labelled image set and a network small enough to train in a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from wgap.train import checkpoint
from wgap.train.config import TrainConfig
from wgap.train.model import WgapVgg16

CLASSES = ("checks", "rings", "stripes")
WIDTH = 1 / 32
SIZE = 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose time to a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def texture(kind: str, random: np.random.Generator, side: int = 48) -> np.ndarray:
    """uint8[side, side, 3]: one of three patterns in two random colours."""
    y, x = np.mgrid[:side, :side] + random.integers(0, 16, 2)[:, None, None]
    on = {"checks": (x // 6 + y // 6) % 2, "rings": np.hypot(x - 24, y - 24) // 5 % 2, "stripes": x // 4 % 2}[kind] > 0
    low, high = random.integers(0, 120, 3), random.integers(136, 256, 3)
    return np.where(on[..., None], high, low).astype(np.uint8)


def write_images(root: Path, per_class: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for kind in CLASSES:
        (root / kind).mkdir(parents=True)
        for i in range(per_class):
            assert cv2.imwrite(str(root / kind / f"{i:02d}.png"), texture(kind, random))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images of each of three classes, and two each to validate on, one folder per class."""
    write_images(tmp_path / "images" / "train", 8)
    write_images(tmp_path / "images" / "val", 2, seed=1)
    return tmp_path / "images"


@pytest.fixture
def narrow_weights(tmp_path: Path) -> Path:
    """A checkpoint of an untrained narrow network, which names its preprocessing."""
    torch.manual_seed(5)
    model = WgapVgg16(2, width=WIDTH, input_size=SIZE)
    checkpoint.save(model, tmp_path / "narrow.safetensors", classes=["a", "b"], preprocessing="caffe-bgr")
    return tmp_path / "narrow.safetensors"


@pytest.fixture
def config(images: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Options of a short run from scratch; keyword arguments replace some."""

    def make(**changes: Any) -> TrainConfig:
        options: dict[str, Any] = {
            "data": images,
            "out": tmp_path / "run",
            "width": WIDTH,
            "input_size": SIZE,
            "epochs": 2,
            "batch_size": 8,
            "lr": 1e-2,
            "accelerator": "cpu",
        }
        return TrainConfig(**{**options, **changes})

    return make


@pytest.fixture
def weights_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    """The tensors of a checkpoint file."""
    return lambda path: checkpoint.read_weights(path)[0]
