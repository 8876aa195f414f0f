"""``--auto``: the search finds the smallest set it can, says what it tried, and goes on where it was cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from wgap.bundle import Bundle
from wgap.calibrate.auto import search
from wgap.calibrate.candidate import Calibration, Candidate, GateRun, prepare, silent
from wgap.calibrate.gate import Limits, Verdict
from wgap.calibrate.images import image_set
from wgap.calibrate.quantise import convolutions
from wgap.calibrate.sensitivity import rank
from wgap.errors import CalibrationError
from wgap.manifest import ImageHashes
from wgap.rule import Rule
from wgap.runtime.locator import open_locator


def in_float(path: Path) -> set[str]:
    """The convolutions of a file whose weights are not quantised."""
    graph = onnx.load(str(path)).graph
    dequantised = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return {node.name for node in graph.node if node.op_type == "Conv" and node.input[1] not in dequantised}


class Oracle:
    """A judge that passes a file exactly if certain convolutions are in float32, read from the file itself."""

    def __init__(self, real: GateRun, needed: Iterable[str], limits: Limits | None = None) -> None:
        self.images, self.limits, self.locator = real.images, limits or real.limits, real.locator
        self.backend = real.backend
        self.needed = set(needed)
        self.asked: list[set[str]] = []

    def judge(self, path: Path, precision: str, calibration: Iterable[ImageHashes]) -> Verdict:
        kept = in_float(path)
        self.asked.append(kept)
        passed = self.needed <= kept
        iou = len(self.needed & kept) / len(self.needed or {""})
        figures: dict[str, Any] = {"box_iou": {"mean": iou}, "top1_agreement": 1.0}
        return Verdict(passed, () if passed else ("a needed layer is in INT8",), figures, self.limits)


@pytest.fixture(scope="module")
def source(tiny_bundle: Path, shapes: Path) -> Iterator[Calibration]:
    bundle = Bundle.open(tiny_bundle)
    rule = Rule.parse("fixed:0.7")  # else every box is the whole image
    bundle = replace(bundle, manifest=replace(bundle.manifest, rule=rule))
    with prepare(bundle, image_set(bundle, shapes, split="train", count=16)) as found:
        yield found


@pytest.fixture(scope="module")
def gate(source: Calibration, shapes: Path) -> GateRun:
    return GateRun(source.bundle, image_set(source.bundle, shapes, split="test", with_boxes=True))


@pytest.fixture(scope="module")
def ranking(source: Calibration) -> list[str]:
    return [name for name, _ in rank(source, open_locator(source.bundle))]


def run(
    source: Calibration, oracle: Any, folder: Path, cache: Path | None = None
) -> tuple[Candidate, Verdict, list[str]]:
    told: list[str] = []
    return *search(source, oracle, folder, cache, silent, told.append), told


def test_all_int8_is_tried_first_and_wins_where_it_passes(source: Calibration, gate: GateRun, tmp_path: Path) -> None:
    oracle = Oracle(gate, ())
    candidate, judged, _ = run(source, oracle, tmp_path)
    assert judged.passed
    assert candidate.record.keep_float == ()
    assert oracle.asked == [set(), set()]  # once to find it, once on the very file that is handed over


def test_layers_are_added_by_harm_and_those_not_needed_are_given_back(
    source: Calibration, gate: GateRun, ranking: list[str], tmp_path: Path
) -> None:
    needed = {ranking[1], ranking[4]}
    oracle = Oracle(gate, needed)
    candidate, judged, told = run(source, oracle, tmp_path)
    assert judged.passed
    assert set(candidate.record.keep_float) == needed == in_float(candidate.path)
    steps = candidate.record.quantisation["search"]
    assert [step["keep_float"] for step in steps[:6]] == [ranking[:k] for k in range(6)]
    assert [step["passed"] for step in steps[:6]] == [False] * 5 + [True]
    assert len(told) == len(steps)
    assert told[0] == "0 in float32 (none): a needed layer is in INT8"
    assert told[5].endswith(": passed")
    assert candidate.record.quantisation["attestation"]["ran_float"] == 2


def test_where_nothing_passes_the_best_is_returned_with_its_verdict(
    source: Calibration, gate: GateRun, ranking: list[str], tmp_path: Path
) -> None:
    oracle = Oracle(gate, {*ranking[:2], "no such layer"})
    candidate, judged, _ = run(source, oracle, tmp_path)
    assert not judged.passed
    assert list(candidate.record.keep_float) == [name for name in convolutions(source.graph) if name in ranking[:2]]
    assert len(oracle.asked) == len(ranking) + 1  # never all in float32: that would be no INT8 file
    assert all(len(kept) < len(ranking) for kept in oracle.asked)


def test_a_cut_search_goes_on_and_ends_as_one_that_was_not(
    source: Calibration, gate: GateRun, ranking: list[str], tmp_path: Path
) -> None:
    needed = {ranking[0], ranking[3]}
    whole = run(source, Oracle(gate, needed), tmp_path)[0].path.read_bytes()
    cache, cut = tmp_path / "cache", Oracle(gate, needed)

    def stop_at_the_third(_line: str) -> None:
        if len(cut.asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(source, cut, tmp_path, cache, silent, stop_at_the_third)  # type: ignore[arg-type]
    (log,) = cache.iterdir()
    with log.open("a") as stream:
        stream.write('{"keep_float": ["half a l')  # as a power cut would leave it
    resumed = Oracle(gate, needed)
    candidate, judged, told = run(source, resumed, tmp_path, cache)
    assert judged.passed
    assert candidate.path.read_bytes() == whole
    assert "the last line is cut short" in told[0]
    assert "goes on after 3 steps" in told[1]
    assert not any(kept in resumed.asked[:-1] for kept in cut.asked)
    again = Oracle(gate, needed)
    assert run(source, again, tmp_path, cache)[0].record == candidate.record
    assert again.asked == [needed]  # only the verdict on the file itself is measured anew


def test_a_log_belongs_to_one_question_and_a_damaged_one_is_refused(
    source: Calibration, gate: GateRun, tmp_path: Path
) -> None:
    run(source, Oracle(gate, ()), tmp_path, tmp_path / "cache")
    stricter = Oracle(gate, (), Limits(min_iou=0.999))
    run(source, stricter, tmp_path, tmp_path / "cache")
    assert len(stricter.asked) == 2  # other limits: nothing is taken from the first log
    logs = sorted((tmp_path / "cache").iterdir())
    assert len(logs) == 2
    for log in logs:
        log.write_text(json.dumps({"other": 1}) + "\n")
    with pytest.raises(CalibrationError, match=r"is not a search log written by wgap .*; delete it"):
        run(source, Oracle(gate, ()), tmp_path, tmp_path / "cache")


def test_the_real_gate_keeps_both_layers_that_share_a_broken_scale(
    source: Calibration, gate: GateRun, tmp_path: Path
) -> None:
    names = convolutions(source.graph)
    victim = next(node for node in onnx.load(str(source.graph)).graph.node if node.name == names[6])
    low, high = source.ranges[victim.input[0]]
    broken = replace(source, ranges={**source.ranges, victim.input[0]: (low / 500, high / 500)})
    strict = GateRun(source.bundle, gate.images, Limits(max_drop=1, min_iou=0.85, min_agreement=0))
    candidate, judged, _ = run(broken, strict, tmp_path)
    assert judged.passed
    assert candidate.record.keep_float == (names[5], names[6])  # what writes the broken tensor, and what reads it
    assert not candidate.record.quantisation["search"][0]["passed"]
