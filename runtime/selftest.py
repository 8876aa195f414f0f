"""Does this bundle give here what it gave where it was made? Golden cases against the backend and the kernel.

Needs neither torch nor onnx, so that a bundle can be checked on the machine that is to run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wgap.bundle import Bundle
from wgap.errors import BundleError
from wgap.runtime.localizer import Localizer

__all__ = ["Check", "SelftestReport", "selftest"]

BACKEND_TOLERANCE = 1e-4
"""Features and logits, relative to their largest magnitude: libraries and CPUs add float32 in different orders."""

MAP_TOLERANCE = 1e-6
"""The kernel's normalised map for the golden features, whose maximum is 1."""

BOX_TOLERANCE = 1
"""Map pixels, end to end only: features that differ in the last bits can move an edge by one. The kernel gets none."""


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        case: number of the golden case.
        stage: what was compared.
        measured: the worst difference.
        limit: the largest difference allowed; 0 means identical.
        note: what was expected and what came, where they differ.
    """

    case: int
    stage: str
    measured: float
    limit: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """True when the difference is within its limit (NaN is not)."""
        return self.measured <= self.limit


@dataclass(frozen=True)
class SelftestReport:
    """What ``wgap selftest`` found: one check per golden case and stage."""

    checks: tuple[Check, ...]
    backend: str
    backend_version: str

    @property
    def ok(self) -> bool:
        """True when every check passed."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON."""
        return {
            "ok": self.ok,
            "backend": self.backend,
            "backend_version": self.backend_version,
            "checks": [{**vars(check), "ok": check.ok} for check in self.checks],
        }


def selftest(bundle: Bundle, backend: str = "onnxruntime", threads: int | None = None) -> SelftestReport:
    """Run the bundle's golden cases.

    For each: the backend's features and logits against the golden ones; the kernel on the *golden* features, which must
    give exactly the golden class, level, box and flag; and the whole way from the golden image.

    Args:
        bundle: an opened bundle.
        backend: the backend to test.
        threads: threads of the backend and the kernel; None takes every core.

    Raises:
        BundleError: the bundle has no golden cases, or one of them lacks a tensor.
        BackendError: the backend refuses the model or fails.
    """
    cases = bundle.golden()
    if not cases:
        raise BundleError(f"{bundle.root} holds no golden cases to test against; export it again")
    localizer = Localizer(bundle, backend, threads=threads, map="recombined", threshold="adaptive")
    checks: list[Check] = []
    for number, golden in enumerate(cases):
        try:
            checks += _kernel(number, golden, localizer)
            if "image" in golden:
                checks += _backend(number, golden, localizer)
                checks += _end_to_end(number, golden, localizer)
        except KeyError as error:
            raise BundleError(
                f"{bundle.root}: golden case {number} lacks the tensor {error.args[0]!r}; export the bundle again"
            ) from error
    return SelftestReport(tuple(checks), localizer.backend.name, localizer.backend.version)


def _backend(number: int, golden: dict[str, Any], localizer: Localizer) -> list[Check]:
    import numpy as np

    logits, features = localizer.backend.run(golden["image"][None])
    checks = []
    for stage, got in (("logits", logits[0]), ("features", features[0])):
        expected = golden[stage]
        difference = float(np.abs(got - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
        checks.append(Check(number, stage, difference, BACKEND_TOLERANCE))
    return checks


def _kernel(number: int, golden: dict[str, Any], localizer: Localizer) -> list[Check]:
    import numpy as np

    [[found]] = localizer.boxes(golden["logits"][None], golden["features"][None], heatmap=True)
    difference = float(np.abs(np.asarray(found.heatmap) - golden["map"]).max())
    return [
        _same(number, "kernel class", found.class_id, int(golden["class_id"][0])),
        _same(number, "kernel level", found.level, int(golden["level"][0])),
        _same(number, "kernel threshold", found.threshold, float(golden["threshold"][0])),
        _same(number, "kernel degenerate", bool(found.degenerate), bool(golden["degenerate"][0])),
        _box(number, "kernel box", found.box, golden, 0),
        Check(number, "kernel map", difference, MAP_TOLERANCE),
    ]


def _end_to_end(number: int, golden: dict[str, Any], localizer: Localizer) -> list[Check]:
    found = localizer.one(golden["image"])
    return [
        _same(number, "end to end level", found.level, int(golden["level"][0])),
        _box(number, "end to end box", found.box, golden, BOX_TOLERANCE),
    ]


def _same(number: int, stage: str, got: float, expected: float) -> Check:
    note = "" if got == expected else f"expected {expected}, got {got}"
    return Check(number, stage, abs(got - expected), 0, note)


def _box(number: int, stage: str, got: tuple[float, ...], golden: dict[str, Any], limit: float) -> Check:
    expected = tuple(int(v) for v in golden["box"])
    note = "" if tuple(got) == expected else f"expected {list(expected)}, got {list(got)}"
    return Check(number, stage, max(abs(g - e) for g, e in zip(got, expected, strict=True)), limit, note)
