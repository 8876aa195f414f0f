"""A gate on OpenVINO runs OpenVINO itself, and its verdict stands beside ONNX Runtime's, for OpenVINO alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.calibrate.bundle import calibrate_bundle, gate_bundle
from wgap.calibrate.gate import Limits
from wgap.errors import BackendError, DataError, GateError

openvino = pytest.importorskip("openvino")

BFLOAT16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
LENIENT = Limits(1, 0, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGAP_CACHE", str(tmp_path / "cache"))


def test_bfloat16_needs_no_calibration_and_is_judged_where_it_runs(
    tiny_bundle: Path, copied: Callable[[Path], Path], shapes: Path
) -> None:
    own = copied(tiny_bundle)
    with pytest.raises(DataError, match="int8 is made from the ranges of activations over pictures: give --images"):
        calibrate_bundle(Bundle.open(own), None, "int8")
    ask = {"gate": shapes, "limits": LENIENT, "backend": "openvino"}
    if not BFLOAT16:
        with pytest.raises(BackendError, match="does not compute in bfloat16"):
            calibrate_bundle(Bundle.open(own), None, "bf16", **ask)
        return
    made = calibrate_bundle(Bundle.open(own), None, "bf16", **ask)
    assert made.usable
    assert made.entry.gate is None
    assert made.entry.gates is not None
    assert made.entry.gates["openvino"].backend.startswith("openvino 20")
    assert "emulated" not in made.entry.gates["openvino"].backend
    assert (made.entry.path, made.entry.calibration and made.entry.calibration.images) == ("model.bf16.onnx", ())
    with Localizer(own, "openvino", precision="bf16") as lower, Localizer(own, "openvino") as exact:
        size = exact.bundle.manifest.model.input_size
        images = np.random.default_rng(0).integers(0, 255, (2, *size, 3), np.uint8)
        a, b = lower.network.run(images)["features"], exact.network.run(images)["features"]
        assert 1e-4 < np.abs(a - b).max() / np.abs(b).max() < 0.05  # rounded to 8 bits, and no more than that
        ran = lower.network._compiled[1].model.get_runtime_model().get_ops()  # type: ignore[attr-defined]
        names = ("layerType", "runtimePrecision")
        told = [tuple(node.get_rt_info()[name].astype(str) for name in names) for node in ran]
        assert {precision for kind, precision in told if kind == "Convolution"} == {"bf16"}
    assert Localizer(own, "auto", precision="bf16").backend == "openvino"
    with pytest.raises(GateError, match="was never measured; run"):
        Localizer(own, precision="bf16")


def test_a_verdict_of_one_backend_leaves_the_other_s(
    tiny_bundle: Path, copied: Callable[[Path], Path], shapes: Path
) -> None:
    own = copied(tiny_bundle)
    manifest = json.loads((own / "wgap.json").read_text())
    manifest["rule"].update(kind="fixed", eta=0.7)  # lower ones give this random network the whole image
    (own / "wgap.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the gate runs on onnxruntime or openvino, got 'tensorrt'"):
        calibrate_bundle(Bundle.open(own), shapes, count=16, gate=shapes, backend="tensorrt")
    made = calibrate_bundle(Bundle.open(own), shapes, count=16, gate=shapes, limits=LENIENT)
    with pytest.raises(GateError, match="never measured on openvino"):
        Localizer(own, "openvino", precision="int8")
    both = gate_bundle(made.bundle, shapes, limits=LENIENT, backend="openvino")
    assert both.entry.gate == made.entry.gate
    late = gate_bundle(made.bundle, shapes, limits=LENIENT)  # of a bundle that was opened before that verdict
    assert late.entry.gates == both.entry.gates
    assert Localizer(own, "openvino", precision="int8").network.precision == "int8"

    refused = gate_bundle(both.bundle, shapes, limits=Limits(min_iou=1), backend="openvino")
    assert not refused.usable
    assert refused.entry.path == "model.int8.onnx"  # ONNX Runtime's verdict still holds
    assert Localizer(own, precision="int8").network.precision == "int8"
    with pytest.raises(GateError, match="the gate refused this int8 file"):
        Localizer(own, "openvino", precision="int8")

    neither = gate_bundle(refused.bundle, shapes, limits=Limits(min_iou=1))
    assert neither.entry.path == "rejected/model.int8.onnx"
    again = gate_bundle(neither.bundle, shapes, limits=LENIENT, backend="openvino")
    assert (again.usable, again.entry.path) == (True, "model.int8.onnx")
    assert again.entry.gate is not None
    assert not again.entry.gate.passed
