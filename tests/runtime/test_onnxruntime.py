"""A bundle that is damaged, tampered with or not what its manifest says is refused before anything runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wgap import Bundle, Localizer
from wgap.errors import BackendError, BundleError, HashMismatchError, ManifestError, MissingDependencyError
from wgap.runtime.networks import NetworkOptions, open_network
from wgap.runtime.networks.onnxruntime import LOWEST, open_session

Rewrite = Callable[..., None]


@pytest.fixture
def copy(glass_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(glass_bundle, tmp_path / "bundle"))


def cut(path: Path) -> bytes:
    return path.read_bytes()[: path.stat().st_size // 2]


def test_a_model_cut_short_is_caught_by_its_hash(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(cut(copy / "model.onnx"))
    with pytest.raises(HashMismatchError, match=r"model\.onnx has \d+ bytes"):
        Localizer(copy)


def test_a_changed_model_is_caught_by_its_hash(copy: Path) -> None:
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    with pytest.raises(HashMismatchError, match=r"model\.onnx has sha256"):
        Localizer(copy)


def test_what_runs_is_compared_with_its_hash_where_the_whole_bundle_is_not(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(cut(copy / "model.onnx"))
    with pytest.raises(HashMismatchError, match=r"model\.onnx has \d+ bytes"):
        Localizer(copy, verify=False)


def test_what_is_no_model_is_refused_by_the_backend(
    copy: Path, rewrite: Rewrite, capfd: pytest.CaptureFixture[str]
) -> None:
    from wgap.bundle import sha256_of

    graph = copy / "model.onnx"
    graph.write_bytes(b"\x08\x0a")  # an ir_version and nothing else
    entry = {"path": "model.onnx", "sha256": sha256_of(graph), "size": 2}
    rewrite(copy, lambda m: next(e for e in m["files"] if e["path"] == "model.onnx").update(entry))
    with pytest.raises(BackendError, match=r"ONNX Runtime .* refuses .*model\.onnx: .*copy the bundle again"):
        Localizer(copy)
    assert capfd.readouterr() == ("", "")


def test_an_old_library_is_called_old(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    newer = onnx.load(str(tiny_bundle / "model.onnx"))
    newer.ir_version = 99
    onnx.save(newer, tmp_path / "newer.onnx")
    with pytest.raises(BackendError, match=r"This ONNX Runtime is too old: expected 1\.23 or newer, pip install"):
        open_session(tmp_path / "newer.onnx", None)
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x0a")
    monkeypatch.setattr("onnxruntime.__version__", "1.9.0")
    with pytest.raises(BackendError, match=r"ONNX Runtime 1\.9\.0 refuses .*This ONNX Runtime is too old"):
        open_session(tmp_path / "broken.onnx", None)


def test_the_oldest_version_is_the_one_declared() -> None:
    wanted = [line for line in requires("wgap") or [] if line.startswith("onnxruntime>=")]
    assert wanted
    assert {line.split(";")[0].strip() for line in wanted} == {f"onnxruntime>={'.'.join(map(str, LOWEST))}"}


def test_a_manifest_without_a_schema_or_with_a_newer_one_is_refused(copy: Path, rewrite: Rewrite) -> None:
    rewrite(copy, lambda manifest: manifest.update(schema=99))
    with pytest.raises(ManifestError, match=r"has schema 99, this wgap reads up to \d; upgrade wgap"):
        Localizer(copy)
    rewrite(copy, lambda manifest: manifest.pop("schema"))
    with pytest.raises(ManifestError, match="has no schema number"):
        Localizer(copy)


@pytest.mark.parametrize(
    ("kind", "place", "shape", "tensor"),
    [
        ("inputs", 0, [32, 64, 3], r"image uint8\['N', 32, 64, 3\]"),
        ("outputs", 1, [3, 4, 4], r"features float32\['N', 3, 4, 4\]"),
    ],
)
def test_a_model_that_is_not_the_manifests_is_refused(
    copy: Path, rewrite: Rewrite, kind: str, place: int, shape: list[int], tensor: str
) -> None:
    def update(manifest: dict[str, Any]) -> None:
        manifest["model"][kind][place]["shape"] = ["N", *shape]

    rewrite(copy, update)
    with pytest.raises(BundleError, match=f"the manifest promises {tensor}, got "):
        Localizer(copy)


def test_outputs_are_what_the_protocol_says(glass_bundle: Path) -> None:
    network = open_network("onnxruntime", Bundle.open(glass_bundle), NetworkOptions(threads=1))
    images = np.random.default_rng(1).integers(1, 255, (5, 64, 64, 3), np.uint8)
    outputs = network.run(images)
    logits, features = outputs["logits"], outputs["features"]
    assert (logits.dtype, logits.shape) == (np.float32, (5, 3))
    assert (features.dtype, features.shape) == (np.float32, (5, 3, 8, 8))
    assert features.flags.c_contiguous
    cells = images.reshape(5, 8, 8, 8, 8, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2)
    assert np.allclose(features, 255 - cells, atol=1e-3)
    with pytest.raises(BackendError, match=r"failed on a batch of shape \(5, 8, 64, 3\)"):
        network.run(images[:, :8])


def test_the_library_keeps_its_warnings_to_itself(
    copy: Path, rewrite: Rewrite, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnx

    model = onnx.load(str(copy / "model.onnx"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "unused"))
    rewrite(copy, model=model.SerializeToString())
    Localizer(copy)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_backend_and_a_missing_precision_are_named(glass_bundle: Path) -> None:
    with pytest.raises(BackendError, match="unknown backend 'tpu'; expected one of: auto, onnxruntime"):
        Localizer(glass_bundle, backend="tpu")
    with pytest.raises(BundleError, match="holds no int8 model; it has: fp32; make it with `wgap calibrate"):
        Localizer(glass_bundle, precision="int8")


def test_a_missing_library_comes_with_the_command_that_installs_it(
    glass_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wgap\[cpu\]'"):
        Localizer(glass_bundle)
