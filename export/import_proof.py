"""The proof that an imported graph is linear in its pooled features, and says what the model itself says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wgap.errors import CheckFailedError, CheckpointError
from wgap.export.import_graph import OPSET, NetworkInput, first_line, load, save
from wgap.export.linear_head import LinearHead
from wgap.preprocessing import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LINEARITY", "PARITY", "OwnModel", "Proof", "measured", "prove"]

LINEARITY = 1e-4
"""Between ``W . pool(features) + b`` and the logits, relative to the largest."""

DROWNED = 1e-2
"""The same, relative to the largest logit without its bias, beside which the features may be nothing."""

PARITY = {"float32": 1e-4, "float16": 2e-2}
"""Between the bundle's logits and the model's own, relative to the largest, by the model's precision."""

_BATCH = 4


@dataclass(frozen=True)
class Proof:
    """What was measured, which pooling it is, and the bundle's logits [M, K] and features [M, C, h, w]."""

    figures: dict[str, Any]
    pooling: Literal["gap", "wgap"]
    logits: NDArray[np.float32]
    features: NDArray[np.float32]

    @property
    def features_min(self) -> float:
        """The smallest of the features."""
        return float(self.features.min())


def prove(
    path: Path, graph: Path, given: NetworkInput, head: LinearHead, steps: Preprocessing, pictures: NDArray[np.uint8],
    half: bool,
) -> Proof:  # fmt: skip
    """Run both graphs on the pictures: the bundle's in batches, the model's own one by one.

    Raises:
        CheckFailedError: with the figures that are too large.
    """
    import numpy as np

    from wgap.runtime.networks.onnxruntime import open_session

    model = OwnModel(path, graph.parent, given, [head.logits], steps)
    own = np.stack([model(picture)[0].reshape(-1) for picture in pictures])
    del model  # one session at a time, for the memory
    session = open_session(graph, None, lean=True)
    parts = [
        _run(session, ["logits", "features"], {"image": pictures[at : at + _BATCH]}, given)
        for at in range(0, len(pictures), _BATCH)
    ]
    logits, features = (np.concatenate(values) for values in zip(*parts, strict=True))
    for name, value in (("logits", logits), ("features", features), ("the model's own logits", own)):
        if not np.isfinite(value).all():
            raise CheckFailedError(f"{path}: {name} hold NaN or infinity; no bundle was written")
    known: dict[Literal["gap", "wgap"], Any] = {"gap": _gap, "wgap": _wgap}
    known = {head.pooling: known[head.pooling]} if head.pooling else known
    weight, bias = head.weight.astype(np.float64), head.bias.astype(np.float64)
    linearity = {name: _worst(pool(features) @ weight.T + bias, logits) for name, pool in known.items()}
    pooling = min(linearity, key=lambda name: linearity[name])
    precision = "float16" if half else "float32"
    parity = _worst(logits, own)
    figures = {"pictures": len(pictures), "linearity": linearity[pooling], "parity": parity}
    own_part = float(np.abs(logits - bias).max())
    if float(np.ptp(features)) == 0 or not own_part > 0:
        raise CheckFailedError(
            f"{path}: the features {head.features} are the same everywhere on all {len(pictures)} pictures, so that no "
            "box could be told from another; look at --preprocessing and the weights. No bundle was written"
        )
    through = f"{head.nodes['classifier']} on {head.nodes.get('pooling', 'the given features')}"
    drowned = linearity[pooling] * float(np.abs(logits).max()) > DROWNED * own_part
    if drowned or not linearity[pooling] <= LINEARITY:
        raise CheckFailedError(
            f"{path}: W . pool({head.features}) + b of {through} differs from the logits {head.logits} by "
            f"{linearity[pooling]:.1e} of their maximum, expected at most {LINEARITY:.0e}"
            f"{f', and {DROWNED:g} of what they are without the bias' if drowned else ''}; no bundle was written"
        )
    if not parity <= PARITY[precision]:
        fixed = (
            ""
            if given.batch is None
            else f". The model is fixed to a batch of {given.batch}: export it with a free one"
        )
        raise CheckFailedError(
            f"{path}: the bundle's logits differ from the model's own by {parity:.1e} of their maximum, expected at "
            f"most {PARITY[precision]:.0e} for {precision}; no bundle was written{fixed}"
        )
    return Proof(figures, pooling, logits, features)


def measured(path: Path, head: LinearHead, given: NetworkInput) -> LinearHead:
    """The head with the extents that its features have on a picture, where the graph computes them; so has the file."""
    import numpy as np
    import onnx

    from wgap.runtime.networks.onnxruntime import open_session

    session = open_session(path, None, lean=True)
    [maps] = _run(session, ["features"], {"image": np.zeros((1, *given.size, 3), np.uint8)}, given)
    del session
    model = onnx.load(str(path))
    [features] = [value for value in model.graph.output if value.name == "features"]
    for dimension, extent in zip(features.type.tensor_type.shape.dim[1:], maps.shape[1:], strict=True):
        dimension.dim_value = extent
    save(path, model)
    return replace(head, shape=maps.shape[1:])


def _run(session: Any, names: list[str], feeds: dict[str, Any], given: NetworkInput) -> Any:
    try:
        return session.run(names, feeds)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "onnxruntime":
            raise
        fixed = f"; the model is fixed to a batch of {given.batch}: export it with a free one" if given.batch else ""
        raise CheckFailedError(f"ONNX Runtime cannot run the graph{fixed} ({first_line(error)})") from error


class OwnModel:
    """The unchanged model in ONNX Runtime, fed the ordinary way: normalised floats, one picture at a time.

    Args:
        path: the ONNX file.
        folder: where a copy, whose outputs the tensors are, lies until the session has read it.
        given: its input.
        tensors: what to return.
        steps: what it expects of pixels.

    Raises:
        CheckpointError: it has no such tensor.
    """

    def __init__(self, path: Path, folder: Path, given: NetworkInput, tensors: list[str], steps: Preprocessing) -> None:
        import numpy as np
        from onnx import TensorProto, helper

        from wgap.runtime.networks.onnxruntime import open_session

        self.given, self.tensors, self.steps = given, tensors, steps
        model = load(path)
        every = {name for node in model.graph.node for name in node.output}
        if gone := [name for name in tensors if name not in every]:
            raise CheckpointError(
                f"{path}: no node of it makes a tensor {gone[0]!r}; it is another model, or raising its opset renamed "
                f"that: export it at opset {OPSET} or higher"
            )
        for name in set(tensors) - {value.name for value in model.graph.output}:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
        kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self.kind = np.float16 if kinds[given.name] == TensorProto.FLOAT16 else np.float32
        copy = folder / "source.onnx"
        save(copy, model)
        del model
        self._session = open_session(copy, None, lean=True)
        copy.unlink()

    def __call__(self, picture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """The tensors, without their batch, of a picture uint8 [H, W, 3] RGB of the input's size."""
        import numpy as np

        x = normalised(picture, self.steps)
        batch = np.stack([x if self.given.nhwc else x.transpose(2, 0, 1)] * (self.given.batch or 1)).astype(self.kind)
        found = _run(self._session, self.tensors, {self.given.name: batch}, self.given)
        return [value[0].astype(np.float32) for value in found]


def normalised(picture: NDArray[np.uint8], steps: Preprocessing) -> NDArray[np.float64]:
    """float64 [H, W, 3] of uint8 [H, W, 3] RGB: its channels in the model's order, its values as that expects them.

    So that they are rounded once, when they become the input's type, unlike the graph's own.
    """
    import numpy as np

    pixels = picture[..., ::-1] if steps.channel_order == "bgr" else picture
    scaled: NDArray[np.float64] = (pixels.astype(np.float64) * steps.scale - np.array(steps.mean)) / np.array(steps.std)
    return scaled


def _gap(features: NDArray[np.float32]) -> Any:
    return features.mean(axis=(2, 3), dtype="float64")


def _wgap(features: NDArray[np.float32]) -> Any:
    """Weighted by the softmax over positions, divided by their number."""
    import numpy as np

    flat = features.reshape(*features.shape[:2], -1).astype(np.float64)
    weights = np.exp(flat - flat.max(axis=2, keepdims=True))
    return (flat * weights / weights.sum(axis=2, keepdims=True)).mean(axis=2)


def _worst(got: Any, expected: Any) -> float:
    import numpy as np

    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-30))
