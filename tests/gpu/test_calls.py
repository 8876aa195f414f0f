"""How many calls of the driver a batch takes, so that their number cannot grow unseen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.synthetic import DeviceCopy
from tests.gpu.conftest import EMULATED, emulated

from wgap import Localizer
from wgap.runtime.cuda.postprocess import CudaPostprocess

pytestmark = pytest.mark.skipif(not EMULATED, reason="the emulated driver counts its calls")

CLASSES, CONTEXT = [0, 1, 2, 0], 2  # entered and left by each call


def calls(work: Callable[[], object]) -> int:
    before = emulated("calls")
    work()
    return emulated("calls") - before


@pytest.mark.parametrize("heatmap", [False, True])
@pytest.mark.parametrize("classes", [None, CLASSES], ids=["top class", "classes given"])
@pytest.mark.parametrize("on_device", [False, True], ids=["host images", "device images"])
def test_a_batch_of_a_session(
    engine_bundle: Path, images: Any, classes: list[int] | None, heatmap: bool, on_device: bool
) -> None:
    guest = DeviceCopy(images[:4])
    with Localizer(engine_bundle, "tensorrt", batch_size=4) as made:

        def once() -> None:
            made.batch(guest, classes, heatmap) if on_device else list(made(images[:4], classes, heatmap))

        first, captured, *replayed = (calls(once) for _ in range(5))
    guest.close()
    into = 2 if on_device else 0  # wait for the images, copy them; what comes from the host is copied by the graph
    slot = 1 + 3 + (not on_device)  # stream, buffers, staged images
    launch = 2 + heatmap + (classes is not None)  # scratch, records, and what else was asked for
    assert first == CONTEXT + slot + launch + into + (not on_device) + 2  # copy in; launch, wait
    assert captured == CONTEXT + into + (not on_device) + 1 + 4 + 2  # the launch, into a graph; launch that, wait
    assert replayed == [CONTEXT + into + 2] * 3


@pytest.mark.parametrize("asked", [{}, {"classes": CLASSES}, {"heatmaps": True}], ids=str)
def test_the_kernel_alone(asked: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    features, logits, weight = (rng.random(s, dtype=np.float32) for s in ((4, 8, 7, 7), (4, 5), (5, 8)))
    kernel, arrays = CudaPostprocess(weight), [DeviceCopy(array) for array in (logits, features)]
    first, *later = (calls(lambda: kernel(*arrays, size=(60, 60), **asked)) for _ in range(4))
    assert first == CONTEXT + 2 + len(asked) + 3  # scratch, records, what was asked for
    assert later == [CONTEXT + 3] * 3  # wait for the arrays, launch, wait
    for array in arrays:
        array.close()
    kernel.close()
