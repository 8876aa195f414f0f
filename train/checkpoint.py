"""Weights in and out of files, without ever executing what is in them.

A checkpoint is a ``.safetensors`` file: the state dict, and under the header key ``wgap`` a JSON object with the
architecture, the preprocessing's name, the classes and the input size. A bare state dict is read too; what it does not
say (classes, preprocessing, stride) the caller must.
"""

from __future__ import annotations

import json
import pickle
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wgap.atomic import atomic_file
from wgap.errors import CheckpointError
from wgap.plain import PlainError, from_plain, read_json, require_distinct
from wgap.preprocessing import preprocessing as preprocessing_named
from wgap.train.backbone import backbone_from_state
from wgap.train.model import Neck, Pooling, WgapNetwork, arch_from_state, check_arch

METADATA_KEY = "wgap"
FORMAT = 1

_CLASSIFIERS = ("classifier.", "fc.")
"""What the names of a classifier begin with, here and in torchvision's files."""

_COUNTER = ".num_batches_tracked"
"""Of a BatchNorm; nothing is computed from it, and older files of torchvision have none."""


@dataclass(frozen=True)
class _Arch:
    """The arguments of :class:`wgap.train.model.WgapNetwork`."""

    num_classes: int
    stride: int
    neck: Neck
    pooling: Pooling
    width: float
    input_size: int
    backbone: str = "vgg16"  # which its checkpoints do not say

    def __post_init__(self) -> None:
        try:
            check_arch(self.backbone, self.stride, self.neck, self.pooling, self.width, self.input_size)
        except ValueError as error:
            raise PlainError(f"arch: {error}") from error


@dataclass(frozen=True)
class _Facts:
    """What every checkpoint says of its network; other keys are kept and not read."""

    format: int
    arch: _Arch
    preprocessing: str
    classes: tuple[str, ...]
    input_size: int

    def __post_init__(self) -> None:
        require_distinct("classes", self.classes)
        for name, here, there in (
            ("input_size", self.input_size, self.arch.input_size),
            ("classes", len(self.classes), self.arch.num_classes),
        ):
            if here != there:
                raise PlainError(f"{name}: {here}, but arch says {there}")


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode and everything needed to use it.

    Attributes:
        model: float32, on the CPU, in evaluation mode.
        classes: K names in logit order.
        preprocessing: name from :mod:`wgap.preprocessing`.
        input_size: side of the square input in pixels.
        metadata: the file's ``wgap`` metadata; empty for a bare state dict.
    """

    model: WgapNetwork
    classes: list[str]
    preprocessing: str
    input_size: int
    metadata: dict[str, Any]


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a ``.safetensors`` or ``.pth``/``.pt`` file of tensors.

    Returns:
        The state dict with floating point tensors as float32 (float16 and bfloat16 storage included) and without
        BatchNorm's counters, and the ``wgap`` metadata (empty if the file has none).

    Raises:
        CheckpointError: the file is missing, cut short, of another kind, or a pickle of anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a weights file (.safetensors, .pth or .pt), found none")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        state, metadata = _read_torch(path), {}
    else:
        raise CheckpointError(f"{path}: expected a file that ends in .safetensors, .pth or .pt")
    if odd := next((name for name in state if not name.isprintable()), None):
        raise CheckpointError(f"{path}: expected names of printable text for its tensors, got {odd!a}")
    state = {k: v for k, v in state.items() if not k.endswith(_COUNTER)}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); was the download cut short?") from error
    if METADATA_KEY not in header:
        return state, {}
    try:
        metadata = read_json(header[METADATA_KEY])
    except ValueError as error:
        raise CheckpointError(f"{path}: its {METADATA_KEY!r} metadata is not JSON ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else type(metadata).__name__
        raise CheckpointError(f"{path}: checkpoint format {reprlib.repr(found)}; this version reads format {FORMAT}")
    try:
        from_plain(_Facts, {f.name: metadata[f.name] for f in fields(_Facts) if f.name in metadata})
    except PlainError as error:
        raise CheckpointError(f"{path}: its {METADATA_KEY!r} metadata: {error}; save the checkpoint again") from error
    return state, metadata


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors, and opening it would run code from it "
            f"({str(error).splitlines()[0]}); save the state dict alone, best as .safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole PyTorch weights file ({error}); was the download cut short?"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        inside = (
            f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else type(content).__name__
        )
        raise CheckpointError(f"{path}: expected a state dict (names to tensors), got {inside}")
    return {str(k): v for k, v in content.items()}


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Every way in which ``found`` differs from ``expected`` in keys and shapes, one line each; empty if none."""
    lines = []
    if missing := [k for k in expected if k not in found]:
        lines.append(f"missing: {', '.join(missing)}")
    if unexpected := [k for k in found if k not in expected]:
        lines.append(f"unexpected: {', '.join(unexpected)}")
    lines += [
        f"{k}: expected shape {list(expected[k].shape)}, got {list(found[k].shape)}"
        for k in expected
        if k in found and found[k].shape != expected[k].shape
    ]
    return lines


def initialise(model: WgapNetwork, path: Path | str) -> dict[str, Any]:
    """Load a pretrained backbone into ``model``; its classifier stays as it was initialised.

    torchvision's files and this package's checkpoints both serve. Their classifier is left out, and so is a neck that
    ``model`` does not have; a neck that both have is loaded.

    Returns:
        The file's ``wgap`` metadata (empty if it has none).

    Raises:
        CheckpointError: the file is of another backbone, or keys or shapes differ, each listed.
    """
    state, metadata = read_weights(path)
    name = model.backbone.name
    if (found := backbone_from_state({k: tuple(v.shape) for k, v in state.items()})) and found[0].name != name:
        raise CheckpointError(f"{path} holds a {found[0].name}, expected a {name}; give --backbone {found[0].name}")
    has_neck = "neck.weight" in state and model.neck is not None
    left_out = _CLASSIFIERS if has_neck else (*_CLASSIFIERS, "neck.")
    expected, wanted = (
        {k: v for k, v in tensors.items() if not k.startswith(left_out)} for tensors in (_weights(model), state)
    )
    if wrong := differences(wanted, expected):
        raise CheckpointError(
            _listing(f"{path} does not hold the convolutions of this network ({name}, width {model.width:g})", wrong)
        )
    model.load_state_dict(wanted, strict=False)
    return metadata


def save(model: WgapNetwork, path: Path | str, *, classes: Sequence[str], preprocessing: str, **extra: Any) -> None:
    """Write a checkpoint atomically.

    Args:
        model: its parameters are stored as they are (float32).
        path: a ``.safetensors`` file; replaced if it exists.
        classes: K names in logit order.
        preprocessing: name from :mod:`wgap.preprocessing`.
        extra: further JSON values for the metadata.

    Raises:
        CheckpointError: if the number of classes or the preprocessing is wrong.
    """
    _check_classes(classes, model.num_classes, path)
    metadata = {
        "format": FORMAT,
        "arch": model.arch(),
        "preprocessing": preprocessing_named(preprocessing).name,
        "classes": list(classes),
        "input_size": model.input_size,
        **extra,
    }
    state = {k: v.detach().cpu().contiguous() for k, v in _weights(model).items()}
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def load_model(
    path: Path | str,
    classes: Sequence[str] | None = None,
    preprocessing: str | None = None,
    *,
    stride: int | None = None,
    pooling: Pooling | None = None,
    input_size: int | None = None,
) -> LoadedModel:
    """Load a checkpoint, or a bare state dict with the facts that it does not carry.

    Args:
        path: ``.safetensors`` (or a ``.pth`` state dict).
        classes: K class names; needed where the file has no metadata, and never at odds with it.
        preprocessing: name from :mod:`wgap.preprocessing`; the same holds.
        stride: 16, 8, or 32 (``vgg16``: 16 or 8). A bare state dict is taken for 16 unless told otherwise.
        pooling: a bare state dict is taken for ``wgap`` unless told otherwise.
        input_size: side of the square input in pixels, 224 unless told otherwise.

    Raises:
        CheckpointError: the file is not such a network as a whole (every differing key and shape is listed), facts are
            missing, or they contradict the file.
    """
    state, metadata = read_weights(path)
    given = {"classes": None if classes is None else list(classes), "preprocessing": preprocessing}
    told_arch = {"stride": stride, "pooling": pooling, "input_size": input_size}
    if metadata:
        arch = dict(metadata["arch"])
        for name, value, stored in [
            *((k, v, metadata[k]) for k, v in given.items()),
            *((k, v, arch[k]) for k, v in told_arch.items()),
        ]:
            if value is not None and value != stored:
                raise CheckpointError(
                    f"{path} says {name} = {stored!r}, but {value!r} was asked for; leave the option out"
                )
        given = {k: metadata[k] for k in given}
    else:
        arch = arch_from_state({k: tuple(v.shape) for k, v in state.items()})
        arch |= {k: v for k, v in told_arch.items() if v is not None}
        if lacking := [k for k, v in given.items() if v is None]:
            options = {"classes": "--classes FILE (one name a line)", "preprocessing": "--preprocessing NAME"}
            raise CheckpointError(
                f"{path} is a bare state dict and does not say its {' and '.join(lacking)}: give "
                f"{' and '.join(options[k] for k in lacking)}"
            )
    with torch.device("meta"):  # no memory for what only the metadata says
        expected = _weights(_model(arch, path))
    if wrong := differences(state, expected):
        raise CheckpointError(_listing(f"{path} is not the network it looks like ({_describe(arch)})", wrong))
    if damaged := [k for k, v in state.items() if not (v.is_floating_point() and bool(v.isfinite().all()))]:
        raise CheckpointError(f"{path}: expected finite floating point weights, got others in {', '.join(damaged[:5])}")
    model = _model(arch, path)
    model.load_state_dict(state, strict=False)  # which lacks the counters alone
    names = cast("list[str]", given["classes"])
    _check_classes(names, model.num_classes, path)
    return LoadedModel(
        model.eval(), names, preprocessing_named(cast(str, given["preprocessing"])).name, model.input_size, metadata
    )


def _weights(model: WgapNetwork) -> dict[str, Tensor]:
    """What a checkpoint holds: parameters and running statistics."""
    return {k: v for k, v in model.state_dict().items() if not k.endswith(_COUNTER)}


def _model(arch: dict[str, Any], path: Path | str) -> WgapNetwork:
    try:
        return WgapNetwork(**arch)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} describes a network that cannot be built: {error}") from error


def _describe(arch: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in arch.items())


def _listing(title: str, lines: list[str]) -> str:
    return "\n  ".join([f"{title}:", *lines])


def _check_classes(classes: Sequence[str], expected: int, path: Path | str) -> None:
    if len(classes) != expected:
        raise CheckpointError(
            f"{path}: the classifier has {expected} classes, but {len(classes)} class names were given"
        )


__all__ = ["LoadedModel", "Neck", "differences", "initialise", "load_model", "read_weights", "save"]
