"""OpenVINO from C++ and from Python: the same verdicts count, the same is picked, the same is said."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.conftest import python, run
from tests.sdk.test_bundles import gated

from wgap import Localizer
from wgap.errors import WgapError

openvino = pytest.importorskip("openvino")

BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
Change = Callable[[Any, Any], object]


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path) -> Path:
    """The libraries of the Python that runs this, and a cache of one's own."""
    [file] = Path(openvino.__file__).parent.glob("libs/libopenvino_c.so*")
    monkeypatch.setenv("WGAP_OPENVINO", str(file))
    monkeypatch.setenv("WGAP_ONNXRUNTIME", str(library))
    monkeypatch.setenv("WGAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def own(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "own"))


def picked_by_python(root: Path, **options: Any) -> str:
    try:
        with Localizer(root, **options) as localizer:
            return localizer.backend
    except WgapError as error:
        return type(error).__name__


def picked_by_cpp(runtime: Any, example: Any, root: Path, **options: Any) -> str:
    encoded = {key: value.encode() if isinstance(value, str) else int(value) for key, value in options.items()}
    try:
        localizer = runtime.open(str(root), **encoded)
    except example.RefusedError as error:
        return str(error.code)
    told = runtime.library.wgap_localizer_backend
    told.restype, told.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    name = told(localizer).decode().split()[0]
    runtime.library.wgap_localizer_close(localizer)
    return name


def with_both(entry: Any, gate: Any) -> None:
    entry.update(gates={"openvino": dict(gate)})


def with_openvino_s_alone(entry: Any, gate: Any) -> None:
    entry.update(gates={"openvino": entry.pop("gate")})


def with_openvino_s_refusal(entry: Any, gate: Any) -> None:
    entry.update(gates={"openvino": {**gate, "passed": False}})


VERDICTS: dict[str, tuple[Change, dict[str, Any], str]] = {
    "onnxruntime's, for openvino": (lambda entry, gate: None, {"backend": "openvino"}, "GateError"),
    "all the same": (lambda entry, gate: None, {"backend": "openvino", "ungated": True}, "openvino"),
    "openvino's": (with_both, {"backend": "openvino"}, "openvino"),
    "openvino's, of another rule": (with_both, {"backend": "openvino", "rule": "fixed:0.2"}, "GateError"),
    "openvino's, elsewhere": (with_both, {"backend": "openvino", "device": "GPU"}, "GateError"),
    "openvino's, for onnxruntime": (with_openvino_s_alone, {"backend": "onnxruntime"}, "GateError"),
    "openvino's refusal": (with_openvino_s_refusal, {"backend": "openvino"}, "GateError"),
    "auto, both": (with_both, {"backend": "auto"}, "openvino"),
    "auto, onnxruntime's": (lambda entry, gate: None, {"backend": "auto"}, "onnxruntime"),
    "auto, openvino's": (with_openvino_s_alone, {"backend": "auto"}, "openvino"),
    "auto, openvino's refusal": (with_openvino_s_refusal, {"backend": "auto"}, "onnxruntime"),
    "auto, none": (lambda entry, gate: entry.pop("gate"), {"backend": "auto"}, "GateError"),
    "auto, none, all the same": (
        lambda entry, gate: entry.pop("gate"), {"backend": "auto", "ungated": True}, "openvino",
    ),
    "auto, float32": (lambda entry, gate: None, {"backend": "auto", "precision": "fp32"}, "onnxruntime"),
    "auto, float32, two threads": (
        lambda entry, gate: None, {"backend": "auto", "precision": "fp32", "threads": 2}, "onnxruntime",
    ),
    "auto, a precision that is not there": (
        lambda entry, gate: None, {"backend": "auto", "precision": "bf16"}, "BundleError",
    ),
    "auto, bfloat16": (
        lambda entry, gate: (with_both(entry, gate), entry.update(precision="bf16")),
        {"backend": "auto", "precision": "bf16"}, "openvino" if BFLOAT16 else "BackendError",
    ),
    "a device that is none": (
        lambda entry, gate: None, {"backend": "openvino", "precision": "fp32", "device": "TPU"}, "BackendError",
    ),
    "slots": (lambda entry, gate: None, {"backend": "openvino", "precision": "fp32", "slots": 2}, "DataError"),
    "no verdict": (lambda entry, gate: entry.update(gates={"openvino": {}}), {"backend": "openvino"}, "ManifestError"),
    "no verdicts": (lambda entry, gate: entry.update(gates=[]), {"backend": "openvino"}, "ManifestError"),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_both_go_by_the_same_verdicts_and_pick_the_same(runtime: Any, example: Any, own: Path, name: str) -> None:
    change, options, expected = VERDICTS[name]
    gated(own, change)
    options = {"precision": "int8", **options}
    found = picked_by_python(own, **options), picked_by_cpp(runtime, example, own, **options)
    assert found == (expected, expected)


def test_auto_is_said_alike(installed: Path, own: Path, pictures: Path) -> None:
    gated(own, with_both)
    for precision in ("fp32", "int8"):
        asked = (own, pictures / "a" / "0.jpg", "--backend", "auto", "--precision", precision, "--json")
        theirs, ours = python("localize", *asked), run(installed / "bin" / "wgap-localize", *asked)
        assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
        assert ours.stderr.startswith("auto: o")
        assert json.loads(ours.stdout)["box"] == json.loads(theirs.stdout)["box"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "openvino", "--hint", "fast"), "hint: expected latency or throughput, got 'fast'"),
        (("--backend", "openvino", "--device", "TPU"), "OpenVINO has no device 'TPU' here; expected one of: "),
        (("--backend", "onnxruntime", "--hint", "latency"), "the backend onnxruntime has no hint"),
        (("--backend", "openvino", "--streams", "2000"), "streams must be a whole number in 1..1024, got 2000"),
    ],
)
def test_what_is_asked_wrongly_is_refused_alike(
    installed: Path, tiny_bundle: Path, pictures: Path, options: tuple[str, ...], message: str
) -> None:
    asked = (tiny_bundle, pictures / "a" / "0.jpg", *options)
    for done in (python("localize", *asked), run(installed / "bin" / "wgap-localize", *asked)):
        assert done.returncode == 1
        assert message in done.stderr


def test_compiled_models_are_kept_and_judged(installed: Path, tiny_bundle: Path, pictures: Path, there: Path) -> None:
    asked = (tiny_bundle, pictures / "a" / "0.jpg", "--backend", "openvino", "--json")
    more = ("--hint", "throughput", "--streams", "2", "--threads", "2")
    first = run(installed / "bin" / "wgap-localize", *asked)
    [file] = there.iterdir()
    assert there.stat().st_mode & 0o077 == 0
    whole, made = file.read_bytes(), file.stat().st_mtime_ns
    assert run(installed / "bin" / "wgap-localize", *asked).stdout == first.stdout
    assert file.stat().st_mtime_ns == made
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        assert run(installed / "bin" / "wgap-localize", *asked).stdout == first.stdout
        assert [path.name for path in there.iterdir()] == [file.name]
        assert len(file.read_bytes()) == len(whole)
    assert run(installed / "bin" / "wgap-localize", *asked, *more).stdout == first.stdout
    assert len(list(there.iterdir())) == 2
    there.chmod(0o777)
    for done in (python("localize", *asked), run(installed / "bin" / "wgap-localize", *asked)):
        assert "openvino: compiled models are kept there, and others may write it (mode 777, owner" in done.stderr
        assert done.returncode == 1
    nowhere = run(installed / "bin" / "wgap-localize", *asked, WGAP_CACHE=os.devnull)
    assert nowhere.stdout == first.stdout
