"""Generated pictures, and a bundle whose network can be worked out by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wgap.bundle import MANIFEST, describe_file, write_manifest
from wgap.manifest import Architecture, Manifest, ModelInfo
from wgap.preprocessing import PREPROCESSING
from wgap.rule import Rule


def scene(height: int, width: int) -> np.ndarray:
    """uint8[height, width, 3] RGB: smooth noise with a dark disc, so that resizing and JPEG have something to do."""
    y, x = np.mgrid[0:height, 0:width]
    background = 190 + 40 * np.sin(x / 17)[..., None] * np.cos(y / 13)[..., None] * np.array([1.0, 0.6, 0.3])
    disc = (x - width * 0.4) ** 2 + (y - height * 0.55) ** 2 < (0.25 * min(height, width)) ** 2
    return np.where(disc[..., None], np.array([60, 90, 30]), background).clip(0, 255).astype(np.uint8)


def encode(image: np.ndarray, suffix: str, *options: int) -> bytes:
    """An RGB (RGBA, grey) image as the bytes of a file."""
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    return cv2.imencode(suffix, image, list(options))[1].tobytes()


@pytest.fixture(scope="session", name="scene")
def _scene() -> Callable[[int, int], np.ndarray]:
    return scene


@pytest.fixture(scope="session", name="encode")
def _encode() -> Callable[..., bytes]:
    return encode


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """A scene of 90 x 70 (height x width)."""
    return scene(90, 70)


@pytest.fixture(scope="session")
def files(picture: np.ndarray) -> dict[str, bytes]:
    """``picture`` as a file of every kind."""
    return {
        "jpeg": encode(picture, ".jpg"),
        "progressive jpeg": encode(picture, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "jpeg with restarts": encode(picture, ".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        "png": encode(picture, ".png"),
        "bmp": encode(picture, ".bmp"),
        "lossless webp": encode(picture, ".webp"),
        "lossy webp": encode(picture, ".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
        "tiff": encode(picture, ".tiff"),
    }


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three JPEG and PNG files of different sizes, one in a folder below, beside a text and a hidden file."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "below").mkdir()
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.jpg").write_bytes(b"")
    (root / "a.jpg").write_bytes(encode(scene(120, 160), ".jpg"))
    (root / "b.png").write_bytes(encode(scene(97, 61), ".png"))
    (root / "below" / "a.jpeg").write_bytes(encode(scene(64, 64), ".jpg"))
    return root


@pytest.fixture(scope="session")
def glass_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of which every answer is known: 64x64 in, features are the inverted picture, averaged over 8x8 pixels.

    Channel c is class c (red, green, blue) and W is the identity, so that a dark blot in one colour is the object of
    that class. A white picture gives all-zero features; a black one gives NaN, from a division of zero by zero.
    """
    onnx = pytest.importorskip("onnx", reason="building the hand-made network needs onnx")
    from onnx import TensorProto, helper
    from safetensors.numpy import save_file

    root = tmp_path_factory.mktemp("bundles") / "glass"
    root.mkdir()
    constants = [helper.make_tensor("white", TensorProto.FLOAT, [], [255.0])]
    nodes = [
        helper.make_node("Cast", ["image"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["bytes"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Sub", ["white", "cells"], ["inverted"]),
        helper.make_node("ReduceMax", ["cells"], ["brightest"], keepdims=1, axes=[1, 2, 3]),
        helper.make_node("Div", ["brightest", "brightest"], ["one"]),
        helper.make_node("Mul", ["inverted", "one"], ["features"]),
        helper.make_node("ReduceMean", ["features"], ["logits"], keepdims=0, axes=[2, 3]),
    ]
    graph = helper.make_graph(
        nodes,
        "glass",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 64, 64, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3, 8, 8]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    (root / "model.onnx").write_bytes(model.SerializeToString())
    save_file({"weight": np.eye(3, dtype=np.float32), "bias": np.zeros(3, np.float32)}, root / "classifier.safetensors")
    info = ModelInfo.of(Architecture("glass"), ("red", "green", "blue"), (64, 64), (3, 8, 8))
    files = (
        describe_file(root, root / "model.onnx", "onnx", "fp32"),
        describe_file(root, root / "classifier.safetensors", "classifier", "fp32"),
    )
    write_manifest(root, Manifest(info, PREPROCESSING["torchvision-rgb"], Rule(), files, "test"))
    return root


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """Change a bundle's files or manifest; hashes are brought up to date unless told otherwise."""

    def change(root: Path, update: Callable[[dict[str, Any]], None] | None = None, **content: bytes) -> None:
        manifest = json.loads((root / MANIFEST).read_text())
        for stem, data in content.items():
            entry = next(e for e in manifest["files"] if Path(e["path"]).stem == stem)
            (root / entry["path"]).write_bytes(data)
            entry["sha256"], entry["size"] = hashlib.sha256(data).hexdigest(), len(data)
        if update is not None:
            update(manifest)
        (root / MANIFEST).write_text(json.dumps(manifest))

    return change
