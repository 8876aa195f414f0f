"""Is it right: the device, the GPU tests, and the kernel against the CPU's on photographs."""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.gpu_check import ROOT, AbsentError
from numpy.typing import NDArray

from wgap import Bundle, Localizer
from wgap.rule import Rule
from wgap.runtime.cuda.driver import attribute
from wgap.runtime.library import gpus
from wgap.runtime.locator import Request, open_locator


def environment(_: argparse.Namespace) -> dict[str, Any]:
    """Device, driver, libraries."""
    gpu = next(iter(gpus()), None)
    if gpu is None:
        raise AbsentError("no NVIDIA driver or GPU on this machine")
    versions = {}
    for name in (
        "wgap", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cuda-core",
        "cuda-bindings", "nvidia-cuda-nvrtc", "cupy-cuda13x", "pycuda", "numpy",
    ):  # fmt: skip
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
        "cuda": gpu.cuda,
        "multiprocessors": attribute("MULTIPROCESSOR_COUNT", 0),
        "shared_memory_per_block": attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", 0),
        "python": platform.python_version(),
        "versions": versions,
    }


def tests(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every GPU test; a skip for want of a library is told, one for want of a GPU fails."""
    variables = {**os.environ, "WGAP_REQUIRE_GPU": "1", "WGAP_GPU_MAPS": str(arguments.maps)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short", "tests/gpu", "tests/sdk/test_gpu.py"],
        cwd=ROOT, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if re.match(r"(FAILED|ERROR|SKIPPED)", line)]
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]
    state = "failed" if done.returncode else "ran"
    return {"state": state, "summary": summary, "told": lines, "tail": done.stdout[-6000:]}


def parity(arguments: argparse.Namespace) -> dict[str, Any]:
    """Levels, boxes and scores of photographs under every rule, the kernel here against the kernel on the CPU.

    All photographs whole, then parts of them at random, until there are ``--maps`` maps.
    """
    if arguments.bundle is None or not arguments.data.is_dir():
        raise AbsentError("needs --bundle and --data with real photographs")
    from wgap.datasets import open_dataset
    from wgap.images import resize

    bundle = Bundle.open(arguments.bundle)
    rules = [Rule(), Rule("fixed", eta=0.2)]
    if "foreground" in bundle.manifest.model.signature():
        rules += [Rule("foreground"), Rule("foreground+colour"), Rule("foreground+colour", "recombined")]
    plain = Localizer(bundle)
    kernel, counts = open_locator(bundle, device=0), {"maps": 0, "levels": 0, "boxes": 0, "scores": 0}
    request = Request(max_boxes=3)
    for picture in _views([sample.path for sample in open_dataset(arguments.data, "all")]):
        batch = resize(picture, *bundle.manifest.model.input_size)[None]
        outputs = {**plain.network.run(batch), "picture": batch}
        for rule in rules:
            [[expected]], [[found]] = (
                locator.with_rule(rule).locate(outputs, request) for locator in (plain.locator, kernel)
            )
            counts["maps"] += 1
            counts["levels"] += expected.level == found.level
            counts["boxes"] += expected.boxes == found.boxes
            counts["scores"] += expected.score == found.score
        if counts["maps"] >= arguments.maps:
            break
    if not counts["maps"] == counts["levels"] == counts["boxes"]:
        raise AssertionError(f"levels or boxes differ: {counts}")
    told = ", ".join(f"{equal} equal {what}" for what, equal in counts.items() if what != "maps")
    return {**counts, "summary": f"{counts['maps']} maps of photographs: {told}"}


def _views(photographs: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    """Every photograph whole, then for ever a part of each."""
    from wgap.images import decode

    yield from map(decode, photographs)
    chance = np.random.default_rng(0)
    while True:
        for picture in map(decode, photographs):
            (top, bottom), (left, right) = (np.sort(chance.choice(n, 2, replace=False)) for n in picture.shape[:2])
            yield np.ascontiguousarray(picture[top : bottom + 1, left : right + 1])
