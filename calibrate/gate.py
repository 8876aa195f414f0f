"""The gate: what a lower precision costs in boxes, on images that calibration never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from wgap.calibrate.images import ImageSet
from wgap.errors import CalibrationError
from wgap.geometry import RIGHT, Box, best_iou, iou, scaled
from wgap.manifest import GateRecord
from wgap.runtime.locator import Request

if TYPE_CHECKING:
    from wgap.runtime.locator import Locator
    from wgap.runtime.network import Network

__all__ = ["Drift", "Limits", "Observation", "Verdict", "observe", "verdict"]

BATCH = 8
"""Images per forward pass."""

RESAMPLES = 10_000
"""Of the paired bootstrap; its seed is fixed, so that a verdict repeats."""


@dataclass(frozen=True)
class Limits:
    """What a lower precision may cost.

    Attributes:
        max_drop: largest loss of GT-known and of Top-1 localization, as a share of the images with boxes.
        min_iou: smallest mean IoU of the boxes against float32's, for the same class.
        min_agreement: smallest share of equal top-1 classes.
    """

    max_drop: float = 0.01
    min_iou: float = 0.98
    min_agreement: float = 0.98

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise CalibrationError(f"{name} is a share of 0..1, got {value}")


class Observation(NamedTuple):
    """One image through one network.

    ``top1`` is its class; ``own`` the box of that class's map; ``reference`` and ``level`` the box and level of
    the map of float32's top-1 class; ``label`` the box of the true class's map, None where it is
    unknown. Boxes on the map, half-open. ``finite`` is False where features or logits held NaN or infinity: every box
    is then None.
    """

    finite: bool
    top1: int
    own: Box | None
    reference: Box | None
    level: int
    label: Box | None


@dataclass(frozen=True)
class Drift:
    """One image: float32 against the candidate.

    Attributes:
        image: its path.
        same_class: equal top-1 class.
        iou: of the two boxes of float32's top-1 class; 0 where the candidate's output is not finite.
        level_flip: another threshold level was chosen.
        gt_known: (float32, candidate) whether the box of the true class is right; None without true boxes.
        top1_loc: (float32, candidate) whether class and box are right; likewise.
    """

    image: str
    same_class: bool
    iou: float
    level_flip: bool
    gt_known: tuple[bool, bool] | None
    top1_loc: tuple[bool, bool] | None


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    ``figures`` are those of :func:`verdict`; ``reasons`` says why it failed; ``record`` is what goes into the manifest,
    once it is known which files and which rule it holds for (:meth:`wgap.calibrate.candidate.GateRun.judge`).
    """

    passed: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any]
    limits: Limits
    drifts: tuple[Drift, ...] = field(default=(), compare=False, repr=False)
    record: GateRecord | None = None


def observe(
    network: Network, locator: Locator, images: ImageSet, reference: Sequence[Observation] | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = lambda items: items,
) -> list[Observation]:  # fmt: skip
    """Every image through one network and the kernel.

    Args:
        network: the network.
        locator: the kernel, under the rule whose boxes count.
        images: the images.
        reference: float32's observations, whose top-1 classes ``Observation.reference`` follows; None: this *is*
            float32.
        progress: wraps the batches, for a progress bar.
    """
    found: list[Observation] = []
    for start in progress(range(0, len(images), BATCH)):
        rows = slice(start, start + BATCH)
        labels = [picture.label for picture in images.pictures[rows]]
        batch = images.batch(rows)
        with network.forward(batch, outputs=locator.rule.outputs) as given:
            outputs = {**given, "picture": batch}
            own = [row[0] for row in locator.locate(outputs)]
            top = [0 if record.error else record.class_id for record in own]
            followed = top if reference is None else [max(seen.top1, 0) for seen in reference[rows]]
            asked = [which if label is None else label for which, label in zip(top, labels, strict=True)]
            same, true = (locator.locate(outputs, Request(classes)) for classes in (followed, asked))
        for n, record in enumerate(own):
            if record.error:
                found.append(Observation(False, -1, None, None, -1, None))
                continue
            label_box = None if labels[n] is None else true[n][0].box
            found.append(Observation(True, record.class_id, record.box, same[n][0].box, same[n][0].level, label_box))
    return found


def verdict(
    size: tuple[int, int], images: ImageSet, float32: Sequence[Observation], candidate: Sequence[Observation],
    limits: Limits,
) -> Verdict:  # fmt: skip
    """Compare two networks' observations of the same images, boxes on a map of ``size`` (H, W).

    Raises:
        CalibrationError: if float32's own output is not finite on some image: nothing can be compared with it.
    """
    import numpy as np

    if bad := [p.path for p, seen in zip(images.pictures, float32, strict=True) if not seen.finite]:
        raise CalibrationError(f"{bad[0]}: the float32 network's own output is not finite; nothing to compare with")
    drifts = tuple(map(_drift, [size] * len(images), images.pictures, float32, candidate))
    ious = np.array([drift.iou for drift in drifts])
    agreement = sum(drift.same_class for drift in drifts) / len(drifts)
    figures: dict[str, Any] = {
        "images": len(drifts),
        "images_sha256": images.sha256,
        "top1_agreement": agreement,
        "box_iou": {
            "mean": float(ious.mean()),
            "interval": _interval(ious),
            "p5": float(np.percentile(ious, 5)),
            "share_below_0.9": float((ious < 0.9).mean()),
            "worst": float(ious.min()),
        },
        "level_flips": sum(drift.level_flip for drift in drifts),
        "not_finite": sum(not seen.finite for seen in candidate),
        "warnings": list(images.warnings),
    }
    reasons = []
    if figures["not_finite"]:
        reasons.append(f"features or logits are not finite on {figures['not_finite']} of {len(drifts)} images")
    if agreement < limits.min_agreement:
        reasons.append(f"top-1 agrees on {agreement:.3f} of the images, at least {limits.min_agreement:g} required")
    if ious.mean() < limits.min_iou:
        reasons.append(f"mean box IoU {ious.mean():.4f}, at least {limits.min_iou:g} required")
    for name, title in (("gt_known", "GT-known localization"), ("top1_loc", "Top-1 localization")):
        pairs = [pair for drift in drifts if (pair := getattr(drift, name)) is not None]
        if not pairs:
            figures[name] = None
            continue
        hits = np.array(pairs, float)
        change = hits[:, 1] - hits[:, 0]
        figures[name] = {
            "images": len(pairs),
            "float32": float(hits[:, 0].mean()),
            "candidate": float(hits[:, 1].mean()),
            "change": float(change.mean()),
            "interval": _interval(change),
            "images_lost": int((change < 0).sum()),
            "images_won": int((change > 0).sum()),
        }
        if name == "gt_known" and len(pairs) * limits.max_drop < 1:
            figures["warnings"].append(
                f"one of {len(pairs)} images with boxes weighs {1 / len(pairs):.3f}, more than the allowed drop of "
                f"{limits.max_drop:g}: losing a single one refuses the file; judge on more images"
            )
        if -change.mean() > limits.max_drop + 1e-12:
            reasons.append(f"{title} drops by {-change.mean():.4f}, at most {limits.max_drop:g} allowed")
    return Verdict(not reasons, tuple(reasons), figures, limits, drifts)


def _drift(size: tuple[int, int], picture: Any, float32: Observation, candidate: Observation) -> Drift:
    truth = [scaled(box, picture.size, size) for box in picture.boxes]

    def right(box: Box | None) -> bool:
        return box is not None and best_iou(box, truth, size) >= RIGHT

    known = bool(truth) and picture.label is not None
    return Drift(
        image=str(picture.path),
        same_class=float32.top1 == candidate.top1,
        iou=iou(cast(Box, float32.reference), candidate.reference) if candidate.reference else 0.0,
        level_flip=float32.level != candidate.level,
        gt_known=(right(float32.label), right(candidate.label)) if known else None,
        top1_loc=(
            (float32.top1 == picture.label and right(float32.own)),
            (candidate.top1 == picture.label and right(candidate.own)),
        )
        if known
        else None,
    )


def _interval(values: Any) -> list[float]:
    """95 % percentile interval of the mean, resampling images: paired, since each value compares one image."""
    import numpy as np

    rng = np.random.default_rng(0)
    values = np.asarray(values)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return [float(low), float(high)]
