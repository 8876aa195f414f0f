"""`wgap foreground`: what it makes of pictures, what it refuses, and that the bundle is whole at every instant."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from tests.runtime.conftest import glass_bundle  # noqa: F401  (a fixture)

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.calibrate import foreground as room
from wgap.calibrate.foreground import fine_tensors, foreground_bundle, head_graph, without_head
from wgap.calibrate.head import fit_head
from wgap.errors import BundleError, CalibrationError, GateError, OutputExistsError
from wgap.export.onnx import bundle_from_checkpoint, state_from_onnx
from wgap.extend import NewFile, enter_files
from wgap.geometry import iou
from wgap.rule import Rule
from wgap.runtime.networks.onnxruntime import open_session
from wgap.runtime.selftest import selftest
from wgap.train.reference import foreground_scores

CLASSES = ("disc", "ring", "cross")


def picture(rng: np.random.Generator, bright: bool = True) -> np.ndarray:
    """uint8[64, 64, 3]: a textured blob on a dim, noisy ground."""
    y, x = np.mgrid[0:64, 0:64]
    cy, cx, radius = rng.uniform(20, 44), rng.uniform(20, 44), rng.uniform(9, 17)
    ground = rng.normal(60, 8, (64, 64, 3)) + rng.uniform(-20, 20, 3)
    inside = (np.hypot(y - cy, x - cx) < radius)[..., None] & bright
    return np.where(inside, 190 + 40 * ((x + y) // 3 % 2)[..., None], ground).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose network sees brightness: a tiny VGG16 of positive weights, untrained. Shared: copy it."""
    from safetensors.torch import save_file

    from wgap.train.model import WgapVgg16

    torch.manual_seed(3)
    model, folder = WgapVgg16(3, width=0.125, stride=8, input_size=64), tmp_path_factory.mktemp("bright")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith("features") and name.endswith("weight"):
                value.copy_(
                    value.abs() / value.abs().sum(dim=(1, 2, 3), keepdim=True) * (0.5 + torch.rand(len(value), 1, 1, 1))
                )
            elif name.startswith("features"):
                value.copy_(-0.1 * torch.rand(len(value)))
    save_file(model.state_dict(), folder / "bright.safetensors")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    bundle_from_checkpoint(
        folder / "bright.safetensors", folder / "bundle", classes=folder / "classes.txt", stride=8,
        preprocessing="torchvision-rgb", input_size=64,
    )  # fmt: skip
    return folder / "bundle"


@pytest.fixture
def own(network: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(network, tmp_path / "bundle")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled pictures, with a box file that nobody may open."""
    root, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for number in range(40):
        folder = root / "train" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), picture(rng))
    (root / "boxes.csv").write_text("image,x0,y0,x1,y1\n")
    return root


@pytest.fixture(scope="module")
def made(network: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> room.Foreground:
    root = Path(shutil.copytree(network, tmp_path_factory.mktemp("made") / "bundle"))
    return foreground_bundle(Bundle.open(root), pictures)


def listing(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_bundle_has_scores_that_are_the_head_s(made: room.Foreground, network: Path) -> None:
    bundle = made.bundle
    assert bundle.manifest.rule == Rule("foreground+colour")
    assert bundle.manifest.model.signature()["foreground"].shape == ("N", 1, 16, 16)
    graph, rng = bundle.path("onnx", "fp32"), np.random.default_rng(1)
    model = onnx.load(str(graph))
    assert made.record.fine is not None
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(made.record.fine))
    session = onnx_session(model)
    images = np.stack([picture(rng) for _ in range(3)])
    scores, features, logits, fine = session.run(
        ["foreground", "features", "logits", made.record.fine], {"image": images}
    )
    head = {name: torch.from_numpy(value) for name, value in load_file(bundle.path("foreground")).items()}
    for n in range(3):
        expected = foreground_scores([torch.from_numpy(features[n]), torch.from_numpy(fine[n])], head)
        assert np.abs(scores[n, 0] - expected.numpy()).max() < 1e-5 * np.abs(scores).max()
    before = open_session(network / "model.onnx", None).run(["features", "logits"], {"image": images})
    assert np.array_equal(features, before[0])
    assert np.array_equal(logits, before[1])
    assert (scores > 0).any()
    assert (scores < 0).any()


def onnx_session(model: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture
def two_levels(glass_bundle: Path, tmp_path: Path) -> Bundle:  # noqa: F811
    """``glass_bundle`` with a ReLU at twice the features' resolution: averages over 4x4 pixels, then 8x8."""
    root = Path(shutil.copytree(glass_bundle, tmp_path / "two"))
    model = onnx.load(str(root / "model.onnx"))
    make, nodes = onnx.helper.make_node, list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type != "AveragePool":
            model.graph.node.append(node)
            continue
        model.graph.node.append(make("AveragePool", ["planes"], ["small"], kernel_shape=[4, 4], strides=[4, 4]))
        model.graph.node.append(make("Relu", ["small"], ["fine"]))
        model.graph.node.append(make("AveragePool", ["fine"], ["cells"], kernel_shape=[2, 2], strides=[2, 2]))
    onnx.checker.check_model(model, full_check=True)
    opened = Bundle.open(root)
    file = NewFile(model.SerializeToString(), "model.onnx", "onnx", "fp32")
    return enter_files(opened, [file], lambda entry: entry.role == "onnx")


def test_it_finds_objects_that_it_never_saw(two_levels: Bundle, pictures: Path) -> None:
    rng, ious = np.random.default_rng(9), []
    done = foreground_bundle(two_levels, pictures, sum_of_channels=True)
    assert done.record.fine == "fine"
    localizer = Localizer(done.bundle)
    for _ in range(20):
        image = 255 - picture(rng)
        ys, xs = np.nonzero(image.max(axis=2) < 100)
        true = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        ious.append(iou(localizer.one(image).box, true))
    assert min(ious) > 0.7, ious


def test_golden_cases_are_made_anew_and_pass(made: room.Foreground) -> None:
    for rule in ("foreground+colour", "foreground"):
        with Localizer(made.bundle, rule=rule) as localizer:
            report = selftest(localizer)
        assert report.ok, report
        assert not report.warnings
        assert len({check.case for check in report.checks}) == 4
        stages = {check.stage for check in report.checks}
        assert {"foreground", "kernel box", "end to end box"} <= stages
        assert "features" not in stages or len(stages) > 9


def test_the_record_says_what_it_was_made_from(made: room.Foreground, pictures: Path) -> None:
    entry = Bundle.open(made.bundle.root).file("foreground")
    assert entry.foreground == made.record
    assert len(made.record.images) == 40
    assert made.record.labels == "40 labels, 0 top-1 classes"
    assert made.record.separation["fine"] > room.LEAST_SEPARATION["fine"]
    names = {path.name for path in pictures.rglob("*.png")}
    assert {image.name for image in made.record.images} == names


def test_the_same_pictures_give_the_same_bytes(made: room.Foreground, own: Bundle, pictures: Path) -> None:
    again = foreground_bundle(own, pictures)
    assert listing(again.bundle.root) == listing(made.bundle.root)
    third = foreground_bundle(again.bundle, pictures)  # over an earlier head: replaced whole
    contents = listing(third.bundle.root)
    assert sorted(contents.values()) == sorted(listing(made.bundle.root).values()) or len(contents) == len(
        listing(made.bundle.root)
    )
    assert load_file(third.bundle.path("foreground")).keys() == load_file(made.bundle.path("foreground")).keys()
    for name, value in load_file(third.bundle.path("foreground")).items():
        assert np.array_equal(value, load_file(made.bundle.path("foreground"))[name])


def test_no_box_is_opened(own: Bundle, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        real = getattr(module, name)

        def watched(file: Any, *arguments: Any, real: Any = real, **options: Any) -> Any:
            opened.append(os.fspath(file) if isinstance(file, str | os.PathLike) else "")
            return real(file, *arguments, **options)

        monkeypatch.setattr(module, name, watched)
    foreground_bundle(own, pictures)
    assert any(str(name).endswith(".png") for name in opened)
    assert not [name for name in opened if "boxes" in str(name)]


def test_a_plain_folder_without_labels_will_do(own: Bundle, pictures: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in pictures.rglob("*.png"):
        shutil.copy(path, flat / path.name)
    done = foreground_bundle(own, flat, count=35, rule=Rule("foreground", "recombined"))
    assert (len(done.images), done.record.labels) == (35, "0 labels, 35 top-1 classes")
    assert done.bundle.manifest.rule == Rule("foreground", "recombined")
    assert selftest(Localizer(done.bundle)).ok


def pictures_of(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"{number:02}.png"), image)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rng: [picture(rng)], "expected at least 30 calibration images, got 1"),
        (lambda rng: [picture(rng) for _ in range(29)], "expected at least 30 calibration images, got 29"),
        (lambda rng: [picture(rng)] * 40, "39 of 40 calibration images come again"),
        (lambda _: [np.full((64, 64, 3), n + 20, np.uint8) for n in range(40)], "pictures that show something, got 0"),
        (lambda rng: [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(40)], "would be ground"),
    ],
    ids=["one", "too few", "identical", "grey", "noise"],
)
def test_pictures_that_show_nothing_are_refused(own: Bundle, tmp_path: Path, make: Any, message: str) -> None:
    before = listing(own.root)
    folder = pictures_of(tmp_path / "bad", make(np.random.default_rng(4)))
    with pytest.raises(CalibrationError, match=message):
        foreground_bundle(own, folder)
    assert listing(own.root) == before


def test_a_graph_without_a_finer_resolution_scores_its_features(
    glass_bundle: Path,  # noqa: F811
    tmp_path: Path,
    pictures: Path,
) -> None:
    root = Path(shutil.copytree(glass_bundle, tmp_path / "glass"))
    notes: list[str] = []
    done = foreground_bundle(Bundle.open(root), pictures, sum_of_channels=True, note=notes.append)
    assert done.record.fine is None
    assert done.bundle.manifest.model.signature()["foreground"].shape == ("N", 1, 8, 8)
    assert any("no activation of twice the features' resolution" in note for note in notes)
    assert done.record.warnings
    assert set(load_file(done.bundle.path("foreground"))) == {"A.weight", "A.bias"}
    dark = np.full((64, 64, 3), 255, np.uint8)
    assert Localizer(done.bundle).one(dark).box == (0, 0, 64, 64)


def test_the_finer_activation_is_found_by_its_shape(tiny_bundle: Path) -> None:
    model = onnx.load(str(tiny_bundle / "model.onnx"))
    [fine] = fine_tensors(model, (64, 4, 4), (64, 64))
    makers = {node.output[0]: node for node in model.graph.node}
    assert makers[fine].op_type == "Relu"
    readers = [node.op_type for node in model.graph.node if fine in node.input]
    assert readers == ["MaxPool"]
    assert fine_tensors(model, (64, 3, 3), (64, 64)) == []
    assert len(fine_tensors(model, (64, 4, 4), (65, 65))) == 2, "cells of more than 8 pixels: four times as well"
    head = {"A.weight": np.ones(64, np.float32), "A.bias": np.zeros(1, np.float32)}
    head |= {name.replace("A", "B"): value for name, value in head.items()}
    with_head = head_graph(onnx.load(str(tiny_bundle / "model.onnx")), head, [fine])
    assert without_head(with_head).SerializeToString() == model.SerializeToString()
    assert set(state_from_onnx(tiny_bundle / "model.onnx")) == set(state_from_onnx(tiny_bundle / "model.onnx"))


def test_one_kind_of_cell_cannot_be_fitted() -> None:
    flat = np.ones((30, 4, 3, 3), np.float32)
    with pytest.raises(CalibrationError, match=r"all 270 cells .* would be ground"):
        fit_head([np.zeros((24, 24, 3), np.uint8)] * 30, flat, [], np.ones((30, 4), np.float32))


@pytest.mark.parametrize("step", range(1, 9))
def test_an_interrupted_run_leaves_the_bundle_as_it_was(
    own: Bundle, pictures: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the rename of each file, the manifest's included: which is the last."""
    from wgap import atomic

    before, calls, real = listing(own.root), [], atomic.put_in_place

    def interrupted(temporary: Path, path: Path) -> None:
        calls.append(path.name)
        if len(calls) == step:
            raise KeyboardInterrupt
        real(temporary, path)

    monkeypatch.setattr(atomic, "put_in_place", interrupted)
    try:
        foreground_bundle(own, pictures)
    except KeyboardInterrupt:
        assert listing(own.root) == before
    else:
        assert len(calls) < step
    Bundle.open(own.root)


def test_a_full_disk_leaves_the_bundle_as_it_was(own: Bundle, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = listing(own.root), Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.is_relative_to(own.root) and "case-5" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match=r"cannot be written \(No space left on device\).*as it was"):
        foreground_bundle(own, pictures)
    assert listing(own.root) == before


def test_a_killed_run_leaves_a_bundle_that_opens(own: Bundle, pictures: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from wgap import atomic
from wgap.bundle import Bundle
from wgap.calibrate.foreground import foreground_bundle
real, calls = atomic.put_in_place, []
def killed(temporary, path):
    calls.append(path)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(temporary, path)
atomic.put_in_place = killed
foreground_bundle(Bundle.open(Path({str(own.root)!r})), Path({str(pictures)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    opened = Bundle.open(own.root)  # every hash compared
    assert opened.manifest == own.manifest


def test_what_was_made_before_is_stale(own: Bundle, pictures: Path) -> None:
    from typer.testing import CliRunner

    from wgap.calibrate.bundle import calibrate_bundle
    from wgap.cli import app

    calibrate_bundle(own, pictures, count=16)
    done = CliRunner().invoke(app, ["foreground", str(own.root), "--images", str(pictures)])
    assert "; stale, made before: model.int8.onnx; make them again" in done.output
    for ungated in (False, True):
        with pytest.raises(GateError, match=r"model\.int8\.onnx is stale: it was made from another float32 model"):
            Bundle.open(own.root).model_file("int8", ungated)
    shown = CliRunner().invoke(app, ["inspect", str(own.root)])
    assert shown.exit_code == 0, shown.output
    assert "stale" in shown.output


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
def test_lower_precisions_keep_the_head_in_float(
    made: room.Foreground, pictures: Path, tmp_path: Path, precision: str
) -> None:
    from wgap.calibrate.bundle import calibrate_bundle

    root = Path(shutil.copytree(made.bundle.root, tmp_path / "lower"))
    done = calibrate_bundle(Bundle.open(root), pictures, precision, count=16)
    model = onnx.load(str(root / done.entry.path))
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    head = [node for node in model.graph.node if node.op_type == "Conv" and node.name.startswith("foreground/")]
    assert len(head) == 2
    assert all(kinds[node.input[1]] == onnx.TensorProto.FLOAT for node in head)
    rest = [node for node in model.graph.node if node.op_type == "Conv" and node not in head]
    assert len(rest) == 13
    assert done.entry.calibration is not None
    assert done.entry.calibration.keep_float == ()
    if precision == "int8":
        assert done.entry.calibration.quantisation is not None
        attested = done.entry.calibration.quantisation["attestation"]
        assert (attested["meant_int8"], attested["ran_int8"], attested["ran_float"]) == (13, 13, 0)
    if precision != "bf16":
        found = [
            Localizer(root, precision=p, ungated=True).one(picture(np.random.default_rng(5))).box
            for p in ("fp32", precision)
        ]
        assert np.abs(np.subtract(*found)).max() <= 8


def test_the_verb_prints_writes_a_report_and_refuses_by_name(own: Bundle, pictures: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from wgap.cli import app

    report = tmp_path / "report"
    call = ["foreground", str(own.root), "--images", str(pictures), "--report", str(report)]
    done = CliRunner().invoke(app, [*call, "--rule", "foreground", "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert (printed["role"], printed["path"]) == ("foreground", "foreground.safetensors")
    assert Bundle.open(own.root).manifest.rule == Rule("foreground")
    content = json.loads((report / "report.json").read_text())
    assert content["head"]["separation"] == printed["foreground"]["separation"]
    assert len(content["least_certain"]) == 6
    assert min(content["certainty"], key=content["certainty"].__getitem__) == content["least_certain"][0]
    for name in ("separation.png", "cells.png", "uncertain.png"):
        shown = cv2.imread(str(report / name))
        assert shown is not None
        assert shown.std() > 10, f"{name} is blank"
    again = CliRunner().invoke(app, call)
    assert isinstance(again.exception, OutputExistsError)
    plain = CliRunner().invoke(app, ["foreground", str(own.root), "--images", str(pictures)])
    assert plain.exit_code == 0, plain.output
    assert plain.output.endswith("rule foreground+colour\n")
