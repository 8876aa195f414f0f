"""Real images and weights, found through WGAP_DATA; WGAP_REQUIRE_DATA=1 turns their absence into a failure."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("WGAP_DATA", ROOT.parent / "shared"))


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests, the processes they start and those they kill leave behind goes with pytest's own folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        patch.setattr(tempfile, "tempdir", None)
        yield


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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WGAP-VGG16 of an eighth of the width with random weights, three classes, 64x64 input, as a bare state dict."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from wgap.train.model import WgapVgg16

    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("tiny")
    model = WgapVgg16(3, width=0.125, input_size=64)
    save_file(model.state_dict(), folder / "tiny.safetensors")
    (folder / "classes.txt").write_text("disc\nring\ncross\n")
    return folder / "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``tiny_checkpoint``, or one made before (WGAP_TINY). Shared: copy it before changing it."""
    if made := os.environ.get("WGAP_TINY"):
        return Path(made)
    tiny_checkpoint = request.getfixturevalue("tiny_checkpoint")
    from wgap.export.onnx import bundle_from_checkpoint

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    classes = tiny_checkpoint.with_name("classes.txt")
    bundle_from_checkpoint(tiny_checkpoint, out, classes=classes, preprocessing="torchvision-rgb", input_size=64)
    return out


@pytest.fixture(scope="session")
def cub10_bundle(cub10: Path, cub10_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the given cub10 weights. Shared: copy it before changing it."""
    pytest.importorskip("torch")
    from wgap.export.onnx import bundle_from_checkpoint

    out = tmp_path_factory.mktemp("bundles") / "cub10"
    names = [line.split()[1] for line in (cub10 / "classes.txt").read_text().splitlines()]
    classes = out.with_name("classes.txt")
    classes.write_text("\n".join(names) + "\n")
    bundle_from_checkpoint(cub10_weights, out, classes=classes, preprocessing="caffe-bgr")
    return out


@pytest.fixture(scope="session")
def scored_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_bundle`` with a foreground head of random vectors, under foreground+colour. Shared: copy it first."""
    return scored(tiny_bundle, tmp_path_factory.mktemp("bundles") / "scored")


def scored(source: Path, root: Path, seed: int = 5) -> Path:
    """A copy of a bundle with a foreground head of random vectors."""
    onnx = pytest.importorskip("onnx")
    import shutil

    import numpy as np
    from safetensors.numpy import save

    from wgap.bundle import Bundle
    from wgap.calibrate.foreground import fine_tensors, head_graph
    from wgap.export.golden import golden_cases
    from wgap.extend import NewFile, enter_files
    from wgap.rule import Rule
    from wgap.runtime.networks.onnxruntime import open_session

    shutil.copytree(source, root)
    bundle = Bundle.open(root)
    info, path = bundle.manifest.model, bundle.path("onnx", "fp32")
    rng = np.random.default_rng(seed)
    fine = fine_tensors(onnx.load(str(path)), info.feature_shape, info.input_size)
    channels = {"A": info.feature_shape[0], "B": info.feature_shape[0]}  # VGG16's last two blocks are equally wide
    head = {f"{name}.weight": rng.normal(0, 1, n).astype(np.float32) for name, n in channels.items()}
    head |= {f"{name}.bias": np.zeros(1, np.float32) for name in channels}
    graph = root / "headed.onnx"
    graph.write_bytes(head_graph(onnx.load(str(path)), head, fine).SerializeToString())
    noise = rng.integers(0, 256, (8, *info.input_size, 3), dtype=np.uint8)
    [scores] = open_session(graph, None).run(["foreground"], {"image": noise})
    head["A.bias"][:] = -np.quantile(scores, 0.8)  # several pieces are object
    graph.write_bytes(head_graph(onnx.load(str(path)), head, fine).SerializeToString())
    height, width = 2 * info.feature_shape[1], 2 * info.feature_shape[2]
    rules = Rule("foreground+colour"), Rule("foreground")
    files = [
        NewFile(graph.read_bytes(), "model.onnx", "onnx", "fp32"),
        NewFile(save(head), "foreground.safetensors", "foreground", "fp32"),
        *golden_cases(bundle, graph, (1, height, width), rules),
    ]
    graph.unlink()
    replaced = ("golden", "foreground", "onnx")
    enter_files(bundle, files, lambda e: e.role in replaced, model=info.with_foreground((height, width)), rule=rules[0])
    return root
