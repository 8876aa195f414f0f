"""No byte of a plan is deserialised before the manifest, the host and the plan agree; what differs is told at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wgap.bundle import Bundle
from wgap.errors import EngineError, EngineMismatchError, GateError
from wgap.export.engine import BuildOptions, engine_from_bundle
from wgap.runtime.engine import Host, build_command, engine_file, fits, mismatches, preflight, stale

trt = pytest.importorskip("tensorrt_rtx")

HOST = Host("tensorrt_rtx", trt.__version__, "8.6", "linux x86_64")
PLAN = f"engines/model.fp32.tensorrt_rtx-{trt.__version__}.plan"
NARROW = f"engines/model.fp32.tensorrt_rtx-{trt.__version__}-sm89.plan"


@pytest.fixture(scope="module")
def built(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick bundle with a portable engine, and one for compute capability 8.9."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("built") / "tiny"))
    bundle, _ = engine_from_bundle(Bundle.open(root))
    engine_from_bundle(bundle, options=BuildOptions(compute_capabilities=("8.9",)))
    return root


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "own"))


def edit(root: Path, path: str, change: Callable[[dict[str, Any]], object]) -> Bundle:
    """Change the manifest's entry of that path."""
    manifest = json.loads((root / "wgap.json").read_text())
    change(next(e for e in manifest["files"] if e["path"] == path))
    (root / "wgap.json").write_text(json.dumps(manifest))
    return Bundle.open(root, verify=False)


def refused(bundle: Bundle, path: str = PLAN, host: Host = HOST, **settings: Any) -> str:
    with pytest.raises(EngineMismatchError) as caught:
        preflight(bundle, path, host, **settings)
    return str(caught.value)


def test_a_fitting_plan_comes_back_as_its_bytes(own: Path) -> None:
    bundle = Bundle.open(own)
    assert preflight(bundle, PLAN, HOST, batch=16) == (own / PLAN).read_bytes()
    assert preflight(bundle, own / PLAN, HOST) == (own / PLAN).read_bytes()
    assert preflight(bundle, PLAN, replace(HOST, compute_capability=None), batch=1)
    assert engine_file(bundle, HOST, "fp32").path == PLAN


def test_a_changed_byte_and_a_cut_file(own: Path) -> None:
    plan = own / PLAN
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    bundle = Bundle.open(own, verify=False)
    entry = next(e for e in bundle.manifest.files if e.path == PLAN)
    text = refused(bundle)
    assert f"{plan} does not fit and was not loaded:" in text
    assert f"  sha256  {entry.sha256[:12]}...  " in text
    plan.write_bytes(whole[:-10])
    assert f"  bytes  {len(whole)}   {len(whole) - 10}\n" in refused(bundle)
    plan.unlink()
    with pytest.raises(EngineError, match=r"plan is missing; .*`wgap build .* --batch 1,8,16`"):
        preflight(bundle, PLAN, HOST)


@pytest.mark.parametrize("version", ["1.7.1.117", "1.8.0.1", "1.7.1", "2.0.0.0"])
def test_another_version(own: Path, version: str) -> None:
    text = refused(Bundle.open(own), host=replace(HOST, version=version))
    assert f"  version  {version}" in text
    assert text.splitlines()[2].split() == ["version", version, trt.__version__]
    assert text.endswith(f"`wgap build {own} --flavor tensorrt_rtx --precision fp32 --batch 1,8,16`")


def test_version_compatible_engines_of_tensorrt_go_with_later_ones_of_their_major(own: Path) -> None:
    def as_tensorrt(entry: dict[str, Any]) -> None:
        entry["engine"].update(flavor="tensorrt", version="10.9.0.34", architecture="8.6")

    bundle = edit(own, PLAN, as_tensorrt)
    host = Host("tensorrt", "10.13.3.9", "8.6", "linux x86_64")
    assert "version  10.13.3.9" in refused(bundle, host=host)
    bundle = edit(own, PLAN, lambda e: e["engine"]["options"].update(version_compatible=True))
    assert preflight(bundle, PLAN, host)
    for version in ("10.8.0.1", "11.0.0.1"):
        text = refused(bundle, host=replace(host, version=version))
        assert f"  version  {version}" in text
        assert text.endswith("--batch 1,8,16 --version-compatible`")


def test_another_architecture(own: Path) -> None:
    bundle = Bundle.open(own)
    text = refused(bundle, NARROW)
    assert text.splitlines()[2].split() == ["GPU", "architecture", "8.6", "8.9"]
    assert text.endswith("--batch 1,8,16 --compute-capability 8.6`")
    assert refused(bundle, host=replace(HOST, compute_capability="7.5")).count("GPU architecture") == 1
    assert preflight(bundle, NARROW, replace(HOST, compute_capability="8.9"))
    assert engine_file(bundle, replace(HOST, compute_capability="9.0"), "fp32")


@pytest.mark.parametrize(
    ("architecture", "fitting", "others"),
    [
        ("portable", ["8.0", "8.6", "8.9", "12.0", "12.1"], ["7.5", "8.7", "9.0", "10.0"]),
        ("8.0+", ["8.0", "8.6", "9.0", "12.0"], ["7.5"]),
        ("8.6,12.0", ["8.6", "12.0"], ["8.0", "8.9", "12.1"]),
        ("8.6", ["8.6"], ["8.9", "6.8"]),
    ],
)
def test_which_architectures_fit(architecture: str, fitting: list[str], others: list[str]) -> None:
    assert all(fits(architecture, capability) for capability in fitting)
    assert not any(fits(architecture, capability) for capability in others)


def test_another_platform_and_another_flavor(own: Path) -> None:
    bundle = Bundle.open(own)
    text = refused(bundle, host=replace(HOST, platform="linux aarch64"))
    assert text.splitlines()[2].split() == ["platform", "linux", "aarch64", "linux", "x86_64"]
    text = refused(bundle, host=Host("tensorrt", "10.13.3.9", None, "linux x86_64"))
    assert text.splitlines()[2].split() == ["flavor", "tensorrt", "tensorrt_rtx"]
    assert "--flavor tensorrt --precision fp32" in text
    with pytest.raises(EngineError, match="holds no tensorrt engine of precision fp32; its engines: tensorrt_rtx fp32"):
        engine_file(bundle, Host("tensorrt", "10.13.3.9"), "fp32")


@pytest.mark.parametrize(("batch", "profile"), [(0, "1,8,16"), (17, "1,8,17"), (64, "1,8,64")])
def test_a_batch_outside_the_profile(own: Path, batch: int, profile: str) -> None:
    text = refused(Bundle.open(own), batch=batch)
    assert text.splitlines()[2].split() == ["batch", str(batch), "1", "to", "16"]
    assert f"--batch {profile}`" in text


def test_an_engine_of_an_older_model_is_stale(own: Path) -> None:
    before = Bundle.open(own)
    assert not stale(before, engine_file(before, HOST, "fp32"))
    bundle = edit(own, "model.onnx", lambda e: e.update(sha256="0" * 64))
    assert stale(bundle, engine_file(bundle, HOST, "fp32"))
    text = refused(bundle)
    sha256 = before.model_file("fp32").sha256
    assert text.splitlines()[2].split() == ["fp32", "model,", "sha256", "000000000000...", f"{sha256[:12]}..."]
    bundle = edit(own, "model.onnx", lambda e: e.update(precision="fp64"))
    assert "a model of that precision" in refused(bundle)


def test_everything_that_differs_is_in_one_table(own: Path) -> None:
    bundle = edit(own, "model.onnx", lambda e: e.update(sha256="0" * 64))
    (own / NARROW).write_bytes(b"x" * (own / NARROW).stat().st_size)
    host = Host("tensorrt_rtx", "1.8.0.1", "8.6", "linux aarch64")
    lines = refused(bundle, NARROW, host, batch=32).splitlines()
    rows = ["what", "sha256", "version", "GPU architecture", "platform", "batch", "fp32 model, sha256"]
    assert len(lines) == 1 + len(rows) + 1
    assert all(line.strip().startswith(row) for line, row in zip(lines[1:-1], rows, strict=True))
    assert len({line.index(found) for line, found in zip(lines[1:4], ("found", lines[2].split()[-1], trt.__version__), strict=True)}) == 1  # fmt: skip  # noqa: E501
    assert lines[-1] == (
        f"Build one that does, on this machine: `wgap build {own} --flavor tensorrt_rtx --precision fp32 "
        "--batch 1,8,32 --compute-capability 8.6`"
    )


def test_the_command_in_the_message_makes_an_engine_that_fits(own: Path) -> None:
    import shlex

    bundle = edit(own, PLAN, lambda e: e["engine"].update(version="1.6.0.1"))
    command = refused(bundle, batch=20).rsplit("`", 2)[1]
    words = shlex.split(command)
    program = [sys.executable, "-c", "from wgap.cli import main; main()", *words[1:]]
    subprocess.run(program, check=True, capture_output=True)
    assert preflight(Bundle.open(own), PLAN, HOST, batch=20)


def test_a_plan_that_the_manifest_does_not_list_is_refused_unless_trusted(own: Path) -> None:
    stranger = own / "engines" / "stranger.plan"
    shutil.copy(own / PLAN, stranger)
    bundle = Bundle.open(own)
    with pytest.raises(EngineError, match=r"stranger\.plan is not listed in the manifest .* pass trust=True only if"):
        preflight(bundle, stranger, HOST)
    assert preflight(bundle, stranger, HOST, trust=True) == stranger.read_bytes()
    with pytest.raises(EngineError, match=r"model\.onnx is not listed in the manifest as an engine"):
        preflight(bundle, "model.onnx", HOST)
    with pytest.raises(EngineError, match=r"\.\./elsewhere\.plan is not listed"):
        preflight(bundle, "../elsewhere.plan", HOST)


def test_trust_does_not_excuse_a_listed_plan(own: Path) -> None:
    assert "version" in refused(Bundle.open(own), host=replace(HOST, version="9.9"), trust=True)


def test_an_engine_of_an_unjudged_model_is_refused_unless_asked(own: Path) -> None:
    graph = Bundle.open(own).model_file("fp32")

    def as_int8(entry: dict[str, Any]) -> None:
        entry["precision"] = "int8"

    edit(own, PLAN, as_int8)
    manifest = json.loads((own / "wgap.json").read_text())
    copied = {**next(e for e in manifest["files"] if e["path"] == graph.path), "path": "model.int8.onnx"}
    manifest["files"].append({**copied, "precision": "int8"})
    (own / "wgap.json").write_text(json.dumps(manifest))
    bundle = Bundle.open(own, verify=False)
    with pytest.raises(GateError, match="never measured"):
        preflight(bundle, PLAN, HOST)
    assert preflight(bundle, PLAN, HOST, ungated=True)
    assert build_command(bundle, HOST, "int8").endswith("--ungated`")


def test_the_library_has_a_look_at_the_header(own: Path) -> None:
    stranger = own / "engines" / "stranger.plan"
    stranger.write_bytes(b"not a plan" * 100)
    host = replace(Host.here("tensorrt_rtx"), compute_capability=None)
    text = refused(Bundle.open(own), str(stranger), host, trust=True)
    assert text.splitlines()[2].split() == ["tensorrt_rtx's", "own", "check", "valid", "malformed", "engine"]
    if Host.here("tensorrt_rtx").compute_capability is None:  # and a whole one passes where there is no GPU to ask
        assert preflight(Bundle.open(own), PLAN, host)


def test_the_manifest_is_checked_without_tensorrt_torch_and_onnx(own: Path) -> None:
    program = f"""
import sys
for name in ("tensorrt", "tensorrt_rtx", "torch", "onnx", "onnxruntime", "wgap.export", "wgap.calibrate"):
    sys.modules[name] = None  # importing it now raises
from wgap.bundle import Bundle
from wgap.runtime.engine import Host, mismatches, preflight
bundle = Bundle.open({str(own)!r})
assert preflight(bundle, {PLAN!r}, Host("tensorrt_rtx", {trt.__version__!r}, "8.6"), batch=1)
print([row.what for row in mismatches(bundle, bundle.manifest.files[-1], Host("tensorrt_rtx", "9.9", "7.5"), 99)])
"""
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output == "['version', 'GPU architecture', 'batch']\n"


def test_nothing_is_asked_about_a_gpu_that_is_unknown(own: Path) -> None:
    bundle = Bundle.open(own)
    entry = next(e for e in bundle.manifest.files if e.path == NARROW)
    assert mismatches(bundle, entry, replace(HOST, compute_capability=None)) == []
