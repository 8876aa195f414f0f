"""OpenVINO runs the bundle's own files at their own precision, and its boxes are ONNX Runtime's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wgap import Bundle, Localizer
from wgap.errors import BackendError, BundleError, DataError, GateError, MissingDependencyError
from wgap.runtime.networks import NetworkOptions, auto, open_network

openvino = pytest.importorskip("openvino")

from wgap.runtime.networks.openvino import KEPT, OpenVinoNetwork  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own."""
    monkeypatch.setenv("WGAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def opened(bundle: Path, backend: str = "openvino", **options: object) -> OpenVinoNetwork:
    network = open_network(backend, Bundle.open(bundle), NetworkOptions(**options))  # type: ignore[arg-type]
    assert isinstance(network, OpenVinoNetwork)
    return network


def noise(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(count).integers(1, 255, (count, size, size, 3), np.uint8)


def test_float32_is_float32_whatever_the_processor_could_do(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = noise(3, bundle.manifest.model.input_size[0])
    ours, theirs = opened(tiny_bundle).run(images), open_network("onnxruntime", bundle).run(images)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (np.float32, value.shape)
        assert np.abs(ours[name] - value).max() <= 1e-5 * np.abs(value).max()  # bfloat16's rounding is 4e-3


def test_boxes_are_onnx_runtime_s(tiny_bundle: Path, pictures: Path) -> None:
    for options in ({}, {"batch_size": 2, "threads": 1}, {"hint": "throughput", "streams": 2}):
        threads = {"threads": options["threads"]} if "threads" in options else {}
        with Localizer(tiny_bundle, **threads) as theirs, Localizer(tiny_bundle, "openvino", **options) as ours:
            paths = sorted(pictures.rglob("*.*g"))
            a, b = ([x.to_json() for x in one(p for p in paths if p.stat().st_size)] for one in (theirs, ours))
        assert [x.pop("score") for x in a] == pytest.approx([x.pop("score") for x in b], abs=1e-5)
        assert a == b


def test_calls_of_many_sizes_and_threads_do_not_meet(glass_bundle: Path) -> None:
    """Each call has a request of its own while it reads its outputs; of batch sizes the last few stay compiled."""
    network = opened(glass_bundle)
    expected = {count: network.run(noise(count))["features"] for count in range(1, KEPT + 3)}
    wrong: list[int] = []

    def call(count: int) -> None:
        for _ in range(20):
            with network.forward(noise(count), outputs=["features"]) as outputs:
                assert list(outputs) == ["features"]
                if not np.array_equal(outputs["features"], expected[count]):
                    wrong.append(count)

    threads = [threading.Thread(target=call, args=(count,)) for count in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(network._compiled) == KEPT
    cells = noise(2).reshape(2, 8, 8, 8, 8, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2)
    assert np.allclose(expected[2], 255 - cells, atol=1e-3)


def test_outputs_that_were_returned_are_the_caller_s(glass_bundle: Path) -> None:
    network = opened(glass_bundle)
    first = network.run(noise(1))["features"]
    kept = first.copy()
    network.run(255 - noise(1))
    assert np.array_equal(first, kept)


def test_images_may_be_read_only_and_of_any_strides(glass_bundle: Path) -> None:
    network, images = opened(glass_bundle), noise(2)
    exact = network.run(images)["features"]
    images.flags.writeable = False
    assert np.array_equal(network.run(images)["features"], exact)
    assert np.array_equal(network.run(noise(2)[:, ::-1])["features"], exact[:, :, ::-1])


def test_a_batch_that_does_not_fit_is_named(glass_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"OpenVINO failed on a batch of shape \(5, 8, 64, 3\)"):
        opened(glass_bundle).run(noise(5)[:, :8])


# -- The cache of compiled models --


def test_what_was_compiled_is_kept_by_content(glass_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = opened(glass_bundle).run(noise(2))["features"]
    files = sorted(cache.iterdir())
    assert len(files) == 2  # batches of 1, and of 2
    assert cache.stat().st_mode & 0o077 == 0
    times = [path.stat().st_mtime_ns for path in files]
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoNetwork, "_read", lambda *_: pytest.fail("it was compiled again"))
        assert np.array_equal(opened(glass_bundle).run(noise(2))["features"], exact)
    assert [path.stat().st_mtime_ns for path in files] == times
    opened(glass_bundle, threads=1)
    assert len(list(cache.iterdir())) == 3  # compiled with other options it is another


def test_what_was_changed_in_the_cache_is_compiled_again(glass_bundle: Path, cache: Path) -> None:
    exact = opened(glass_bundle).run(noise(1))["features"]
    [file] = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        assert np.array_equal(opened(glass_bundle).run(noise(1))["features"], exact)
        assert file.read_bytes()[:32] != damaged[:32] or len(damaged) != len(file.read_bytes())


def test_a_cache_that_others_may_write_is_refused(glass_bundle: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(BackendError, match=r"openvino: compiled models are kept there, and others may write it"):
        opened(glass_bundle)


def test_without_a_place_for_the_cache_it_runs(
    glass_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("WGAP_CACHE", str(tmp_path / "file" / "cache"))
    assert opened(glass_bundle).run(noise(1))
    assert "compiled models cannot be kept" in caplog.text


def test_a_model_that_is_not_the_manifest_s_is_refused_with_and_without_a_cache(
    glass_bundle: Path, tmp_path: Path, rewrite: Callable[..., None]
) -> None:
    opened(glass_bundle)
    other = Path(shutil.copytree(glass_bundle, tmp_path / "other"))
    rewrite(other, lambda manifest: manifest["model"]["outputs"][1].update(shape=["N", 3, 4, 4]))
    for _ in range(2):
        with pytest.raises(BundleError, match=r"the manifest promises features float32\['N', 3, 4, 4\], got float32"):
            opened(other)
        os.environ["WGAP_CACHE"] = str(tmp_path / "empty")


def test_what_is_no_model_is_refused_by_the_backend(
    glass_bundle: Path, tmp_path: Path, rewrite: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(glass_bundle, tmp_path / "bundle"))
    rewrite(copy, model=b"\x08\x0a")
    with pytest.raises(BackendError, match=r"(?s)OpenVINO .* refuses .*model\.onnx: .*copy the bundle again"):
        opened(copy)
    assert capfd.readouterr() == ("", "")


# -- Options --


def test_devices_are_those_that_are_there(glass_bundle: Path) -> None:
    assert opened(glass_bundle, device="CPU").plugin == "CPU"
    for device in ("TPU", 0, "AUTO"):
        with pytest.raises(BackendError, match=rf"OpenVINO has no device {device!r} here; expected one of: .*CPU"):
            opened(glass_bundle, device=device)


def test_options_are_judged(glass_bundle: Path) -> None:
    with pytest.raises(DataError, match="hint: expected latency or throughput, got 'fast'"):
        opened(glass_bundle, hint="fast")
    with pytest.raises(DataError, match="the backend openvino has no slots=; it takes threads= and device= and hint="):
        opened(glass_bundle, slots=2)
    with pytest.raises(DataError, match="streams must be a whole number in 1"):
        Localizer(glass_bundle, "openvino", streams=0)
    with pytest.raises(DataError, match="the backend onnxruntime has no hint="):
        Localizer(glass_bundle, hint="latency")


def test_threads_follow_affinity(glass_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr("wgap.runtime.networks.openvino.allowed_cpus", lambda: 1)
    assert opened(glass_bundle).properties["INFERENCE_NUM_THREADS"] == "1"
    assert opened(glass_bundle, threads=2).properties["INFERENCE_NUM_THREADS"] == "2"


def test_a_missing_library_comes_with_the_command_that_installs_it(
    glass_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wgap\[openvino\]'"):
        Localizer(glass_bundle, "openvino")


# -- The rule of auto --


def picked(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.name == "wgap.auto"]
    caplog.clear()
    return lines


def test_auto_says_what_it_picks_and_what_it_passes_over(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "wgap.auto")
    first, second = auto.ON_CPU["fp32"]
    with Localizer(tiny_bundle, "auto") as localizer:
        assert (localizer.backend, localizer.network.name, localizer.network.precision) == (first, first, "fp32")
    assert picked(caplog) == [f"{first} fp32 runs {tiny_bundle}"]
    monkeypatch.setitem(sys.modules, first, None)
    assert Localizer(tiny_bundle, "auto", threads=1).backend == second
    over, runs = picked(caplog)
    assert over.startswith(f"{first} fp32 is passed over: ")
    assert "pip install" in over
    assert runs == f"{second} fp32 runs {tiny_bundle}"
    monkeypatch.setitem(sys.modules, second, None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        Localizer(tiny_bundle, "auto")


def test_auto_never_takes_another_precision(tiny_bundle: Path) -> None:
    for precision in ("int8", "bf16"):
        with pytest.raises(BundleError, match=f"holds no {precision} model"):
            Localizer(tiny_bundle, "auto", precision=precision)


def test_auto_does_not_hide_what_is_broken(glass_bundle: Path, tmp_path: Path, rewrite: Callable[..., None]) -> None:
    copy = Path(shutil.copytree(glass_bundle, tmp_path / "bundle"))
    rewrite(copy, model=b"\x08\x0a")
    with pytest.raises(BackendError, match=r"(?s)refuses .*model\.onnx"):
        Localizer(copy, "auto")


def test_auto_goes_by_each_backend_s_own_verdict(tmp_path: Path, glass_bundle: Path) -> None:
    """INT8: OpenVINO where its gate passed, else ONNX Runtime where that one's did, else an error with the command."""
    root = Path(shutil.copytree(glass_bundle, tmp_path / "bundle"))
    manifest = json.loads((root / "wgap.json").read_text())
    float32 = next(entry for entry in manifest["files"] if entry["role"] == "onnx")
    shutil.copy(root / "model.onnx", root / "model.int8.onnx")
    verdict = {
        "passed": True, "reasons": [], "rule": manifest["rule"], "candidate_sha256": float32["sha256"],
        "float32_sha256": float32["sha256"], "backend": "x 1", "limits": {}, "figures": {}, "int8_sums": "saturating",
    }  # fmt: skip
    lowered = {**float32, "path": "model.int8.onnx", "precision": "int8"}
    for gates, expected in (
        ({"gate": verdict, "gates": {"openvino": verdict}}, "openvino"),
        ({"gate": verdict}, "onnxruntime"),
        ({"gate": verdict, "gates": {"openvino": {**verdict, "passed": False}}}, "onnxruntime"),
        ({"gates": {"openvino": verdict}}, "openvino"),
        ({}, None),
    ):
        changed = {**manifest, "files": [*manifest["files"], {**lowered, **gates}]}
        (root / "wgap.json").write_text(json.dumps(changed))
        if expected is None:
            with pytest.raises(GateError, match="was never measured"):
                Localizer(root, "auto", precision="int8")
            continue
        with Localizer(root, "auto", precision="int8") as localizer:
            assert (localizer.backend, localizer.network.precision) == (expected, "int8")
    for gates, device, message in (
        ({"gate": verdict}, None, "never measured on openvino; run `wgap gate .* --precision int8 --backend openvino "),
        ({"gates": {"openvino": verdict}}, "GPU", "its gate ran on the CPU, which says nothing of GPU"),
    ):
        changed = {**manifest, "files": [*manifest["files"], {**lowered, **gates}]}
        (root / "wgap.json").write_text(json.dumps(changed))
        with pytest.raises(GateError, match=message):
            Localizer(root, "openvino", precision="int8", device=device)


def test_bfloat16_needs_a_processor_that_computes_in_it(
    tmp_path: Path, glass_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(glass_bundle, tmp_path / "bundle"))
    manifest = json.loads((root / "wgap.json").read_text())
    float32 = next(entry for entry in manifest["files"] if entry["role"] == "onnx")
    shutil.copy(root / "model.onnx", root / "model.bf16.onnx")
    manifest["files"].append({**float32, "path": "model.bf16.onnx", "precision": "bf16"})
    (root / "wgap.json").write_text(json.dumps(manifest))
    real = openvino.Core.get_property

    def without(core: object, device: str, name: str) -> object:
        return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else real(core, device, name)

    monkeypatch.setattr(openvino.Core, "get_property", without)
    with pytest.raises(BackendError, match=r"CPU \(.*\) does not compute in bfloat16, and OpenVINO would take float32"):
        opened(root, precision="bf16", ungated=True)


def test_the_thread_keeps_its_signal_stack(tiny_bundle: Path) -> None:
    """OpenVINO leaves one that is freed, on which the next signal that has a handler would end the process."""
    program = f"""
import ctypes
import numpy as np
from wgap import Localizer
from wgap.runtime.networks.openvino import _SignalStack
def stack():
    found = _SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.address, found.flags, found.size
before = stack()
localizer = Localizer({str(tiny_bundle)!r}, "openvino")
localizer.network.run(np.zeros((3, *localizer.bundle.manifest.model.input_size, 3), np.uint8))
print(before == stack(), before, stack())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout[:4]) == (0, "True"), done.stdout + done.stderr
