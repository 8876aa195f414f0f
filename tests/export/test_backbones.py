"""Other backbones go the whole way: trained, exported, checked, given a foreground, selftested and localized with."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.calibrate.candidate import calibrate, prepare
from wgap.calibrate.foreground import fine_tensors, foreground_bundle, head_graph
from wgap.calibrate.images import image_set
from wgap.cli import app
from wgap.errors import BundleError
from wgap.export.check import check_localizer, model_from_bundle, reference
from wgap.export.onnx import bundle_from_checkpoint
from wgap.runtime.networks.onnxruntime import open_session
from wgap.runtime.selftest import selftest
from wgap.train.checkpoint import load_model, save
from wgap.train.config import TrainConfig
from wgap.train.loop import train
from wgap.train.model import WgapNetwork
from wgap.train.reference import foreground_scores
from wgap.train.views import normalise

CLASSES = ("disc", "stripes")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose time to a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of 64x64 in two classes: a bright blob, plain or striped, on a dim and noisy ground."""
    root, rng = tmp_path_factory.mktemp("blobs"), np.random.default_rng(0)
    y, x = np.mgrid[0:64, 0:64]
    for number in range(40):
        folder = root / "train" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cy, cx, radius = rng.uniform(20, 44), rng.uniform(20, 44), rng.uniform(9, 17)
        inside = (np.hypot(y - cy, x - cx) < radius)[..., None]
        shown = 190 + 40 * ((x + y) // 3 % 2 * (number % 2))[..., None]
        made = np.where(inside, shown, rng.normal(60, 8, (64, 64, 3)) + rng.uniform(-20, 20, 3))
        cv2.imwrite(str(folder / f"{number}.png"), made.clip(0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a narrow resnet18 that sees brightness and whose classifier learnt. Shared: copy it first."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("resnet")
    model = WgapNetwork(2, backbone="resnet18", width=1 / 8, input_size=64)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_(module.weight.abs() / module.weight.abs().sum(dim=(1, 2, 3), keepdim=True))
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.1, 0)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    torch.save(state, folder / "bright.pth")
    config = TrainConfig(
        pictures, folder / "run", backbone="resnet18", init=folder / "bright.pth", preprocessing="torchvision-rgb",
        freeze_through="layer3", views=1, width=1 / 8, input_size=64, epochs=2, batch_size=10, accelerator="cpu",
    )  # fmt: skip
    return bundle_from_checkpoint(train(config), folder / "bundle").root


def untrained(folder: Path, backbone: str, **options: object) -> Bundle:
    """The bundle of a narrow network with statistics of its own."""
    torch.manual_seed(1)
    model = WgapNetwork(3, backbone=backbone, **{"width": 1 / 16, "input_size": 64, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    torch.nn.init.normal_(model.classifier.bias)
    save(model.eval(), folder / "m.safetensors", classes=["a", "b", "c"], preprocessing="caffe-bgr")
    return bundle_from_checkpoint(folder / "m.safetensors", folder / "bundle")


def test_the_graph_is_plain_and_the_manifest_names_the_backbone(trained: Path) -> None:
    bundle = Bundle.open(trained)
    graph = onnx.load(str(bundle.path("onnx", "fp32"))).graph
    operators = Counter(node.op_type for node in graph.node)
    assert (operators["Conv"], operators["Add"], operators["Relu"], operators["MaxPool"]) == (20, 8, 17, 1)
    assert operators["BatchNormalization"] == 0
    relu = next(node for node in graph.node if "features" in node.output)
    assert relu.op_type == "Relu"
    info = bundle.manifest.model
    assert (info.architecture.name, info.feature_shape) == ("resnet18", (64, 4, 4))
    assert info.architecture.parameters == {"width": 0.125, "stride": 16, "neck": "none", "pooling": "wgap"}


def test_a_trained_bundle_agrees_with_pytorch_rebuilt_from_its_own_graph(trained: Path) -> None:
    bundle = Bundle.open(trained)
    assert check_localizer(Localizer(bundle)).ok
    loaded = load_model(trained.parent / "run" / "model.safetensors")
    x = normalise(torch.from_numpy(np.stack([c["image"] for c in bundle.golden() if "image" in c])),
                  bundle.manifest.preprocessing)  # fmt: skip
    with torch.no_grad():
        for got, expected in zip(model_from_bundle(bundle)(x), loaded.model(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("backbone", "options", "shape"),
    [
        ("resnet50", {"stride": 32, "neck": "conv1024", "pooling": "gap"}, (64, 2, 2)),
        ("mobilenet_v2", {"stride": 8}, (80, 8, 8)),
    ],
)
def test_other_families_go_there_and_back(
    backbone: str, options: dict[str, object], shape: tuple[int, ...], tmp_path: Path
) -> None:
    bundle = untrained(tmp_path, backbone, **options)
    assert (bundle.manifest.model.architecture.name, bundle.manifest.model.feature_shape) == (backbone, shape)
    operators = {node.op_type for node in onnx.load(str(bundle.path("onnx", "fp32"))).graph.node}
    assert "BatchNormalization" not in operators
    assert ("Clip" in operators) == (backbone == "mobilenet_v2")
    assert check_localizer(Localizer(bundle)).ok
    assert selftest(Localizer(bundle)).ok
    require_same_fine_activation(bundle, tmp_path / "headed.onnx")


def require_same_fine_activation(bundle: Bundle, path: Path) -> None:
    """The graph's search and the check's take the same activations: a head of random vectors scores them alike."""
    graph, info, rng = onnx.load(str(bundle.path("onnx", "fp32"))), bundle.manifest.model, np.random.default_rng(0)
    fine = fine_tensors(graph, info.feature_shape, info.input_size)
    assert len(fine) == (2 if info.input_size[0] // info.feature_shape[1] == 32 else 1)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in onnx.shape_inference.infer_shapes(graph).graph.value_info}
    head = {"A.weight": np.zeros(info.feature_shape[0])}
    head |= {f"{k}.weight": rng.normal(size=shapes[name][1].dim_value) for k, name in zip("BC", fine, strict=False)}
    head = {k: v.astype(np.float32) for k, v in (head | {f"{k}.bias": np.zeros(1) for k in "ABC"}).items()}
    path.write_bytes(head_graph(graph, head, fine).SerializeToString())
    images = np.stack([case["image"] for case in bundle.golden() if "image" in case][:1])
    [got] = open_session(path, None).run(["foreground"], {"image": images})
    tensors = {k: torch.from_numpy(v) for k, v in head.items()}
    with torch.no_grad(), reference(bundle, None) as (run, _, _):
        found = run(images)
    levels = [found[name][0] for name in ("features", "fine", "finer") if name in found]
    expected = foreground_scores(levels, tensors)[None, None].numpy()
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_graph_of_another_backbone_is_refused(trained: Path) -> None:
    bundle = Bundle.open(trained)
    model = bundle.manifest.model
    for name, said in (
        ("resnet34", "does not hold the network"),
        ("vgg16", "does not hold"),
        ("lenet", "called lenet"),
    ):
        other = replace(model, architecture=replace(model.architecture, name=name))
        with pytest.raises(BundleError, match=said):
            model_from_bundle(replace(bundle, manifest=replace(bundle.manifest, model=other)))


def test_foreground_finds_the_stage_of_twice_the_resolution_and_every_verb_goes_on(
    trained: Path, pictures: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(Path(shutil.copytree(trained, tmp_path / "bundle")))
    made = foreground_bundle(bundle, pictures)
    assert made.bundle.manifest.model.signature()["foreground"].shape == ("N", 1, 8, 8)
    assert made.fit.fine[0].weight.shape == (16,)  # layer2's channels
    report = check_localizer(Localizer(made.bundle))
    assert report.ok, report
    assert "foreground" in {stage.name for stage in report.stages}
    assert selftest(Localizer(made.bundle)).ok
    picture = sorted((pictures / "train" / "disc").iterdir())[0]
    result = CliRunner().invoke(app, ["localize", str(bundle.root), str(picture), "--json"])
    assert result.exit_code == 0, result.output
    x0, y0, x1, y1 = json.loads(result.stdout)["box"]
    assert 0 <= x0 < x1 <= 64
    assert 0 <= y0 < y1 <= 64


def test_every_convolution_runs_in_int8(trained: Path, pictures: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(trained)
    with prepare(bundle, image_set(bundle, pictures, split="train", count=16)) as source:
        made = calibrate(source, "int8", tmp_path / "int8.onnx")
    assert made.record.quantisation is not None
    attested = made.record.quantisation["attestation"]
    assert (attested["ran_int8"], attested["ran_float"]) == (20, 0)
