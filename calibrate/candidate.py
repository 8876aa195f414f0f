"""A lower-precision file: made, attested, judged, and entered into the bundle with its verdict, or kept aside."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wgap import __version__
from wgap.bundle import Bundle, open_regular, sha256_of
from wgap.calibrate.attest import attest_int8
from wgap.calibrate.gate import Limits, Observation, Verdict, observe, verdict
from wgap.calibrate.half import HALVES, bf16_graph, fp16_graph, headroom, judgeable
from wgap.calibrate.images import ImageSet, require_disjoint
from wgap.calibrate.quantise import convolutions, float_graph, int8_graph, scales
from wgap.calibrate.ranges import Ranges, activation_ranges, toolkit
from wgap.errors import BundleError, CalibrationError, DataError
from wgap.extend import Change, NewFile, change_files
from wgap.extras import require
from wgap.manifest import OWN_VERDICT, BundleFile, CalibrationRecord, GateRecord, ImageHashes, Manifest
from wgap.rule import Rule
from wgap.runtime.cpus import int8_sums
from wgap.runtime.locator import open_locator
from wgap.runtime.network import Network
from wgap.runtime.networks import NetworkOptions, open_network
from wgap.runtime.networks.onnxruntime import file_network

__all__ = [
    "GATES",
    "PRECISIONS",
    "Calibration",
    "Candidate",
    "GateRun",
    "calibrate",
    "enter",
    "prepare",
    "require_gate",
]

GATES = ("onnxruntime", "openvino")
"""Backends that a gate can run on."""

PRECISIONS = ("int8", *HALVES)

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""Wraps a list that takes a while; the second argument says what is being done."""


def silent(items: Sequence[Any], _what: str) -> Iterable[Any]:
    """No progress shown."""
    return items


@dataclass(frozen=True)
class Calibration:
    """What every candidate of one bundle and one calibration set shares.

    Attributes:
        bundle: the bundle.
        images: the calibration set; empty for what needs none.
        method: how ranges were chosen.
        graph: the float32 graph that candidates are made of.
        ranges: of its activations.
    """

    bundle: Bundle
    images: ImageSet
    method: str
    graph: Path
    ranges: Ranges


@dataclass(frozen=True)
class Candidate:
    """A lower-precision file outside the bundle.

    Attributes:
        path: the ONNX file.
        precision: ``int8``, ``fp16`` or ``bf16``.
        record: what goes into the manifest.
    """

    path: Path
    precision: str
    record: CalibrationRecord


@contextmanager
def prepare(
    bundle: Bundle, images: ImageSet, method: str = "minmax", cache_dir: Path | None = None, progress: Progress = silent
) -> Iterator[Calibration]:
    """Measure ranges once for any number of candidates, of no images none; the graphs live until the context ends.

    Raises:
        BundleError: if the bundle has no float32 graph.
        CalibrationError, DataError: see :func:`wgap.calibrate.ranges.activation_ranges`.
    """
    toolkit()
    with tempfile.TemporaryDirectory(prefix="wgap-calibrate-") as folder:
        graph = Path(folder) / "float.onnx"
        source = bundle.model_file("fp32")
        float_graph(bundle.content(source), bundle.root / source.path, graph)
        ranges: Ranges = {}
        if images:
            ranges = activation_ranges(
                graph, images, method, cache_dir, lambda items: progress(items, "measuring ranges")
            )
        yield Calibration(bundle, images, method, graph, ranges)


def calibrate(source: Calibration, precision: str, out: Path, keep_float: Collection[str] = ()) -> Candidate:
    """Make one lower-precision file and attest what it runs as.

    Args:
        source: graph, ranges and images.
        precision: ``int8``, ``fp16`` or ``bf16``.
        out: where to write it.
        keep_float: convolutions that stay in float32.

    Raises:
        CheckFailedError: if a convolution meant for INT8 does not run in it.
        CalibrationError: if ``keep_float`` names no convolution, or the network does not fit in float16.
        DataError: if the precision is unknown.
    """
    import onnx
    import onnxruntime

    names = convolutions(source.graph)
    if strange := sorted(set(keep_float) - set(names)):
        raise CalibrationError(f"no convolution is called {strange[0]!r}; the graph has {', '.join(names)}")
    quantisation: dict[str, Any] | None = None
    tightest: tuple[dict[str, Any], ...] | None = None
    if precision == "int8":
        int8_graph(source.graph, source.ranges, out, keep_float)
        kept = [name for name in names if name in set(keep_float)]
        quantisation = {
            "method": source.method,
            "format": "Q/DQ, symmetric int8, weights per channel, activations per tensor",
            "scales": scales(out),
            "attestation": attest_int8(out, len(kept)),
        }
    elif precision in HALVES:
        if source.method != "minmax":
            raise DataError(
                f"{precision} needs the whole range of every activation: method minmax, got {source.method}"
            )
        if precision == "fp16":
            kept = fp16_graph(source.graph, source.ranges, out, keep_float)
            tightest = tuple(asdict(row) for row in headroom(source.graph, source.ranges))
        else:  # bfloat16 holds whatever float32 holds
            kept = bf16_graph(source.graph, out, keep_float)
    else:
        raise DataError(f"unknown precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    record = CalibrationRecord(
        float32_sha256=source.bundle.model_file("fp32").sha256,
        images_sha256=source.images.sha256,
        images=source.images.listing(),
        warnings=source.images.warnings,
        keep_float=tuple(kept),
        tools={
            "wgap": __version__,
            "python": platform.python_version(),
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        quantisation=quantisation,
        headroom=tightest,
    )
    return Candidate(out, precision, record)


def require_gate(backend: str) -> None:
    """Refuse a backend that no gate can run on, before there is work done.

    Raises:
        DataError: it is none of :data:`GATES`.
        MissingDependencyError: its library is not installed.
    """
    if backend not in GATES:
        raise DataError(f"the gate runs on {' or '.join(GATES)}, got {backend!r}")
    require(f"a gate on {backend}", backend)


class GateRun:
    """One set of gate images with float32's observations of them on a backend, against which candidates are judged.

    On ONNX Runtime, whose verdicts engines go by too, half precision is judged with its rounding written out; OpenVINO
    runs the file itself, as it will be run.

    Raises:
        CalibrationError: if float32's own output is not finite.
        DataError, MissingDependencyError: see :func:`require_gate`.
    """

    def __init__(
        self,
        bundle: Bundle,
        images: ImageSet,
        limits: Limits | None = None,
        progress: Progress = silent,
        rule: Rule | None = None,
        backend: str = "onnxruntime",
    ) -> None:
        require_gate(backend)
        self.bundle = bundle
        self.backend = backend
        self.images = images
        self.limits = limits or Limits()
        self.locator = open_locator(bundle, rule)
        self._progress = progress
        with closing(open_network(backend, bundle)) as network:
            self.float32: list[Observation] = observe(
                network, self.locator, images, progress=lambda items: progress(items, "gate, float32")
            )

    @contextmanager
    def network(self, path: Path, precision: str) -> Iterator[Network]:
        """A file, in the bundle or not, as a network that computes what is to be judged."""
        if self.backend == "openvino":
            from wgap.runtime.networks import openvino

            with closing(openvino.file_network(self.bundle, path, NetworkOptions(precision))) as network:
                yield network
            return
        with judgeable(path, precision) as runs:
            yield file_network(self.bundle, runs, precision)

    def judge(self, path: Path, precision: str, calibration: Iterable[ImageHashes]) -> Verdict:
        """Observe one file and compare.

        Args:
            path: the ONNX file, in the bundle or not.
            precision: what it is called.
            calibration: the images it was calibrated on.

        Raises:
            CalibrationError: if a gate image took part in calibration.
        """
        require_disjoint(calibration, self.images)
        with self.network(path, precision) as network:
            seen = observe(
                network, self.locator, self.images, self.float32,
                lambda items: self._progress(items, f"gate, {precision}"),
            )  # fmt: skip
        found = verdict(self.locator.size, self.images, self.float32, seen, self.limits)
        float32, candidate = self.bundle.model_file("fp32").sha256, sha256_of(path)
        emulated = f", {precision} emulated" if self.backend == "onnxruntime" and precision in HALVES else ""
        record = GateRecord(
            found.passed, found.reasons, self.locator.rule, candidate, float32,
            f"{network.name} {network.version}{emulated}", asdict(self.limits), found.figures,
            int8_sums() if precision == "int8" else None,
        )  # fmt: skip
        return replace(found, record=record)


def enter(bundle: Bundle, candidate: Candidate, judged: Verdict | None, made_from: Collection[str] = ()) -> Bundle:
    """Put a file into the bundle: usable if a verdict passed (or all are still to come), else below ``rejected/``.

    Verdicts of other backends on the very file stay, if it is judged now. A rejected file never replaces a usable one;
    a usable one removes an older rejected one. For the rest see :func:`wgap.extend.enter_files`.

    Returns:
        the bundle, opened again.

    Raises:
        BundleError: if the bundle cannot be written, or its float32 model or the candidate was replaced meanwhile; it
            is as it was then.
    """
    with open_regular(candidate.path) as stream:
        content = stream.read()
    digest, record = hashlib.sha256(content).hexdigest(), judged.record if judged else None
    if record is not None and record.candidate_sha256 != digest:
        raise BundleError(f"{candidate.path} was replaced by another process while it was judged; run it again")

    def change(manifest: Manifest) -> Change:
        same = [e for e in manifest.files if e.precision == candidate.precision and e.sha256 == digest]
        gate, gates = (same[0].gate, dict(same[0].gates or {})) if same and record else (None, {})
        if record is not None and (library := record.backend.partition(" ")[0]) in OWN_VERDICT:
            gates[library] = record
        elif record is not None:
            gate = record
        verdicts = [one.passed for one in (gate, *gates.values()) if one is not None]
        role = "onnx" if any(verdicts) or not verdicts else "rejected"
        path = f"{'rejected/' if role == 'rejected' else ''}model.{candidate.precision}.onnx"
        records = {"calibration": candidate.record, "gate": gate, "gates": gates or None}
        file = NewFile(content, path, role, candidate.precision, records)
        return [file], lambda entry: _superseded(entry, candidate.precision, digest, role)

    return change_files(bundle, change, [candidate.record.float32_sha256, *made_from])


def _superseded(entry: BundleFile, precision: str, digest: str, role: str) -> bool:
    """Whether entering the file of that digest under this role removes that entry."""
    if entry.precision != precision or entry.role not in ("onnx", "rejected"):
        return False
    if role in ("onnx", entry.role):
        return True
    return entry.sha256 == digest
