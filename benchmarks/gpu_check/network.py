"""The network through every backend that runs here, alone and with everything up to the boxes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.gpu_check import SIZE, AbsentError
from benchmarks.gpu_check.timing import timed
from benchmarks.synthetic import DeviceCopy

from wgap import Bundle, Localizer
from wgap.errors import BackendError, EngineError, GateError, MissingDependencyError
from wgap.runtime.networks import BACKENDS


def bundle_of(arguments: argparse.Namespace) -> Bundle:
    """The given bundle, copied, since engines are built into it; or one of random weights."""
    import shutil

    target: Path = arguments.scratch / "bundle"
    if target.is_dir():
        return Bundle.open(target)
    if arguments.bundle is not None:
        shutil.copytree(arguments.bundle, target)
        return Bundle.open(target)
    import torch
    from safetensors.torch import save_file

    from wgap.export.onnx import bundle_from_checkpoint
    from wgap.train.model import WgapVgg16

    torch.manual_seed(0)
    save_file(WgapVgg16(10).state_dict(), arguments.scratch / "random.safetensors")
    classes = arguments.scratch / "classes.txt"
    classes.write_text("\n".join(f"class {n}" for n in range(10)) + "\n")
    bundle_from_checkpoint(arguments.scratch / "random.safetensors", target, classes=classes, preprocessing="caffe-bgr")
    return Bundle.open(target)


def torch_peers(images: Any) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """PyTorch eager and compiled, on a batch that is already on the device."""
    import torch

    from wgap.train.model import WgapVgg16

    if not torch.cuda.is_available():
        raise AbsentError("this PyTorch has no CUDA")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    batch = torch.from_numpy(images).cuda().permute(0, 3, 1, 2).float()
    peers: dict[str, Callable[[], Any]] = {}
    absent = {}
    for name in ("torch eager fp32", "torch compile fp32", "torch eager fp16", "torch compile fp16"):
        try:
            model = WgapVgg16(10).cuda().eval()
            half = name.endswith("16")
            run = torch.compile(model) if "compile" in name else model

            def once(run: Any = run, half: bool = half) -> None:
                with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
                    run(batch)
                torch.cuda.synchronize()

            once()
            peers[name] = once
        except Exception as error:  # noqa: BLE001  (a compiler that does not work here is a result, not the end)
            absent[name] = repr(error)[:300]
    return peers, absent


def network(arguments: argparse.Namespace) -> dict[str, Any]:
    """Forward pass through every backend that runs here, wall clock with the device waited for."""
    rng = np.random.default_rng(0)
    rows, absent = [], {}
    for images in arguments.batches:
        batch = rng.integers(0, 256, (images, *SIZE, 3), dtype=np.uint8)
        peers: dict[str, Callable[[], Any]] = {}
        try:
            found, missing = torch_peers(batch)
            peers |= found
            absent |= missing
        except (ImportError, AbsentError) as error:
            absent["torch"] = str(error)
        try:
            opened, missing = sessions(arguments, images)
        except ImportError as error:
            opened, missing = {}, {"sessions": str(error)}
        absent |= missing
        peers |= {name: forward(made, batch) for name, made in opened.items()}
        rows += timed(peers, images, arguments.rounds)
        for made in opened.values():
            made.close()
    return {"unit": "ms", "rows": rows, "absent": absent}


def forward(made: Localizer, batch: Any) -> Callable[[], Any]:
    """The network alone, from host memory; its outputs stay where they are."""

    def once() -> None:
        for _, part in made.network.parts(batch):
            with made.network.forward(part):
                pass

    return once


def sessions(arguments: argparse.Namespace, images: int) -> tuple[dict[str, Localizer], dict[str, str]]:
    """A localizer over every GPU backend and precision that runs here."""
    from wgap.export.engine import BuildOptions, engine_from_bundle

    bundle, made, absent = bundle_of(arguments), {}, {}
    precisions = [entry.precision for entry in bundle.manifest.files if entry.role == "onnx"]
    for name in BACKENDS:
        for precision in precisions if name != "onnxruntime" else []:
            label = f"{name} {precision}"
            try:
                if not name.startswith("onnxruntime"):
                    options = BuildOptions(batch=(1, min(8, images), max(images, 8)))
                    engine_from_bundle(Bundle.open(bundle.root), name, str(precision), options, ungated=True)
                made[label] = Localizer(bundle.root, name, precision=str(precision), batch_size=images, ungated=True)
            except (MissingDependencyError, EngineError, GateError, BackendError) as error:
                absent[label] = str(error)[:400]
    return made, absent


def end_to_end(arguments: argparse.Namespace) -> dict[str, Any]:
    """Image bytes on the device to boxes on the host, against the network alone."""
    rows, absent = [], {}
    rng = np.random.default_rng(0)
    for images in arguments.batches:
        batch = rng.integers(0, 256, (images, *SIZE, 3), dtype=np.uint8)
        opened, missing = sessions(arguments, images)
        absent |= missing
        peers: dict[str, Callable[[], Any]] = {}
        held: list[Any] = []
        for name, made in opened.items():
            guest = DeviceCopy(batch)
            held.append(guest)
            peers[f"{name}, network"] = forward(made, batch)
            peers[f"{name}, to boxes"] = lambda made=made, guest=guest: made.batch(guest, stream=1)  # type: ignore[misc]
        found = {row["peer"]: row for row in timed(peers, images, arguments.rounds)}
        for name in opened:
            ratio = found[f"{name}, to boxes"]["p50"] / found[f"{name}, network"]["p50"]
            rows.append({"images": images, "peer": name, "ratio": ratio, **found[f"{name}, to boxes"]})
        for guest in held:
            guest.close()
        for made in opened.values():
            made.close()
    if not rows:
        raise AbsentError("no GPU backend runs here: " + "; ".join(f"{k}: {v}" for k, v in absent.items()))
    return {"unit": "ms", "rows": rows, "absent": absent}
