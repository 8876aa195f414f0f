"""A checkpoint becomes a bundle: ONNX graph with in-graph normalisation, classifier, golden cases, manifest."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap import __version__
from wgap.atomic import atomic_dir, require_new
from wgap.bundle import MANIFEST, Bundle, describe_file, golden_case, sha256_of, write_manifest
from wgap.datasets.dataset import composed
from wgap.errors import CheckFailedError, CheckpointError
from wgap.extend import one_writer
from wgap.extras import require
from wgap.manifest import HEAD, Architecture, Manifest, ModelInfo, TrainingRecord
from wgap.preprocessing import preprocessing as preprocessing_named
from wgap.rule import Rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.train.checkpoint import LoadedModel
    from wgap.train.model import Pooling

OPSET = 20
GOLDEN_IMAGES = 3
_LOGITS_TOLERANCE = 1e-4
"""Relative to the largest magnitude: between PyTorch and ONNX Runtime only the order of float32 sums differs."""


def bundle_from_checkpoint(
    checkpoint: Path | str,
    out: Path | str,
    *,
    classes: Path | str | None = None,
    preprocessing: str | None = None,
    stride: int | None = None,
    pooling: Pooling | None = None,
    input_size: int | None = None,
    rule: Rule | None = None,
    force: bool = False,
) -> Bundle:
    """Export a checkpoint of ``wgap train``, or a bare state dict, as a bundle.

    Args:
        checkpoint: ``.safetensors`` (or torchvision-style ``.pth``) with the network's weights.
        out: the bundle folder to make; it appears whole or not at all.
        classes: text file with one class name per line, in the order of the classifier's rows. Needed where the
            checkpoint does not carry the names.
        preprocessing: ``torchvision-rgb`` or ``caffe-bgr``. Needed where the checkpoint does not carry it.
        stride: 16, 8, or 32 (vgg16: 16 or 8), for a bare state dict, whose shapes do not tell; 16 if None.
        pooling: ``wgap`` or ``gap``, likewise; ``wgap`` if None.
        input_size: side of the square network input in pixels; the checkpoint's own, else 224.
        rule: the bundle's own; ``Rule()``, the paper's, if None.
        force: replace an existing bundle.

    Returns:
        The finished bundle, opened and verified.

    Raises:
        CheckpointError: if keys, shapes, the class list or the preprocessing do not fit.
        OutputExistsError: if ``out`` exists and ``force`` is false, or is not a bundle.
        CheckFailedError: if the graph's outputs differ from PyTorch's; no bundle is left then.
    """
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(package)
    from wgap.train.checkpoint import load_model

    out = Path(out)
    require_new(out, force, MANIFEST, "bundle")
    rule = rule or Rule()
    names = None if classes is None else read_classes(Path(classes))
    loaded = load_model(Path(checkpoint), names, preprocessing, stride=stride, pooling=pooling, input_size=input_size)
    source = TrainingRecord(sha256_of(Path(checkpoint)), _tools())
    with atomic_dir(out, force, one_writer) as folder:
        write_onnx(loaded, folder / "model.onnx")
        _write_classifier(loaded, folder / "classifier.safetensors")
        cases = _write_golden(loaded, rule, folder)
        files = [
            describe_file(folder, folder / "model.onnx", "onnx", "fp32", training=replace(source, opset=OPSET)),
            describe_file(folder, folder / "classifier.safetensors", "classifier", "fp32", training=source),
            *(describe_file(folder, path, "golden", training=source) for path in cases),
        ]
        write_manifest(
            folder,
            Manifest(_model_info(loaded), preprocessing_named(loaded.preprocessing), rule, tuple(files), __version__),
        )
        _compare_with_golden(folder / "model.onnx", cases)
    return Bundle.open(out)


def read_classes(path: Path) -> list[str]:
    """Class names out of a text file, one per line in the order of the classifier's rows; UTF-8, with or without a BOM.

    CUB's own ``classes.txt``, whose lines are ``1 name``, is read as the names.

    Raises:
        CheckpointError: if the file is missing, not text, names nothing, or names a class twice or not at all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected a text file with one class name per line ({error})") from error
    names = [composed(line.strip()) for line in lines]
    numbered = [re.fullmatch(r"(\d+)\s+(\S.*)", name) for name in names]
    if all(match and int(match[1]) == number for number, match in enumerate(numbered, start=1)):
        names = [match[2] for match in numbered if match]
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name or name in seen:
            what = f"{name!r} a second time" if name else "an empty line"
            raise CheckpointError(f"{path}, line {number}: expected a class name of its own, got {what}")
        seen.add(name)
    if not names:
        raise CheckpointError(f"{path}: expected one class name per line, got an empty file")
    return names


def write_onnx(loaded: LoadedModel, path: Path) -> None:
    """Write the deployed graph: ``image`` uint8 [N, H, W, 3] RGB in, ``logits`` and ``features`` float32 out, N free.

    Channel order, scale, mean and standard deviation are nodes of the graph, so that no caller can get them wrong.
    Convolutions do the work of the batch normalisation behind them.
    The file is checked by onnx's checker with shape inference.
    """
    import onnx
    import torch

    from wgap.train.backbone import folded
    from wgap.train.views import normalise

    class Deployed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = folded(loaded.model)

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, features = self.network(normalise(image, steps))
            return logits, features

    steps = preprocessing_named(loaded.preprocessing)
    side = loaded.model.input_size
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    proto = model_from_module(Deployed(), example, "image", ["logits", "features"])
    proto.doc_string = "WGAP: image bytes to logits and feature maps"
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def model_from_module(module: Any, example: Any, image: str, outputs: list[str] | None = None) -> Any:
    """An ONNX model of a PyTorch module in evaluation mode, without traces of the machine that exported it.

    Args:
        module: of one input, whose first extent is the batch.
        example: such an input; the batch is free, the other extents are fixed.
        image: name of the input in the graph.
        outputs: their names; None leaves them to the exporter.

    Raises:
        CheckFailedError: PyTorch's exporter returned no graph.
    """
    import logging
    import warnings

    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            input_names=[image],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("N", min=1, max=65535)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise CheckFailedError("PyTorch's exporter returned no graph")
    proto = program.model_proto
    for node in proto.graph.node:  # exporter traces carry source paths of the exporting machine
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.metadata_props[:]
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
    return proto


def state_from_onnx(path: Path, layers: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The network's weights out of a bundle's graph: parameter name to array.

    Args:
        path: of the graph.
        layers: names of the network's convolutions in the order in which they run; ``WgapVgg16``'s if None.
    """
    require("exporting", "onnx")
    import numpy
    import onnx
    from onnx import numpy_helper

    from wgap.train.model import CONVOLUTIONS

    graph = onnx.load(str(path)).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # By position, not by name: exporters merge equal tensors, such as biases that are all zero.
    layers = layers or [*(f"features.{number}" for number in CONVOLUTIONS), "neck"]
    convolutions = [node for node in graph.node if node.op_type == "Conv" and not node.name.startswith(HEAD)]
    head = [node for node in graph.node if node.op_type == "Gemm"]
    names = [*layers[: len(convolutions)], "classifier"]
    state = {}
    for name, node in zip(names, [*convolutions, *head], strict=False):
        weight = constants[node.input[1]]
        state[f"{name}.weight"] = weight
        # Exporters drop a bias that is all zero.
        state[f"{name}.bias"] = (
            constants[node.input[2]] if len(node.input) > 2 else numpy.zeros_like(weight, shape=len(weight))
        )
    return state


def golden_images(count: int, side: int) -> NDArray[np.uint8]:
    """Generated pictures for golden cases: uint8 [count, side, side, 3], the same on every machine.

    Integer arithmetic only: a noisy background with one textured, brighter disc each, so that maps are not flat.
    """
    import numpy as np

    y, x = np.mgrid[0:side, 0:side].astype(np.int64)
    pictures = []
    for case in range(count):
        noise = (x * 7919 + y * 104729 + x * y * (31 + case)) % 61
        cx, cy, radius = side * (2 + 3 * case) // 11 + side // 8, side * (7 - 2 * case) // 11, side * (3 + case) // 16
        inside = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
        stripes = ((x + (1 + case) * y) // (3 + case) % 2) * 90
        channels = [np.where(inside, 120 + stripes // (1 + (c + case) % 3), 40 + 20 * c) + noise for c in range(3)]
        pictures.append(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))
    return np.stack(pictures)


def _write_classifier(loaded: LoadedModel, path: Path) -> None:
    from safetensors.torch import save_file

    head = loaded.model.classifier
    save_file({"weight": head.weight.detach().float().contiguous(), "bias": head.bias.detach().float()}, path)


def _write_golden(loaded: LoadedModel, rule: Rule, folder: Path) -> list[Path]:
    import torch

    from wgap.train.views import normalise

    images = golden_images(GOLDEN_IMAGES, loaded.model.input_size)
    with torch.no_grad():
        x = normalise(torch.from_numpy(images), preprocessing_named(loaded.preprocessing))
        logits, features = loaded.model.eval()(x)
    weight = loaded.model.classifier.weight.detach().float()
    return write_golden(folder, images, logits.numpy(), features.numpy(), weight.numpy(), rule)


def write_golden(
    folder: Path,
    images: NDArray[np.uint8],
    logits: NDArray[Any],
    features: NDArray[Any],
    weight: NDArray[Any],
    rule: Rule,
) -> list[Path]:
    """Write ``golden/case-N.safetensors``: each picture's outputs, and the reference's box of them.

    Args:
        folder: of the bundle.
        images: uint8 [M, H, W, 3].
        logits: float32 [M, K].
        features: float32 [M, C, h, w].
        weight: float32 [K, C], the classifier's.
        rule: the bundle's own.
    """
    import torch
    from safetensors.torch import save_file

    from wgap.train.reference import ReferenceBox, box_from_features

    height, width = images.shape[1:3]
    # The last case is a network that saw nothing: flat maps are degenerate, whatever the weights.
    every_logits = torch.from_numpy(logits[[*range(len(images)), 0]])
    every_features = torch.cat([torch.from_numpy(features), torch.zeros(1, *features.shape[1:])])
    (folder / "golden").mkdir()
    paths = []
    for case, (own, maps) in enumerate(zip(every_logits, every_features, strict=True)):
        class_id = int(own.argmax())
        found: ReferenceBox = box_from_features(
            maps, torch.from_numpy(weight[class_id]), (height, width), rule.map, rule.eta
        )
        tensors = {
            "logits": own,
            "features": maps,
            "map": found.map,
            "level": torch.tensor([found.level], dtype=torch.int32),
            "box": torch.tensor(found.box, dtype=torch.int32),
            "class_id": torch.tensor([class_id], dtype=torch.int32),
            "threshold": torch.tensor([found.threshold], dtype=torch.float64),
            "degenerate": torch.tensor([found.degenerate], dtype=torch.uint8),
        }
        if case < len(images):
            tensors["image"] = torch.from_numpy(images[case])
        paths.append(folder / "golden" / f"case-{case}.safetensors")
        metadata = {"rule": json.dumps(rule.to_json())}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, paths[-1], metadata)
    return paths


def _compare_with_golden(graph: Path, cases: list[Path]) -> None:
    """Run the graph once on the golden images, as one batch: what it says must be what PyTorch said."""
    import numpy as np

    from wgap.runtime.networks.onnxruntime import open_session

    golden = [case for case in (golden_case(path.read_bytes(), path) for path in cases) if "image" in case]
    session = open_session(graph, None)
    outputs = session.run(["logits", "features"], {"image": np.stack([case["image"] for case in golden])})
    for name, got in zip(("logits", "features"), outputs, strict=True):
        expected = np.stack([case[name] for case in golden])
        worst = float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-30))
        if not worst <= _LOGITS_TOLERANCE:
            raise CheckFailedError(
                f"the exported graph's {name} differ from PyTorch's by {worst:.1e} of their maximum, "
                f"expected at most {_LOGITS_TOLERANCE:.0e}; no bundle was written"
            )


def _model_info(loaded: LoadedModel) -> ModelInfo:
    model = loaded.model
    parameters = {
        "width": model.width, "stride": model.stride, "neck": model.neck_kind, "pooling": model.pooling,
    }  # fmt: skip
    side = model.input_size
    return ModelInfo.of(
        Architecture(model.backbone.name, parameters), loaded.classes, (side, side), model.feature_shape
    )


def _tools() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    return {"python": platform.python_version(), **versions}
