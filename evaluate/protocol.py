"""A bundle over a labelled image set with boxes: every image once through the network, every rule over its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wgap._native import LEVELS
from wgap.bundle import Bundle
from wgap.datasets import Dataset
from wgap.datasets.label_map import class_ids
from wgap.errors import DataError
from wgap.evaluate.batches import Loaded, batches
from wgap.evaluate.metrics import ImageScore, Summary
from wgap.geometry import RIGHT, Box, best_iou, centred_box, scaled
from wgap.rule import MAPS, Map, Rule
from wgap.runtime.cuda.arrays import to_host
from wgap.runtime.locator import Request
from wgap.runtime.postprocess import require_finite

if TYPE_CHECKING:
    from wgap._native import BoxRecord
    from wgap.runtime.localizer import Localizer
    from wgap.runtime.network import Outputs

ABLATION_RULES = ("fixed:0.15", "fixed:0.2", "adaptive")


@dataclass(frozen=True)
class ImageResult:
    """One image under every rule.

    Attributes:
        path: the image file.
        label: class id of the truth, of several the most probable one; None where the model has no such class.
        predicted: top-1 class id.
        score: its softmax probability.
        size: original (H, W) in pixels.
        truth: boxes, half-open, original pixels.
        box: box of the label's map under the first rule, of the top-1 class's without a label; half-open, original
            pixels.
        scores: one per rule, in order.
        level_ious: per map, the IoU at each threshold l / 20, l = 0..19, of the label's map; of ``foreground`` at 20
            levels evenly spaced over the scores' own range. Uses the true box.
        centred_iou: IoU of a centred box of half the image's area.
    """

    path: Path
    label: int | None
    predicted: int
    score: float
    size: tuple[int, int]
    truth: list[Box]
    box: Box
    scores: tuple[ImageScore, ...]
    level_ious: dict[str, tuple[float, ...]]
    centred_iou: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured.

    Attributes:
        rules: the rules, the asked-for one first.
        images: one result per readable image, in the set's order.
        skipped: (path, reason) of unreadable images; they count nowhere.
        max_boxes: boxes that a class could have.
    """

    rules: tuple[Rule, ...]
    images: tuple[ImageResult, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())
    max_boxes: int = 1

    def summary(self, rule: int = 0) -> Summary:
        """Fractions under one rule."""
        return Summary.of((image.scores[rule] for image in self.images), self.max_boxes)

    def oracle(self, kind: str) -> dict[str, float]:
        """GT-known localization if each image had the best of the 20 thresholds: an upper bound that uses the truth."""
        best = [max(image.level_ious[kind]) for image in self.images]
        return {"gt_known_loc": _share(best), "mean_iou": sum(best) / len(best)}

    def best_fixed(self, kind: str) -> dict[str, float]:
        """The one threshold that suits these very images best: tuned on the truth, an upper bound for a fixed rule."""
        shares = [_share([image.level_ious[kind][level] for image in self.images]) for level in range(LEVELS)]
        level = max(range(LEVELS), key=lambda index: (shares[index], -index))
        return {"eta": level / LEVELS, "gt_known_loc": shares[level]}

    def to_json(self) -> dict[str, Any]:
        """The asked-for rule's summary, baselines, skipped images, and the ablation where more rules were asked for."""
        rule = self.rules[0]
        centred = [image.centred_iou for image in self.images]
        report = {
            **vars(self.summary()),
            "labelled": sum(image.label is not None for image in self.images),
            "map": rule.map,
            "threshold": str(rule),
            "oracle": {**self.oracle(_swept(rule)), "uses_ground_truth": True},
            "centred_box": {"gt_known_loc": _share(centred), "mean_iou": sum(centred) / len(centred)},
            "skipped": [{"image": path, "error": error} for path, error in self.skipped],
        }
        if len(self.rules) > 1:
            report["ablation"] = [
                {"map": rule.map, "threshold": str(rule), **vars(self.summary(index))}
                for index, rule in enumerate(self.rules)
                if index > 0
            ]
            report["upper_bounds"] = [
                {
                    "map": kind,
                    "uses_ground_truth": True,
                    **({} if kind == "foreground" else {"best_fixed": self.best_fixed(kind)}),
                    "oracle": self.oracle(kind),
                }
                for kind in self.images[0].level_ious
            ]
        return report


def ablation_rules(bundle: Bundle) -> list[Rule]:
    """Every map with CAM's fixed thresholds and the adaptive rule; the foreground rules if the network has scores."""
    rules = [Rule.parse(text, kind) for kind in MAPS for text in ABLATION_RULES]
    foreground = "foreground" in bundle.manifest.model.signature()
    return rules + ([Rule("foreground"), Rule("foreground+colour")] if foreground else [])


def _swept(rule: Rule) -> str:
    """What a rule cuts: a class's map, by its name, or ``foreground``."""
    return "foreground" if rule.on_scores else rule.map


def evaluate_localizer(
    localizer: Localizer,
    dataset: Dataset,
    further: Sequence[Rule] = (),
    *,
    batch_size: int = 8,
    max_bad: int = 10,
    progress: Callable[[Sequence[Any]], Any] = lambda items: items,
) -> Evaluation:
    """Score a localizer on a labelled set whose boxes are known.

    Features are computed once per image; every rule, and every fixed threshold l / 20, is applied to them. GT-known
    localization draws the box from the *label's* map, Top-1 localization from the *predicted* class's map. Where the
    model does not know an image's class, GT-known localization draws it from the predicted class's, too, and the image
    counts for no figure of classes.

    Args:
        localizer: network, kernel, rule and boxes per class; each is used where it is, on the CPU or on a GPU.
        dataset: one split; its class names are the bundle's, in any order, or it has a label map, or none of them is
            the bundle's.
        further: rules to measure besides the localizer's own.
        batch_size: images per forward pass.
        max_bad: how many unreadable images to skip, by name, before giving up.
        progress: wraps the sequence of batches, for a progress bar.

    Raises:
        DataError: if class names differ in part, the set has no boxes, or more than ``max_bad`` images are unreadable.
        FeatureError: the network's output for an image is not finite.
    """
    rules = (localizer.rule, *further)
    ids = class_ids(localizer.classes, dataset)
    skipped: list[tuple[str, str]] = []
    images: list[ImageResult] = []
    for batch in batches(
        dataset.samples, range(len(ids)), dataset.boxes(), localizer.locator.size, batch_size, max_bad, skipped,
        progress,
    ):  # fmt: skip
        if batch.pixels is not None:
            known = [ids[image.label] for image in batch.images]
            images += _score_batch(localizer, rules, batch.images, known, batch.pixels)
    if not images:
        raise DataError(f"{dataset.root}: no image of split {dataset.split!r} could be read")
    return Evaluation(rules, tuple(images), tuple(skipped), localizer.max_boxes)


def _score_batch(
    localizer: Localizer, rules: Sequence[Rule], readable: Sequence[Loaded[list[Box]]],
    candidates: Sequence[tuple[int, ...]], pixels: Any,
) -> Iterator[ImageResult]:  # fmt: skip
    size, labels = localizer.locator.size, []
    found: list[tuple[list[BoxRecord], list[BoxRecord]]] = [([], []) for _ in rules]
    kinds = dict.fromkeys(map(_swept, rules))
    swept: dict[str, list[list[BoxRecord]]] = {kind: [[] for _ in range(LEVELS)] for kind in kinds}

    def locate(outputs: Outputs, rule: Rule, request: Request) -> list[BoxRecord]:
        return [row[0] for row in require_finite(localizer.locator.with_rule(rule).locate(outputs, request))]

    names = sorted({name for rule in rules for name in rule.outputs})
    for rows, part in localizer.network.parts(pixels):
        with localizer.network.forward(part, outputs=names) as given:
            outputs, logits = {**given, "picture": part}, to_host(given["logits"])
            own = [
                max(ids, key=row.__getitem__, default=None) for ids, row in zip(candidates[rows], logits, strict=True)
            ]
            asked = [int(row.argmax()) if label is None else label for label, row in zip(own, logits, strict=True)]
            for both, rule in zip(found, rules, strict=True):
                for records, classes in zip(both, (asked, None), strict=True):
                    records.extend(locate(outputs, rule, Request(classes, max_boxes=localizer.max_boxes)))
            for kind, levels in swept.items():
                for records, (cut, rule) in zip(levels, _levels(kind, outputs), strict=True):
                    records.extend(locate(cut, rule, Request(asked)))
            labels += own
    for i, image in enumerate(readable):
        truths = [scaled(box, image.size, size) for box in image.truth]
        predicted = found[0][1][i]
        yield ImageResult(
            path=image.path,
            label=labels[i],
            predicted=predicted.class_id,
            score=predicted.score,
            size=image.size,
            truth=image.truth,
            box=scaled(found[0][0][i].box, size, image.size),
            scores=tuple(_score(labels[i], gt[i], top1[i], truths, size) for gt, top1 in found),
            level_ious={
                kind: tuple(best_iou(records[i].box, truths, size) for records in cuts) for kind, cuts in swept.items()
            },
            centred_iou=best_iou(centred_box(size), truths, size),
        )


def _levels(kind: str, outputs: Outputs) -> Iterator[tuple[Outputs, Rule]]:
    """For each of the 20 levels what to give the kernel, and the rule that cuts it there."""
    import numpy as np

    if kind != "foreground":
        for level in range(LEVELS):
            yield outputs, Rule("fixed", cast("Map", kind), level / LEVELS)
        return
    scores = to_host(outputs["foreground"])
    low, high = scores.min(axis=(1, 2, 3), keepdims=True), scores.max(axis=(1, 2, 3), keepdims=True)
    for level in range(LEVELS):
        yield {**outputs, "foreground": scores - (low + np.float32(level / LEVELS) * (high - low))}, Rule("foreground")


def _score(label: int | None, gt: BoxRecord, top1: BoxRecord, truths: list[Box], size: tuple[int, int]) -> ImageScore:
    return ImageScore(
        correct=None if label is None else top1.class_id == label,
        gt_iou=best_iou(gt.box, truths, size),
        top1_iou=best_iou(top1.box, truths, size),
        level=gt.level,
        degenerate=gt.degenerate,
        boxes=len(gt.boxes),
        right=sum(best_iou(box, truths, size) >= RIGHT for box in gt.boxes),
        truths=len(truths),
        found=sum(any(best_iou(box, [truth], size) >= RIGHT for box in gt.boxes) for truth in truths),
    )


def one_class_id(localizer: Localizer, dataset: Dataset) -> list[int]:
    """The bundle's class id of each of the set's labels, for figures that are made by class.

    Raises:
        DataError: names differ, or the set's label map gives a class none or several of the model's.
    """
    ids = class_ids(localizer.classes, dataset)
    for name, known in zip(dataset.classes, ids, strict=True):
        if len(known) != 1:
            raise DataError(
                f"{dataset.root}: expected one class of the model's for {name!r}, got {len(known)}: these figures are "
                "made by class. Say with --label-map which one, or take the plain figures of `wgap evaluate`"
            )
    return [known for [known] in ids]


def _share(ious: Sequence[float]) -> float:
    return sum(iou >= RIGHT for iou in ious) / len(ious)
