"""Parity: the PyTorch reference against the runtime, stage by stage, on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.bundle import Bundle
from wgap.errors import BundleError, CheckFailedError
from wgap.geometry import iou
from wgap.runtime.selftest import EXACT, MAP_TOLERANCE, feature_tolerance

if TYPE_CHECKING:
    from wgap.runtime.localizer import Localizer

LOWER_AGREEMENT = 0.8
"""At lower precision: share of equal top-1 classes, and mean IoU of the boxes. A sanity check; ``wgap gate`` is the
measurement."""

BOX_AGREEMENT = 0.995
"""Share of images whose box must be identical end to end, where the backend's features differ in the last bits."""


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
        return {"ok": self.ok, **asdict(self)}


def check_localizer(
    localizer: Localizer,
    images: Sequence[Path] | None = None,
    progress: Callable[[Sequence[Any]], Any] = lambda items: items,
    source: str | None = None,
) -> ParityReport:
    """Compare a localizer with the PyTorch reference rebuilt from its bundle's own weights, or with an import's source.

    For every image: features and logits of the network against the reference's; the kernel, on whatever device the
    localizer has it, against :mod:`wgap.train.reference` on the *same* features (level and box must be identical); and
    the whole way end to end, each side on its own features.

    Args:
        localizer: what to check, under its rule; PyTorch is always float32.
        images: pictures to compare on; None takes the bundle's golden images.
        progress: wraps the list of images, for a progress bar.
        source: what an imported bundle was imported from, see :func:`wgap.export.source.opened_source`.

    Raises:
        BundleError: if the graph does not hold the network that the manifest describes, or ``source`` is not given for
            an import, or is another.
        CheckFailedError: if there is no image to compare on.
        FeatureError: if the network's output is not finite.
    """
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from wgap.images import decode, resize
    from wgap.runtime.locator import Request
    from wgap.runtime.postprocess import require_finite
    from wgap.train.reference import by_rule, foreground_scores

    bundle, rule, size = localizer.bundle, localizer.rule, localizer.locator.size
    if images is None:
        golden = [case["image"] for case in bundle.golden() if "image" in case]
        cases: list[tuple[str, Any]] = [(f"golden {index}", image) for index, image in enumerate(golden)]
    else:
        cases = [(str(path), path) for path in images]
    if not cases:
        raise CheckFailedError("no image to compare on; give a folder of images with --images")

    worst = dict.fromkeys(("features", "logits", *(["foreground"] if rule.on_scores else []), "map"), 0.0)
    head = load_file(bundle.path("foreground")) if rule.on_scores else None
    same = {"class": 0, "level": 0, "box": 0, "end": 0}
    differing = []
    overlap = 0.0
    with reference(bundle, source) as (run, rows, apart):
        for name, picture in progress(cases):
            pixels = resize(decode(picture), *size) if isinstance(picture, Path) else picture
            batch = np.ascontiguousarray(pixels)[None]
            got = localizer.network.run(batch)
            with torch.no_grad():
                expected = run(batch)
            activations = [expected["features"], *(expected.pop(n) for n in ("fine", "finer") if n in expected)]
            if head is not None:
                expected["foreground"] = foreground_scores([one[0] for one in activations], head)[None, None]
            for stage, value in expected.items():
                difference = float((torch.from_numpy(got[stage]) - value).abs().max())
                worst[stage] = max(worst[stage], difference / max(float(value.abs().max()), 1e-30))

            class_id = int(expected["logits"][0].argmax())
            shown = {name: value[0] for name, value in expected.items()}
            drawn = by_rule(rule, size, shown, rows[class_id], torch.from_numpy(batch[0]))
            same["class"] += class_id == int(got["logits"][0].argmax())

            request = Request([class_id], heatmaps=True)
            shared = {name: value.contiguous().numpy() for name, value in expected.items()}
            [[kernel]], [[end]] = (
                require_finite(localizer.locator.locate({**o, "picture": batch}, request)) for o in (shared, got)
            )
            worst["map"] = max(
                worst["map"], float((torch.from_numpy(np.array(kernel.heatmap)) - drawn.map).abs().max())
            )
            same["level"] += kernel.level == drawn.level
            same["box"] += tuple(kernel.box) == drawn.box
            overlap += iou(end.box, drawn.box)
            if tuple(end.box) == drawn.box:
                same["end"] += 1
            else:
                differing.append(name)

    count = len(cases)
    precision = localizer.network.precision
    tolerance = max(feature_tolerance(precision), apart)
    exact = tolerance == EXACT
    agreement = BOX_AGREEMENT if exact else LOWER_AGREEMENT
    table = [_difference(stage, value, tolerance) for stage, value in worst.items() if stage != "map"]
    table += [_share("class", same["class"], count, agreement, "top-1 of backend and reference")]
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
    """The PyTorch network (evaluation mode, float32, batch normalisation folded) rebuilt from a bundle's graph.

    Raises:
        BundleError: if the graph's weights do not fit the architecture that the manifest names.
    """
    import torch

    from wgap.export.onnx import state_from_onnx
    from wgap.train.backbone import BACKBONES, folded
    from wgap.train.model import WgapNetwork

    info = bundle.manifest.model
    name = info.architecture.name
    if name == "imported":
        raise BundleError(
            f"{bundle.root} was imported from {info.architecture.parameters.get('source')}, which it is compared with: "
            "say where that is with --source"
        )
    if name not in BACKBONES:
        raise BundleError(f"{bundle.root} holds a network called {name}; PyTorch's here are {', '.join(BACKBONES)}")
    path = bundle.path("onnx", "fp32")
    parameters = {**info.architecture.parameters, "backbone": name}
    try:
        model = folded(WgapNetwork(len(info.classes), input_size=info.input_size[0], **parameters))
        layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
        model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state_from_onnx(path, layers).items()})
    except (RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"{path} does not hold the network that the manifest describes: {error}") from error
    return model


@contextmanager
def reference(bundle: Bundle, source: str | None) -> Iterator[tuple[Callable[[Any], dict[str, Any]], Any, float]]:
    """What a picture's tensors should be, the classifier, and how far tensors may be off whatever the precision."""
    if source is not None:
        from wgap.export.source import opened_source

        with opened_source(bundle, source) as opened:
            yield opened
        return
    import torch

    from wgap.train.views import normalise

    model = model_from_bundle(bundle)
    _, height, width = model.feature_shape
    found: dict[str, Any] = {}

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        for name, factor in (("fine", 2), ("finer", 4)):
            if output.shape[2:] == (factor * height, factor * width):
                found[name] = output

    for module in model.modules():
        if isinstance(module, torch.nn.ReLU | torch.nn.ReLU6):
            module.register_forward_hook(keep)

    def run(batch: Any) -> dict[str, Any]:
        found["logits"], found["features"] = model(normalise(torch.from_numpy(batch), bundle.manifest.preprocessing))
        return dict(found)

    yield run, model.classifier.weight.detach(), 0.0


def _difference(name: str, measured: float, limit: float) -> Stage:
    return Stage(name, measured, limit, measured <= limit, "largest difference, relative to the maximum")


def _share(name: str, equal: int, count: int, limit: float, note: str) -> Stage:
    return Stage(name, equal / count, limit, equal >= limit * count, f"{equal} of {count}: {note}")
