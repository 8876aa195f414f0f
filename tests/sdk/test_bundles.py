"""One corpus of good and bad bundles, judged by both readers: the same verdict, error class by error class."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.faults.manifests import damaged

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.errors import WgapError
from wgap.rule import Rule

IMPORT = {
    "source_sha256": "0" * 64, "external_sha256": [], "logits": "l", "features": "f", "nodes": {"classifier": "Gemm"},
    "pooling": "gap", "features_min": 0, "figures": {}, "opset": 17, "tools": {},
}  # fmt: skip
OLD = Path(__file__).parents[1] / "house" / "schema1" / "bundle"
Change = Callable[[Path], None]


def python_verdict(root: Path, **options: Any) -> str:
    try:
        Localizer(root, **options).close()
    except WgapError as error:
        return type(error).__name__
    return "ok"


def cpp_verdict(runtime: Any, example: Any, root: Path, **options: Any) -> str:
    try:
        localizer = runtime.open(str(root), **options)
    except example.RefusedError as error:
        return str(error.code) if str(error) else "no message"
    runtime.library.wgap_localizer_close(localizer)
    return "ok"


def in_manifest(change: Callable[[Any], object]) -> Change:
    def changed(root: Path) -> None:
        raw = json.loads((root / "wgap.json").read_text())
        change(raw)
        (root / "wgap.json").write_text(json.dumps(raw))

    return changed


def put(*path: str | int, value: Any) -> Change:
    def change(raw: Any) -> None:
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = value

    return in_manifest(change)


def rewritten(name: str, make: Callable[[bytes], bytes]) -> Change:
    """A file with other bytes, and the manifest agrees."""

    def change(root: Path) -> None:
        content = make((root / name).read_bytes())
        (root / name).write_bytes(content)
        raw = json.loads((root / "wgap.json").read_text())
        [entry] = [entry for entry in raw["files"] if entry["path"] == name]
        entry["sha256"], entry["size"] = sha256(content).hexdigest(), len(content)
        (root / "wgap.json").write_text(json.dumps(raw))

    return change


def header(change: Callable[[Any], object]) -> Change:
    """Another header in the classifier's safetensors file."""

    def make(content: bytes) -> bytes:
        (length,) = struct.unpack_from("<Q", content)
        raw = json.loads(content[8 : 8 + length])
        text = json.dumps(change(raw) or raw).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return rewritten("classifier.safetensors", make)


def all_from_0(raw: Any) -> None:
    for tensor in raw.values():
        begin, end = tensor["data_offsets"]
        tensor["data_offsets"] = [0, end - begin]


def tensors(change: Callable[[bytearray], object]) -> Change:
    def make(content: bytes) -> bytes:
        data = bytearray(content)
        change(data)
        return bytes(data)

    return rewritten("classifier.safetensors", make)


def first_value(name: str, value: float) -> Change:
    """Of a tensor of the classifier."""

    def change(data: bytearray) -> None:
        (length,) = struct.unpack_from("<Q", data)
        begin, _ = json.loads(data[8 : 8 + length])[name]["data_offsets"]
        struct.pack_into("<f", data, 8 + length + begin, value)

    return tensors(change)


def external(content: bytes) -> bytes:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(content)
    tensor = model.graph.initializer[0]
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return bytes(model.SerializeToString())


def renamed_output(content: bytes) -> bytes:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(content)
    old = model.graph.output[1].name
    model.graph.output[1].name = "maps"
    model.graph.node.append(onnx.helper.make_node("Identity", [old], ["maps"]))
    return bytes(model.SerializeToString())


def linked_out(name: str) -> Change:
    def change(root: Path) -> None:
        shutil.move(root / name, root.parent / "outside")
        (root / name).symlink_to(root.parent / "outside")

    return change


def linked_inside(root: Path) -> None:
    (root / "model.onnx").rename(root / "real.onnx")
    (root / "model.onnx").symlink_to("real.onnx")


def linked_to_itself(root: Path) -> None:
    (root / "model.onnx").unlink()
    (root / "model.onnx").symlink_to("model.onnx")


def one_byte_changed(root: Path) -> None:
    content = bytearray((root / "model.onnx").read_bytes())
    content[500] ^= 1
    (root / "model.onnx").write_bytes(content)


def to_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("x")


def to_folder(name: str) -> Change:
    def change(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return change


def to_pipe(name: str) -> Change:
    def change(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return change


def text(content: bytes) -> Change:
    def change(root: Path) -> None:
        (root / "wgap.json").write_bytes(content)

    return change


def with_text(change: Callable[[str], str]) -> Change:
    return lambda root: text(change((root / "wgap.json").read_text()).encode())(root)


def doubled(root: Path) -> None:
    (root / "wgap.json").write_text((root / "wgap.json").read_text().replace("{", '{"schema": 2,', 1))


def nested(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


CORPUS: dict[str, tuple[Change, str]] = {
    "as it was made": (lambda _: None, "ok"),
    "no manifest": (lambda root: (root / "wgap.json").unlink(), "ManifestError"),
    "no folder": (shutil.rmtree, "BundleError"),
    "a file in the folder's place": (to_file, "BundleError"),
    "an empty manifest": (text(b""), "ManifestError"),
    "a byte order mark": (with_text(lambda t: "\ufeff" + t), "ManifestError"),
    "bytes that are no text": (text(b"\xff\xfe{}"), "ManifestError"),
    "an encoded surrogate": (text(b'{"schema": 2, "x": "\xed\xa0\x80"}'), "ManifestError"),
    "something after the end": (with_text(lambda t: t + "{}"), "ManifestError"),
    "a comment": (with_text(lambda t: "// x\n" + t), "ManifestError"),
    "a trailing comma": (with_text(lambda t: t.rstrip()[:-1] + ",}"), "ManifestError"),
    "white space around it": (with_text(lambda t: "\n\t \r" + t + "\n\n"), "ok"),
    "a key twice": (doubled, "ManifestError"),
    "a key twice, deep": (with_text(lambda t: t.replace('"name"', '"name": "x", "name"', 1)), "ManifestError"),
    "an unknown field": (put("extra", value=1), "ManifestError"),
    "NaN": (put("preprocessing", "scale", value=float("nan")), "ManifestError"),
    "a number beyond float64": (with_text(lambda t: t.replace('"scale": ', '"scale": 1e999')), "ManifestError"),
    "a whole number of 65 bits": (put("files", 0, "size", value=2**63), "ManifestError"),
    "a negative one of 65 bits": (put("files", 0, "size", value=-(2**63) - 1), "ManifestError"),
    "the largest size": (put("files", 0, "size", value=2**63 - 1), "HashMismatchError"),
    "a size below 0": (put("files", 0, "size", value=-1), "ManifestError"),
    "a size as a float": (put("files", 0, "size", value=7.0), "ManifestError"),
    "32 levels": (put("model", "architecture", "parameters", "x", value=nested(28)), "ok"),
    "33 levels": (put("model", "architecture", "parameters", "x", value=nested(29)), "ManifestError"),
    "control characters": (put("model", "classes", 0, value="a\x1b[31m"), "ManifestError"),
    "a C1 control character": (put("model", "classes", 0, value="a\x85"), "ManifestError"),
    "DEL in a key": (put("model", "architecture", "parameters", "\x7f", value=1), "ManifestError"),
    "half a character": (put("model", "classes", 0, value="\ud800"), "ManifestError"),
    "an owl": (put("model", "classes", 0, value="🦉 é"), "ok"),
    "a class twice": (put("model", "classes", 0, value="ring"), "ManifestError"),
    "a class of nothing": (put("model", "classes", 0, value=""), "ManifestError"),
    "a class of spaces": (put("model", "classes", 0, value=" \u2003\u3000"), "ManifestError"),
    "a class after a space": (put("model", "classes", 0, value="\u2003ring"), "ok"),
    "no classes": (put("model", "classes", value=[]), "ManifestError"),
    "classes as an object": (put("model", "classes", value={"a": 0}), "ManifestError"),
    "a class more": (in_manifest(lambda raw: raw["model"]["classes"].append("x")), "ManifestError"),
    "an input too large": (put("model", "inputs", 0, "shape", 1, value=65536), "ManifestError"),
    "an input of another size": (put("model", "inputs", 0, "shape", 1, value=96), "BundleError"),
    "features as bytes": (put("model", "outputs", 1, "dtype", value="uint8"), "ManifestError"),
    "an image of floats": (put("model", "inputs", 0, "dtype", value="float32"), "ManifestError"),
    "no batch": (put("model", "inputs", 0, "shape", 0, value=1), "ManifestError"),
    "M for N": (put("model", "inputs", 0, "shape", 0, value="M"), "ManifestError"),
    "another layout": (put("model", "inputs", 0, "layout", value="NCHW"), "ManifestError"),
    "another dtype": (put("model", "outputs", 0, "dtype", value="float16"), "ManifestError"),
    "an output that the graph has not": (
        in_manifest(lambda raw: raw["model"]["outputs"].append({**raw["model"]["outputs"][0], "name": "more"})),
        "BundleError",
    ),
    "features of fewer channels": (put("model", "outputs", 1, "shape", 1, value=1), "BundleError"),
    "an opset that is not there": (put("files", 0, "training", "opset", value=None), "ok"),
    "an import": (put("files", 0, "import", value=IMPORT), "ok"),
    "an import that is not there": (put("files", 0, "import", value=None), "ok"),
    "an import with a key more": (put("files", 0, "import", value={**IMPORT, "by": "me"}), "ManifestError"),
    "an import of another pooling": (put("files", 0, "import", value={**IMPORT, "pooling": "max"}), "ManifestError"),
    "an import of negative features": (
        put("files", 0, "import", value={**IMPORT, "features_min": -0.5}), "BundleError"
    ),
    "an import of negative features under a rule for them": (
        in_manifest(
            lambda raw: (
                raw["files"][0].update({"import": {**IMPORT, "features_min": -0.5}}),
                raw.update(rule={"kind": "fixed", "map": "signed", "eta": 0.2}),
            )
        ),
        "ok",
    ),
    "an opset as a word": (put("files", 0, "training", "opset", value="20"), "ManifestError"),
    "a rule of another name": (put("rule", "kind", value="otsu"), "ManifestError"),
    "a rule with its number": (put("rule", value={"kind": "fixed:0.2", "map": "signed"}), "ManifestError"),
    "a fixed rule": (put("rule", value={"kind": "fixed", "map": "signed", "eta": 0.2}), "ok"),
    "a fixed rule of a whole number": (put("rule", value={"kind": "fixed", "map": "signed", "eta": 0}), "ok"),
    "a fixed rule beyond its range": (put("rule", value={"kind": "fixed", "map": "signed", "eta": 1}), "ManifestError"),
    "a fixed rule without a number": (put("rule", value={"kind": "fixed", "map": "signed"}), "ManifestError"),
    "an adaptive rule with one": (put("rule", "eta", value=0.2), "ManifestError"),
    "eta as truth": (put("rule", value={"kind": "fixed", "map": "signed", "eta": True}), "ManifestError"),
    "eta as null": (put("rule", "eta", value=None), "ManifestError"),
    "no map for adaptive": (put("rule", "map", value="none"), "ManifestError"),
    "a rule on scores that are not there": (put("rule", value={"kind": "foreground", "map": "none"}), "ManifestError"),
    "no files": (put("files", value=[]), "ManifestError"),
    "1001 files": (in_manifest(lambda raw: raw["files"].extend([raw["files"][0]] * 1001)), "ManifestError"),
    "a file twice": (in_manifest(lambda raw: raw["files"].append(raw["files"][0])), "ManifestError"),
    "a file by two paths": (
        in_manifest(lambda raw: raw["files"].append({**raw["files"][-1], "path": "./" + raw["files"][-1]["path"]})),
        "ManifestError",
    ),
    "a path with a point": (in_manifest(lambda raw: raw["files"][0].update(path=".//model.onnx")), "ok"),
    "a path upwards": (put("files", 0, "path", value="../model.onnx"), "ManifestError"),
    "an absolute path": (put("files", 0, "path", value="/etc/passwd"), "ManifestError"),
    "a path of nothing": (put("files", 0, "path", value=""), "ManifestError"),
    "a path with an accent": (put("files", 0, "path", value="modèle.onnx"), "ManifestError"),
    "a path of 241 bytes": (put("files", 0, "path", value="x" * 241), "ManifestError"),
    "the manifest as a file": (put("files", 0, "path", value="./wgap.json"), "ManifestError"),
    "a sha256 in capitals": (
        in_manifest(lambda raw: raw["files"][0].update(sha256=raw["files"][0]["sha256"].upper())), "ManifestError",
    ),
    "another sha256": (put("files", 0, "sha256", value="0" * 64), "HashMismatchError"),
    "a size more": (
        in_manifest(lambda raw: raw["files"][0].update(size=raw["files"][0]["size"] + 1)), "HashMismatchError",
    ),
    "an engine without a record": (put("files", 0, "role", value="engine"), "ManifestError"),
    "schema 3": (put("schema", value=3), "ManifestError"),
    "schema 0": (put("schema", value=0), "ManifestError"),
    "schema as truth": (put("schema", value=True), "ManifestError"),
    "schema as a float": (put("schema", value=2.0), "ManifestError"),
    "a model that is not there": (lambda root: (root / "model.onnx").unlink(), "BundleError"),
    "a model cut short": (lambda root: os.truncate(root / "model.onnx", 1000), "HashMismatchError"),
    "a model with one byte changed": (one_byte_changed, "HashMismatchError"),
    "a model as a folder": (to_folder("model.onnx"), "BundleError"),
    "a model as a pipe": (to_pipe("model.onnx"), "BundleError"),
    "a manifest as a folder": (to_folder("wgap.json"), "BundleError"),
    "a manifest as a pipe": (to_pipe("wgap.json"), "BundleError"),
    "a model outside": (linked_out("model.onnx"), "BundleError"),
    "a manifest outside": (linked_out("wgap.json"), "BundleError"),
    "a link inside": (linked_inside, "ok"),
    "a link to itself": (linked_to_itself, "BundleError"),
    "a golden file that is not there": (lambda root: next((root / "golden").iterdir()).unlink(), "BundleError"),
    "values in another file": (rewritten("model.onnx", external), "BundleError"),
    "no ONNX file": (rewritten("model.onnx", lambda _: b"\x07" * 99), "BundleError"),
    "an empty ONNX file": (rewritten("model.onnx", lambda _: b""), "BackendError"),
    "half an ONNX file": (rewritten("model.onnx", lambda d: d[: len(d) // 2]), "BundleError"),
    "an output of another name": (rewritten("model.onnx", renamed_output), "BundleError"),
    "no classifier": (in_manifest(lambda raw: raw["files"].pop(1)), "BundleError"),
    "a classifier of another role": (
        in_manifest(lambda raw: [e.update(role="x") for e in raw["files"] if e["role"] == "classifier"]), "BundleError",
    ),
    "an empty classifier": (rewritten("classifier.safetensors", lambda _: b""), "BundleError"),
    "a header beyond the file": (tensors(lambda d: struct.pack_into("<Q", d, 0, 1 << 60)), "BundleError"),
    "a header that is no JSON": (tensors(lambda d: d.__setitem__(9, 0)), "BundleError"),
    "a header of another kind": (header(lambda _: [1]), "BundleError"),
    "a classifier cut short": (rewritten("classifier.safetensors", lambda d: d[:-4]), "BundleError"),
    "a classifier with more behind": (rewritten("classifier.safetensors", lambda d: d + b"1234"), "BundleError"),
    "no weight": (header(lambda raw: {k if k != "weight" else "w": v for k, v in raw.items()}), "BundleError"),
    "no bias": (header(lambda raw: {k if k != "bias" else "b": v for k, v in raw.items()}), "BundleError"),
    "a weight of another dtype": (header(lambda raw: raw["weight"].update(dtype="I32")), "BundleError"),
    "an unknown dtype": (header(lambda raw: raw["weight"].update(dtype="X32")), "BundleError"),
    "a weight turned": (header(lambda raw: raw["weight"].update(shape=raw["weight"]["shape"][::-1])), "BundleError"),
    "offsets turned": (header(lambda raw: raw["weight"].update(data_offsets=[8, 4])), "BundleError"),
    "offsets below 0": (header(lambda raw: raw["weight"].update(data_offsets=[-4, 4])), "BundleError"),
    "offsets that overlap": (header(all_from_0), "BundleError"),
    "a bias of NaN": (first_value("bias", float("nan")), "BundleError"),
    "a bias of infinity": (first_value("bias", float("inf")), "BundleError"),
    "a weight of NaN": (first_value("weight", float("nan")), "FeatureError"),
}  # fmt: skip


@pytest.fixture
def own(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("name", CORPUS)
def test_both_readers_judge_alike(runtime: Any, example: Any, own: Path, name: str) -> None:
    change, expected = CORPUS[name]
    change(own)
    assert (python_verdict(own), cpp_verdict(runtime, example, own)) == (expected, expected)


# Of a bundle with a foreground head.
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "ok"),
    ({"rule": "adaptive"}, "ok"),
    ({"rule": "fixed:0.35", "map": "signed"}, "ok"),
    ({"rule": "fixed:1"}, "RuleError"),
    ({"rule": "otsu"}, "RuleError"),
    ({"rule": ""}, "RuleError"),
    ({"map": "signed"}, "ok"),
    ({"map": "cam"}, "RuleError"),
    ({"rule": "foreground", "map": "none"}, "ok"),
    ({"rule": "adaptive", "map": "none"}, "RuleError"),
    ({"top_k": 0}, "DataError"),
    ({"top_k": 3}, "ok"),
    ({"top_k": 4}, "DataError"),
    ({"max_boxes": 65}, "DataError"),
    ({"batch_size": 0}, "DataError"),
    ({"batch_size": 4097}, "DataError"),
    ({"threads": 2}, "ok"),
    ({"threads": -1}, "DataError"),
    ({"threads": 1025}, "DataError"),
    ({"backend": "tvm"}, "BackendError"),
    ({"precision": "int8"}, "BundleError"),
    ({"precision": "fp64"}, "BundleError"),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS, ids=str)
def test_options_are_judged_alike(
    runtime: Any, example: Any, scored_bundle: Path, options: dict[str, Any], expected: str
) -> None:
    encoded = {name: value.encode() if isinstance(value, str) else value for name, value in options.items()}
    found = python_verdict(scored_bundle, **options), cpp_verdict(runtime, example, scored_bundle, **encoded)
    assert found == (expected, expected)


def test_a_rule_on_scores_needs_them(runtime: Any, example: Any, tiny_bundle: Path) -> None:
    assert python_verdict(tiny_bundle, rule="foreground") == "BundleError"
    assert cpp_verdict(runtime, example, tiny_bundle, rule=b"foreground") == "BundleError"


def gated(root: Path, change: Callable[[Any, Any], object] = lambda entry, gate: None) -> Path:
    """A bundle with a copy of its float32 graph as its INT8 one, gated under the bundle's rule."""
    shutil.copy(root / "model.onnx", root / "model.int8.onnx")
    raw = json.loads((root / "wgap.json").read_text())
    float32 = raw["files"][0]["sha256"]
    gate = {
        "passed": True, "reasons": [], "rule": raw["rule"], "candidate_sha256": float32, "float32_sha256": float32,
        "backend": "onnxruntime", "limits": {}, "figures": {}, "int8_sums": "saturating",
    }  # fmt: skip
    calibration = {
        "float32_sha256": float32, "images_sha256": "0" * 64, "images": [], "warnings": [], "keep_float": [],
        "tools": {},
    }  # fmt: skip
    entry = {
        **raw["files"][0], "path": "model.int8.onnx", "precision": "int8", "calibration": calibration, "gate": gate,
    }  # fmt: skip
    raw["files"].append(entry)
    change(entry, gate)
    (root / "wgap.json").write_text(json.dumps(raw))
    return root


GATES: dict[str, tuple[Callable[[Any, Any], object], dict[str, Any], str]] = {
    "passed": (lambda entry, gate: None, {}, "ok"),
    "failed": (lambda entry, gate: gate.update(passed=False), {}, "GateError"),
    "failed, all the same": (lambda entry, gate: gate.update(passed=False), {"ungated": True}, "ok"),
    "rejected": (lambda entry, gate: entry.update(role="rejected"), {}, "GateError"),
    "never ran": (lambda entry, gate: entry.pop("gate"), {}, "GateError"),
    "never ran, all the same": (lambda entry, gate: entry.pop("gate"), {"ungated": True}, "ok"),
    "another candidate": (lambda entry, gate: gate.update(candidate_sha256="1" * 64), {}, "GateError"),
    "another float32": (lambda entry, gate: gate.update(float32_sha256="1" * 64), {}, "GateError"),
    "made from another": (lambda entry, gate: entry["calibration"].update(float32_sha256="1" * 64), {}, "GateError"),
    "made from another, ungated": (
        lambda entry, gate: entry["calibration"].update(float32_sha256="1" * 64), {"ungated": True}, "GateError",
    ),
    "another rule": (lambda entry, gate: None, {"rule": "fixed:0.2"}, "GateError"),
    "another map": (lambda entry, gate: None, {"map": "signed"}, "GateError"),
    "another rule, all the same": (lambda entry, gate: None, {"rule": "fixed:0.2", "ungated": True}, "ok"),
    "that rule": (
        lambda entry, gate: gate.update(rule={"kind": "fixed", "map": "recombined", "eta": 0.2}),
        {"rule": "fixed:0.2"},
        "ok",
    ),
    "sums of a third kind": (lambda entry, gate: gate.update(int8_sums="wrapping"), {}, "ManifestError"),
    "limits of words": (lambda entry, gate: gate.update(limits={"x": "y"}), {}, "ManifestError"),
    "bfloat16": (lambda entry, gate: entry.update(precision="bf16"), {"precision": "bf16"}, "BackendError"),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_gates_are_judged_alike(runtime: Any, example: Any, own: Path, name: str) -> None:
    change, options, expected = GATES[name]
    gated(own, change)
    options = {"precision": "int8", **options}
    encoded = {key: value.encode() if isinstance(value, str) else int(value) for key, value in options.items()}
    assert (python_verdict(own, **options), cpp_verdict(runtime, example, own, **encoded)) == (expected, expected)


def test_sums_that_saturate_are_judged_alike(
    runtime: Any, example: Any, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that ran on a processor of exact sums holds on this one only where its sums are exact too."""
    from wgap.runtime.cpus import int8_sums

    gated(own, lambda entry, gate: gate.update(int8_sums="exact"))
    expected = "ok" if int8_sums() == "exact" else "GateError"
    assert python_verdict(own, precision="int8") == expected
    assert cpp_verdict(runtime, example, own, precision=b"int8") == expected


@pytest.mark.parametrize("schema", [1, 2])
def test_damaged_manifests_are_judged_alike(runtime: Any, own: Path, schema: int) -> None:
    """As many mutations as WGAP_MUTATIONS says, of each schema: the classes of errors are the same."""
    text_ = ((OLD if schema == 1 else own) / "wgap.json").read_text()
    first = int(os.environ.get("WGAP_FIRST", "0"))
    seen: dict[str, int] = {}
    for number in range(first, first + int(os.environ.get("WGAP_MUTATIONS", "1500"))):
        content = damaged(text_, number)
        (own / "wgap.json").write_bytes(content)
        try:
            Bundle.open(own, verify=False)
            python = "ok"
        except WgapError as error:
            python = type(error).__name__
        bundle, status = ctypes.c_void_p(), 0
        status = runtime.library.wgap_bundle_open(os.fsencode(own), 0, ctypes.byref(bundle), None)
        runtime.library.wgap_bundle_close(bundle)
        cpp = runtime.library.wgap_status_string(status).decode()
        assert cpp == python, f"mutation {number} of schema {schema}"
        seen[python] = seen.get(python, 0) + 1
    assert seen["ManifestError"] > 10 * seen.get("nothing", 1)
    assert seen["ok"] > 10


def test_a_rule_of_every_parameter_reads_back(runtime: Any, example: Any, own: Path) -> None:
    """What a gate was judged under is compared as a number, not as a text cut short."""
    chance = random.Random(5)
    for _ in range(20):
        eta = chance.random() * 0.999
        rule = Rule("fixed", eta=eta)
        copy = own.parent / f"{eta}"
        shutil.copytree(own, copy)
        gated(copy, lambda entry, gate, rule=rule: gate.update(rule=rule.to_json()))
        assert python_verdict(copy, precision="int8", rule=str(rule)) == "ok"
        assert cpp_verdict(runtime, example, copy, precision=b"int8", rule=str(rule).encode()) == "ok"
        shutil.rmtree(copy)
