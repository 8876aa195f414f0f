"""The parity check agrees where it should and fails where something was changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from wgap import Localizer
from wgap.bundle import Bundle, describe_file, write_manifest
from wgap.cli import app
from wgap.datasets import open_dataset
from wgap.errors import BundleError, CheckFailedError
from wgap.export.check import check_localizer
from wgap.runtime.network import CallableNetwork

STAGES = ["features", "logits", "class", "map", "level", "box", "end to end"]


def rewritten(bundle: Bundle, path: Path) -> Bundle:
    """The bundle with the manifest entry of a changed file made true again."""
    files = [
        describe_file(bundle.root, path, entry.role, entry.precision) if bundle.root / entry.path == path else entry
        for entry in bundle.manifest.files
    ]
    write_manifest(bundle.root, replace(bundle.manifest, files=tuple(files)))
    return Bundle.open(bundle.root)


def test_a_fresh_bundle_agrees_on_its_golden_images(tiny_bundle: Path) -> None:
    report = check_localizer(Localizer(tiny_bundle))
    own = CallableNetwork(Localizer(tiny_bundle).network.run, precision="a name of one's own")
    assert check_localizer(Localizer(tiny_bundle, network=own)) == report, "the strictest limits"
    assert [stage.name for stage in report.stages] == STAGES
    assert report.ok, report
    assert report.images == 3


def test_a_classifier_that_is_not_the_graphs_is_found(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "b"))
    path = bundle.path("classifier")
    tensors = load_file(path)
    tensors["weight"] = np.ascontiguousarray(tensors["weight"][:, ::-1])
    save_file(tensors, path)
    report = check_localizer(Localizer(rewritten(bundle, path)))
    failed = {stage.name for stage in report.stages if not stage.ok}
    assert "map" in failed
    assert not failed & {"features", "logits"}
    result = CliRunner().invoke(app, ["check", str(bundle.root), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False


@pytest.mark.parametrize("parameters", [{"width": 0.25}, {"width": "wide"}, {"depth": 3}, {"stride": 5}])
def test_a_graph_of_another_network_is_refused(tiny_bundle: Path, parameters: dict[str, object]) -> None:
    bundle = Bundle.open(tiny_bundle)
    architecture = replace(bundle.manifest.model.architecture, parameters=parameters)
    model = replace(bundle.manifest.model, architecture=architecture)
    wider = replace(bundle, manifest=replace(bundle.manifest, model=model))
    with pytest.raises(BundleError, match="does not hold the network that the manifest describes"):
        check_localizer(Localizer(wider))


def test_no_image_is_an_error(tiny_bundle: Path) -> None:
    with pytest.raises(CheckFailedError, match="--images"):
        check_localizer(Localizer(tiny_bundle), [])


@pytest.mark.slow
@pytest.mark.data
def test_cub10_agrees_from_bytes_to_box(cub10: Path, cub10_bundle: Path) -> None:
    """On every test photograph the kernel gives the reference's level and box; end to end at least 99.5 % do."""
    images = [sample.path for sample in open_dataset(cub10, split="test").samples]
    assert len(images) == 122
    report = check_localizer(Localizer(cub10_bundle), images)
    assert report.ok, report
    measured = {stage.name: stage.measured for stage in report.stages}
    assert measured["level"] == 1.0
    assert measured["box"] == 1.0
    assert measured["end to end"] >= 0.995
