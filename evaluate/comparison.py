"""Two reports of ``wgap bench`` or ``wgap-bench``: which measurements differ by more than noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from wgap.errors import DataError
from wgap.evaluate.latency import Cell, Report, Settings
from wgap.evaluate.statistics import adjusted, difference

__all__ = ["ERROR", "LEAST_CHANGE", "Change", "Comparison", "compare"]

LEAST_CHANGE = 0.01
"""A smaller change of the median is none, however sure."""

ERROR = 0.01
"""Probability of calling anything changed in a comparison of two runs of the same thing."""

Verdict = Literal["slower", "faster", "same"]


@dataclass(frozen=True)
class Change:
    """One measurement of both reports.

    Attributes:
        settings: of it, as the first report has them.
        before_ms: median of ``total`` in the first report.
        after_ms: in the second.
        ratio: the second over the first, see :class:`wgap.evaluate.statistics.Difference`.
        interval: 95 % bootstrap interval of the ratio.
        p: of the permutation test, adjusted for the number of measurements.
        verdict: ``slower`` or ``faster`` where ``p`` is below :data:`ERROR` and the ratio at least
            :data:`LEAST_CHANGE` from 1.
        stages: ratio of the medians of each stage that both have, to see where it comes from; not judged.
    """

    settings: Settings
    before_ms: float
    after_ms: float
    ratio: float
    interval: tuple[float, float]
    p: float
    verdict: Verdict
    stages: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """What changed.

    Attributes:
        changes: one for each measurement of both reports.
        missing: settings that only the first report has.
        added: settings that only the second has.
        notes: what else differs: machine, versions, image.
    """

    changes: tuple[Change, ...]
    missing: tuple[Settings, ...]
    added: tuple[Settings, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing became slower and nothing is missing."""
        return not self.missing and all(change.verdict != "slower" for change in self.changes)


def compare(before: Report, after: Report) -> Comparison:
    """Judge the samples of ``total``.

    Bundles are told apart by the names of their folders, and not at all where each report has one.

    Raises:
        DataError: the reports have no measurement in common, hold no or too few samples, or one measurement twice.
    """
    one_each = all(len({cell.settings.bundle for cell in report.cells}) == 1 for report in (before, after))
    first, second = (_by_settings(report.cells, one_each) for report in (before, after))
    common = [key for key in first if key in second]
    if not common:
        raise DataError("the two reports have no measurement in common; measure with the same options")
    found = [difference(_samples(first[key]), _samples(second[key])) for key in common]
    changes = []
    for key, one, p in zip(common, found, adjusted([one.p for one in found]), strict=True):
        changed = p < ERROR and abs(one.ratio - 1) >= LEAST_CHANGE
        verdict: Verdict = "same" if not changed else "slower" if one.ratio > 1 else "faster"
        a, b = first[key].stages, second[key].stages
        stages = {name: b[name].p50_ms / a[name].p50_ms for name in a if name in b and a[name].p50_ms > 0}
        settings, medians = first[key].settings, (a["total"].p50_ms, b["total"].p50_ms)
        changes.append(Change(settings, *medians, one.ratio, one.interval, p, verdict, stages))
    gone, new = (
        tuple(cell.settings for key, cell in mine.items() if key not in other)
        for mine, other in ((first, second), (second, first))
    )
    return Comparison(tuple(changes), gone, new, tuple(_notes(before, after)))


def _by_settings(cells: Sequence[Cell], one_bundle: bool) -> dict[Settings, Cell]:
    def key(settings: Settings) -> Settings:
        return replace(settings, bundle="" if one_bundle else settings.bundle.rstrip("/").rpartition("/")[2])

    keys = [key(cell.settings) for cell in cells]
    if twice := [settings for settings, count in Counter(keys).items() if count > 1]:
        raise DataError(f"a report has one measurement twice: {twice[0]}")
    return dict(zip(keys, cells, strict=True))


def _samples(cell: Cell) -> tuple[float, ...]:
    if not cell.samples.get("total") or "total" not in cell.stages:
        raise DataError("a report has no samples; write it with wgap bench --export FILE or wgap-bench --json")
    return cell.samples["total"]


def _notes(before: Report, after: Report) -> list[str]:
    def both(name: str, a: Mapping[str, Any], b: Mapping[str, Any], *keys: str) -> list[tuple[str, Any, Any]]:
        return [(f"{name}{key}", a[key], b[key]) for key in keys or a if key in a and key in b]

    pairs = [("program", before.program, after.program)]
    pairs += both("", before.machine, after.machine, "cpu", "cores", "kernel_target")
    pairs += both("", before.versions, after.versions)
    pairs += both("image ", before.image, after.image, "bytes", "width", "height")
    pairs += both("", before.plan, after.plan, "pause_ms", "seconds")
    return [f"{name}: {a}, then {b}" for name, a, b in pairs if a != b]
