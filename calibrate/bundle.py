"""The whole of each job in one call: add a lower-precision model to a bundle, judge one anew, measure its layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from wgap.atomic import require_new
from wgap.bundle import Bundle, sha256_of
from wgap.calibrate.auto import search
from wgap.calibrate.candidate import Candidate, GateRun, Progress, calibrate, enter, prepare, require_gate, silent
from wgap.calibrate.gate import Limits, Verdict
from wgap.calibrate.images import ImageSet, image_set, require_disjoint
from wgap.calibrate.ranges import toolkit
from wgap.calibrate.report import write_report
from wgap.calibrate.sensitivity import Sensitivity, sensitivity
from wgap.errors import CalibrationError, DataError
from wgap.extend import require_writable
from wgap.extras import require
from wgap.manifest import BundleFile
from wgap.rule import Rule

__all__ = ["Calibrated", "calibrate_bundle", "gate_bundle", "measure_layers"]

Note = Callable[[str], None]
"""Called with one line of text: a warning about the images, or a step of the search."""


@dataclass(frozen=True)
class Calibrated:
    """What happened to the bundle.

    Attributes:
        bundle: the bundle, opened again.
        entry: the file that was entered: role ``onnx``, or ``rejected`` where the gate refused it.
        verdict: of the gate; None where none ran, and the runtime refuses the file until one has passed it.
    """

    bundle: Bundle
    entry: BundleFile
    verdict: Verdict | None

    @property
    def usable(self) -> bool:
        """Whether the gate passed the file, so that the runtime takes it."""
        return self.verdict is not None and self.verdict.passed


def calibrate_bundle(
    bundle: Bundle,
    images: Path | None,
    precision: str = "int8",
    *,
    method: str = "minmax",
    count: int | None = 32,
    split: str = "train",
    keep_float: Collection[str] = (),
    auto: bool = False,
    gate: Path | None = None,
    gate_count: int | None = None,
    gate_split: str = "test",
    limits: Limits | None = None,
    rule: Rule | None = None,
    report: Path | None = None,
    force: bool = False,
    cache_dir: Path | None = None,
    max_bad: int = 0,
    label_map: Path | None = None,
    backend: str = "onnxruntime",
    progress: Progress = silent,
    note: Note = lambda _: None,
) -> Calibrated:
    """Make a lower-precision model, judge it, and enter it into the bundle, usable or rejected.

    Args:
        bundle: an opened bundle.
        images: calibration images, a folder or a labelled set; None of bf16, which needs none.
        precision: ``int8``, ``fp16`` or ``bf16``.
        method: how activation ranges are chosen: ``minmax``, ``entropy`` or ``percentile``.
        count: calibration images to take, every class in turn; None takes all.
        split: of a labelled set: ``train``, ``val``, ``test`` or ``all``.
        keep_float: convolutions, by node name, that stay in float32.
        auto: search for the fewest convolutions in float32 that let the gate pass instead; needs ``gate`` and int8.
        gate: images that judge the result and share none with ``images``; None enters the file unjudged.
        gate_count: at most so many of them; None takes all.
        gate_split: as ``split``.
        limits: what the lower precision may cost.
        rule: whose boxes are compared, and which the verdict then holds for; None for the bundle's own.
        report: folder for pictures and report.json.
        force: replace an earlier report there.
        cache_dir: keep ranges and the search's log here, named by content.
        max_bad: images that cannot be read and are left out, at most so many of each set.
        label_map: of labelled sets whose classes the model calls otherwise (:func:`wgap.datasets.with_label_map`).
        backend: that the gate runs on, whose verdict it is: ``onnxruntime``, which engines go by too, or ``openvino``.
        progress: shown while it works.
        note: called with each warning about the calibration images, and each step of the search.

    Raises:
        CalibrationError: too few images, one that is in both sets, or a network that does not fit the precision.
        CheckFailedError: a convolution meant for INT8 does not run in it.
        DataError: an option or an image set is not as above.
        OutputExistsError: ``report`` exists, and is no report or ``force`` is false.
        BundleError: the bundle cannot be written, or has no float32 graph.
        MissingDependencyError: a library of the ``calibrate`` extra is not installed.
    """
    if auto and (gate is None or precision != "int8"):
        raise DataError("--auto searches for an int8 file that passes the gate: give --gate, and --precision int8")
    if images is None and precision != "bf16":
        raise DataError(f"{precision} is made from the ranges of activations over pictures: give --images")
    if report is not None:
        require("--report", "matplotlib")
        require_new(report, force)
    toolkit()
    require_gate(backend)
    require_writable(bundle)
    chosen = ImageSet()
    if images is not None:
        chosen = _read(bundle, images, "calibration", split, count, max_bad, label_map, progress, note)
    judges = None if gate is None else _read(bundle, gate, "gate", gate_split, gate_count, max_bad, label_map, progress)
    if judges is not None:
        require_disjoint(chosen.listing(), judges)
    with prepare(bundle, chosen, method, cache_dir, progress) as source, tempfile.TemporaryDirectory() as folder:
        run = None if judges is None else GateRun(bundle, judges, limits, progress, rule, backend)
        verdict = None
        if auto and run is not None:
            candidate, verdict = search(source, run, Path(folder), cache_dir, progress, note)
        else:
            candidate = calibrate(source, precision, Path(folder) / f"{precision}.onnx", keep_float)
            if run is not None:
                verdict = run.judge(candidate.path, precision, chosen.listing())
        entered, digest = enter(bundle, candidate, verdict), sha256_of(candidate.path)
        if report is not None:
            write_report(report, entered, source, candidate, run, verdict, force)
    return _calibrated(entered, digest, verdict)


def gate_bundle(
    bundle: Bundle,
    images: Path,
    precision: str = "int8",
    *,
    count: int | None = None,
    split: str = "test",
    limits: Limits | None = None,
    rule: Rule | None = None,
    max_bad: int = 0,
    label_map: Path | None = None,
    backend: str = "onnxruntime",
    progress: Progress = silent,
) -> Calibrated:
    """Judge a lower-precision model that the bundle holds anew, usable or rejected, and enter the verdict.

    Args:
        bundle: an opened bundle.
        images: images that judge, a folder or a labelled set; none of them may have calibrated the model.
        precision: which model.
        count: at most so many images; None takes all.
        split: of a labelled set: ``train``, ``val``, ``test`` or ``all``.
        limits: what the lower precision may cost.
        rule: whose boxes are compared, and which the verdict then holds for; None for the bundle's own.
        max_bad: images that cannot be read and are left out, at most so many.
        label_map: of a labelled set whose classes the model calls otherwise.
        backend: that it is judged on; a verdict of OpenVINO stands beside that of ONNX Runtime.
        progress: shown while it works.

    Raises:
        CalibrationError: too few images, one that took part in calibration, or the precision is float32, or the
            model does not say what calibrated it.
        DataError: ``images`` holds none.
        BundleError: the bundle has no such model, or cannot be written.
    """
    require_gate(backend)
    if precision == "fp32":
        raise CalibrationError("float32 is what the gate measures against; give a lower precision")
    entry = bundle.model_file(precision, ungated=True)
    path, made = bundle.root / entry.path, entry.calibration
    if made is None:
        raise CalibrationError(
            f"{path} does not say which images calibrated it, so that no gate can be proven disjoint; make it with "
            f"`wgap calibrate {bundle.root} --precision {precision}`"
        )
    require_writable(bundle)
    judges = _read(bundle, images, "gate", split, count, max_bad, label_map, progress)
    run = GateRun(bundle, judges, limits, progress, rule, backend)
    verdict = run.judge(path, precision, made.images)
    entered = enter(bundle, Candidate(path, precision, made), verdict, [entry.sha256])
    return _calibrated(entered, entry.sha256, verdict)


def measure_layers(
    bundle: Bundle,
    images: Path,
    *,
    method: str = "minmax",
    count: int | None = 32,
    split: str = "train",
    cache_dir: Path | None = None,
    pareto: bool = True,
    max_bad: int = 0,
    progress: Progress = silent,
    note: Note = lambda _: None,
) -> Sensitivity:
    """What INT8 costs layer by layer; the bundle stays as it is.

    Measured on the calibration images; with ``pareto`` mixtures of INT8 and float32 are timed too. The other arguments
    and the errors are those of :func:`calibrate_bundle`.
    """
    toolkit()
    chosen = _read(bundle, images, "calibration", split, count, max_bad, None, progress, note)
    with prepare(bundle, chosen, method, cache_dir, progress) as source:
        return sensitivity(source, pareto, progress)


def _read(
    bundle: Bundle, images: Path, purpose: str, split: str, count: int | None, max_bad: int, label_map: Path | None,
    progress: Progress, note: Note = lambda _: None,
) -> ImageSet:  # fmt: skip
    chosen = image_set(
        bundle, images, split=split, count=count, with_boxes=purpose == "gate", purpose=purpose,
        max_bad=max_bad, label_map=label_map,
        progress=lambda items: progress(items, f"reading {purpose} images"),
    )  # fmt: skip
    for warning in chosen.warnings:
        note(f"warning: {warning}")
    return chosen


def _calibrated(bundle: Bundle, digest: str, verdict: Verdict | None) -> Calibrated:
    files = (entry for entry in bundle.manifest.files if entry.role in ("onnx", "rejected"))
    return Calibrated(bundle, next(entry for entry in files if entry.sha256 == digest), verdict)
