"""Manifests of schema 1, as wgap 0.1 wrote them, read as what schema 2 says.

Schema 1 kept what a file was made from in one free object, ``provenance``; fields of it that are not known here are
left out. A gate's verdict keeps the rule that it was made under, ``map`` and ``threshold``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from wgap.errors import RuleError
from wgap.manifest import (
    Architecture,
    BundleFile,
    CalibrationRecord,
    EngineRecord,
    GateRecord,
    ImageHashes,
    Manifest,
    ModelInfo,
    TrainingRecord,
)
from wgap.plain import PlainError, from_plain
from wgap.preprocessing import Preprocessing
from wgap.rule import Rule

__all__ = ["upgraded"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Model:
    backbone: str
    width: float
    stride: int
    neck: str
    pooling: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    feature_shape: tuple[int, int, int]


@dataclass(frozen=True)
class _Postprocessing:
    map: str = "recombined"
    threshold: str = "adaptive"


@dataclass(frozen=True)
class _File:
    path: str
    role: str
    precision: str
    sha256: str
    size: int
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Manifest:
    model: _Model
    preprocessing: Preprocessing
    postprocessing: _Postprocessing
    files: tuple[_File, ...]
    wgap_version: str


@dataclass(frozen=True)
class _Images:
    sha256: str
    images: tuple[ImageHashes, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Lowered:
    """``provenance`` of a lower-precision file."""

    float32_sha256: str
    calibration: _Images
    tools: dict[str, str]
    quantisation: dict[str, Any] | None = None
    lowering: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Details:
    """``quantisation`` (INT8) or ``lowering`` (the halves) of it."""

    keep_float: tuple[str, ...] = ()
    headroom: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class _Gate:
    passed: bool
    reasons: tuple[str, ...]
    map: str
    threshold: str
    candidate_sha256: str
    float32_sha256: str
    backend: str
    limits: dict[str, float]


def upgraded(raw: dict[str, Any]) -> Manifest:
    """The manifest that the content of a schema-1 file stands for.

    Raises:
        PlainError: a field is missing or not of its type; the message starts with its path in that file.
    """
    old = _known(_Manifest, raw, "")
    model = old.model
    parameters = {"width": model.width, "stride": model.stride, "neck": model.neck, "pooling": model.pooling}
    return Manifest(
        ModelInfo.of(Architecture(model.backbone, parameters), model.classes, model.input_size, model.feature_shape),
        old.preprocessing,
        _rule(old.postprocessing, "postprocessing"),
        tuple(_file(entry, f"files[{number}].provenance") for number, entry in enumerate(old.files)),
        old.wgap_version,
    )


def _known(kind: type[T], value: Any, path: str) -> T:
    """Those fields of an object that are known."""
    names = {known.name for known in fields(kind)}  # type: ignore[arg-type]
    return from_plain(kind, {k: v for k, v in value.items() if k in names} if isinstance(value, dict) else value, path)


def _rule(old: _Postprocessing | _Gate, path: str) -> Rule:
    try:
        return Rule.parse(old.threshold, old.map)
    except RuleError as error:
        raise PlainError(f"{path}: {error}") from error


def _file(old: _File, path: str) -> BundleFile:
    made = old.provenance
    return BundleFile(
        old.path,
        old.role,
        old.precision,
        old.sha256,
        old.size,
        training=_known(TrainingRecord, made, path) if "checkpoint_sha256" in made else None,
        calibration=_calibration(made, path) if "calibration" in made and old.role != "engine" else None,
        gate=_gate(made["gate"], f"{path}.gate") if "gate" in made else None,
        engine=_known(EngineRecord, made, path) if old.role == "engine" else None,
    )


def _calibration(made: dict[str, Any], path: str) -> CalibrationRecord:
    old = _known(_Lowered, made, path)
    stage = "lowering" if old.quantisation is None else "quantisation"
    details = _known(_Details, made.get(stage, {}), f"{path}.{stage}")
    int8 = None if old.quantisation is None else {k: v for k, v in old.quantisation.items() if k != "keep_float"}
    return CalibrationRecord(
        old.float32_sha256,
        old.calibration.sha256,
        old.calibration.images,
        old.calibration.warnings,
        details.keep_float,
        old.tools,
        int8,
        details.headroom,
    )


def _gate(made: dict[str, Any], path: str) -> GateRecord:
    old = _known(_Gate, made, path)
    known = {*vars(old), "disjoint_from_calibration"}
    return GateRecord(
        old.passed,
        old.reasons,
        _rule(old, path),
        old.candidate_sha256,
        old.float32_sha256,
        old.backend,
        old.limits,
        {key: value for key, value in made.items() if key not in known},
    )
