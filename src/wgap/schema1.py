"""Manifests of schema 1, as wgap 0.1 wrote them, in the form of schema 2."""

from __future__ import annotations

from typing import Any

from wgap.errors import RuleError
from wgap.plain import PlainError
from wgap.rule import Rule

__all__ = ["upgraded"]

_ABOUT_ENGINE = (
    "flavor", "version", "architecture", "platform", "profile", "onnx_sha256", "options", "gpu", "driver", "cuda",
    "calibration_sha256", "attestation", "tools",
)  # fmt: skip
_GATE = ("passed", "reasons", "candidate_sha256", "float32_sha256", "backend", "limits")


def upgraded(raw: dict[str, Any]) -> dict[str, Any]:
    """The content of a schema-1 manifest, without its ``schema``, as schema 2 has it.

    Raises:
        PlainError: a field is missing or not of its type; the message names it.
    """
    try:
        model, old = raw["model"], raw["postprocessing"]
        height, width = model["input_size"]
        channels, *sides = model["feature_shape"]
        return {
            "model": {
                "architecture": {
                    "name": model["backbone"],
                    "parameters": {key: model[key] for key in ("width", "stride", "neck", "pooling")},
                },
                "classes": model["classes"],
                "inputs": [_tensor("image", "uint8", [height, width, 3], "NHWC")],
                "outputs": [
                    _tensor("logits", "float32", [len(model["classes"])], "NK"),
                    _tensor("features", "float32", [channels, *sides], "NCHW"),
                ],
            },
            "preprocessing": raw["preprocessing"],
            "rule": _rule(old),
            "files": [_file(entry) for entry in raw["files"]],
            "wgap_version": raw["wgap_version"],
        }
    except KeyError as error:
        raise PlainError(f"{error.args[0]}: missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PlainError):
            raise
        raise PlainError(str(error)) from error


def _tensor(name: str, dtype: str, shape: list[Any], layout: str) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": ["N", *shape], "layout": layout}


def _rule(old: dict[str, Any]) -> dict[str, Any]:
    """``map`` and ``threshold`` to a rule."""
    try:
        return Rule.parse(old["threshold"], old["map"]).to_json()
    except RuleError as error:
        raise PlainError(f"postprocessing: {error}") from error


def _file(entry: dict[str, Any]) -> dict[str, Any]:
    entry = dict(entry)
    made = entry.pop("provenance", {})
    if entry["role"] == "engine":
        entry["engine"] = {key: made[key] for key in _ABOUT_ENGINE if made.get(key) is not None}
    elif "calibration" in made:
        details = made.get("quantisation") or made.get("lowering") or {}
        int8 = {key: value for key, value in details.items() if key != "keep_float"} if "scales" in details else None
        entry["calibration"] = {
            "float32_sha256": made["float32_sha256"],
            "images_sha256": made["calibration"]["sha256"],
            "images": made["calibration"]["images"],
            "warnings": made["calibration"]["warnings"],
            "keep_float": details.get("keep_float", []),
            "tools": made["tools"],
            "quantisation": int8,
            "headroom": details.get("headroom"),
        }
    elif "checkpoint_sha256" in made:
        entry["training"] = made
    if gate := made.get("gate"):
        figures = {k: v for k, v in gate.items() if k not in (*_GATE, "map", "threshold", "disjoint_from_calibration")}
        entry["gate"] = {**{key: gate[key] for key in _GATE}, "rule": _rule(gate), "figures": figures}
    return entry
