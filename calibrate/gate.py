"""The gate: what a lower precision costs in boxes, on images that calibration never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from wgap.bundle import Bundle
from wgap.calibrate.images import ImageSet
from wgap.errors import CalibrationError, FeatureError
from wgap.geometry import RIGHT, Box, best_iou, iou, scaled

if TYPE_CHECKING:
    from wgap.runtime.backends import Backend
    from wgap.runtime.postprocess import BoxRecord, Map

__all__ = ["Drift", "Limits", "Observation", "Verdict", "observe", "verdict"]

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
    """What the gate found. ``figures`` are those of :func:`verdict`; ``reasons`` says why it failed."""

    passed: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any]
    limits: Limits
    drifts: tuple[Drift, ...] = field(default=(), compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """What goes into the manifest: everything but the single images."""
        return {"passed": self.passed, "reasons": list(self.reasons), **self.figures, "limits": asdict(self.limits)}


def observe(
    bundle: Bundle,
    backend: Backend,
    images: ImageSet,
    reference: Sequence[Observation] | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = lambda items: items,
    batch_size: int = 8,
) -> list[Observation]:
    """Every image through one network and the kernel, under the bundle's map and threshold.

    Args:
        bundle: classifier, input size, map and threshold.
        backend: the network.
        images: the images.
        reference: float32's observations, whose top-1 classes ``Observation.reference`` follows; None: this *is*
            float32.
        progress: wraps the batches, for a progress bar.
        batch_size: images per forward pass.
    """
    from wgap.runtime.postprocess import Classifier

    classifier = Classifier(bundle.classifier()[0])
    found: list[Observation] = []
    for start in progress(range(0, len(images), batch_size)):
        rows = slice(start, start + batch_size)
        logits, features = backend.run(images.batch(rows))
        for n, picture in enumerate(images.pictures[rows]):
            one = logits[n : n + 1], features[n : n + 1]
            followed = None if reference is None else reference[start + n].top1
            found.append(_observation(bundle, classifier, *one, picture.label, followed))
    return found


def _observation(
    bundle: Bundle, classifier: Any, logits: Any, features: Any, label: int | None, followed: int | None
) -> Observation:
    from wgap.runtime.postprocess import postprocess

    info, defaults = bundle.manifest.model, bundle.manifest.postprocessing

    def box(class_id: int | None) -> BoxRecord:
        return postprocess(
            features, logits, classifier, size=info.input_size, classes=None if class_id is None else [class_id],
            map=cast("Map", defaults.map), threshold=defaults.threshold,
        )[0][0]  # fmt: skip

    try:
        own = box(None)
        same = own if followed is None or followed == own.class_id else box(followed)
        true = None if label is None else cast(Box, box(label).box)
    except FeatureError:
        return Observation(False, -1, None, None, -1, None)
    return Observation(True, own.class_id, cast(Box, own.box), cast(Box, same.box), same.level, true)


def verdict(
    bundle: Bundle,
    images: ImageSet,
    float32: Sequence[Observation],
    candidate: Sequence[Observation],
    limits: Limits,
) -> Verdict:
    """Compare two networks' observations of the same images.

    Raises:
        CalibrationError: if float32's own output is not finite on some image: nothing can be compared with it.
    """
    import numpy as np

    if bad := [p.path for p, seen in zip(images.pictures, float32, strict=True) if not seen.finite]:
        raise CalibrationError(f"{bad[0]}: the float32 network's own output is not finite; nothing to compare with")
    drifts = tuple(map(_drift, [bundle] * len(images), images.pictures, float32, candidate))
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


def _drift(bundle: Bundle, picture: Any, float32: Observation, candidate: Observation) -> Drift:
    size = bundle.manifest.model.input_size
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
