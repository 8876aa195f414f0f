"""The promises on real photographs: what INT8 and FP16 cost, and that a bad calibration does not get through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.calibrate.candidate import Calibration, GateRun, calibrate, enter, prepare
from wgap.calibrate.gate import Verdict
from wgap.calibrate.half import FP16_LARGEST, rounded_graph
from wgap.calibrate.images import ImageSet
from wgap.datasets import open_dataset
from wgap.errors import GateError
from wgap.evaluate.protocol import evaluate_localizer
from wgap.runtime.selftest import selftest

pytestmark = [pytest.mark.data, pytest.mark.slow]


def test_int8_keeps_the_boxes(cub10_int8: tuple[Path, Verdict]) -> None:
    _, verdict = cub10_int8
    figures = verdict.figures
    assert verdict.passed
    assert figures["images"] == 122
    assert figures["top1_agreement"] >= 0.98
    assert figures["box_iou"]["mean"] >= 0.985
    for name in ("gt_known", "top1_loc"):
        assert figures[name]["images"] == 122
        assert figures[name]["change"] >= -1 / 122 - 1e-9
        low, high = figures[name]["interval"]
        assert low <= figures[name]["change"] <= high
    assert figures["gt_known"]["float32"] == pytest.approx(0.8607, abs=1e-4)
    assert figures["top1_loc"]["float32"] == pytest.approx(0.7459, abs=1e-4)


def test_the_gate_and_the_evaluation_count_alike(cub10_int8: tuple[Path, Verdict], cub10: Path) -> None:
    root, verdict = cub10_int8
    report = evaluate_localizer(Localizer(root, precision="int8"), open_dataset(cub10, "test")).summary()
    assert report.gt_known_loc == pytest.approx(verdict.figures["gt_known"]["candidate"])
    assert report.top1_loc == pytest.approx(verdict.figures["top1_loc"]["candidate"])


def test_the_manifest_says_what_was_done_and_found(
    cub10_int8: tuple[Path, Verdict], cub10_calibration: ImageSet
) -> None:
    root, verdict = cub10_int8
    entry = Bundle.open(root).model_file("int8")
    made = entry.calibration
    assert made is not None
    assert made.quantisation is not None
    assert entry.gate == verdict.record
    assert verdict.record is not None
    assert verdict.record.candidate_sha256 == entry.sha256
    assert made.float32_sha256 == Bundle.open(root).file("onnx", "fp32").sha256
    assert len(made.images) == 32
    assert made.images_sha256 == cub10_calibration.sha256
    attested = made.quantisation["attestation"]
    assert (attested["meant_int8"], attested["ran_int8"], attested["ran_float"]) == (13, 13, 0)
    with Localizer(root, precision="int8") as localizer:
        assert localizer.network.precision == "int8"
        assert selftest(localizer).ok, "a model that the gate admits passes"


def test_fp16_does_not_overflow_and_its_rounding_is_judged(
    cub10_source: Calibration, cub10_gate: GateRun, cub10_bundle: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    candidate = calibrate(cub10_source, "fp16", tmp_path / "fp16.onnx")
    rows = candidate.record.headroom
    assert rows is not None
    assert len(rows) == 13 + 13 + 4
    assert candidate.record.keep_float == ()
    assert 1000 < rows[0]["largest"] < FP16_LARGEST / 2
    verdict = cub10_gate.judge(candidate.path, "fp16", cub10_source.images.listing())
    assert verdict.passed
    assert verdict.record.backend.endswith("fp16 emulated")
    bundle = enter(Bundle.open(copied(cub10_bundle)), candidate, verdict)
    assert Localizer(bundle, precision="fp16").network.precision == "fp16"

    from wgap.runtime.networks import open_network
    from wgap.runtime.networks.onnxruntime import file_network

    rounded_graph(candidate.path, tmp_path / "rounded.onnx")
    batch = cub10_gate.images.batch(slice(0, 2))
    exact = open_network("onnxruntime", bundle).run(batch)["features"]
    rounded = file_network(bundle, tmp_path / "rounded.onnx", "fp16").run(batch)["features"]
    assert np.array_equal(rounded, rounded.astype(np.float16).astype(np.float32))
    assert 1e-5 < np.abs(rounded - exact).max() / exact.max() < 1e-2


def test_bf16_is_judged_with_its_rounding_and_left_to_the_backends_that_have_it(
    cub10_source: Calibration, few: GateRun, cub10_bundle: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    import ml_dtypes

    from wgap.errors import BackendError
    from wgap.runtime.networks import open_network
    from wgap.runtime.networks.onnxruntime import file_network

    candidate = calibrate(cub10_source, "bf16", tmp_path / "bf16.onnx")
    verdict = few.judge(candidate.path, "bf16", cub10_source.images.listing())
    assert verdict.passed
    assert verdict.record.backend.endswith("bf16 emulated")
    bundle = enter(Bundle.open(copied(cub10_bundle)), candidate, verdict)
    with pytest.raises(BackendError, match=r"no bfloat16 convolution; run it as an engine \(`wgap build"):
        Localizer(bundle, precision="bf16")
    rounded_graph(candidate.path, tmp_path / "rounded.onnx")
    batch = few.images.batch(slice(0, 2))
    exact = open_network("onnxruntime", bundle).run(batch)["features"]
    rounded = file_network(bundle, tmp_path / "rounded.onnx", "bf16").run(batch)["features"]
    assert np.array_equal(rounded, rounded.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert 1e-3 < np.abs(rounded - exact).max() / exact.max() < 1e-1


def judged_on(source: Calibration, images: ImageSet, gate: GateRun, path: Path) -> Verdict:
    """The gate's word on a calibration that saw other pixels than it should have."""
    with prepare(source.bundle, images) as spoilt:
        return gate.judge(calibrate(spoilt, "int8", path).path, "int8", source.images.listing())


@pytest.fixture(scope="module")
def few(cub10_gate: GateRun) -> GateRun:
    """Every fifth test photograph judges just as well when the damage is large."""
    pictures = cub10_gate.images.pictures[::5]
    return GateRun(cub10_gate.bundle, replace(cub10_gate.images, pictures=pictures))


def repainted(images: ImageSet, paint: Callable[[np.ndarray], np.ndarray]) -> ImageSet:
    changed = (replace(p, pixels=np.ascontiguousarray(paint(p.pixels))) for p in images.pictures)
    return replace(images, pictures=tuple(changed))


def test_a_calibration_on_noise_is_caught(
    cub10_source: Calibration, cub10_calibration: ImageSet, few: GateRun, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    noise = repainted(cub10_calibration, lambda pixels: rng.integers(0, 256, pixels.shape, dtype=np.uint8))
    verdict = judged_on(cub10_source, noise, few, tmp_path / "a.onnx")
    assert not verdict.passed
    assert verdict.figures["top1_agreement"] < 0.8
    assert any("mean box IoU" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("factor", [0.05, 20])
def test_a_saturated_or_wasted_scale_is_caught(
    cub10_source: Calibration, few: GateRun, tmp_path: Path, factor: float
) -> None:
    low, high = cub10_source.ranges["relu_5"]
    spoilt = replace(cub10_source, ranges={**cub10_source.ranges, "relu_5": (factor * low, factor * high)})
    verdict = few.judge(calibrate(spoilt, "int8", tmp_path / "a.onnx").path, "int8", cub10_source.images.listing())
    assert not verdict.passed
    assert verdict.figures["box_iou"]["mean"] < 0.95


def test_a_graph_with_the_wrong_channel_order_is_caught(
    cub10_source: Calibration, few: GateRun, tmp_path: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    candidate = calibrate(cub10_source, "int8", tmp_path / "a.onnx")
    model = onnx.load(str(candidate.path))
    (gather,) = (node for node in model.graph.node if node.op_type == "Gather")
    (order,) = (tensor for tensor in model.graph.initializer if tensor.name == gather.input[1])
    assert numpy_helper.to_array(order).tolist() == [2, 1, 0]
    order.CopyFrom(numpy_helper.from_array(np.array([0, 1, 2]), order.name))
    onnx.save(model, str(candidate.path))
    verdict = few.judge(candidate.path, "int8", cub10_source.images.listing())
    assert not verdict.passed
    assert verdict.figures["top1_agreement"] < 0.95


def test_the_channel_order_of_the_calibration_images_alone_is_harmless(
    exact_int8: None, cub10_source: Calibration, cub10_calibration: ImageSet, few: GateRun, tmp_path: Path
) -> None:
    """Documented, so that nobody trusts the gate to notice it: ranges hardly change, and so do the boxes."""
    swapped = repainted(cub10_calibration, lambda pixels: pixels[..., ::-1])
    verdict = judged_on(cub10_source, swapped, few, tmp_path / "a.onnx")
    assert verdict.figures["box_iou"]["mean"] > 0.98


def test_a_refused_file_is_kept_aside_and_runs_only_when_told(
    cub10_source: Calibration,
    few: GateRun,
    cub10_int8: tuple[Path, Verdict],
    copied: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    ranges = {name: (low / 50, high / 50) for name, (low, high) in cub10_source.ranges.items()}
    candidate = calibrate(replace(cub10_source, ranges=ranges), "int8", tmp_path / "a.onnx")
    verdict = few.judge(candidate.path, "int8", cub10_source.images.listing())
    good = copied(cub10_int8[0])
    usable = Bundle.open(good).model_file("int8")
    bundle = enter(Bundle.open(good), candidate, verdict)
    assert bundle.model_file("int8") == usable  # a refused file never takes the place of a good one
    assert bundle.file("rejected", "int8").path == "rejected/model.int8.onnx"
    bundle = enter(bundle, candidate, None)  # never judged: it takes the place, and the rejected twin goes
    assert not (good / "rejected").exists()
    with pytest.raises(GateError, match="never measured; run `wgap gate"):
        Localizer(bundle, precision="int8")
    bundle = enter(bundle, candidate, verdict)
    assert not (good / "model.int8.onnx").exists()
    with pytest.raises(GateError, match=r"the gate refused this int8 file: .*mean box IoU"):
        Localizer(bundle, precision="int8")
    assert Localizer(bundle, precision="int8", ungated=True).network.precision == "int8"
