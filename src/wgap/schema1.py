"""Manifests of schema 1, as wgap 0.1 wrote them, read as what schema 2 says.

Schema 1 kept what a file was made from in one free object, ``provenance``; fields of it that are not known here are
left out. A gate's verdict keeps the rule that it was made under, ``map`` and ``threshold``.
"""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import Any

from wgap import manifest as schema2
from wgap.errors import RuleError
from wgap.plain import PlainError, from_plain
from wgap.preprocessing import Preprocessing
from wgap.rule import Rule

__all__ = ["upgraded"]


def _object(**members: Any) -> Any:
    """An object of that file: for each field its type, or its type and its default."""
    return make_dataclass(
        "_", [(name, *kind) if type(kind) is tuple else (name, kind) for name, kind in members.items()]
    )


_FREE = dict[str, Any]
_MODEL = _object(
    backbone=str, width=float, stride=int, neck=str, pooling=str, classes=tuple[str, ...], input_size=tuple[int, int],
    feature_shape=tuple[int, int, int],
)  # fmt: skip
_POSTPROCESSING = _object(map=(str, "recombined"), threshold=(str, "adaptive"))
_FILE = _object(
    path=str, role=str, precision=str, sha256=str, size=int, provenance=(_FREE, field(default_factory=dict)),
)  # fmt: skip
_MANIFEST = _object(
    model=_MODEL, preprocessing=Preprocessing, postprocessing=_POSTPROCESSING,
    files=tuple[_FILE, ...],  # type: ignore[valid-type]
    wgap_version=str,
)  # fmt: skip
_IMAGES = _object(sha256=str, images=tuple[schema2.ImageHashes, ...], warnings=tuple[str, ...])
_LOWERED = _object(  # provenance of a lower-precision file: quantisation for INT8, lowering for the halves
    float32_sha256=str, calibration=_IMAGES, tools=dict[str, str],
    quantisation=(_FREE | None, None), lowering=(_FREE | None, None),
)  # fmt: skip
_DETAILS = _object(keep_float=(tuple[str, ...], ()), headroom=(tuple[_FREE, ...] | None, None))  # of either
_GATE = _object(
    passed=bool, reasons=tuple[str, ...], map=str, threshold=str, candidate_sha256=str, float32_sha256=str,
    backend=str, limits=dict[str, float],
)  # fmt: skip


def upgraded(raw: dict[str, Any]) -> schema2.Manifest:
    """The manifest that the content of a schema-1 file stands for.

    Raises:
        PlainError: a field is missing or not of its type; the message starts with its path in that file.
    """
    old = _known(_MANIFEST, raw, "")
    model = old.model
    parameters = {"width": model.width, "stride": model.stride, "neck": model.neck, "pooling": model.pooling}
    return schema2.Manifest(
        schema2.ModelInfo.of(
            schema2.Architecture(model.backbone, parameters), model.classes, model.input_size, model.feature_shape
        ),
        old.preprocessing,
        _rule(old.postprocessing, "postprocessing"),
        tuple(_file(entry, f"files[{number}].provenance") for number, entry in enumerate(old.files)),
        old.wgap_version,
    )


def _known(kind: Any, value: Any, path: str) -> Any:
    """Those fields of an object that are known."""
    names = {known.name for known in fields(kind)}
    return from_plain(kind, {k: v for k, v in value.items() if k in names} if isinstance(value, dict) else value, path)


def _rule(old: Any, path: str) -> Rule:
    try:
        return Rule.parse(old.threshold, old.map)
    except RuleError as error:
        raise PlainError(f"{path}: {error}") from error


def _file(old: Any, path: str) -> schema2.BundleFile:
    made = old.provenance
    return schema2.BundleFile(
        old.path, old.role, old.precision, old.sha256, old.size,
        training=_known(schema2.TrainingRecord, made, path) if "checkpoint_sha256" in made else None,
        calibration=_calibration(made, path) if "calibration" in made and old.role != "engine" else None,
        gate=_gate(made["gate"], f"{path}.gate") if "gate" in made else None,
        engine=_known(schema2.EngineRecord, made, path) if old.role == "engine" else None,
    )  # fmt: skip


def _calibration(made: dict[str, Any], path: str) -> schema2.CalibrationRecord:
    old = _known(_LOWERED, made, path)
    stage = "lowering" if old.quantisation is None else "quantisation"
    details = _known(_DETAILS, made.get(stage, {}), f"{path}.{stage}")
    int8 = None if old.quantisation is None else {k: v for k, v in old.quantisation.items() if k != "keep_float"}
    images = old.calibration
    return schema2.CalibrationRecord(
        old.float32_sha256, images.sha256, images.images, images.warnings, details.keep_float, old.tools, int8,
        details.headroom,
    )  # fmt: skip


def _gate(made: dict[str, Any], path: str) -> schema2.GateRecord:
    old = _known(_GATE, made, path)
    figures = {key: value for key, value in made.items() if key not in {*vars(old), "disjoint_from_calibration"}}
    return schema2.GateRecord(
        old.passed, old.reasons, _rule(old, path), old.candidate_sha256, old.float32_sha256, old.backend, old.limits,
        figures,
    )  # fmt: skip
