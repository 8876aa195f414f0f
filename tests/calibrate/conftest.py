"""Bundles and pictures to calibrate with: a quick one that is generated, and the real one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from wgap.bundle import Bundle
from wgap.calibrate.candidate import Calibration, GateRun, calibrate, enter, prepare
from wgap.calibrate.gate import Verdict
from wgap.calibrate.images import ImageSet, image_set
from wgap.runtime.cpus import int8_sums


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set for ``tiny_bundle``: 16 pictures to calibrate with and 16 to judge, with boxes."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(5)
    boxes = ["image,x0,y0,x1,y1"]
    for split in ("train", "test"):
        for number in range(16):
            name = ("disc", "ring", "cross")[number % 3]
            picture = rng.integers(0, 90, (80, 96, 3), dtype=np.uint8)
            x, y, r = int(rng.integers(25, 70)), int(rng.integers(25, 55)), int(rng.integers(10, 20))
            colour = [int(v) for v in rng.integers(150, 256, 3)]
            if name == "cross":
                cv2.line(picture, (x - r, y), (x + r, y), colour, 5)
                cv2.line(picture, (x, y - r), (x, y + r), colour, 5)
            else:
                cv2.circle(picture, (x, y), r, colour, -1 if name == "disc" else 4)
            path = root / split / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
            boxes.append(f"{path.relative_to(root)},{x - r},{y - r},{x + r + 1},{y + r + 1}")
    (root / "boxes.csv").write_text("\n".join(boxes) + "\n")
    return root


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A bundle of one's own."""

    def copy(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / f"own-{bundle.name}"))

    return copy


@pytest.fixture(scope="session")
def cub10_calibration(cub10: Path, cub10_bundle: Path) -> ImageSet:
    """32 training photographs, every class in turn."""
    return image_set(Bundle.open(cub10_bundle), cub10, split="train", count=32)


@pytest.fixture(scope="session")
def cub10_source(cub10_bundle: Path, cub10_calibration: ImageSet) -> Iterator[Calibration]:
    """Min-max ranges of the real network over ``cub10_calibration``."""
    with prepare(Bundle.open(cub10_bundle), cub10_calibration) as source:
        yield source


@pytest.fixture(scope="session")
def cub10_gate(cub10: Path, cub10_bundle: Path) -> GateRun:
    """All 122 test photographs, with boxes."""
    bundle = Bundle.open(cub10_bundle)
    return GateRun(bundle, image_set(bundle, cub10, split="test", with_boxes=True))


@pytest.fixture(scope="session")
def exact_int8() -> None:
    """A processor that sums products of eight bits without saturation; on others ONNX Runtime's INT8 loses boxes."""
    if int8_sums() == "saturating":
        pytest.skip("this processor has no VNNI: its INT8 loses boxes (docs/calibration.md)")


@pytest.fixture(scope="session")
def cub10_int8(
    exact_int8: None,
    cub10_source: Calibration,
    cub10_gate: GateRun,
    cub10_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Verdict]:
    """The real bundle with its INT8 model and the verdict on it. Shared: copy it before changing it."""
    folder = tmp_path_factory.mktemp("int8")
    own = Path(shutil.copytree(cub10_bundle, folder / "cub10"))
    candidate = calibrate(cub10_source, "int8", folder / "int8.onnx")
    judged = cub10_gate.judge(candidate.path, "int8", cub10_source.images.listing())
    enter(Bundle.open(own), candidate, judged)
    return own, judged
