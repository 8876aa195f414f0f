"""Optional dependencies by the extra that installs them, asked for before the work and not in the middle of it."""

from __future__ import annotations

import importlib.util

from wgap.errors import MissingDependencyError

EXTRAS = {
    "torch": "train", "lightning_fabric": "train", "onnxscript": "train", "onnxruntime": "cpu", "onnx": "calibrate",
    "ml_dtypes": "calibrate", "matplotlib": "calibrate", "openvino": "openvino", "pyarrow": "shards",
    "fsspec": "shards", "tritonclient": "serve", "ray": "ray",
}  # fmt: skip
"""Top-level module to extra."""


def require(what: str, *modules: str) -> None:
    """Refuse to begin what needs these modules unless they are installed; nothing is imported.

    Raises:
        MissingDependencyError: naming those that are not there, and the command that installs them.
    """
    if absent := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise missing(what, *absent)


def missing(what: str, *modules: str) -> MissingDependencyError:
    """The error for modules that are not installed."""
    extras = ",".join(dict.fromkeys(EXTRAS[name] for name in modules))
    verb = "are" if len(modules) > 1 else "is"
    return MissingDependencyError(
        f"{what} needs {' and '.join(modules)}, which {verb} not installed: pip install 'wgap[{extras}]'"
    )
