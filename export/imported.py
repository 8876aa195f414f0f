"""Somebody else's ONNX classifier becomes a bundle, once it is proven to be linear in its pooled features."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from wgap import __version__
from wgap.atomic import atomic_dir, require_new
from wgap.bundle import MANIFEST, Bundle, describe_file, sha256_of, write_manifest
from wgap.errors import BundleError, CheckpointError
from wgap.export.import_graph import external_files, onnx_errors, plain_model, save, told_as, wrapped_model
from wgap.export.import_module import MODULE, write_module
from wgap.export.import_proof import measured, prove
from wgap.export.linear_head import LinearHead, linear_head, printable
from wgap.export.onnx import GOLDEN_IMAGES, golden_images, read_classes, write_golden
from wgap.extend import one_writer
from wgap.extras import require
from wgap.images import decode, find_images, read_file, resize
from wgap.manifest import Architecture, ImportRecord, Manifest, ModelInfo
from wgap.plain import PlainError, from_plain, read_json
from wgap.preprocessing import Preprocessing
from wgap.preprocessing import preprocessing as preprocessing_named
from wgap.rule import Rule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["bundle_from_onnx", "read_preprocessing"]

_SIGNED = Rule.parse("fixed:0.2", "signed")
_MOST_IMAGES = 32


def bundle_from_onnx(
    model: Path | str,
    out: Path | str,
    *,
    classes: Path | str,
    preprocessing: str,
    images: Path | str | None = None,
    logits: str | None = None,
    features: str | None = None,
    input_size: int | None = None,
    rule: Rule | None = None,
    force: bool = False,
) -> Bundle:
    """Import an ONNX classifier whose logits are linear in its pooled features.

    Args:
        model: ``.onnx`` file, float32 or float16, with its values inside or in files beside it; or
            ``package.module:factory`` of a PyTorch module, which is exported first.
        out: the bundle folder to make; it appears whole or not at all.
        classes: text file with one class name per line, in the order of the logits.
        preprocessing: name, or ``.json`` file, of what the model expects of its pixels; see :func:`read_preprocessing`.
        images: pictures on which linearity and parity are measured, at most 32 of them; generated ones are always
            used, and alone if None.
        logits: tensor before the softmax, where the graph has several heads.
        features: tensor that is pooled, where the search does not find it.
        input_size: side of the square input in pixels; needed where the graph leaves it free.
        rule: the bundle's own; None: the paper's, and ``fixed:0.2`` on the signed map where features are negative.
        force: replace an existing bundle.

    Raises:
        CheckpointError: the file is no ONNX classifier of that kind; the node that does not fit is named.
        CheckFailedError: linearity or parity was not met; the figures are named, and no bundle is left.
        BundleError: ``rule`` needs features of 0 or more, and the network has negative ones; or it reads scores.
        OutputExistsError: ``out`` exists and ``force`` is false, or is not a bundle.
    """
    require("importing", "torch", "onnx", "onnxruntime")
    import onnx
    import onnxruntime

    path, out = Path(model), Path(out)
    require_new(out, force, MANIFEST, "bundle")
    names, steps = read_classes(Path(classes)), read_preprocessing(preprocessing)
    with (
        tempfile.TemporaryDirectory(prefix="wgap-import-") as exported,
        atomic_dir(out, force, one_writer) as folder,
        told_as(
            (Path(exported) / "module.onnx", str(model)), (folder / "source.onnx", str(model)),
            (folder / "model.onnx", f"the bundle's graph of {model}"), (folder / MANIFEST, f"a bundle of {model}"),
        ),
    ):  # fmt: skip
        if MODULE.fullmatch(str(model)):
            path = Path(exported) / "module.onnx"
            write_module(str(model), input_size, path)
        with onnx_errors(path):
            graph, given, half = plain_model(path, input_size)
            head = linear_head(graph, logits, features)
        if len(names) != len(head.weight):
            raise CheckpointError(
                f"{classes}: {path} has {len(head.weight)} classes, but {len(names)} class names came"
            )
        with onnx_errors(path):
            opset = next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
            save(folder / "model.onnx", *wrapped_model(graph, given, head, steps))
            del graph
            if not all(head.shape):
                head = measured(folder / "model.onnx", head, given)
                if head.shape[1:] == (1, 1):
                    raise CheckpointError(f"the features {head.features} have one position: nowhere to localize")
            onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
        pictures = _pictures(images, given.size)
        proof = prove(path, folder / "model.onnx", given, head, steps, pictures, half)
        chosen = rule or (Rule() if proof.features_min >= 0 else _SIGNED)
        record = ImportRecord(
            source_sha256=sha256_of(path), external_sha256=tuple(map(sha256_of, external_files(path))),
            logits=printable(head.logits), features=printable(head.features), nodes=head.nodes, pooling=proof.pooling,
            features_min=proof.features_min, figures=proof.figures, opset=opset, tools={
                "wgap": __version__, "python": platform.python_version(), "onnx": onnx.__version__,
                "onnxruntime": onnxruntime.__version__,
            },
        )  # fmt: skip
        architecture = Architecture("imported", {"source": printable(Path(model).name), "pooling": proof.pooling})
        info = ModelInfo.of(architecture, names, given.size, head.shape)
        info.require_outputs(chosen)
        record.require_rule(chosen)
        _write_classifier(head, folder / "classifier.safetensors")
        cases = write_golden(
            folder,
            pictures[:GOLDEN_IMAGES],
            proof.logits[:GOLDEN_IMAGES],
            proof.features[:GOLDEN_IMAGES],
            head.weight,
            chosen,
        )
        files = [
            describe_file(folder, folder / "model.onnx", "onnx", "fp32", import_=record),
            describe_file(folder, folder / "classifier.safetensors", "classifier", "fp32"),
            *(describe_file(folder, case, "golden") for case in cases),
        ]
        write_manifest(folder, Manifest(info, steps, chosen, tuple(files), __version__))
        try:
            Bundle.open(folder)
        except BundleError as error:
            text = str(error).partition("; export")[0]
            raise CheckpointError(f"{model}: no bundle can hold it: {text}") from error
    return Bundle.open(out)


def read_preprocessing(given: str) -> Preprocessing:
    """A known name, or a ``.json`` file of the manifest's keys: ``channel_order``, ``scale``, ``mean``, ``std``.

    Raises:
        CheckpointError: the name is unknown, or the file is missing, not of these keys, or divides by 0.
    """
    if not given.endswith(".json"):
        return preprocessing_named(given)
    path = Path(given)
    try:
        value = read_json(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            value = {"name": printable(path.stem), **value}
        steps = from_plain(Preprocessing, value)
        numbers = [steps.scale, *steps.mean, *steps.std]
        if not all(1e-30 < abs(value) < 1e30 for value in (steps.scale, *steps.std)) or max(map(abs, numbers)) >= 1e30:
            raise PlainError(f"expected scale and std other than 0 in float32, got {steps.scale} and {list(steps.std)}")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a JSON object of channel_order, scale, mean and std ({error})"
        ) from error
    return steps


def _pictures(images: Path | str | None, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [M, H, W, 3]: the golden pictures, then those of the user, evenly spaced over the sorted paths."""
    import numpy as np

    found = [] if images is None else find_images([images])
    count = min(len(found), _MOST_IMAGES)
    paths = [found[number * len(found) // count] for number in range(count)]
    golden = np.stack([resize(picture, *size) for picture in golden_images(GOLDEN_IMAGES, max(size))])
    return np.stack([*golden, *(resize(decode(read_file(path), str(path)), *size) for path in paths)])


def _write_classifier(head: LinearHead, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": head.weight, "bias": head.bias}, path)
