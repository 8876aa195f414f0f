"""Does this bundle give here what it gave where it was made? Golden cases against the backend and the kernel.

Needs neither torch nor onnx, so that a bundle can be checked on the machine that is to run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wgap.errors import BundleError
from wgap.geometry import iou
from wgap.runtime.locator import Locator, Request
from wgap.runtime.network import Network
from wgap.runtime.postprocess import require_finite

if TYPE_CHECKING:
    from wgap.runtime.localizer import Localizer

__all__ = ["Check", "SelftestReport", "selftest"]

_FEATURE_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "int8": 0.25}
"""Largest difference of features and logits, relative to their largest magnitude: float32 sums in another order, the
rounding of thirteen float16 layers, or single cells that INT8 moves while the box stays (the gate judges those)."""

EXACT = _FEATURE_TOLERANCE["fp32"]

MAP_TOLERANCE = 1e-6
"""Largest difference of the normalised map, whose maximum is 1, for the same features."""

BOX_TOLERANCE = 1
"""Map pixels, end to end only: features that differ in the last bits can move an edge by one. The kernel gets none."""

LOWER_OVERLAP = 0.5
"""IoU of one golden image's boxes at lower precision: the same object, as evaluation counts it. A sanity check;
``wgap gate`` is the measurement."""


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
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when every check passed."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON."""
        return {"ok": self.ok, **vars(self), "checks": [{**vars(check), "ok": check.ok} for check in self.checks]}


def selftest(localizer: Localizer) -> SelftestReport:
    """Run the golden cases of a localizer's bundle through its network and its kernel, wherever those are.

    For each that was made under the localizer's rule (with a warning where there is none: all, each under its own): the
    network's outputs against the golden ones; the kernel on the *golden* outputs, which must give exactly the golden
    class, level, box and flag; and the whole way from the golden image. The golden network is float32: of one of lower
    precision the outputs may differ by its rounding, and the box of the golden class must overlap the golden one.

    Raises:
        BundleError: the bundle has no golden cases, or one of them lacks a tensor.
        BackendError: the backend fails.
    """
    bundle = localizer.bundle
    cases = bundle.golden()
    if not cases:
        raise BundleError(f"{bundle.root} holds no golden cases to test against; export it again")
    rule = localizer.rule
    own = [golden for golden in cases if golden["rule"] == rule]
    checks: list[Check] = []
    for number, golden in enumerate(own or cases):
        locator = localizer.locator.with_rule(golden["rule"])
        try:
            checks += _kernel(number, golden, locator)
            if "image" in golden:
                checks += _network(number, golden, localizer.network)
                checks += _end_to_end(number, golden, localizer.network, locator)
        except KeyError as error:
            raise BundleError(
                f"{bundle.root}: golden case {number} lacks the tensor {error.args[0]!r}; export the bundle again"
            ) from error
    others = () if own else dict.fromkeys(case["rule"] for case in cases)
    warnings = tuple(
        f"nothing was tested under the rule {rule} on the {rule.map} map: golden cases were made under {other} on the "
        f"{other.map} map; export the bundle again under the rule that it shall have"
        for other in others
    )
    return SelftestReport(tuple(checks), localizer.network.name, localizer.network.version, warnings)


def feature_tolerance(precision: str) -> float:
    """What features and logits may differ by at that precision; at one that is not known, what float32 may."""
    return _FEATURE_TOLERANCE.get(precision, EXACT)


def _network(number: int, golden: dict[str, Any], network: Network) -> list[Check]:
    import numpy as np

    checks = []
    for stage, got in network.run(golden["image"][None]).items():
        expected = golden[stage]
        difference = float(np.abs(got[0] - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
        checks.append(Check(number, stage, difference, feature_tolerance(network.precision)))
    return checks


def _kernel(number: int, golden: dict[str, Any], locator: Locator) -> list[Check]:
    import numpy as np

    outputs = {name: golden[name][None] for name in locator.rule.outputs}
    outputs["picture"] = golden.get("image", np.zeros((*locator.size, 3), np.uint8))[None]
    [[found]] = require_finite(locator.locate(outputs, Request(heatmaps=True)))
    difference = float(np.abs(np.asarray(found.heatmap) - golden["map"]).max())
    return [
        _same(number, "kernel class", found.class_id, int(golden["class_id"][0])),
        _same(number, "kernel level", found.level, int(golden["level"][0])),
        _same(number, "kernel threshold", found.threshold, float(golden["threshold"][0])),
        _same(number, "kernel degenerate", found.degenerate, bool(golden["degenerate"][0])),
        _box(number, "kernel box", found.box, golden, 0),
        Check(number, "kernel map", difference, MAP_TOLERANCE),
    ]


def _end_to_end(number: int, golden: dict[str, Any], network: Network, locator: Locator) -> list[Check]:
    lower = feature_tolerance(network.precision) > EXACT
    request = Request([int(golden["class_id"][0])] if lower else None)
    [[found]] = require_finite(network.locate(golden["image"][None], locator, request))
    if lower:
        x0, y0, x1, y1 = map(int, golden["box"])
        shared = iou(found.box, (x0, y0, x1, y1))
        return [Check(number, "end to end box, 1 - IoU", 1 - shared, 1 - LOWER_OVERLAP)]
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
