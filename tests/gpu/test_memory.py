"""What stays on the GPU has a bound, is told, and goes."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.synthetic import DeviceCopy
from tests.gpu.conftest import EMULATED, free_memory
from tests.gpu.conftest import emulated as count_of
from typer.testing import CliRunner

from wgap import Localizer
from wgap.cli import app
from wgap.rule import Rule
from wgap.runtime.cuda.driver import Context
from wgap.runtime.cuda.postprocess import MOST_IDLE, CudaPostprocess
from wgap.runtime.locator import Request
from wgap.runtime.networks.onnxruntime_gpu import MEMORY_LIMIT
from wgap.runtime.networks.tensorrt import MOST_BATCHES, MOST_LAUNCHES

emulated = pytest.mark.skipif(not EMULATED, reason="needs the stand-in for TensorRT")


def held_by(*owners: Any) -> dict[str, int]:
    """Bytes of launches and slots, by kind."""
    sizes = {"device": 0, "pinned": 0}
    for owner in owners:
        memory = owner._memory if hasattr(owner, "_memory") else {**owner.device, "staging": owner._staging}
        for one in memory.values():
            sizes[one._kind] += one.size
    return sizes


def test_the_bounds_are_the_documented_ones() -> None:
    assert (MOST_IDLE, MOST_LAUNCHES, MOST_BATCHES, MEMORY_LIMIT) == (8, 8, 4, 4 << 30), "docs/gpu.md"


def test_a_hundred_shapes_through_one_kernel_stay_bounded() -> None:
    rng, weight = np.random.default_rng(6), np.ones((5, 4), np.float32)
    context, before = Context(), free_memory()
    kernel = CudaPostprocess(weight, context=context)
    assert context.held == {"device": weight.nbytes, "pinned": 0}
    for n in range(100):
        images, side, size = 1 + n % 3, 3 + n % 7, (20 + n, 30 + n % 11)
        arrays = [DeviceCopy(rng.random(s, dtype=np.float32)) for s in ((images, 5), (images, 4, side, side))]
        kernel(*arrays, size=size, heatmaps=bool(n % 2), edge_means=n % 5 == 0, classes=[1] * images if n % 4 else None)
        for array in arrays:
            array.close()
        idle = held_by(*(launch for _, launch in kernel._idle))
        assert len(kernel._idle) == min(n + 1, MOST_IDLE)
        assert context.held == {"device": weight.nbytes + idle["device"], "pinned": idle["pinned"]}
        if EMULATED:
            assert before - free_memory() == context.held["device"]
    kernel.close()
    assert context.held == {"device": 0, "pinned": 0}
    context.close()
    if EMULATED:
        assert free_memory() == before


def test_rules_share_a_launch() -> None:
    kernel = CudaPostprocess(np.ones((5, 4), np.float32))
    arrays = [DeviceCopy(np.ones(s, np.float32)) for s in ((2, 5), (2, 4, 3, 3))]
    for level in range(20):
        kernel(*arrays, size=(20, 20), rule=Rule("fixed", "recombined", level / 20))
    assert len(kernel._idle) == 1
    for array in arrays:
        array.close()
    kernel.close()


@emulated
def test_a_hundred_requests_of_a_session_stay_bounded(engine_bundle: Path, images: Any) -> None:
    before = free_memory()
    localizer = Localizer(engine_bundle, "tensorrt", batch_size=4)
    network: Any = localizer.network
    rules = [Rule("fixed", "recombined", n / 20) for n in range(3)]
    requests = [
        (count, rule, Request([1] * count if chosen else None, top_k, heatmaps, edges))
        for count, rule, chosen, top_k, heatmaps, edges in product(
            (1, 2, 3, 4, 5, 6), rules, (False, True), (1, 2), (False, True), (False, True)
        )
    ]
    assert len(requests) > 100
    weight = localizer.bundle.classifier()[0].nbytes
    for count, rule, request in requests:
        locator = localizer.locator.with_rule(rule)
        for _ in range(2):  # the second time it is captured
            found = network.locate(images[:count], locator, request)
        assert len(found) == count
        [slot] = network._free
        assert len(slot._launches) <= MOST_LAUNCHES
        assert len(slot.contexts) <= MOST_BATCHES
        assert count_of("graphs") == sum(graph is not None for graph in slot._graphs.values()) <= MOST_LAUNCHES
        assert slot._graphs.keys() <= slot._launches.keys(), "no graph outlives the launch it was captured from"
        expected = held_by(slot, *slot._launches.values())
        assert network.context.held == {"device": weight + expected["device"], "pinned": expected["pinned"]}
    assert len(slot._launches) == MOST_LAUNCHES
    localizer.close()
    assert network.context.held == {"device": 0, "pinned": 0}
    assert free_memory() == before
    assert count_of("graphs") == 0


@emulated
def test_memory_is_told_as_the_driver_counts_it(engine_bundle: Path, images: Any) -> None:
    before = free_memory()
    with Localizer(engine_bundle, "tensorrt", batch_size=3) as localizer:
        list(localizer(images))
        localizer.one(images[0], heatmap=True)
        told = localizer.memory()
        assert before - free_memory() == told["device"] + told["engine"] + told["execution_contexts"]
        assert told["engine"] == (engine_bundle / "engines" / "model.fp32.plan").stat().st_size
        assert told["execution_contexts"] == 3 << 20, "batches of 3, 2 and 1"
        assert told["pinned"] >= 4 * 64 * 64 * 3 + 64 * 64 * 4, "staged images and a heat map"
    assert free_memory() == before


@emulated
def test_inspect_shows_the_memory_of_a_session(engine_bundle: Path) -> None:
    words = ["inspect", str(engine_bundle), "--memory"]
    done = CliRunner().invoke(app, [*words, "--backend", "tensorrt", "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert told["schema"] == 2
    with Localizer(engine_bundle, "tensorrt") as localizer:
        localizer.one(np.zeros((64, 64, 3), np.uint8))
        assert told["memory"] == localizer.memory()
    done = CliRunner().invoke(app, [*words, "--backend", "tensorrt"], catch_exceptions=False)
    assert f"device: {told['memory']['device']} bytes" in done.stdout
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "nothing on a GPU" in done.stdout
    done = CliRunner().invoke(app, [*words[:2], "--device", "1"])
    assert (done.exit_code, "--device says on what --memory measures" in str(done.exception)) == (1, True)
