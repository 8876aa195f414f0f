"""A checkpoint becomes a bundle that says what PyTorch says, or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.cli import app
from wgap.errors import CheckFailedError, CheckpointError, OutputExistsError, RuleError
from wgap.export import onnx as export
from wgap.preprocessing import PREPROCESSING
from wgap.rule import Rule
from wgap.runtime.selftest import selftest
from wgap.train.checkpoint import load_model
from wgap.train.model import WgapVgg16
from wgap.train.reference import box_from_features

CLASSES = ["disc", "ring", "cross"]


def session(bundle: Bundle):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(bundle.path("onnx", "fp32")), providers=["CPUExecutionProvider"])


def classes_file(folder: Path, lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "classes.txt").write_text(lines)
    return folder / "classes.txt"


def test_graph_takes_bytes_and_any_batch(tiny_bundle: Path) -> None:
    run = session(Bundle.open(tiny_bundle))
    (image,) = run.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [64, 64, 3])
    assert isinstance(image.shape[0], str), "the batch must be free"
    assert [(o.name, o.type) for o in run.get_outputs()] == [("logits", "tensor(float)"), ("features", "tensor(float)")]
    for batch in (1, 2, 5):
        logits, features = run.run(None, {"image": np.zeros((batch, 64, 64, 3), np.uint8)})
        assert logits.shape == (batch, 3)
        assert features.shape == (batch, 64, 4, 4)


@pytest.mark.parametrize("name", sorted(PREPROCESSING))
def test_channel_order_and_normalisation_are_in_the_graph(name: str, tmp_path: Path) -> None:
    """A network whose first channel copies one normalised input pixel plane shows what the graph did to the bytes."""
    torch.manual_seed(0)
    model = WgapVgg16(3, width=0.125, input_size=32)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors", CLASSES, name, input_size=32)
    export.write_onnx(loaded, tmp_path / "m.onnx")
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    steps = PREPROCESSING[name]
    by_hand = image.astype(np.float64)[..., :: -1 if steps.channel_order == "bgr" else 1]
    by_hand = (by_hand * steps.scale - np.array(steps.mean)) / np.array(steps.std)
    with torch.no_grad():
        logits, features = loaded.model(torch.from_numpy(by_hand.transpose(0, 3, 1, 2).astype(np.float32)))
    onnxruntime = pytest.importorskip("onnxruntime")
    got = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["logits", "features"], {"image": image})
    np.testing.assert_allclose(got[0], logits, rtol=1e-4, atol=1e-5 * float(logits.abs().max()))
    np.testing.assert_allclose(got[1], features, rtol=1e-4, atol=1e-5 * float(features.abs().max()))


@pytest.mark.parametrize(
    "kwargs", [{"neck": "conv1024"}, {"stride": 8}, {"pooling": "gap"}], ids=["neck", "stride 8", "gap"]
)
def test_every_architecture_goes_there_and_back(kwargs: dict, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = WgapVgg16(3, width=0.125, input_size=32, **kwargs)
    torch.nn.init.normal_(model.classifier.bias)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    given = {k: v for k, v in kwargs.items() if k in ("stride", "pooling")}
    bundle = export.bundle_from_checkpoint(
        tmp_path / "w.safetensors", tmp_path / "b", classes=classes_file(tmp_path, "a\nb\nc\n"),
        preprocessing="torchvision-rgb", input_size=32, **given,
    )  # fmt: skip
    back = export.state_from_onnx(bundle.path("onnx", "fp32"))
    assert back.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    info = bundle.manifest.model
    assert info.architecture.name == "vgg16"
    assert info.architecture.parameters == {
        "width": model.width, "stride": model.stride, "neck": model.neck_kind, "pooling": model.pooling
    }  # fmt: skip
    assert info.feature_shape == model.feature_shape


def test_the_same_checkpoint_gives_the_same_bundle(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    again = export.bundle_from_checkpoint(
        tiny_checkpoint, tmp_path / "again", classes=tiny_checkpoint.with_name("classes.txt"),
        preprocessing="torchvision-rgb", input_size=64,
    )  # fmt: skip
    assert again.manifest == Bundle.open(tiny_bundle).manifest


def test_the_graph_tells_nothing_of_the_machine_it_was_made_on(tiny_bundle: Path) -> None:
    graph = (tiny_bundle / "model.onnx").read_bytes()
    assert b"site-packages" not in graph
    assert str(Path(export.__file__).parent).encode() not in graph


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("disc\nring\n", "the classifier has 3 classes, but 2 class names"),
        ("disc\nring\ncross\nstar\n", "the classifier has 3 classes, but 4 class names"),
        ("disc\n\ncross\n", "line 2: expected a class name of its own, got an empty line"),
        ("disc\ndisc\ncross\n", "line 2: .*'disc' a second time"),
        ("", "empty file"),
    ],
)
def test_a_wrong_class_list_is_refused(lines: str, message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        export.bundle_from_checkpoint(
            tiny_checkpoint, tmp_path / "b", classes=classes_file(tmp_path, lines),
            preprocessing="torchvision-rgb", input_size=64,
        )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.txt"]


def test_a_bare_state_dict_must_come_with_its_facts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--classes FILE .* --preprocessing NAME"):
        export.bundle_from_checkpoint(tiny_checkpoint, tmp_path / "b")


def test_wrong_keys_and_shapes_are_listed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    state = load_file(tiny_checkpoint)
    state["features.5.weight"] = state["features.5.weight"][:3].contiguous()
    del state["features.7.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as error:
        export.bundle_from_checkpoint(
            tmp_path / "w.safetensors", tmp_path / "b", classes=tiny_checkpoint.with_name("classes.txt"),
            preprocessing="caffe-bgr",
        )  # fmt: skip
    assert "missing: features.7.bias" in str(error.value)
    assert "features.5.weight: expected shape [16, 8, 3, 3], got [3, 8, 3, 3]" in str(error.value)


def test_nothing_is_overwritten_unasked_and_nothing_but_a_bundle_is_replaced(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def go(out: Path, force: bool = False) -> None:
        export.bundle_from_checkpoint(
            tiny_checkpoint, out, classes=tiny_checkpoint.with_name("classes.txt"),
            preprocessing="torchvision-rgb", input_size=64, force=force,
        )  # fmt: skip

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(OutputExistsError, match="--force"):
        go(precious)
    with pytest.raises(OutputExistsError, match="is not a bundle"):
        go(precious, force=True)
    assert (precious / "thesis.txt").read_text() == "years"


def test_a_graph_that_differs_from_pytorch_leaves_no_bundle(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.write_onnx

    def sabotaged(loaded, path: Path) -> None:
        with torch.no_grad():
            loaded.model.features[0].weight.mul_(1.01)
        real(loaded, path)
        with torch.no_grad():
            loaded.model.features[0].weight.div_(1.01)

    monkeypatch.setattr(export, "write_onnx", sabotaged)
    with pytest.raises(CheckFailedError, match="differ from PyTorch's"):
        export.bundle_from_checkpoint(
            tiny_checkpoint, tmp_path / "b", classes=tiny_checkpoint.with_name("classes.txt"),
            preprocessing="torchvision-rgb", input_size=64,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_manifest_and_refuses_a_second_time(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [
        "export", str(tiny_checkpoint), "--out", str(tmp_path / "b"), "--input-size", "64", "--json",
        "--classes", str(tiny_checkpoint.with_name("classes.txt")), "--preprocessing", "torchvision-rgb",
    ]  # fmt: skip
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["model"]["classes"] == CLASSES
    assert isinstance(CliRunner().invoke(app, arguments).exception, OutputExistsError)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--map", "inverted"), ("--rule", "otsu"), ("--rule", "fixed:2"), ("--rule", ""), ("--threshold", "otsu")],
)
def test_a_default_rule_that_the_kernel_does_not_know_is_refused(
    option: str, value: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, [
        "export", str(tiny_checkpoint), "--out", str(tmp_path / "b"), "--input-size", "64", option, value,
        "--classes", str(tiny_checkpoint.with_name("classes.txt")), "--preprocessing", "torchvision-rgb",
    ])  # fmt: skip
    assert isinstance(result.exception, RuleError), result.output
    assert f"got '{value}'" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["--rule", "--threshold"])
def test_the_rule_that_is_exported_is_the_golden_cases_too(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [
        "export", str(tiny_checkpoint), "--out", str(tmp_path / "b"), "--input-size", "64", "--map", "signed",
        "--classes", str(tiny_checkpoint.with_name("classes.txt")), "--preprocessing", "torchvision-rgb",
        name, "fixed:0.5",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert ("warning: --threshold is now --rule" in result.stderr) == (name == "--threshold")
    bundle, rule = Bundle.open(tmp_path / "b"), Rule.parse("fixed:0.5", "signed")
    assert bundle.manifest.rule == rule
    plain = json.loads((tmp_path / "b" / "wgap.json").read_text())
    assert plain["rule"] == {"kind": "fixed", "map": "signed", "eta": 0.5}
    weight = torch.from_numpy(np.array(bundle.classifier()[0]))
    cases = bundle.golden()
    assert len(cases) == 4
    for case in cases:
        assert case["rule"] == rule
        features, class_id = torch.from_numpy(case["features"]), int(case["class_id"][0])
        found = box_from_features(features, weight[class_id], (64, 64), "signed", 0.5)
        assert tuple(case["box"]) == found.box
        np.testing.assert_array_equal(case["map"], found.map)
    report = selftest(Localizer(bundle))
    assert report.ok
    assert report.warnings == ()
