"""``wgap.json`` is typed: what is read is what was written, and what is wrong is named by its path."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.cli import app
from wgap.errors import BundleError, ManifestError, WgapError
from wgap.manifest import Architecture, Manifest, ModelInfo, require_signature

OLD = Path(__file__).parent / "schema1" / "bundle"
"""A bundle with every kind of record; read, it is schema 2."""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The same, written as schema 2."""
    root = Path(shutil.copytree(OLD, tmp_path / "bundle"))
    (root / "wgap.json").write_text(Bundle.open(root).manifest.to_json())
    return root


def test_what_is_read_is_what_was_written(own: Path) -> None:
    manifest = Bundle.open(OLD).manifest
    assert Bundle.open(own).manifest == manifest
    assert Bundle.open(own).manifest.to_json() == (own / "wgap.json").read_text() == manifest.to_json()
    seen = {type(value).__name__ for value in _within(manifest)}
    assert seen >= {
        "TrainingRecord",
        "CalibrationRecord",
        "ImageHashes",
        "GateRecord",
        "EngineRecord",
        "Profile",
        "Rule",
    }
    plain = json.loads(manifest.to_json())
    assert plain["schema"] == 2
    assert plain["rule"] == {"kind": "fixed", "map": "positive", "eta": 0.6}
    assert plain["model"]["inputs"] == [
        {"name": "image", "dtype": "uint8", "shape": ["N", 32, 32, 3], "layout": "NHWC"}
    ]


def test_a_verdict_of_a_backend_s_own_reads_back(own: Path) -> None:
    bundle = Bundle.open(own)
    entry = next(e for e in bundle.manifest.files if e.gate is not None)
    assert entry.gate is not None
    gates = {"openvino": replace(entry.gate, passed=not entry.gate.passed)}
    changed = replace(entry, gates=gates)
    files = tuple(changed if e is entry else e for e in bundle.manifest.files)
    (own / "wgap.json").write_text(replace(bundle.manifest, files=files).to_json())
    again = next(e for e in Bundle.open(own).manifest.files if e.gates)
    assert again == changed
    assert (again.verdict("openvino"), again.verdict("onnxruntime")) == (gates["openvino"], entry.gate)
    assert entry.verdict("openvino") is None


def _within(value: object) -> list[object]:
    if isinstance(value, tuple):
        return [found for item in value for found in _within(item)]
    if is_dataclass(value):
        return [value, *(found for f in fields(value) for found in _within(getattr(value, f.name)))]
    return []


def put(*keys: str | int, value: object) -> Callable[[Any], None]:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


def drop(*keys: str | int) -> Callable[[Any], None]:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return change


WRONG = [
    (put("remark", value=1), "remark: no such field; expected some of model, preprocessing, rule, files"),
    (put("model", "width", value=1), "model.width: no such field; expected some of architecture, classes, inputs"),
    (put("files", 1, "gate", "by", value="me"), "files[1].gate.by: no such field; expected some of passed, reasons"),
    (drop("wgap_version"), "wgap_version: missing"),
    (drop("model", "outputs"), "model.outputs: missing"),
    (drop("files", 1, "gate", "rule"), "files[1].gate.rule: missing"),
    (drop("files", 1, "calibration", "images", 3, "sha256"), "files[1].calibration.images[3].sha256: missing"),
    (drop("files", -1, "engine"), ".engine: missing"),
    (drop("files", -1, "engine", "profile", "opt"), ".engine.profile.opt: missing"),
    (put("model", value=None), "model: expected an object, got None"),
    (put("model", "classes", value={"disc": 0}), "model.classes: expected a list, got {'disc': 0}"),
    (put("model", "classes", 1, value=7), "model.classes[1]: expected text, got 7"),
    (put("model", "inputs", 0, "dtype", value="int8"), "model.inputs[0].dtype: expected one of uint8, float32, got"),
    (put("model", "inputs", 0, "shape", 1, value=True), "model.inputs[0].shape[1]: expected a whole number, got True"),
    (put("model", "inputs", 0, "shape", 1, value=10**30), "model.inputs[0].shape[1]: expected a whole number of 64"),
    (put("model", "inputs", 0, "shape", 1, value="H"), "model: image is uint8['N', 'H', 32, 3] in layout NHWC"),
    (put("model", "inputs", 0, "shape", 0, value=8), "expected N first, then extents of 1..65535, in layout NHWC"),
    (put("model", "inputs", 0, "layout", value="NCHW"), "model: image is uint8['N', 32, 32, 3] in layout NCHW"),
    (put("model", "outputs", 0, "name", value="scores"), "model: the signature has no tensor 'logits'; it has: image"),
    (put("model", "outputs", 0, "shape", 1, value=4), "model: logits is float32['N', 4], but the last extent must be"),
    (put("preprocessing", "scale", value=True), "preprocessing.scale: expected a number, got True"),
    (put("preprocessing", "scale", value=float("nan")), "preprocessing.scale: expected a finite number, got nan"),
    (put("preprocessing", "std", 2, value="x"), "preprocessing.std[2]: expected a number, got 'x'"),
    (put("preprocessing", "std", 2, value=10**400), "preprocessing.std[2]: expected a whole number of 64 bits"),
    (put("rule", value="adaptive"), 'rule: rule: expected {"kind", "map"} and, of a fixed one'),
    (put("rule", "eta", value=False), "rule: rule: expected"),
    (put("rule", "eta", value=10**400), "rule.eta: expected a whole number of 64 bits"),
    (put("rule", "eta", value=2), "rule: rule: expected 'adaptive', 'foreground'"),
    (put("rule", "kind", value="otsu"), "rule: rule: expected 'adaptive', 'foreground'"),
    (put("rule", value={"kind": "fixed:0.5", "map": "signed"}), "'foreground+colour', got 'fixed"),
    (put("rule", "map", value="signed\0"), "rule.map: expected text without control characters, got"),
    (put("rule", "map", value="é" * 60), "rule: map: expected 'recombined', 'positive' or 'signed', got '\\xe9"),
    (put("rule", "map", value="cam"), "rule: map: expected 'recombined', 'positive' or 'signed', got 'cam'"),
    (put("files", 1, "gate", "rule", "map", value="\udc80"), "files[1].gate.rule.map: expected text of whole"),
    (put("files", 1, "gate", "passed", value="yes"), "files[1].gate.passed: expected true or false, got 'yes'"),
    (put("files", 1, "gate", "reasons", value="none"), "files[1].gate.reasons: expected a list, got 'none'"),
    (put("files", 1, "gates", value=[]), "files[1].gates: expected an object, got []"),
    (put("files", 1, "gates", value={"openvino": {}}), "files[1].gates.openvino.passed: missing"),
    (put("files", 1, "gates", value={"openvino": None}), "files[1].gates.openvino: expected an object, got None"),
    (put("files", 0, "size", value=[True, True]), "files[0].size: expected a whole number, got [True, True]"),
    (put("files", 0, "size", value=1.0), "files[0].size: expected a whole number, got 1.0"),
    (put("files", 0, "sha256", value={"a": 1}), "files[0].sha256: expected text, got {'a': 1}"),
    (put("files", 0, "precision", value=2), "files[0].precision: expected text, got 2"),
    (put("files", 0, "path", value=["model.onnx"]), "files[0].path: expected text, got ['model.onnx']"),
    (put("files", 0, "path", value="/model.onnx"), "files[0].path: '/model.onnx' lies outside the bundle"),
    (put("files", 0, "path", value="x" * 241), "files[0].path: expected the path of a file, of printable ASCII"),
    (put("files", 0, "path", value="é"), "of printable ASCII characters and at most 240 bytes"),
    (put("files", 0, "path", value="."), "files[0].path: expected the path of a file"),
    (put("files", 0, "path", value="a\nb"), "files[0].path: expected text without control characters"),
    (put("files", 0, "training", "tools", "torch", value=2), "files[0].training.tools.torch: expected text, got 2"),
    (put("files", 0, "training", "opset", value=True), "files[0].training.opset: expected a whole number, got True"),
    (put("files", 0, "import", value={"opset": 17}), "files[0].import.source_sha256: missing"),
    (put("files", 0, "import_", value={}), "files[0].import_: no such field; expected some of path, role"),
    (put("files", -1, "engine", "profile", "min", value=True), ".engine.profile.min: expected a whole number, got"),
    (put("files", -1, "engine", "options", value=[]), ".engine.options: expected an object, got []"),
    (put("model", "architecture", "parameters", "a\ud800", value=1), "expected text of whole characters"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_what_is_wrong_is_named(own: Path, change: Callable[[Any], None], message: str) -> None:
    raw = json.loads((own / "wgap.json").read_text())
    change(raw)
    (own / "wgap.json").write_text(json.dumps(raw))
    with pytest.raises(ManifestError) as caught:
        Bundle.open(own, verify=False)
    text = str(caught.value)
    assert re.match(f"{re.escape(str(own / 'wgap.json'))} (does not follow schema 2|is no manifest): ", text)
    assert message in text
    text.encode()  # whatever came, the message can be printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is no manifest: lists and objects lie deeper"),
        ('{"schema": ' + "1" * 5000 + "}", "is not valid JSON"),
        ('{"schema": true}', "has no schema number"),
        ('{"schema": 2.0}', "has no schema number"),
        ('{"schema": "2"}', "has no schema number"),
        ("[2]", "has no schema number"),
        ('{"schema": 3}', "has schema 3, this wgap reads up to 2; upgrade wgap"),
        ('{"schema": -1}', "has schema -1, expected 2"),
        ('{"schema": 1}', "does not follow schema 1: model: missing"),
        ('{"schema": 2}', "does not follow schema 2: model: missing"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_no_manifest_at_all(own: Path, text: str, message: str) -> None:
    (own / "wgap.json").write_text(text)
    with pytest.raises(ManifestError, match=message):
        Bundle.open(own)


@pytest.mark.parametrize("schema", [1, 2])
def test_every_verb_ends_in_an_error_of_ours_whatever_a_field_holds(own: Path, schema: int) -> None:
    """Every leaf of the manifest in turn is something else; nothing but a WgapError, or a table, comes of it."""
    pytest.importorskip("onnxruntime")
    source = (OLD if schema == 1 else own) / "wgap.json"
    whole = json.loads(source.read_text())
    whole["files"] = [entry for entry in whole["files"] if entry["role"] in ("onnx", "classifier", "engine")]
    for entry in whole["files"]:  # a dozen images say no more than one
        made = entry.get("calibration") or entry.get("provenance", {}).get("calibration") or {}
        made["images"] = made.get("images", [])[:1]
        if not made["images"]:
            made.pop("images")
    values: list[object] = [None, True, -1, 1e308, 10**30, "", "\ud800", "[/x]", "x" * 5000, [], {}, {"a": 1}, [96, 96]]
    opened, said = 0, []
    for number, keys in enumerate(_leaves(whole)):
        changed = json.loads(json.dumps(whole))
        put(*keys, value=values[number % len(values)])(changed)
        (own / "wgap.json").write_text(json.dumps(changed))
        try:
            Bundle.open(own, verify=False).manifest.to_json().encode()
            opened += 1
        except ManifestError as error:
            said.append(str(error))
            continue
        for work in (
            lambda: Localizer(own, verify=False),
            lambda: Localizer(own, precision="int8", verify=False),
            lambda: CliRunner().invoke(app, ["inspect", str(own)], catch_exceptions=False),
        ):
            try:
                work()
            except WgapError as error:
                str(error).encode()
    assert opened > 10  # free text and free objects
    assert len(said) > 60
    assert all(text.isprintable() for text in said)


def _leaves(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [leaf for key, item in items for leaf in _leaves(item, (*at, key))]
    return below or [at]


@pytest.mark.parametrize("name", ["classifier.safetensors", "golden/case-0.safetensors", "model.onnx"])
@pytest.mark.parametrize("kind", ["missing", "a folder"])
def test_a_file_that_is_not_there_is_an_error_of_ours_unverified_too(own: Path, name: str, kind: str) -> None:
    (own / name).unlink()
    if kind == "a folder":
        (own / name).mkdir()
    with pytest.raises(WgapError, match=Path(name).stem):
        Bundle.open(Localizer(own, verify=False).bundle.root, verify=False).golden()


MODEL = ModelInfo.of(Architecture("any"), ("a", "b", "c"), (64, 48), (5, 4, 3))
FOUND: dict[str, tuple[str, tuple[object, ...]]] = {
    "image": ("uint8", ("N", 64, 48, 3)),
    "logits": ("float32", ("N", 3)),
    "features": ("float32", ("N", 5, 4, 3)),
}


@pytest.mark.parametrize("free", ["N", "batch", None, -1, 0])
def test_a_free_batch_has_many_names(free: object) -> None:
    """ONNX Runtime's symbols and Nones, TensorRT's -1."""
    found = {name: (dtype, (free, *shape[1:])) for name, (dtype, shape) in FOUND.items()}
    require_signature(MODEL, {**found, "further": ("int64", ())}, "x")


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "message"),
    [
        ("image", "float32", ("N", 64, 48, 3), "promises image uint8['N', 64, 48, 3], got float32['N', 64, 48, 3]"),
        ("image", "uint8", ("N", 3, 64, 48), "promises image uint8['N', 64, 48, 3], got uint8['N', 3, 64, 48]"),
        ("image", "uint8", (1, 64, 48, 3), "promises image uint8['N', 64, 48, 3], got uint8[1, 64, 48, 3]"),
        ("image", "uint8", ("N", "H", 48, 3), "promises image uint8['N', 64, 48, 3], got uint8['N', 'N', 48, 3]"),
        ("logits", "float16", ("N", 3), "promises logits float32['N', 3], got float16['N', 3]"),
        ("logits", "float32", ("N", 4), "promises logits float32['N', 3], got float32['N', 4]"),
        ("logits", "float32", ("N",), "promises logits float32['N', 3], got float32['N']"),
        ("features", "no such tensor", (), "promises features float32['N', 5, 4, 3], got no such tensor; export"),
    ],
)
def test_another_signature_is_refused(name: str, dtype: str, shape: tuple[object, ...], message: str) -> None:
    found = {**FOUND, name: (dtype, shape)}
    if not shape:
        del found[name]
    with pytest.raises(BundleError) as caught:
        require_signature(MODEL, found, "model.plan")
    assert str(caught.value).startswith("model.plan: the manifest ")
    assert message in str(caught.value)


def test_equal_manifests_are_written_alike() -> None:
    manifest = Bundle.open(OLD).manifest
    assert Manifest.from_json(manifest.to_json(), Path("x")).to_json() == manifest.to_json()
