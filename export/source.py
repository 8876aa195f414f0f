"""The model that a bundle was imported from, run again: what ``wgap check`` compares the bundle with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.bundle import Bundle, sha256_of
from wgap.errors import BundleError
from wgap.export.import_graph import external_files, load, onnx_errors, plain_model, told_as
from wgap.export.import_module import MODULE, write_module
from wgap.export.import_proof import PARITY, OwnModel, normalised
from wgap.export.linear_head import linear_head, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Run = Callable[[NDArray[np.uint8]], dict[str, Any]]

__all__ = ["opened_source"]


@contextmanager
def opened_source(bundle: Bundle, source: str) -> Iterator[tuple[Run, Any, float]]:
    """What an imported bundle's own model says of a picture, and how far the bundle may be from it.

    Args:
        bundle: made by ``wgap import``.
        source: the ``.onnx`` file that it was imported from, or its ``package.module:factory``, which is run in PyTorch
            for its logits, and in ONNX Runtime for tensors within.

    Yields:
        a function of uint8 [1, H, W, 3] RGB to float32 tensors ``logits`` [1, K], ``features`` [1, C, h, w] and, where
        the bundle has a foreground head on finer activations, those as ``fine`` [1, D, 2h, 2w] and ``finer``; the
        classifier float32 [K, C]; and what a float16 source costs, relative to a tensor's largest value, 0 of
        a float32 one.

    Raises:
        BundleError: the bundle is no import, or one of another file.
        CheckpointError: the source cannot be read, exported or run.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    info, record = bundle.manifest.model, bundle.model_file("fp32").import_
    if record is None:
        raise BundleError(f"{bundle.root} was not made by `wgap import`; leave --source out")
    with (
        tempfile.TemporaryDirectory(prefix="wgap-source-") as name,
        told_as((Path(name) / "module.onnx", source), (Path(name) / "source.onnx", source)),
    ):
        path, module = Path(source), None
        if MODULE.fullmatch(source):
            path = Path(name) / "module.onnx"
            module = write_module(source, info.input_size[0], path)
        elif not path.is_file() or [sha256_of(path), *map(sha256_of, external_files(path))] != [
            record.source_sha256,
            *record.external_sha256,
        ]:
            raise BundleError(
                f"{bundle.root} was imported from a file with the SHA-256 {record.source_sha256}, {source} "
                f"{'has another one, or its external values have' if path.is_file() else 'is not there'}"
            )
        head = next((entry.foreground for entry in bundle.manifest.files if entry.foreground), None)
        finer = [name for name in (head.fine, head.finer) if name] if head else []
        with onnx_errors(path):
            whole = load(path).graph
            outputs_of = [value.name for value in whole.output]  # of a module, in the order of its leaves
            every = {printable(tensor): tensor for node in whole.node for tensor in node.output}
            del whole
            wanted = [record.logits, record.features, *finer]
            # The bundle's graph calls a tensor otherwise where the source's name is one of its own.
            tensors = [every.get(one, every.get(one.partition("network/")[2], one)) for one in wanted]
            height, width = info.input_size
            graph, given, half = plain_model(path, height if height == width else None)
            found = linear_head(graph, tensors[0], None if "pooling" in record.nodes else tensors[1])
            del graph
        own = OwnModel(path, Path(name), given, tensors, bundle.manifest.preprocessing)

        def run(batch: NDArray[np.uint8]) -> dict[str, Any]:
            logits, features, *more = (torch.from_numpy(value) for value in own(batch[0]))
            features = features if found.layout == "NCHW" else features.movedim(-1, 0)
            if module is not None:
                x = torch.from_numpy(normalised(batch[0], bundle.manifest.preprocessing))
                leaves = tree_leaves(module(x.float().permute(2, 0, 1)[None]))
                logits = leaves[outputs_of.index(tensors[0])] if tensors[0] in outputs_of else logits
            outputs = {"logits": logits.reshape(1, -1), "features": features[None]}
            return outputs | {name: value[None] for name, value in zip(("fine", "finer"), more, strict=False)}

        yield run, torch.from_numpy(found.weight), PARITY["float16"] if half else 0.0
