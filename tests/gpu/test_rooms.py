"""Every room uses the kernel on the device: all of them finish where the CPU's kernel is poisoned."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from tests.gpu.conftest import EMULATED, enter_plan, free_memory
from typer.testing import CliRunner

from wgap import Localizer, _native
from wgap.bundle import MANIFEST, Bundle, describe_file
from wgap.cli import app
from wgap.evaluate import gpu_run
from wgap.plain import to_plain
from wgap.rule import Rule
from wgap.runtime.cuda.postprocess import Launch
from wgap.runtime.selftest import selftest

pytestmark = pytest.mark.skipif(not EMULATED, reason="needs the stand-in for TensorRT")
BOX = 40
"""Where ``wgap::Record`` has its box."""


@pytest.fixture
def device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*_: Any, **__: Any) -> Any:
        raise AssertionError("the CPU's kernel was called")

    for module in ("wgap.runtime.locator", "wgap.runtime.postprocess"):
        monkeypatch.setattr(f"{module}.localize", poisoned)


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every box on the device is two pixels further right."""
    whole = Launch.records

    def faulty(launch: Launch) -> Any:
        view = launch._memory["records"].view()
        for start in range(0, len(view), _native._CUDA_RECORD_BYTES):
            x0, y0, x1, y1 = struct.unpack_from("4i", view, start + BOX)
            struct.pack_into("4i", view, start + BOX, x0 + 2, y0, x1 + 2, y1)
        return whole(launch)

    monkeypatch.setattr(Launch, "records", faulty)


def ran(*words: Any, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.usefixtures("device_only")
def test_every_verb_uses_the_device_s_kernel(engine_bundle: Path, shapes: Path) -> None:
    on = ("--backend", "tensorrt", "--rule", "fixed:0.7")
    [told] = ran("selftest", engine_bundle, "--backend", "tensorrt")
    assert (told["ok"], told["backend"], told["warnings"]) == (True, "tensorrt", [])
    [told] = ran("check", engine_bundle, "--images", shapes, *on)
    assert (told["ok"], told["images"]) == (True, 6)
    [told] = ran("bench", engine_bundle, "--batch", "1,6", "--iterations", 2, "--warmup", 1, *on)
    cells = [cell["settings"] for cell in told["cells"]]
    assert [(one["backend"], one["device"], one["rule"], one["batch"]) for one in cells] == [
        ("tensorrt", 0, "fixed:0.7", batch) for batch in (1, 6)
    ]
    assert told["machine"]["kernel_target"] == "CUDA on GPU 0"
    assert all(list(cell["stages"])[-3:] == ["postprocess", "gpu", "total"] for cell in told["cells"])
    assert all({"gpu device", "gpu pinned", "gpu engine"} <= cell["memory_mib"].keys() for cell in told["cells"])
    [told] = ran("evaluate", engine_bundle, shapes, "--ablation", *on)
    assert (told["images"], len(told["ablation"])) == (6, 9)
    assert len(ran("localize", engine_bundle, shapes, *on)) == 6


@pytest.mark.parametrize("transfers", [True, False])
def test_bench_without_transfers_copies_no_image_to_the_device(
    engine_bundle: Path, transfers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wgap.runtime.networks import tensorrt

    called, events = [], []
    call = tensorrt.call
    monkeypatch.setattr(tensorrt, "call", lambda name, *rest: (called.append(name), call(name, *rest))[1])
    monkeypatch.setattr(gpu_run, "call", lambda name, *rest: (events.append(name), call(name, *rest))[1])
    words = ("bench", engine_bundle, "--backend", "tensorrt", "--batch", "2", "--iterations", 3, "--warmup", 0)
    free = free_memory()
    [told] = ran(*words, "--callers", 2, "--duration", 0.1, *(() if transfers else ("--no-transfers",)))
    assert free_memory() == free
    for cell in told["cells"]:
        assert cell["settings"]["transfers"] is transfers
    stages = ["decode", "resize", "forward", "postprocess", "gpu", "total"] if transfers else ["gpu", "total"]
    assert list(told["cells"][0]["stages"]) == stages
    assert ("cuMemcpyHtoDAsync" in called) is transfers
    assert events.count("cuEventElapsedTime") == 3
    assert events.count("cuEventDestroy") == events.count("cuEventCreate") == 2


@pytest.mark.parametrize("protocol", [(), ("--protocol", "maxboxaccv2")], ids=["own", "maxboxaccv2"])
def test_the_device_scores_as_the_cpu_does(engine_bundle: Path, shapes: Path, protocol: tuple[str, ...]) -> None:
    one, other = (
        ran("evaluate", engine_bundle, shapes, *protocol, "--backend", b) for b in ("tensorrt", "onnxruntime")
    )
    assert one == other


@pytest.mark.usefixtures("shifted")
def test_a_fault_of_the_device_s_kernel_fails_selftest_and_check(engine_bundle: Path) -> None:
    [told] = ran("selftest", engine_bundle, "--backend", "tensorrt", code=1)
    assert {check["stage"] for check in told["checks"] if not check["ok"]} == {"kernel box", "end to end box"}
    [told] = ran("check", engine_bundle, "--backend", "tensorrt", code=1)
    assert {stage["name"] for stage in told["stages"] if not stage["ok"]} == {"box", "end to end"}
    assert ran("selftest", engine_bundle)[0]["ok"], "the CPU's kernel has no such fault"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_golden_cases_are_tested_under_the_bundle_s_own_rule(
    tiny_checkpoint: Path, tmp_path: Path, backend: str
) -> None:
    from wgap.export.onnx import bundle_from_checkpoint

    root, rule = tmp_path / "half", Rule.parse("fixed:0.5", "signed")
    classes = tiny_checkpoint.with_name("classes.txt")
    bundle_from_checkpoint(
        tiny_checkpoint, root, classes=classes, preprocessing="torchvision-rgb", input_size=64, rule=rule
    )
    golden = Bundle.open(root).golden()
    assert {case["rule"] for case in golden} == {rule}
    assert {float(case["threshold"][0]) for case in golden} == {0.5, 0.0}, "the last one is degenerate"
    enter_plan(root, root / "model.onnx")
    with Localizer(root, backend) as localizer:
        report = selftest(localizer)
    assert report.ok, [check for check in report.checks if not check.ok]
    assert report.warnings == ()


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_golden_cases_of_wgap_0_1_are_tested_under_its_only_rule(
    engine_bundle: Path, tmp_path: Path, backend: str
) -> None:
    root = Path(shutil.copytree(engine_bundle, tmp_path / "old"))
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["rule"] = Rule.parse("fixed:0.5").to_json()
    for number, entry in enumerate(manifest["files"]):
        if entry["role"] == "golden":
            path = root / entry["path"]
            save_file(load_file(path), path)  # without the rule
            manifest["files"][number] = to_plain(describe_file(root, path, "golden"))
    (root / MANIFEST).write_text(json.dumps(manifest))
    with Localizer(root, backend) as localizer:
        assert str(localizer.rule) == "fixed:0.5"
        report = selftest(localizer)
    assert report.ok, [check for check in report.checks if not check.ok]
    assert [warning.partition("; ")[0] for warning in report.warnings] == [
        "nothing was tested under the rule fixed:0.5 on the recombined map: golden cases were made under adaptive on "
        "the recombined map"
    ]
