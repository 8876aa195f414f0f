"""A classifier's ONNX graph made plain, and with the bundle's input and outputs around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from wgap.errors import CheckpointError, WgapError
from wgap.export.linear_head import LinearHead, shown
from wgap.manifest import HEAD
from wgap.preprocessing import Preprocessing

__all__ = [
    "OPSET",
    "NetworkInput",
    "external_files",
    "first_line",
    "load",
    "onnx_errors",
    "plain_model",
    "save",
    "told_as",
    "wrapped_model",
]

OPSET = 13
"""Of a bundle's graph at least: quantisation and foreground heads need it."""

_OWN = "input/"
"""What the names of the nodes in front of the network begin with."""

_LARGE = 1 << 12
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_RESERVED = ("image", "logits", "features", "foreground")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinear", "ConvInteger", "MatMulInteger")


@dataclass(frozen=True)
class NetworkInput:
    """The network's own input.

    Attributes:
        name: tensor.
        nhwc: whether the channels come last.
        size: (H, W).
        batch: that the model is fixed to; None where it is free.
    """

    name: str
    nhwc: bool
    size: tuple[int, int]
    batch: int | None


@contextmanager
def onnx_errors(path: Path) -> Iterator[None]:
    """What onnx says of a file that it cannot read, convert or check, in one line."""
    import onnx
    from google.protobuf.message import DecodeError, EncodeError

    known = (
        DecodeError, EncodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
        onnx.version_converter.ConvertError, ValueError, TypeError, RuntimeError, FileNotFoundError,
    )  # fmt: skip
    try:
        yield
    except WgapError as error:
        raise type(error)(f"{path}: {error}") from error
    except known as error:
        raise CheckpointError(
            f"{path}: onnx cannot take it ({first_line(error)}); export it from its framework again"
        ) from error


@contextmanager
def told_as(*names: tuple[Path, str]) -> Iterator[None]:
    """Errors of ours tell of files that only we know by the name that the user gave."""
    try:
        yield
    except WgapError as error:
        text = str(error)
        for path, name in names:
            text = text.replace(str(path), name)
        if text == str(error):
            raise
        raise type(error)(text) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, without colours, not all of a long one."""
    text = _COLOURS.sub("", str(error))
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:300]


def load(path: Path) -> Any:
    """The model with its external data inside and no local functions."""
    import onnx
    from onnx import inliner

    if path.suffix != ".onnx" or not path.is_file():
        raise CheckpointError(f"expected an .onnx file, found {'another' if path.is_file() else 'none'}")
    if path.stat().st_size == 0:
        raise CheckpointError("expected an ONNX model, the file is empty")
    model = onnx.load(str(path))
    return inliner.inline_local_functions(model) if model.functions else model


def external_files(path: Path) -> list[Path]:
    """The files beside a model in which its values lie."""
    import onnx
    from onnx import external_data_helper

    model = onnx.load(str(path), load_external_data=False)
    every = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    tensors = [tensor for tensor in every if external_data_helper.uses_external_data(tensor)]
    return sorted({path.parent / external_data_helper.ExternalDataInfo(t).location for t in tensors})


def plain_model(path: Path, input_size: int | None) -> tuple[Any, NetworkInput, bool]:
    """The model in float32, of opset 13 or higher, batch free; its input; whether it was float16."""
    import onnx
    from onnx import version_converter

    model = load(path)
    for node in model.graph.node:
        if node.op_type.startswith(_QUANTISED):
            raise CheckpointError(
                f"the model is quantised, its first such node is {shown(node)}; import the float32 model and run "
                "`wgap calibrate` on the bundle"
            )
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise CheckpointError(
                f"the node {shown(node)} holds a graph of its own; export the model without control flow"
            )
    if next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0) < OPSET:
        model = version_converter.convert_version(model, OPSET)
    model.ir_version = max(model.ir_version, 8)
    half = _to_float32(model)
    _sort(model.graph)
    given = _free_input(model, input_size)
    return _inferred(model), given, half


def _inferred(model: Any) -> Any:
    """The model with the shapes of all its tensors; large weights take no part, since onnx would copy them thrice."""
    import onnx

    large = {tensor.name: tensor.raw_data for tensor in model.graph.initializer if len(tensor.raw_data) > _LARGE}
    for tensor in model.graph.initializer:
        if tensor.name in large:
            tensor.ClearField("raw_data")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for tensor in inferred.graph.initializer:
        if tensor.name in large:
            tensor.raw_data = large.pop(tensor.name)
    return inferred


def _sort(graph: Any) -> None:
    """Put nodes behind those whose results they read; converters to float16 append some at the end."""
    maker = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    before = {n: {maker[name] for name in node.input if name in maker} for n, node in enumerate(graph.node)}
    if all(other < number for number, others in before.items() for other in others):
        return
    try:
        nodes = [graph.node[number] for number in TopologicalSorter(before).static_order()]
    except CycleError as error:
        raise CheckpointError("the graph's nodes wait for each other in a circle") from error
    sorted_nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(sorted_nodes)


def _to_float32(model: Any) -> bool:
    """Make every float16 and bfloat16 of a model float32; whether there were any."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    halves, found = (TensorProto.FLOAT16, TensorProto.BFLOAT16), False
    tensors = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in (*model.graph.initializer, *tensors):
        if tensor.data_type in halves:
            found = True
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Cast" else ():
            if attribute.name == "to" and attribute.i in halves:
                found, attribute.i = True, TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in halves:
            found, value.type.tensor_type.elem_type = True, TensorProto.FLOAT
    return found


def _free_input(model: Any, input_size: int | None) -> NetworkInput:
    """Free the batch of the only input, fix its size, and forget all shapes that followed from it."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise CheckpointError(
            f"expected one input, the picture, got {len(inputs)}: {', '.join(v.name for v in inputs)}"
        )
    [value] = inputs
    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]
    if kind.elem_type != TensorProto.FLOAT or len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise CheckpointError(
            f"expected an input float32 [N, 3, H, W] or [N, H, W, 3], got {value.name} "
            f"{TensorProto.DataType.Name(kind.elem_type).lower()} {[n or 'free' for n in shape]}"
        )
    nhwc = shape[1] != 3
    places = (1, 2) if nhwc else (2, 3)
    for place in places:
        if shape[place] is None and input_size is None:
            raise CheckpointError("the graph leaves its input's height and width free; say which with --input-size")
        if input_size is not None and shape[place] not in (None, input_size):
            raise CheckpointError(
                f"the graph takes pictures of {shape[places[0]]}x{shape[places[1]]}, --input-size says {input_size}"
            )
        kind.shape.dim[place].dim_value = shape[place] or input_size
    size = (kind.shape.dim[places[0]].dim_value, kind.shape.dim[places[1]].dim_value)
    kind.shape.dim[0].dim_param = "N"
    del graph.value_info[:]
    for output in graph.output:
        for dimension in output.type.tensor_type.shape.dim:
            dimension.Clear()
    if (batch := shape[0]) is not None:
        made = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
        for number, node in enumerate(graph.node):
            if node.op_type != "Reshape" or node.input[0] in constants or node.input[0] in made:
                continue
            tensor = constants.get(node.input[1]) or next(
                (a.t for a in getattr(made.get(node.input[1]), "attribute", ()) if a.name == "value"), None
            )
            target = None if tensor is None else numpy_helper.to_array(tensor).copy()
            if target is not None and target.size and target[0] == batch:
                target[0] = 0  # of the input
                graph.initializer.append(numpy_helper.from_array(target, f"{node.input[1]}/free_{number}"))
                node.input[1] = graph.initializer[-1].name
                for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                    node.attribute.remove(attribute)
    for entry in [v for v in graph.input if v.name in constants]:
        graph.input.remove(entry)
    return NetworkInput(value.name, nhwc, size, batch)


def wrapped_model(model: Any, given: NetworkInput, head: LinearHead, steps: Preprocessing) -> tuple[Any, list[Any]]:
    """The bundle's graph, ``image`` uint8 [N, H, W, 3] RGB in, ``logits`` and ``features`` float32 out; its constants.

    The given model is used up. Its constants stay where they are in memory, and come beside the graph for :func:`save`.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    from onnx.utils import Extractor

    def output(name: str, shape: list[Any] | None) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    constants = _taken(model)
    kept = Extractor(model)
    kept.value_infos |= {name: output(name, None) for name in (head.logits, head.features)}
    model = kept.extract_model([given.name], [head.logits, head.features])
    graph, names = model.graph, _names(model.graph, head)
    read = {name for node in graph.node for name in node.input}
    constants = [tensor for tensor in constants if tensor.name in read]
    for tensor in constants:
        tensor.name = names.get(tensor.name, tensor.name)
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = node.name or f"{node.op_type}_{number}"
        if node.name.startswith((HEAD, _OWN)):
            node.name = f"network/{node.name}"
        while node.name in taken:
            node.name = f"{node.name}_"
        taken.add(node.name)
        del node.metadata_props[:]
        node.doc_string = ""
    front: list[Any] = []

    def put(operator: str, value: Any = None, **attributes: Any) -> None:
        name = f"{_OWN}{operator.lower()}"
        inputs = [front[-1].output[0] if front else "image"]
        if value is not None:
            constants.append(numpy_helper.from_array(np.asarray(value), f"{name}_by"))
            inputs.append(f"{name}_by")
        front.append(helper.make_node(operator, inputs, [f"{name}_made"], name, **attributes))

    put("Cast", to=TensorProto.FLOAT)
    if steps.channel_order == "bgr":
        put("Gather", np.array([2, 1, 0], np.int64), axis=3)
    put("Mul", np.float32(steps.scale))
    put("Sub", np.array(steps.mean, np.float32))
    put("Div", np.array(steps.std, np.float32))
    if not given.nhwc:
        put("Transpose", perm=[0, 3, 1, 2])
    front[-1].output[0] = names.get(given.name, given.name)
    back = []
    if not head.flat:
        back.append(helper.make_node("Flatten", [names[head.logits]], ["logits"], f"{_OWN}flatten", axis=1))
    if head.layout == "NHWC":
        back.append(
            helper.make_node("Transpose", [names[head.features]], ["features"], f"{_OWN}nchw", perm=[0, 3, 1, 2])
        )
    nodes = [*front, *graph.node, *back]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", *given.size, 3]))
    graph.output.extend(
        [
            output("logits", ["N", len(head.weight)]),
            output("features", ["N", *(extent or None for extent in head.shape)]),
        ]
    )
    graph.name, model.producer_name, model.doc_string = "wgap", "wgap", "WGAP: image bytes to logits and feature maps"
    return model, constants


def _taken(model: Any) -> list[Any]:
    """The constants of a model's graph, which loses them; they are not copied."""
    constants = list(model.graph.initializer)
    del model.graph.initializer[:]
    return constants


def save(path: Path, model: Any, constants: list[Any] | None = None) -> None:
    """Write a model, its constants one by one: onnx would hold the whole of it thrice.

    Args:
        path: of the file.
        model: used up.
        constants: of its graph, where they are beside it; None: the graph's own.
    """
    constants = _taken(model) if constants is None else constants
    graph = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    size = len(graph) + sum(len(_field(5, tensor.ByteSize())) + tensor.ByteSize() for tensor in constants)
    with path.open("wb") as file:
        file.write(model.SerializeToString(deterministic=True) + _field(7, size) + graph)
        for tensor in constants:
            file.write(_field(5, tensor.ByteSize()) + tensor.SerializeToString(deterministic=True))


def _field(number: int, size: int) -> bytes:
    """What stands before a message of so many bytes inside another; a model's graph is 7, the graph's tensors are 5."""
    head = bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(head) + bytes([size])


def _names(graph: Any, head: LinearHead) -> dict[str, str]:
    """New names of the tensors whose own are the bundle's, and of the two that become its outputs."""
    every = {name for node in graph.node for name in (*node.input, *node.output)}
    prefix = "network/"
    while any(name.startswith(prefix) for name in every):
        prefix = f"_{prefix}"
    names = {name: prefix + name for name in every if name in _RESERVED or name.startswith((HEAD, _OWN))}
    names[head.logits] = "logits" if head.flat else f"{prefix}{head.logits}"
    names[head.features] = "features" if head.layout == "NCHW" else f"{prefix}{head.features}"
    return names
