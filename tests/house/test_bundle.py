"""The bundle says what is wrong with it, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from wgap.atomic import atomic_dir, atomic_file
from wgap.bundle import Bundle
from wgap.errors import BundleError, HashMismatchError, ManifestError, OutputExistsError


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(bundle: Path, **changes: object) -> None:
    manifest = bundle / "wgap.json"
    content = json.loads(manifest.read_text())
    content.update(changes)
    manifest.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_a_whole_bundle_opens(copy: Path) -> None:
    bundle = Bundle.open(copy)
    weight, bias = bundle.classifier()
    assert weight.shape == (len(bundle.manifest.model.classes), bundle.manifest.model.feature_shape[0])
    assert bias.shape == (weight.shape[0],)
    assert [("image" in case) for case in bundle.golden()] == [True, True, True, False]
    assert bundle.path("onnx", "fp32").name == "model.onnx"


def test_manifest_round_trips(copy: Path) -> None:
    manifest = Bundle.open(copy).manifest
    assert type(manifest).from_json(manifest.to_json(), copy) == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": None}, "no schema number"),
        ({"schema": 99}, "schema 99, this wgap reads up to 2; upgrade"),
        ({"schema": 0}, "expected 2"),
        ({"model": None}, "model: missing"),
        ({"preprocessing": {"name": "x"}}, "does not follow schema 2: preprocessing.channel_order: missing"),
        ({"files": [{"path": "../x", "role": "onnx", "precision": "", "sha256": "", "size": 0}]}, "outside the bundle"),
    ],
)
def test_a_wrong_manifest_is_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(ManifestError, match=message):
        Bundle.open(copy)


def test_missing_and_broken_manifests_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        Bundle.open(tmp_path / "nowhere")
    (copy / "wgap.json").write_text("{ not json")
    with pytest.raises(ManifestError, match="not valid JSON"):
        Bundle.open(copy)
    (copy / "wgap.json").unlink()
    with pytest.raises(ManifestError, match="not found"):
        Bundle.open(copy)


def test_changed_short_and_missing_files_are_named(copy: Path) -> None:
    graph = copy / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HashMismatchError, match=r"model\.onnx has .* bytes"):
        Bundle.open(copy)
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(HashMismatchError, match=r"model\.onnx has sha256"):
        Bundle.open(copy)
    graph.unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is listed in wgap\.json but missing"):
        Bundle.open(copy)


def test_asking_for_what_is_not_there_lists_what_is(copy: Path) -> None:
    with pytest.raises(BundleError, match="holds no onnx int8; it has: onnx fp32, classifier"):
        Bundle.open(copy).path("onnx", "int8")


def write_half(target: Path) -> None:
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")


def write_half_a_folder(target: Path) -> None:
    with atomic_dir(target) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError("stop")


def test_writes_are_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="stop"):
        write_half(target)
    assert target.read_text() == "old"
    with pytest.raises(RuntimeError, match="stop"):
        write_half_a_folder(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt"]
    with atomic_dir(tmp_path / "folder") as folder:
        (folder / "whole").write_text("x")
    with pytest.raises(OutputExistsError, match="--force"), atomic_dir(tmp_path / "folder"):
        pass
    with atomic_dir(tmp_path / "folder", overwrite=True) as folder:
        (folder / "new").write_text("y")
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new"]
