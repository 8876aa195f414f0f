"""A bundle under a protocol of the field: MaxBoxAcc, MaxBoxAccV2 or PxAP, over a set of any size in flat memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from wgap.datasets import Dataset
from wgap.datasets.dataset import Masks
from wgap.errors import DataError
from wgap.evaluate.batches import Loaded, Progress, batches
from wgap.evaluate.box_accuracy import ALL, LARGEST, BoxAccuracy
from wgap.evaluate.counts import Counts, Scored, StateFile
from wgap.evaluate.pixel_precision import PixelPrecision, read_mask
from wgap.evaluate.protocol import one_class_id
from wgap.evaluate.score_maps import grid, normalised
from wgap.runtime.cuda.arrays import to_host
from wgap.runtime.locator import Request
from wgap.runtime.postprocess import require_finite

if TYPE_CHECKING:
    from wgap.geometry import Box
    from wgap.runtime.localizer import Localizer

    Truth = list[Box] | Masks

__all__ = ["PROTOCOLS", "Protocol", "ProtocolReport", "evaluate_protocol"]

ProtocolName = Literal["maxboxacc", "maxboxaccv2", "pxap"]

PROTOCOLS: tuple[ProtocolName, ...] = ("maxboxacc", "maxboxaccv2", "pxap")
"""``maxboxacc`` and ``maxboxaccv2`` count the same; Top-k localization, errors and the table of classes are of the
largest contour's box under the first, of the best of all contours' under the second."""

SAVE_EVERY = 500
"""Images after which counts are written."""


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        name: one of ``PROTOCOLS``.
        step: between thresholds; 1 is a multiple of it.
        masks: folder of the masks, where it is not the set's own.

    Raises:
        DataError: the name or the step is not as above.
    """

    name: ProtocolName
    step: float = 0.01
    masks: Path | None = None

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise DataError(f"unknown protocol {self.name!r}; expected one of {', '.join(PROTOCOLS)}")
        grid(self.step)
        if self.masks is not None and self.name != "pxap":
            raise DataError(f"--masks is of the protocol pxap; {self.name} reads boxes")

    @staticmethod
    def parse(name: str, step: float = 0.01, masks: Path | None = None) -> Protocol:
        """The protocol of that name in any case of letters, ``MaxBoxAccV2`` as well."""
        return Protocol(cast("ProtocolName", name.lower()), step, masks)

    def counts(self, classes: int) -> Counts:
        """Nothing counted yet."""
        return (PixelPrecision if self.name == "pxap" else BoxAccuracy)(classes, grid(self.step))

    def truths(self, dataset: Dataset) -> Sequence[Truth]:
        """Boxes or masks of each sample."""
        return dataset.masks(self.masks) if self.name == "pxap" else dataset.boxes()


@dataclass(frozen=True)
class ProtocolReport:
    """What a protocol measured.

    Attributes:
        protocol: which.
        map: whose scores were cut: a class map's name, or ``foreground``.
        split: whose images were scored.
        tuned_on: the split on whose boxes thresholds were chosen; None where there is none to choose.
        counts: of the scored split.
        tuning: of the split that thresholds were chosen on; None where it is the scored one.
        classes: names.
        skipped: (path, reason) of unreadable images of both; they count nowhere.
    """

    protocol: Protocol
    map: str
    split: str
    tuned_on: str | None
    counts: Counts
    tuning: BoxAccuracy | None
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, as fractions; thresholds are of the split ``tuned_on``."""
        counts, name = self.counts, self.protocol.name
        report = {
            "protocol": name,
            "split": self.split,
            "images": int(counts.arrays["images"].sum()),
            "map": self.map,
            "threshold_step": self.protocol.step,
        }
        if isinstance(counts, BoxAccuracy):
            chosen = (self.tuning or counts).best()
            report |= {"tuned_on": self.tuned_on, "uses_ground_truth": self.tuning is None}
            report |= counts.report(chosen, LARGEST if name == "maxboxacc" else ALL, self.classes)
        else:
            report |= cast("PixelPrecision", counts).report(self.classes)
        return {**report, "skipped": [{"image": path, "error": error} for path, error in self.skipped]}


def evaluate_protocol(
    localizer: Localizer,
    dataset: Dataset,
    protocol: Protocol,
    tune: Dataset | None = None,
    *,
    batch_size: int = 8,
    max_bad: int = 10,
    state: Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress = lambda items: items,
) -> ProtocolReport:
    """Score a localizer as the public wsolevaluation code scores score maps.

    The map of each image's *label* is cut, as the localizer's heat map shows it: the rule's map at the network's input
    size, or of a foreground rule the positive scores. The rule's own threshold plays no part.

    Args:
        localizer: network and map.
        dataset: the split to score.
        protocol: what to measure.
        tune: another split of the set, on whose boxes thresholds are chosen; None chooses them on the boxes of the
            scored one, as these protocols define it.
        batch_size: images per forward pass.
        max_bad: how many unreadable images to skip, by name, before giving up; of each split.
        state: where to write what is counted, every ``SAVE_EVERY`` images; with ``tune`` a second file lies beside it.
        resume: go on from ``state``.
        force: replace ``state``.
        progress: wraps the sequence of batches, for a progress bar.

    Raises:
        DataError: class names differ, the set has no boxes or masks, one is not as it should be, too many images are
            unreadable, or ``state`` was written under other circumstances.
        OutputExistsError: ``state`` is there, and neither ``resume`` nor ``force`` was asked for.
        FeatureError: the network's output for an image is not finite.
        ImageError: a mask is damaged.
    """
    if tune is not None and protocol.name == "pxap":
        raise DataError("--tune chooses thresholds, and pxap has none: it is the area over all of them")
    if tune is not None and tune.split == dataset.split:
        raise DataError(
            f"--tune {tune.split}: these protocols choose thresholds on the split they score; leave --tune out for that"
        )
    passes = [dataset] if tune is None else [tune, dataset]
    truths = [protocol.truths(part) for part in passes]
    files = [None if state is None else _state_path(state, part is tune) for part in passes]
    if resume and not any(file is not None and file.exists() for file in files):
        raise DataError(f"{state}: expected the counts of a run to resume, found nothing; leave --resume out")
    states = [
        None if file is None else StateFile(file, _identity(localizer, part, protocol, truth), resume, force)
        for file, part, truth in zip(files, passes, truths, strict=True)
    ]
    skipped: list[tuple[str, str]] = []
    found = []
    for part, truth, kept in zip(passes, truths, states, strict=True):
        counts = protocol.counts(len(localizer.classes))
        skipped += _count(localizer, part, truth, counts, kept, batch_size, max_bad, progress)
        if not counts.arrays["images"].any():
            raise DataError(f"{part.root}: no image of split {part.split!r} could be read")
        found.append(counts)
    return ProtocolReport(
        protocol, "foreground" if localizer.rule.on_scores else localizer.rule.map, dataset.split,
        None if protocol.name == "pxap" else passes[0].split, found[-1],
        None if tune is None else cast("BoxAccuracy", found[0]), localizer.classes, tuple(skipped),
    )  # fmt: skip


def remove_state(state: Path) -> None:
    """Remove what :func:`evaluate_protocol` wrote there, once its report is safe."""
    for tuning in (False, True):
        _state_path(state, tuning).unlink(missing_ok=True)


def _state_path(state: Path, tuning: bool) -> Path:
    return state.with_name(f"{state.name}.tune") if tuning else state


def _count(
    localizer: Localizer, dataset: Dataset, truths: Sequence[Truth], counts: Counts, state: StateFile | None,
    batch_size: int, max_bad: int, progress: Progress,
) -> list[tuple[str, str]]:  # fmt: skip
    """Count a split, from where its state left off; returns (path, reason) of unreadable images."""
    start, skipped = (0, []) if state is None else state.load(counts)
    saved = start
    labels, size = one_class_id(localizer, dataset), localizer.locator.size
    for batch in batches(dataset.samples, labels, truths, size, batch_size, max_bad, skipped, progress, start):
        if batch.pixels is not None:
            counts.add(list(_scored(localizer, batch.images, batch.pixels)))
        if state is not None and (batch.done - saved >= SAVE_EVERY or batch.done == len(dataset)):
            state.save(counts, batch.done, skipped)
            saved = batch.done
    return skipped


def _scored(localizer: Localizer, images: Sequence[Loaded[Truth]], pixels: Any) -> Iterator[Scored]:
    import numpy as np

    size, rule = localizer.locator.size, localizer.rule
    for rows, part in localizer.network.parts(pixels):
        request = Request([image.label for image in images[rows]], heatmaps=True)
        with localizer.network.forward(part, outputs=rule.outputs) as outputs:
            records = require_finite(localizer.locator.locate({**outputs, "picture": part}, request))
            logits = to_host(outputs["logits"])
        for image, [record], scores in zip(images[rows], records, logits, strict=True):
            own, masks = scores[image.label], isinstance(image.truth, Masks)
            yield Scored(
                path=image.path,
                index=image.index,
                label=image.label,
                rank=int((scores > own).sum() + (scores[: image.label] == own).sum()),
                scores=normalised(np.asarray(record.heatmap)),
                size=image.size,
                truth=[] if masks else cast("list[Box]", image.truth),
                mask=read_mask(cast("Masks", image.truth), image.size, size) if masks else None,
            )


def _identity(localizer: Localizer, dataset: Dataset, protocol: Protocol, truths: Sequence[Truth]) -> dict[str, str]:
    """What counts depend on, by name."""
    images = hashlib.sha256(json.dumps([dataset.classes, dataset.model_classes]).encode())
    for sample, truth in zip(dataset.samples, truths, strict=True):
        known = [path and path.name for path in (*truth.objects, truth.ignored)] if isinstance(truth, Masks) else truth
        name = str(sample.path).removeprefix(str(dataset.root))
        images.update(json.dumps([name, sample.label, known]).encode())
    rule, network = localizer.rule, localizer.network
    return {
        "the bundle": hashlib.sha256(localizer.bundle.manifest.to_json().encode()).hexdigest()[:16],
        "backend": f"{network.name} {network.version}, {network.precision}",
        "map": "foreground" if rule.on_scores else rule.map,
        "boxes or masks": "masks" if protocol.name == "pxap" else "boxes",
        "--threshold-step": f"{protocol.step:g}",
        "split": dataset.split,
        "the images, labels and truth": images.hexdigest()[:16],
    }
