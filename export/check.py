"""Parity: the PyTorch reference against the runtime, stage by stage, on real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wgap.bundle import Bundle
from wgap.errors import BundleError, CheckFailedError
from wgap.geometry import iou

if TYPE_CHECKING:
    from wgap.runtime.postprocess import Map

FEATURE_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "int8": 0.25}
"""Largest difference of features and logits, relative to their largest magnitude: float32 sums in another order, the
rounding of thirteen float16 layers, or single cells that INT8 moves while the box stays (the gate judges those)."""

MAP_TOLERANCE = 1e-6
"""Largest difference of the normalised map, whose maximum is 1, for the same features."""

BOX_AGREEMENT = 0.995
"""Share of images whose box must be identical end to end, where the backend's features differ in the last bits."""

LOWER_AGREEMENT = 0.8
"""At lower precision: share of equal top-1 classes, and mean IoU of the boxes. A sanity check; ``wgap gate`` is the
measurement."""


@dataclass(frozen=True)
class Stage:
    """One line of the report.

    Attributes:
        name: what was compared.
        measured: the worst difference, or the share of equal cases.
        limit: what it may at most (differences) or must at least (shares) be.
        ok: whether it is.
        note: in words.
    """

    name: str
    measured: float
    limit: float
    ok: bool
    note: str


@dataclass(frozen=True)
class ParityReport:
    """What ``wgap check`` found.

    Attributes:
        images: how many were compared.
        stages: the table.
        differing: names of images whose box differs end to end.
    """

    images: int
    stages: tuple[Stage, ...]
    differing: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when every stage is within its limit."""
        return all(stage.ok for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON."""
        return {
            "ok": self.ok,
            "images": self.images,
            "stages": [vars(stage) for stage in self.stages],
            "differing": list(self.differing),
        }


def check_bundle(
    bundle: Bundle,
    images: Sequence[Path] | None = None,
    *,
    precision: str = "fp32",
    ungated: bool = False,
    progress: Callable[[Sequence[Any]], Any] = lambda items: items,
) -> ParityReport:
    """Compare a bundle's runtime with the PyTorch reference rebuilt from the bundle's own weights.

    For every image: features and logits of the backend against PyTorch's; the kernel against
    :mod:`wgap.train.reference` on the *same* features (level and box must be identical); and the whole way end to end,
    each side on its own features.

    Args:
        bundle: an opened bundle.
        images: pictures to compare on; None takes the bundle's golden images.
        precision: which of the bundle's models the runtime runs; PyTorch is always float32.
        ungated: run a lower-precision file whose gate failed or never ran.
        progress: wraps the list of images, for a progress bar.

    Raises:
        GateError: if the file's gate failed or never ran, unless ``ungated``.
        BundleError: if the graph does not hold the network that the manifest describes.
        CheckFailedError: if there is no image to compare on.
    """
    import numpy as np
    import torch

    from wgap.images import decode, resize
    from wgap.runtime.backends import open_backend
    from wgap.runtime.postprocess import Classifier, postprocess
    from wgap.train.reference import box_from_features
    from wgap.train.views import normalise

    info, defaults = bundle.manifest.model, bundle.manifest.postprocessing
    height, width = info.input_size
    if images is None:
        golden = [case["image"] for case in bundle.golden() if "image" in case]
        cases: list[tuple[str, Any]] = [(f"golden {index}", image) for index, image in enumerate(golden)]
    else:
        cases = [(str(path), path) for path in images]
    if not cases:
        raise CheckFailedError("no image to compare on; give a folder of images with --images")

    model = model_from_bundle(bundle)
    backend = open_backend("onnxruntime", bundle, precision, ungated=ungated)
    weight, _ = bundle.classifier()
    classifier = Classifier(weight)
    rows = model.classifier.weight.detach()
    kind = cast("Map", defaults.map)
    fixed = None if defaults.threshold == "adaptive" else float(defaults.threshold.removeprefix("fixed:"))

    worst = {"features": 0.0, "logits": 0.0, "map": 0.0}
    same = {"class": 0, "level": 0, "box": 0, "end": 0}
    differing = []
    overlap = 0.0
    for name, source in progress(cases):
        pixels = resize(decode(source), height, width) if isinstance(source, Path) else source
        batch = np.ascontiguousarray(pixels)[None]
        logits, features = backend.run(batch)
        with torch.no_grad():
            expected_logits, expected_features = model(
                normalise(torch.from_numpy(batch), bundle.manifest.preprocessing)
            )
        for stage, got, expected in (("features", features, expected_features), ("logits", logits, expected_logits)):
            difference = float((torch.from_numpy(got) - expected).abs().max())
            worst[stage] = max(worst[stage], difference / max(float(expected.abs().max()), 1e-30))

        class_id = int(expected_logits[0].argmax())
        reference = box_from_features(expected_features[0], rows[class_id], info.input_size, kind, fixed)
        same["class"] += class_id == int(logits[0].argmax())

        def run(maps: Any, scores: Any, heatmaps: bool = False, which: int = class_id) -> Any:
            return postprocess(
                maps, scores, classifier, size=info.input_size, classes=[which], map=kind,
                threshold=defaults.threshold, heatmaps=heatmaps,
            )[0][0]  # fmt: skip

        kernel = run(expected_features.contiguous().numpy(), expected_logits.numpy(), heatmaps=True)
        worst["map"] = max(
            worst["map"], float((torch.from_numpy(np.array(kernel.heatmap)) - reference.map).abs().max())
        )
        same["level"] += kernel.level == reference.level
        same["box"] += tuple(kernel.box) == reference.box
        end = run(features, logits)
        overlap += iou(tuple(end.box), reference.box)
        if tuple(end.box) == reference.box:
            same["end"] += 1
        else:
            differing.append(name)

    count = len(cases)
    tolerance, exact = FEATURE_TOLERANCE[precision], precision == "fp32"
    agreement = BOX_AGREEMENT if exact else LOWER_AGREEMENT
    table = [_difference(stage, worst[stage], tolerance) for stage in ("features", "logits")]
    table += [_share("class", same["class"], count, agreement, "top-1 of backend and PyTorch")]
    table += [_difference("map", worst["map"], MAP_TOLERANCE)]
    table += [
        _share(stage, same[stage], count, 1.0, "kernel = reference on the same features") for stage in ("level", "box")
    ]
    if exact:
        table += [_share("end to end", same["end"], count, agreement, "identical box, each side on its own features")]
    else:
        note = f"mean IoU of the boxes, each side on its own features; {same['end']} of {count} identical"
        table += [Stage("end to end", overlap / count, agreement, overlap / count >= agreement, note)]
    return ParityReport(count, tuple(table), tuple(differing))


def model_from_bundle(bundle: Bundle) -> Any:
    """The PyTorch network (``WgapVgg16``, evaluation mode, float32) rebuilt from a bundle's graph.

    Raises:
        BundleError: if the graph's weights do not fit the architecture that the manifest names.
    """
    import torch

    from wgap.export.onnx import state_from_onnx
    from wgap.train.model import WgapVgg16

    info = bundle.manifest.model
    model = WgapVgg16(
        len(info.classes),
        stride=info.stride,
        neck=info.neck,  # type: ignore[arg-type]
        pooling=info.pooling,  # type: ignore[arg-type]
        width=info.width,
        input_size=info.input_size[0],
    )
    path = bundle.path("onnx", "fp32")
    state = {name: torch.from_numpy(array.copy()) for name, array in state_from_onnx(path).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise BundleError(f"{path} does not hold the network that the manifest describes: {error}") from error
    return model.eval()


def _difference(name: str, measured: float, limit: float) -> Stage:
    return Stage(name, measured, limit, measured <= limit, "largest difference, relative to the maximum")


def _share(name: str, equal: int, count: int, limit: float, note: str) -> Stage:
    return Stage(name, equal / count, limit, equal >= limit * count, f"{equal} of {count}: {note}")
