"""What a page tells of a bundle: signature, graph, precisions, files, verdicts of the gate, engines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from wgap.onnx_wire import graph_nodes
from wgap.plain import to_plain
from wgap.runtime.engine import engines, stale

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.manifest import BundleFile

__all__ = ["bundle_data"]

MOST_NODES = 400
"""A graph of more is shown by its counts alone."""


def bundle_data(bundle: Bundle) -> dict[str, Any]:
    """A bundle as plain JSON values.

    Lists of calibration images are left out, their count and hash stay.

    Raises:
        BundleError, HashMismatchError: see :meth:`wgap.bundle.Bundle.content`.
    """
    manifest = bundle.manifest
    graphs = {
        entry.path: graph_nodes(bundle.content(entry), bundle.root / entry.path)
        for entry in manifest.files
        if entry.role in ("onnx", "rejected")
    }
    nodes = graphs[bundle.file("onnx", "fp32").path]
    outdated = {entry.path for entry in engines(bundle) if stale(bundle, entry)}
    return {
        "name": bundle.root.absolute().name,
        "wgap_version": manifest.wgap_version,
        "model": to_plain(manifest.model),
        "preprocessing": to_plain(manifest.preprocessing),
        "rule": {"text": str(manifest.rule), **manifest.rule.to_json()},
        "files": [
            {**_entry(entry), "stale": bundle.stale(entry) or entry.path in outdated} for entry in manifest.files
        ],
        "operators": {path: dict(Counter(node.operator for node in found)) for path, found in graphs.items()},
        "graph": [
            {"op": n.operator, "name": n.name, "in": list(n.inputs), "out": list(n.outputs), "weight": list(n.weight)}
            for n in nodes
        ]
        if len(nodes) <= MOST_NODES
        else None,
    }


def _entry(entry: BundleFile) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(entry)
    for record in (plain.get("calibration"), plain.get("foreground")):
        if record:
            record["images"] = len(record["images"])
    return plain
