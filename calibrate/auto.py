"""Mixed precision: the fewest convolutions in float32 that let the gate pass, searched in the open and resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wgap.atomic import atomic_file
from wgap.calibrate.candidate import Calibration, Candidate, GateRun, Progress, calibrate
from wgap.calibrate.gate import Verdict
from wgap.calibrate.quantise import convolutions
from wgap.calibrate.sensitivity import rank
from wgap.errors import CalibrationError

__all__ = ["search"]


def search(
    source: Calibration, run: GateRun, folder: Path, cache_dir: Path | None, progress: Progress,
    note: Callable[[str], None],
) -> tuple[Candidate, Verdict]:  # fmt: skip
    """Keep float32 layers, the most harmful first, until the gate passes; then give back those that were not needed.

    All INT8 is tried first and wins where it passes. Layers are ranked on the calibration images; the gate's only
    judge. The steps are in the candidate's record, and ``note`` is called with each.

    Args:
        source: graph, ranges and calibration images.
        run: the gate.
        folder: where candidates are written.
        cache_dir: keep a log here, named by content; a run that was cut goes on from it. None keeps none.
        progress: shown while it works.
        note: called with one line a step.

    Returns:
        the candidate and a verdict measured on that very file. Where nothing passes, the step with the best boxes; its
        verdict says why it failed.

    Raises:
        CalibrationError: if the log is damaged.
    """
    log = _Log(source, run, cache_dir, note)
    tried: dict[frozenset[str], dict[str, Any]] = {}

    def attempt(kept: Sequence[str]) -> dict[str, Any]:
        key = frozenset(kept)
        step = log.steps.get(key)
        if step is None:
            judged = _judge(source, run, folder, kept)[1]
            figures = judged.figures
            step = {
                "keep_float": list(kept),
                "passed": judged.passed,
                "mean_iou": figures["box_iou"]["mean"],
                "top1_agreement": figures["top1_agreement"],
                "reasons": list(judged.reasons),
            }
            log.add(step)
        tried[key] = step
        outcome = "passed" if step["passed"] else "; ".join(step["reasons"])
        note(f"{len(kept)} in float32 ({', '.join(kept) or 'none'}): {outcome}")
        return step

    kept: list[str] = []
    if not attempt(kept)["passed"]:
        if log.ranking is None:
            log.add({"ranking": [name for name, _ in rank(source, run.locator, progress)]})
        ranking = log.ranking or []
        count = len(convolutions(source.graph))
        while len(kept) < count - 1:
            kept.append(ranking[len(kept)])
            if attempt(kept)["passed"]:
                break
        if tried[frozenset(kept)]["passed"]:
            for name in list(kept[:-1]):
                fewer = [other for other in kept if other != name]
                if attempt(fewer)["passed"]:
                    kept = fewer
        else:
            kept = max(tried.values(), key=lambda step: (step["mean_iou"], step["top1_agreement"]))["keep_float"]
    candidate, judged = _judge(source, run, folder, kept)
    assert candidate.record.quantisation is not None
    candidate.record.quantisation["search"] = list(tried.values())
    return candidate, judged


def _judge(source: Calibration, run: GateRun, folder: Path, kept: Sequence[str]) -> tuple[Candidate, Verdict]:
    candidate = calibrate(source, "int8", folder / "int8.onnx", kept)
    return candidate, run.judge(candidate.path, "int8", source.images.listing())


class _Log:
    """Judged steps of one search, one JSON line each, in a file named by everything that the steps depend on."""

    def __init__(self, source: Calibration, run: GateRun, cache_dir: Path | None, note: Callable[[str], None]) -> None:
        import onnxruntime

        self.steps: dict[frozenset[str], dict[str, Any]] = {}
        self.ranking: list[str] | None = None
        self._path: Path | None = None
        if cache_dir is None:
            return
        identity = [
            source.bundle.model_file("fp32").sha256, source.images.sha256, source.method, sorted(source.ranges.items()),
            run.images.sha256, run.locator.rule.to_json(), asdict(run.limits), onnxruntime.__version__, run.backend,
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        cache_dir.mkdir(parents=True, exist_ok=True)
        self._path = cache_dir / f"auto-{key[:32]}.jsonl"
        if self._path.is_file():
            self._read(self._path, note)

    def add(self, line: dict[str, Any]) -> None:
        self._keep(line)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
                stream.flush()
                os.fsync(stream.fileno())

    def _keep(self, line: dict[str, Any]) -> None:
        if "ranking" in line:
            self.ranking = list(line["ranking"])
        else:
            self.steps[frozenset(line["keep_float"])] = line

    def _read(self, path: Path, note: Callable[[str], None]) -> None:
        text = path.read_text(encoding="utf-8", errors="replace")
        whole, _, rest = text.rpartition("\n")
        if rest:
            note(f"{path}: the last line is cut short; that step is done again")
            with atomic_file(path) as temporary:
                temporary.write_text(whole + "\n" if whole else "", encoding="utf-8")
        try:
            for line in whole.splitlines():
                self._keep(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{path} is not a search log written by wgap ({error}); delete it") from error
        note(f"{path}: goes on after {len(self.steps)} steps")
