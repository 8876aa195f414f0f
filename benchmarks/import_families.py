"""`wgap import` of the networks of torchvision, timm or pytorchcv, with random weights: a row for each.

    pip install --no-deps --target families torchvision timm pytorchcv
    PYTHONPATH=families python benchmarks/import_families.py torchvision:resnet50 timm:convnext_atto

Each is written by PyTorch's exporter, or with `--exporter script` by its older one, imported, proven and selftested.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

import torch

from wgap import Localizer
from wgap.errors import WgapError
from wgap.export.imported import bundle_from_onnx
from wgap.export.onnx import model_from_module
from wgap.runtime.selftest import selftest

CLASSES = 1000

# torchvision's wheel is built for CUDA. Beside a PyTorch without it, its import wants these operators declared, and may
# not register gradients; no classifier uses either.
for operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.modules["torchvision._autograd_registrations"] = types.ModuleType("torchvision._autograd_registrations")


def network(name: str, side: int) -> torch.nn.Module:
    """``library:architecture`` with random weights of seed 0; its batch normalisation has seen noise."""
    library, _, architecture = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        made: Any = importlib.import_module("torchvision.models").get_model(architecture, weights=None)
    elif library == "timm":
        made = importlib.import_module("timm").create_model(architecture, pretrained=False, exportable=True)
    else:
        made = importlib.import_module("pytorchcv.model_provider").get_model(architecture, pretrained=False)
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        made.train()(torch.randn(4, 3, side, side))
    return made.eval()  # type: ignore[no-any-return]


def written(module: torch.nn.Module, side: int, exporter: str, path: Path) -> None:
    """The module as an ONNX file of free batch."""
    example = torch.zeros(2, 3, side, side)
    if exporter == "dynamo":
        path.write_bytes(model_from_module(module, example, "x").SerializeToString())
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), str(path), input_names=["x"], dynamic_axes={"x": {0: "N"}}, opset_version=17,
            dynamo=False,
        )  # fmt: skip


def row(name: str, side: int, exporter: str, folder: Path) -> str:
    """What came of one network, as a row of a Markdown table."""
    path = folder / "m.onnx"
    try:
        written(network(name, side), side, exporter, path)
    except Exception as error:  # noqa: BLE001 (somebody else's code)
        return f"| {name} | not exported: {type(error).__name__}: {str(error)[:100]} |"
    start = time.monotonic()
    try:
        bundle = bundle_from_onnx(
            path, folder / "bundle", classes=folder / "classes.txt", preprocessing="torchvision-rgb", force=True
        )
    except WgapError as error:
        return f"| {name} | refused: {str(error).replace(str(folder), '')} |"
    seconds = time.monotonic() - start
    made = bundle.file("onnx").import_
    assert made is not None
    passed = selftest(Localizer(bundle.root)).ok
    shape = "x".join(map(str, bundle.manifest.model.feature_shape))
    figures = f"{made.figures['linearity']:.1e} | {made.figures['parity']:.1e} | {seconds:.1f} s"
    return f"| {name} | {shape} | {made.features_min:.2g} | {figures} | {'imported' if passed else 'SELFTEST FAILED'} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="LIBRARY:NAME")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--exporter", choices=("dynamo", "script"), default="dynamo")
    options = parser.parse_args()
    print("| network | features | smallest | linearity | parity | time | |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "classes.txt").write_text("".join(f"class {n}\n" for n in range(CLASSES)))
        for name in options.networks:
            print(row(name, options.side, options.exporter, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
