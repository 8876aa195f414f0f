"""``wgap foreground``: a bundle that knows object from ground. Fits the head, puts it into the graph, enters both.

Pictures are enough. Labels are used where they are there; boxes are never opened.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap import __version__
from wgap.atomic import require_new
from wgap.bundle import Bundle
from wgap.calibrate.candidate import Progress, silent
from wgap.calibrate.head import RIDGE, ROUNDS, Fit, fit_head, upsampled
from wgap.calibrate.images import ImageSet, image_set
from wgap.calibrate.ranges import toolkit
from wgap.errors import CalibrationError, CheckFailedError
from wgap.export.golden import golden_cases
from wgap.extend import NewFile, enter_files, require_writable
from wgap.extras import require
from wgap.manifest import HEAD, BundleFile, ForegroundRecord
from wgap.rule import Rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FEWEST", "LEAST_SEPARATION", "Foreground", "foreground_bundle", "head_graph", "without_head"]

FEWEST = 30
"""Fewer pictures than this do not say what the object is: 10 gave 73 to 84 % where 30 gave 87."""

COUNT = 500
"""Pictures taken at most by default; each has its activations on the disk while the head is fitted, 2 MB for VGG16."""

LEAST_SEPARATION = {"fine": 1.5, "coarse": 3.4}
"""Standard deviations between object and ground; below it a head separates nothing (docs/decisions/081). The coarse one
counts where there is no finer: its labels are its own, which alone gives noise 3.3."""

CELL = 8
"""Pixels a side of a cell that will do; where twice the features' resolution is coarser, four times is added."""

RULE = Rule("foreground+colour")

_TOLERANCE = 1e-4
"""Between the graph's scores and the head on its own activations, relative to the largest: the order of sums."""

_ACTIVATIONS = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Clip",
        "Elu",
        "Celu",
        "Selu",
        "Gelu",
        "HardSwish",
        "HardSigmoid",
        "Mish",
        "Softplus",
    }
)


@dataclass(frozen=True)
class Foreground:
    """What happened to the bundle.

    Attributes:
        bundle: the bundle, opened again.
        entry: the head's file.
        record: what it was made from, and how well it separates.
        fit: the head; its scores are the calibration pictures'.
        images: the pictures.
    """

    bundle: Bundle
    entry: BundleFile
    record: ForegroundRecord
    fit: Fit
    images: ImageSet


def foreground_bundle(
    bundle: Bundle,
    images: Path,
    *,
    split: str = "train",
    count: int | None = None,
    rule: Rule = RULE,
    sum_of_channels: bool = False,
    report: Path | None = None,
    force: bool = False,
    max_bad: int = 0,
    label_map: Path | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda _: None,
) -> Foreground:
    """Fit a foreground head to a bundle's network and enter it, in place of an earlier one.

    Args:
        bundle: an opened bundle.
        images: pictures of what is to be localized: a labelled set in any layout, or a folder. Boxes are not read.
        split: of a labelled set: ``train``, ``val``, ``test`` or ``all``.
        count: pictures to take, every class in turn; None takes ``COUNT`` at most.
        rule: the bundle's rule from then on.
        sum_of_channels: label cells first by the sum of the features in place of the class's map: for a network whose
            classifier knows nothing of these pictures.
        report: folder for pictures and report.json.
        force: replace an earlier report there.
        max_bad: pictures that cannot be read and are left out, at most so many.
        label_map: of a labelled set whose classes the model calls otherwise (:func:`wgap.datasets.with_label_map`).
        progress: shown while it works.
        note: called with each warning.

    Raises:
        CalibrationError: fewer than ``FEWEST`` pictures, two of them alike, most of one colour, or a head that
            separates nothing.
        CheckFailedError: the new graph does not compute what the head says.
        DataError: ``images`` holds none.
        ImageError: more than ``max_bad`` pictures cannot be read.
        BundleError: the bundle cannot be written; it is as it was then.
        OutputExistsError: ``report`` exists, and is no report or ``force`` is false.
        MissingDependencyError: onnx is not installed.
    """
    import onnx
    import onnxruntime
    from safetensors.numpy import save

    toolkit()
    if report is not None:
        require("--report", "matplotlib")
        require_new(report, force)
    require_writable(bundle)
    chosen = image_set(
        bundle, images, split=split, count=count or COUNT, at_most=count is None, fewest=FEWEST,
        max_bad=max_bad, label_map=label_map, progress=lambda items: progress(items, "reading pictures"),
    )  # fmt: skip
    _require_structure(chosen, images)
    source = bundle.model_file("fp32")
    if source.import_ is not None:
        source.import_.require_rule(rule)
    model = without_head(onnx.load_from_string(bundle.content(source)))
    info = bundle.manifest.model
    fine = fine_tensors(model, info.feature_shape, info.input_size)
    warnings = list(chosen.warnings)
    if not fine:
        warnings.append(
            "the graph has no activation of twice the features' resolution, channels first: the head scores the "
            "features alone, and boxes are coarser"
        )
    for warning in warnings:
        note(f"warning: {warning}")
    with tempfile.TemporaryDirectory(prefix="wgap-foreground-") as folder:
        kept, labels = _activations(bundle, model, fine, chosen, sum_of_channels, Path(folder), progress)
        fit = fit_head(
            [p.pixels for p in chosen.pictures],
            kept["features"],
            [kept[name] for name in fine],
            kept["weights"],
            progress,
        )
        _require_separation(fit)
        graph = head_graph(model, fit.tensors(), fine)
        file = Path(folder) / "model.onnx"
        file.write_bytes(graph.SerializeToString(deterministic=True))
        scores = _checked(file, fit, chosen, [kept["features"], *(kept[name] for name in fine)])
        info = info.with_foreground(scores.shape[2:])
        goldens = golden_cases(bundle, file, scores.shape[1:], (rule, Rule("foreground"), Rule("foreground+colour")))
    record = ForegroundRecord(
        images_sha256=chosen.sha256, images=chosen.listing(), warnings=tuple(warnings), labels=labels,
        coarse="features", fine=fine[0] if fine else None, finer=fine[1] if len(fine) > 1 else None,
        separation=_figures(fit),
        constants={"ridge": RIDGE, "rounds": ROUNDS},
        tools={"wgap": __version__, "python": platform.python_version(), "onnx": onnx.__version__,
               "onnxruntime": onnxruntime.__version__},
    )  # fmt: skip
    entered = enter_files(
        bundle,
        [
            NewFile(
                graph.SerializeToString(deterministic=True),
                "model.onnx",
                "onnx",
                "fp32",
                {"training": source.training, "import_": source.import_},
            ),
            NewFile(save(fit.tensors()), "foreground.safetensors", "foreground", "fp32", {"foreground": record}),
            *goldens,
        ],
        lambda entry: entry.role in ("foreground", "golden") or (entry.role, entry.precision) == ("onnx", "fp32"),
        [source.sha256],
        model=info,
        rule=rule,
    )
    made = Foreground(entered, entered.file("foreground"), record, fit, chosen)
    if report is not None:
        from wgap.calibrate.foreground_report import write_foreground_report

        write_foreground_report(report, made, force)
    return made


def fine_tensors(model: Any, feature_shape: tuple[int, int, int], input_size: tuple[int, int]) -> list[str]:
    """The last activation, in the graph's order, of exactly twice the features' height and width, where there is one.

    Where its cells are still larger than ``CELL`` pixels, also that of four times.
    """
    import onnx

    shapes = {}
    for value in onnx.shape_inference.infer_shapes(model).graph.value_info:
        dimensions = [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        shapes[value.name] = dimensions
    _, height, width = feature_shape
    if any("features" in node.output and node.op_type == "Transpose" for node in model.graph.node):
        return []  # channels last: a shape of that size could be another's
    sigmoids = {node.output[0] for node in model.graph.node if node.op_type == "Sigmoid"}
    found: dict[int, str] = {}
    for node in model.graph.node:
        gated = node.op_type == "Mul" and bool(sigmoids & {*node.input})
        shape = shapes.get(node.output[0], []) if node.op_type in _ACTIVATIONS or gated else []
        for factor in (2, 4):
            if len(shape) == 4 and shape[1] and shape[2:] == [factor * height, factor * width]:
                found[factor] = str(node.output[0])
    coarse = input_size[0] > 2 * height * CELL
    return [found[factor] for factor in (2, 4) if factor in found and (factor == 2 or (2 in found and coarse))]


def without_head(model: Any) -> Any:
    """A graph without the nodes, constants and output of a foreground head; of one that has none, the same."""
    graph = model.graph
    for values in (graph.node, graph.initializer):
        for value in [value for value in values if value.name.startswith(HEAD)]:
            values.remove(value)
    for values in (graph.output, graph.value_info):
        for value in [v for v in values if v.name == "foreground" or v.name.startswith(HEAD)]:
            values.remove(value)
    return model


def head_graph(model: Any, head: dict[str, Any], fine: Sequence[str]) -> Any:
    """The graph with ``foreground`` float32 [N, 1, 2h, 2w] = up2(A . features) + B . fine as a further output.

    Args:
        model: an ONNX model without a head; it is changed.
        head: see :func:`wgap.train.reference.foreground_scores`.
        fine: the finer activations' tensors, each of twice the resolution before it. None: ``foreground`` is A at the
            features' resolution; two: it is [N, 1, 4h, 4w].
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph

    def constant(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), HEAD + name))
        return HEAD + name

    def score(name: str, source: str, result: str) -> None:
        weight = constant(f"{name}.weight", head[f"{name}.weight"].reshape(1, -1, 1, 1))
        inputs = [source, weight, constant(f"{name}.bias", head[f"{name}.bias"])]
        graph.node.append(helper.make_node("Conv", inputs, [result], HEAD + name, kernel_shape=[1, 1]))

    twice = constant("twice", [1, 1, 2, 2]) if fine else ""
    result = "foreground" if not fine else f"{HEAD}A"
    score("A", "features", result)
    for name, source in zip("BC", fine, strict=False):
        score(name, source, f"{HEAD}{name}")
        graph.node.append(
            helper.make_node(
                "Resize",
                [result, "", twice],
                [f"{result}_twice"],
                f"{HEAD}twice" if name == "B" else f"{HEAD}twice_{name}",
                mode="linear",
                coordinate_transformation_mode="half_pixel",
            )
        )
        last = source == fine[-1]
        made, node = ("foreground", f"{HEAD}sum") if last else (f"{HEAD}sum_{name}", f"{HEAD}sum_{name}")
        graph.node.append(helper.make_node("Add", [f"{result}_twice", f"{HEAD}{name}"], [made], node))
        result = made
    features = next(value for value in graph.output if value.name == "features").type.tensor_type.shape.dim
    factor = 1 << len(fine)
    batch = features[0].dim_param or "N"
    size = [factor * features[axis].dim_value for axis in (2, 3)]
    graph.output.append(helper.make_tensor_value_info("foreground", TensorProto.FLOAT, [batch, 1, *size]))
    onnx.checker.check_model(model, full_check=True)
    return model


def _require_structure(images: ImageSet, where: Path) -> None:
    """Refuse a set of which too few pictures show anything."""
    shown = sum(int(p.pixels.max()) - int(p.pixels.min()) > 2 for p in images.pictures)
    if shown < FEWEST:
        raise CalibrationError(
            f"{where}: expected at least {FEWEST} pictures that show something, got {shown}; the other "
            f"{len(images) - shown} are of one colour"
        )


def _require_separation(fit: Fit) -> None:
    which = "fine" if fit.fine else "coarse"
    found, least = (fit.fine or (fit.coarse,))[0].separation, LEAST_SEPARATION[which]
    if not found >= least:
        raise CalibrationError(
            f"the head separates nothing: object and ground lie {found:.2f} standard deviations apart, at least "
            f"{least:g} required. Give pictures of the kind that the network was trained on, each with an "
            "object and some ground around it, or train the network further"
        )


def _figures(fit: Fit) -> dict[str, float | None]:
    return {
        "coarse": fit.coarse.separation,
        "fine": fit.fine[0].separation if fit.fine else None,
        "grabcut_agreement": fit.agreement,
        **({"finer": fit.fine[1].separation} if len(fit.fine) > 1 else {}),
    }


def _activations(
    bundle: Bundle, model: Any, fine: Sequence[str], images: ImageSet, sum_of_channels: bool, folder: Path,
    progress: Progress,
) -> tuple[dict[str, NDArray[np.float32]], str]:  # fmt: skip
    """``features`` and finer ones of every picture, on disk, the ``weights`` of its map, and where those are from."""
    import numpy as np
    from onnx import helper

    from wgap.runtime.networks.onnxruntime import open_session

    watched = type(model)()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in fine)
    file = folder / "watched.onnx"
    file.write_bytes(watched.SerializeToString())
    session = open_session(file, None)
    names = ["features", "logits", *fine]
    weight = np.abs(np.asarray(bundle.classifier()[0]))
    kept: dict[str, Any] = {}
    weights = np.ones((len(images), weight.shape[1]), np.float32)
    for n, picture in enumerate(progress(images.pictures, "running the network")):
        found = dict(zip(names, session.run(names, {"image": picture.pixels[None]}), strict=True))
        logits = found.pop("logits")[0]
        for name, value in found.items():
            if not np.isfinite(value).all():
                raise CalibrationError(f"{picture.path}: the network's own output is not finite; nothing to fit")
            if name not in kept:
                shape = (len(images), *value.shape[1:])
                kept[name] = np.lib.format.open_memmap(folder / f"{names.index(name)}.npy", "w+", np.float32, shape)
            kept[name][n] = value[0]
        if not sum_of_channels:
            weights[n] = weight[int(logits.argmax()) if picture.label is None else picture.label]
    given = sum(picture.label is not None for picture in images.pictures)
    used = "sum of channels" if sum_of_channels else f"{given} labels, {len(images) - given} top-1 classes"
    return {**kept, "weights": weights}, used


def _checked(graph: Path, fit: Fit, images: ImageSet, kept: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The graph's scores of the first pictures, compared with the head applied to what was kept of them."""
    import numpy as np

    from wgap.runtime.networks.onnxruntime import open_session

    rows = slice(0, 4)
    session, head = open_session(graph, None), fit.tensors()
    pixels = np.stack([picture.pixels for picture in images.pictures[rows]])
    names = ["foreground", "features", "logits"]
    got, features, _ = session.run(names, {"image": pixels})
    expected: Any = None
    for name, level in zip("ABC", kept, strict=False):
        own = np.einsum("c,nchw->nhw", head[f"{name}.weight"], level[rows]) + head[f"{name}.bias"]
        expected = own if expected is None else np.stack([upsampled(e, own.shape[1:]) for e in expected]) + own
    worst = float(np.abs(got[:, 0] - expected).max() / max(float(np.abs(expected).max()), 1e-30))
    moved = float(np.abs(features - kept[0][rows]).max() / max(float(np.abs(features).max()), 1e-30))
    if not max(worst, moved) <= _TOLERANCE:
        raise CheckFailedError(
            f"the new graph's foreground differs from its head by {worst:.1e} of the maximum, its features from the "
            f"old graph's by {moved:.1e}; at most {_TOLERANCE:.0e} allowed. The bundle is as it was"
        )
    scores: NDArray[np.float32] = got
    return scores
