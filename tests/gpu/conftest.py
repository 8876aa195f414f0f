"""Tests that need an NVIDIA GPU, or the emulated driver (emulator/), with which they run everywhere.

WGAP_REQUIRE_GPU=1 turns every skip for want of a GPU into a failure; ``make gpu-check`` sets it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.runtime.conftest import glass_bundle  # noqa: F401  (a fixture)

from wgap.bundle import Bundle
from wgap.errors import WgapError

EMULATED = os.environ.get("WGAP_EMULATED_GPU") == "1"


def absent(reason: str) -> None:
    """Skip, or fail where a GPU was promised."""
    if os.environ.get("WGAP_REQUIRE_GPU") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def gpu() -> str:
    """The device's compute capability."""
    pytest.importorskip("cuda.bindings")
    from wgap.runtime.library import gpu

    try:
        return gpu().compute_capability
    except WgapError as error:
        absent(f"no GPU: {error}")
        raise


@pytest.fixture(autouse=True)
def _no_fault_of_the_library() -> Iterator[None]:
    """The stand-in for TensorRT tells what a real one would have crashed on."""
    yield
    if EMULATED:
        assert not import_module("tensorrt").FAULTS


@pytest.fixture
def two_gpus() -> None:
    """Skip where there is one."""
    from wgap.runtime.library import gpus

    if len(gpus()) < 2:
        absent("needs two GPUs") if EMULATED else pytest.skip("needs two GPUs")


@pytest.fixture(scope="session")
def engine_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick bundle with an engine for batches of 1 to 6. Shared: copy it before changing it."""
    if not EMULATED:
        pytest.skip("needs the stand-in for TensorRT")
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("gpu") / "engine"))
    enter_plan(root, root / Bundle.open(root).model_file("fp32").path)
    return root


def enter_plan(root: Path, plan: Path | bytes, **options: Any) -> None:
    """An engine of the stand-in for TensorRT: an ONNX file."""
    from wgap.extend import enter_file
    from wgap.manifest import EngineRecord, Profile

    bundle = Bundle.open(root)
    record = EngineRecord(
        "tensorrt", import_module("tensorrt").__version__, "8.6", f"linux {platform.machine()}", Profile(1, 2, 6),
        bundle.model_file("fp32").sha256, options,
    )  # fmt: skip
    content = plan if isinstance(plan, bytes) else plan.read_bytes()
    enter_file(bundle, content, "engines/model.fp32.plan", "engine", "fp32", lambda _: False, engine=record)


@pytest.fixture(scope="session")
def images() -> Any:
    """uint8[11, 64, 64, 3]."""
    return np.random.default_rng(8).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Six labelled pictures with boxes."""
    root, rng, lines = tmp_path / "shapes", np.random.default_rng(0), ["image,x0,y0,x1,y1"]
    for name in ("cross", "disc", "ring"):
        (root / "test" / name).mkdir(parents=True)
        for number in range(2):
            cv2.imwrite(str(root / "test" / name / f"{number}.png"), rng.integers(0, 256, (80, 100, 3), dtype=np.uint8))
            lines.append(f"test/{name}/{number}.png,10,20,60,70")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


def emulated(counter: str) -> int:
    """What the emulated driver counts: ``calls`` so far, ``graphs`` that are alive, ``owners`` of primary contexts."""
    function = ctypes.CDLL("libcuda.so.1")[f"wgap_emulated_{counter}"]
    function.restype = ctypes.c_ulonglong
    return int(function())


def free_memory(device: int = 0) -> int:
    """Bytes of the device that nobody holds."""
    from wgap.runtime.cuda.driver import Context, call

    context = Context(device)
    with context:
        free = int(call("cuMemGetInfo")[0])
    context.close()
    return free


def same(expected: Any, found: Any) -> bool:
    """Every field of two records, bit for bit."""
    fields = ("class_id", "score", "logit", "level", "threshold", "boxes", "degenerate", "error")
    return repr(expected.edge_means) == repr(found.edge_means) and all(
        getattr(expected, name) == getattr(found, name) for name in fields
    )
