"""The C++ runtime on this GPU: its boxes beside the CPU's, and its latency."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import ROOT, AbsentError
from benchmarks.gpu_check.network import bundle_of

BACKENDS = ("tensorrt", "onnxruntime_cuda")
MOST = 200
"""Photographs that are localized."""

LEAST_EQUAL = 0.95
"""Share of boxes that another processor's sums may leave as they are; fewer is a fault."""


def _run(*command: str | Path) -> str:
    """What a command prints.

    Raises:
        AbsentError: it failed.
    """
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    done = subprocess.run([*command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AbsentError(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def cpp(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build the runtime and its GPU modules; compare boxes with the CPU's and time, on every backend that runs here.

    ``TENSORRT_ROOT`` names TensorRT's headers, ``WGAP_CPP_BUILD`` a build that is there already. Photographs come from
    ``--data``.
    """
    photographs = sorted(arguments.data.rglob("*.jpg"))[:MOST]
    if not photographs:
        raise AbsentError(f"needs photographs; {arguments.data} holds none")
    bundle = bundle_of(arguments).root
    programs = Path(os.environ.get("WGAP_CPP_BUILD") or _built(arguments.scratch / "cpp"))
    rows, absent = [], {}
    expected = _boxes(programs, bundle, photographs, "onnxruntime")
    for backend in BACKENDS:
        bench = (programs / "wgap-bench", bundle, *photographs[:8], "--backend", backend, "--iterations", "500")
        try:
            found = _boxes(programs, bundle, photographs, backend)
            [cell] = json.loads(_run(*bench, "--json"))["cells"]
        except AbsentError as error:
            absent[backend] = str(error)
            continue
        equal = sum(a == b for a, b in zip(expected, found, strict=True))
        times = {f"{name} ms": cell["stages"][name]["p50_ms"] for name in ("prepare", "network", "total")}
        rows.append({"backend": backend, "pictures": len(found), "boxes equal to the CPU's": equal, **times})
    if not rows:
        raise AbsentError("; ".join(f"{name}: {reason}" for name, reason in absent.items()))
    if any(row["boxes equal to the CPU's"] < LEAST_EQUAL * row["pictures"] for row in rows):
        raise AssertionError(f"boxes differ: {rows}")
    return {"rows": rows, "absent": absent, "unit": "medians of batch 1; network with the kernel behind it"}


def _built(folder: Path) -> Path:
    """The runtime, its modules and programs, built there."""
    for program in ("cmake", "nvcc"):
        if shutil.which(program) is None:
            raise AbsentError(f"needs {program}")
    headers = f"-DTENSORRT_ROOT={os.environ.get('TENSORRT_ROOT', '')}"
    _run(ROOT / "cmake" / "fetch-headers.sh")
    _run("cmake", "-S", ROOT, "-B", folder, "-DWGAP_RUNTIME=ON", headers)
    _run("cmake", "--build", folder, "--parallel")
    return folder


def _boxes(programs: Path, bundle: Path, photographs: list[Path], backend: str) -> list[Any]:
    """Of each photograph."""
    printed = _run(programs / "wgap-localize", bundle, *photographs, "--backend", backend, "--json")
    return [json.loads(line)["boxes"] for line in printed.splitlines()]
