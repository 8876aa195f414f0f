"""``package.module:factory``: a PyTorch classifier becomes an ONNX file, which is imported as any other."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from wgap.errors import CheckpointError
from wgap.export.import_graph import first_line
from wgap.export.onnx import model_from_module
from wgap.extras import require

__all__ = ["MODULE", "write_module"]

MODULE = re.compile(r"[\w.]+:\w+")
"""What is the name of a factory, and not of a file."""


def write_module(name: str, input_size: int | None, path: Path) -> Any:
    """Export what a factory returns, and return it: a module, in evaluation mode, that takes float32 [N, 3, H, W].

    Args:
        name: ``package.module:factory``, found as Python finds modules; the factory takes no arguments.
        input_size: H and W.
        path: of the ONNX file.

    Raises:
        CheckpointError: there is no such factory, it fails or returns no module, or PyTorch cannot export that.
    """
    require("importing a PyTorch module", "torch", "onnx", "onnxscript")
    import torch

    if input_size is None:
        raise CheckpointError(f"{name}: a module does not say its input's size; say which with --input-size")
    where, _, factory = name.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # which may be JSON
            made = getattr(importlib.import_module(where), factory)()
    except (Exception, SystemExit) as error:  # somebody else's code
        raise CheckpointError(
            f"{name}: expected an importable package.module:factory without arguments "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(made, torch.nn.Module):
        raise CheckpointError(f"{name}: expected a torch.nn.Module, got {type(made).__name__}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            proto = model_from_module(made.float(), torch.zeros(2, 3, input_size, input_size), "x")
    except Exception as error:  # the exporter's own, of many kinds
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise CheckpointError(
            f"{name}: PyTorch cannot export it ({type(cause).__name__}: {first_line(cause)}); write an .onnx file of "
            "it by hand and import that"
        ) from error
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return made
