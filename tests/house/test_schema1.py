"""A bundle as wgap 0.1 wrote it, with an INT8 model, a refused FP16 model and an engine, goes on working."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.cli import app
from wgap.errors import GateError, ManifestError
from wgap.extend import enter_file
from wgap.manifest import Profile
from wgap.rule import Rule
from wgap.runtime.cpus import int8_sums
from wgap.runtime.engine import engines, stale
from wgap.runtime.selftest import selftest

pytest.importorskip("onnxruntime")

OLD = Path(__file__).parent / "schema1"
RULE = Rule.parse("fixed:0.6", "positive")
PLAN = "engines/model.int8.tensorrt_rtx-1.7.1.116.plan"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "bundle", tmp_path / "bundle"))


def scene(number: int) -> np.ndarray:
    """The pictures whose boxes wgap 0.1 recorded: uint8[H, W, 3], whole numbers alone, a disc on noise."""
    y, x = np.mgrid[: 48 + 8 * number, : 80 - 4 * number].astype(np.int64)
    noise = (x * 7919 + y * 104729 + x * y * (31 + number)) % 97
    inside = (x - 20 - 9 * number) ** 2 + (y - 20 - 5 * number) ** 2 <= (9 + 2 * number) ** 2
    planes = [
        np.where(inside, 230 - 60 * ((c + number) % 3), 30 + 15 * c) + noise // (1 + 3 * inside) for c in range(3)
    ]
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def test_it_opens_as_what_it_was(own: Path) -> None:
    manifest = Bundle.open(own).manifest
    assert manifest.rule == RULE
    assert manifest.model.architecture.name == "vgg16"
    assert manifest.model.architecture.parameters == {"width": 1 / 32, "stride": 8, "neck": "none", "pooling": "wgap"}
    assert manifest.model.classes == ("disc", "ring", "cross")
    assert (manifest.model.input_size, manifest.model.feature_shape) == ((32, 32), (16, 4, 4))
    assert manifest.preprocessing.name == "torchvision-rgb"
    raw = {entry["path"]: entry for entry in json.loads((own / "wgap.json").read_text())["files"]}
    assert [entry.path for entry in manifest.files] == list(raw)
    for entry in manifest.files:
        made = raw[entry.path]["provenance"]
        assert (entry.training is not None) == ("checkpoint_sha256" in made)
        assert (entry.calibration is not None) == ("calibration" in made)
        assert (entry.gate is not None) == ("gate" in made)
        assert (entry.engine is not None) == (entry.role == "engine")
    int8 = Bundle.open(own).model_file("int8")
    made = raw["model.int8.onnx"]["provenance"]
    assert int8.gate is not None
    assert int8.calibration is not None
    assert int8.gate.rule == RULE
    assert int8.gate.limits == {"max_drop": 1.0, "min_iou": 0.5, "min_agreement": 0.0}
    assert int8.gate.figures["box_iou"] == made["gate"]["box_iou"]
    assert set(int8.gate.figures) & {"map", "threshold", "passed", "reasons", "disjoint_from_calibration"} == set()
    assert int8.calibration.images_sha256 == made["calibration"]["sha256"]
    assert [vars(image) for image in int8.calibration.images] == made["calibration"]["images"]
    assert int8.calibration.quantisation is not None
    assert int8.calibration.quantisation["scales"] == made["quantisation"]["scales"]
    fp16 = Bundle.open(own).file("rejected", "fp16")
    assert fp16.calibration is not None
    assert fp16.calibration.headroom == tuple(raw[fp16.path]["provenance"]["lowering"]["headroom"])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_localizes_with_the_boxes_it_had(own: Path, precision: str) -> None:
    """Those of the INT8 model were made by the same ONNX Runtime on the same kind of CPU: they may move by a cell."""
    if precision == "int8" and int8_sums() == "saturating":
        pytest.skip("they were made on a processor with VNNI; ONNX Runtime rounds INT8 otherwise on others")
    localizer = Localizer(own, precision=precision)
    for number, recorded in enumerate(json.loads((OLD / "boxes.json").read_text())[precision]):
        picture = scene(number)
        limit = 1e-9 if precision == "fp32" else max(picture.shape) / 4
        for found, (name, box, threshold, level) in zip(
            (localizer.one(picture), localizer.one(picture, number % 3)), recorded, strict=True
        ):
            assert (found.class_name, found.threshold, found.level) == (name, threshold, level)
            assert np.abs(np.subtract(found.box, box)).max() <= limit


def test_its_golden_cases_pass_under_the_rule_that_they_were_made_under(own: Path) -> None:
    report = selftest(Localizer(own))
    assert report.ok, report
    assert report.warnings == (
        "nothing was tested under the rule fixed:0.6 on the positive map: golden cases were made under adaptive on the "
        "recombined map; export the bundle again under the rule that it shall have",
    )


def test_inspect_prints_it_with_its_engine(own: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(own)])
    assert shown.exit_code == 0, shown.output
    assert "map positive, rule fixed:0.6" in shown.output
    assert f"engine {PLAN}: tensorrt_rtx 1.7.1.116, int8, GPU architecture portable" in shown.output
    assert "batch 1/8/16, up to date" in shown.output
    printed = json.loads(CliRunner().invoke(app, ["inspect", str(own), "--json"]).stdout)
    assert printed["schema"] == 2
    (engine,) = engines(Bundle.open(own))
    assert engine.engine is not None
    assert engine.engine.profile == Profile(1, 8, 16)
    assert not stale(Bundle.open(own), engine)


@pytest.fixture
def judged_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose sums are exact: schema 1 did not record that of the verdict."""
    monkeypatch.setattr("wgap.runtime.networks.onnxruntime.int8_sums", lambda: "exact")


@pytest.mark.usefixtures("judged_here")
def test_its_gate_admits_under_its_rule_alone(own: Path) -> None:
    assert Localizer(own, precision="int8").rule == RULE
    with pytest.raises(
        GateError, match=r"under the rule fixed:0\.6 on the positive map, .* adaptive on the signed map"
    ):
        Localizer(own, precision="int8", rule="adaptive", map="signed")
    with pytest.raises(GateError, match="the gate refused this fp16 file: mean box IoU"):
        Localizer(own, precision="fp16")


@pytest.mark.usefixtures("judged_here")
def test_what_enters_makes_it_schema_2_and_keeps_the_rest(own: Path) -> None:
    before = Bundle.open(own)
    after = enter_file(before, b"notes", "notes.txt", "notes", "", lambda _: False)
    assert json.loads((own / "wgap.json").read_text())["schema"] == 2
    assert [entry for entry in after.manifest.files if entry.path != "notes.txt"] == list(before.manifest.files)
    for name in ("model", "preprocessing", "rule"):
        assert getattr(after.manifest, name) == getattr(before.manifest, name)
    assert Bundle.open(own).manifest == after.manifest
    assert Localizer(own, precision="int8").one(scene(1)).box == Localizer(before, precision="int8").one(scene(1)).box


def test_it_can_be_calibrated_anew(own: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from wgap.calibrate.bundle import calibrate_bundle, gate_bundle
    from wgap.calibrate.gate import Limits

    for split in ("train", "test"):
        (tmp_path / "set" / split / "disc").mkdir(parents=True)
        for number in range(8):
            picture = np.roll(scene(number % 6), (7 * number, 5 * number + 40 * (split == "test")), (0, 1))
            cv2.imwrite(str(tmp_path / "set" / split / "disc" / f"{number}.png"), picture)
    lenient = Limits(1, 0, 0)
    done = calibrate_bundle(Bundle.open(own), tmp_path / "set", "bf16", gate=tmp_path / "set", limits=lenient)
    assert done.usable
    assert done.entry.gate is not None
    assert done.entry.gate.rule == RULE
    assert json.loads((own / "wgap.json").read_text())["schema"] == 2
    kept = {entry.path for entry in Bundle.open(own).manifest.files}
    assert {"model.int8.onnx", "rejected/model.fp16.onnx", PLAN} <= kept
    judged = gate_bundle(Bundle.open(own), tmp_path / "set", "fp16", limits=lenient)  # the refused one, by its record
    assert judged.usable
    assert Localizer(own, precision="fp16").network.precision == "fp16"


def put(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


def drop(*keys: str | int) -> Callable[[dict[str, Any]], None]:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return change


MADE = ("files", 1, "provenance")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("model", value=[]), "model: expected an object, got []"),
        (put("model", "width", value="wide"), "model.width: expected a number, got 'wide'"),
        (put("model", "input_size", value=[32]), "model.input_size: expected 2 values, got [32]"),
        (put("model", "input_size", value=[32, True]), "model.input_size[1]: expected a whole number, got True"),
        (put("model", "feature_shape", value=[0, 4, 4]), "model: features is float32['N', 0, 4, 4]"),
        (put("model", "classes", value="disc"), "model.classes: expected a list, got 'disc'"),
        (put("model", "classes", 0, value=2.5), "model.classes[0]: expected text, got 2.5"),
        (drop("model", "neck"), "model.neck: missing"),
        (drop("postprocessing"), "postprocessing: missing"),
        (put("postprocessing", value=0.5), "postprocessing: expected an object, got 0.5"),
        (put("postprocessing", "threshold", value=0.5), "postprocessing.threshold: expected text, got 0.5"),
        (put("postprocessing", "threshold", value="otsu"), "postprocessing: rule: expected 'adaptive', 'foreground'"),
        (put("postprocessing", "map", value="cam"), "postprocessing: map: expected 'recombined', 'positive' or"),
        (put("preprocessing", "mean", value=[0.5]), "preprocessing.mean: expected 3 values, got [0.5]"),
        (put("files", value={}), "files: expected a list, got {}"),
        (put("files", 0, value=7), "files[0]: expected an object, got 7"),
        (put("files", 0, "sha256", value=1), "files[0].sha256: expected text, got 1"),
        (put("files", 0, "path", value="golden/../../x"), "files[0].path: 'golden/../../x' lies outside the bundle"),
        (put("files", 0, "path", value="x" * 5000), "files[0].path: expected the path of a file, of printable"),
        (put("files", 0, "path", value=""), "files[0].path: expected the path of a file"),
        (put("files", 0, "path", value="a\0b"), "files[0].path: expected text without control characters"),
        (put("files", 0, "provenance", value=0.5), "files[0].provenance: expected an object, got 0.5"),
        (put(*MADE, "calibration", value=[]), "files[1].provenance.calibration: expected an object, got []"),
        (drop(*MADE, "calibration", "sha256"), "files[1].provenance.calibration.sha256: missing"),
        (put(*MADE, "calibration", "images", 2, "name", value=2), "calibration.images[2].name: expected text, got 2"),
        (put(*MADE, "quantisation", value=3), "files[1].provenance.quantisation: expected an object, got 3"),
        (put(*MADE, "quantisation", "keep_float", value="a"), "quantisation.keep_float: expected a list, got 'a'"),
        (put(*MADE, "gate", value=True), "files[1].provenance.gate: expected an object, got True"),
        (put(*MADE, "gate", "passed", value=1), "files[1].provenance.gate.passed: expected true or false, got 1"),
        (drop(*MADE, "gate", "map"), "files[1].provenance.gate.map: missing"),
        (put(*MADE, "gate", "threshold", value="fixed:2"), "files[1].provenance.gate: rule: expected"),
        (put(*MADE, "gate", "limits", "min_iou", value="all"), "gate.limits.min_iou: expected a number, got 'all'"),
        (put("model", "neck", value="\ud800"), r"model.neck: expected text of whole characters, got '\ud800'"),
        (drop("files", -1, "provenance", "version"), "provenance.version: missing"),
    ],
)  # fmt: skip
def test_a_damaged_one_is_refused_by_field(own: Path, change: Callable[[Any], None], message: str) -> None:
    raw = json.loads((own / "wgap.json").read_text())
    change(raw)
    (own / "wgap.json").write_text(json.dumps(raw))
    with pytest.raises(ManifestError) as caught:
        Bundle.open(own)
    text = str(caught.value)
    assert re.match(f"{re.escape(str(own / 'wgap.json'))} (does not follow schema 1|is no manifest): ", text)
    assert message in text
    text.encode()


def test_what_others_noted_in_it_is_left_out(own: Path) -> None:
    raw = json.loads((own / "wgap.json").read_text())
    raw["remark"] = raw["files"][0]["provenance"]["remark"] = "from the farm"
    (own / "wgap.json").write_text(json.dumps(raw))
    assert Bundle.open(own).manifest == Bundle.open(OLD / "bundle").manifest
