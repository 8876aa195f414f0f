"""``wgap build``: engines really built, ahead of time and without a GPU, and what is said where none can be."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import scored

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.calibrate.candidate import calibrate, enter, prepare
from wgap.calibrate.images import image_set
from wgap.errors import BundleError, CheckFailedError, DataError, EngineError, GateError, MissingDependencyError
from wgap.export.engine import BuildOptions, engine_from_bundle
from wgap.manifest import Profile
from wgap.runtime.engine import engines
from wgap.runtime.library import gpus

trt = pytest.importorskip("tensorrt_rtx")

PROGRAM = [sys.executable, "-c", "from wgap.cli import main; main()"]
NAME = f"engines/model.{{}}.tensorrt_rtx-{trt.__version__}.plan"

without_gpu = pytest.mark.skipif(bool(gpus()), reason="tells what is said where there is no GPU")


def wgap(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], text=True, capture_output=True, check=False, env=environment
    )


def content(root: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too, by hash."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lowered(bundle: Path, images: Path, out: Path, split: str = "train") -> Path:
    """A copy of the bundle with INT8, FP16 and BF16 models that no gate has judged."""
    root = Path(shutil.copytree(bundle, out / bundle.name))
    opened = Bundle.open(root)
    with prepare(opened, image_set(opened, images, split=split, count=8)) as source:
        for precision in ("int8", "fp16", "bf16"):
            enter(Bundle.open(root), calibrate(source, precision, out / f"{precision}.onnx"), None)
    return root


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick bundle in three precisions."""
    import cv2

    folder, rng = tmp_path_factory.mktemp("tiny-lowered"), np.random.default_rng(3)
    (folder / "images").mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return lowered(tiny_bundle, folder / "images", folder)


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "own"))


def edit(root: Path, precision: str, change: Callable[[dict[str, object]], object]) -> None:
    """Change the manifest's entry of that model."""
    manifest = json.loads((root / "wgap.json").read_text())
    change(next(e for e in manifest["files"] if (e["role"], e["precision"]) == ("onnx", precision)))
    (root / "wgap.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_builds_and_the_manifest_says_what_it_is(own: Path, precision: str) -> None:
    model = Bundle.open(own).model_file(precision, ungated=True)
    bundle, entry = engine_from_bundle(Bundle.open(own), "tensorrt_rtx", precision, ungated=True)
    assert (entry.path, entry.role, entry.precision) == (NAME.format(precision), "engine", precision)
    plan = (own / entry.path).read_bytes()
    assert (entry.size, entry.sha256) == (len(plan), hashlib.sha256(plan).hexdigest())
    made = entry.engine
    assert made is not None
    assert (made.flavor, made.version, made.architecture) == ("tensorrt_rtx", trt.__version__, "portable")
    assert made.platform == "linux x86_64"
    assert made.profile == Profile(1, 8, 16)
    assert made.onnx_sha256 == model.sha256
    calibration = model.calibration.images_sha256 if model.calibration else None
    assert made.calibration_sha256 == calibration
    assert (calibration is None) == (precision == "fp32")
    assert made.attestation["convolutions"] == {precision: 13}
    assert made.options["strongly_typed"] is True
    assert bundle.manifest.files[-1] == entry
    if not gpus():
        assert made.attestation["engine_inspector"] == "not run, no GPU"
        assert (made.driver, made.cuda, made.gpu) == (None, None, None)


@pytest.mark.data
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_real_network_with_its_foreground_builds_in_every_precision(cub10_lowered: Path, precision: str) -> None:
    options = BuildOptions(outputs=("logits", "foreground") if precision == "int8" else ())
    bundle, entry = engine_from_bundle(Bundle.open(cub10_lowered), "tensorrt_rtx", precision, options, ungated=True)
    assert entry.engine.attestation["convolutions"] == {precision: 13}  # the head's two are not the network's
    model = bundle.model_file(precision, ungated=True)
    assert 0.2 * model.size < entry.size < 1.5 * model.size


@pytest.fixture(scope="module")
def cub10_lowered(cub10: Path, cub10_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real bundle with a foreground head of random vectors, in four precisions, calibrated on eight photographs."""
    folder = tmp_path_factory.mktemp("cub10-lowered")
    return lowered(scored(cub10_bundle, folder / "scored"), cub10, folder / "lowered")


def test_convolutions_kept_in_float_are_told_apart(tiny_bundle: Path, tiny: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "mixed"))
    opened = Bundle.open(root)
    with prepare(opened, image_set(opened, tiny.parent / "images", split="train", count=8)) as source:
        from wgap.calibrate.quantise import convolutions

        kept = convolutions(source.graph)[:2]
        for precision in ("int8", "fp16", "bf16"):
            enter(Bundle.open(root), calibrate(source, precision, tmp_path / f"{precision}.onnx", kept), None)
    for precision in ("int8", "fp16"):
        _, entry = engine_from_bundle(Bundle.open(root), "tensorrt_rtx", precision, ungated=True)
        assert entry.engine.attestation["convolutions"] == {"fp32": 2, precision: 11}
    for precision in ("int8", "fp16"):
        edit(root, precision, lambda e: e["calibration"].update(keep_float=[]))
        with pytest.raises(CheckFailedError, match=rf"2 of 13 convolutions .*{kept[0]} \(fp32, expected {precision}\)"):
            engine_from_bundle(Bundle.open(root), "tensorrt_rtx", precision, ungated=True)


def test_a_float32_graph_that_is_called_int8_is_found_out(own: Path) -> None:
    shutil.copyfile(own / "model.onnx", own / "model.int8.onnx")
    edit(own, "int8", lambda e: e.update(_as_file(own / "model.int8.onnx")))
    before = content(own)
    done = wgap("build", own, "--precision", "int8", "--ungated")
    assert done.returncode == 1
    assert "13 of 13 convolutions would not compute in the precision that the manifest says" in done.stderr
    assert "node_Conv_27 (fp32, expected int8)" in done.stderr
    assert content(own) == before


def test_building_again_replaces_and_other_architectures_stand_beside(own: Path) -> None:
    bundle = Bundle.open(own)
    for batch in ((1, 1, 4), (1, 8, 32)):
        bundle, entry = engine_from_bundle(bundle, options=BuildOptions(batch=batch))
    assert [e.path for e in engines(bundle)] == [NAME.format("fp32")]
    assert entry.engine.profile == Profile(1, 8, 32)
    bundle, entry = engine_from_bundle(bundle, options=BuildOptions(compute_capabilities=("8.6", "8.9")))
    assert entry.path.endswith("-sm86-sm89.plan")
    assert entry.engine.architecture == "8.6,8.9"
    assert len(engines(bundle)) == 2
    assert sorted(p.name for p in (own / "engines").iterdir()) == sorted(Path(e.path).name for e in engines(bundle))


def test_the_command_builds_and_inspect_shows_it(own: Path) -> None:
    done = wgap("build", own, "--precision", "int8", "--ungated", "--batch", "1,2,4", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    entry = json.loads(done.stdout)
    assert entry["path"] == NAME.format("int8")
    assert entry["engine"]["profile"] == {"min": 1, "opt": 2, "max": 4}
    done = wgap("build", own, "--compute-capability", "120,8.6")
    assert done.returncode == 0, done.stderr
    assert "GPU architecture 8.6,12.0, linux x86_64, batch 1/8/16" in done.stdout
    assert "convolutions: 13 in fp32" in done.stdout
    shown = wgap("inspect", own)
    assert shown.returncode == 0
    assert (
        f"engine {NAME.format('int8')}: tensorrt_rtx {trt.__version__}, int8, GPU architecture portable, "
        "linux x86_64, batch 1/2/4, up to date"
    ) in shown.stdout
    assert json.loads(wgap("inspect", own, "--json").stdout)["stale_engines"] == []
    shutil.copyfile(own / "model.fp16.onnx", own / "model.int8.onnx")
    edit(own, "int8", lambda e: e.update(_as_file(own / "model.int8.onnx")))
    shown = wgap("inspect", own)
    assert shown.returncode == 0
    assert "batch 1/2/4, stale, its model was replaced: build it again" in shown.stdout
    assert json.loads(wgap("inspect", own, "--json").stdout)["stale_engines"] == [NAME.format("int8")]
    plan = own / entry["path"]
    plan.write_bytes(plan.read_bytes()[:-1] + b"!")
    shown = wgap("inspect", own)
    assert shown.returncode == 1
    assert f"{NAME.format('int8')} has sha256" in shown.stderr


def test_an_engine_may_leave_outputs_out(scored_bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(scored_bundle, tmp_path / "own"))
    whole, few = (
        json.loads(wgap("build", own, "--json", *more).stdout) for more in ((), ("--outputs", "foreground,logits"))
    )
    assert few["path"] == NAME.format("fp32").replace(".plan", "-foreground-logits.plan")
    assert (few["engine"]["options"]["outputs"], whole["engine"]["options"]["outputs"]) == (
        ["foreground", "logits"],
        [],
    )
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    for entry, outputs in ((whole, ["logits", "features", "foreground"]), (few, ["logits", "foreground"])):
        assert (own / entry["path"]).stat().st_size == entry["size"]
        if gpus() and (engine := runtime.deserialize_cuda_engine((own / entry["path"]).read_bytes())):
            names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
            assert names == ["image", *outputs]
    assert {entry.path for entry in engines(Bundle.open(own))} == {whole["path"], few["path"]}


@pytest.mark.parametrize("outputs", ["foreground", "logits", "logits,masks"])
def test_outputs_that_no_rule_can_do_with_are_refused(scored_bundle: Path, outputs: str, tmp_path: Path) -> None:
    own = Path(shutil.copytree(scored_bundle, tmp_path / "own"))
    done = wgap("build", own, "--outputs", outputs)
    assert done.returncode == 1
    assert f"expected logits and some more of features, foreground, got {', '.join(outputs.split(','))}" in done.stderr
    assert not (own / "engines").exists()


def test_a_bundle_without_a_foreground_says_how_to_get_one(own: Path) -> None:
    done = wgap("build", own, "--outputs", "logits,foreground")
    assert done.returncode == 1
    assert "`wgap foreground` adds the output foreground" in done.stderr


def _as_file(path: Path) -> dict[str, object]:
    return {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_an_unjudged_model_is_not_built_unless_asked(own: Path) -> None:
    with pytest.raises(GateError, match=r"never measured; run `wgap gate .*--ungated"):
        engine_from_bundle(Bundle.open(own), precision="int8")
    assert not (own / "engines").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1,8"], "--batch: expected MIN,OPT,MAX such as 1,8,16, got '1,8'"),
        (["--batch", "4,2,8"], "expected a batch 1 <= MIN <= OPT <= MAX, got 4,2,8"),
        (["--batch", "0,1,1"], "got 0,1,1"),
        (["--precision", "int4"], "holds no int4 model; it has: bf16, fp16, fp32, int8"),
        (["--flavor", "openvino"], "unknown flavor 'openvino'; expected one of tensorrt, tensorrt_rtx"),
        (["--timing-cache", "c"], "the flavor tensorrt_rtx has no --timing-cache: it times nothing"),
        (["--version-compatible"], "the flavor tensorrt_rtx has no --version-compatible: its engines fit one release"),
        (["--hardware-compat", "ampere_plus"], "has no --hardware-compat: its engines are portable"),
        (["--hardware-compat", "all"], "unknown hardware compatibility 'all'; expected one of none, ampere_plus"),
        (["--compute-capability", "9.0"], "does not know compute capability 9.0; expected some of 7.5, 8.0, 8.6, 8.9"),
        (["--compute-capability", "ada"], "--compute-capability: expected numbers such as 8.6,8.9, got 'ada'"),
        (["--compute-capability", "7.5"], "built no engine: .*Compute capability 7.5 cannot run the classifier"),
        pytest.param(["--strip-weights"], "compiled on a GPU and the driver shows none", marks=without_gpu),
        pytest.param(["--refit"], "compiled on a GPU and the driver shows none", marks=without_gpu),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_told_and_leaves_the_bundle_as_it_was(
    own: Path, arguments: list[str], message: str
) -> None:
    before = content(own)
    done = wgap("build", own, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    parts = message.split(".*")
    assert all(part in done.stderr for part in parts), done.stderr
    assert "Traceback" not in done.stderr
    assert content(own) == before


def test_the_parser_names_node_operator_and_reason(own: Path) -> None:
    import onnx

    graph = own / "model.onnx"
    model = onnx.load(str(graph))
    broken = [node for node in model.graph.node if node.op_type == "Relu"][3]
    broken.op_type = "Rel"
    onnx.save(model, str(graph))
    edit(own, "fp32", lambda e: e.update(_as_file(graph)))
    with pytest.raises(EngineError, match=rf"node '{broken.name}', operator Rel: .*Plugin not found"):
        engine_from_bundle(Bundle.open(own))
    graph.write_bytes(graph.read_bytes()[:5000])
    edit(own, "fp32", lambda e: e.update(_as_file(graph)))
    with pytest.raises(BundleError, match=r"model\.onnx is not an ONNX file .* copy the bundle again"):
        engine_from_bundle(Bundle.open(own))
    assert not (own / "engines").exists()


def test_a_graph_with_other_inputs_is_refused(own: Path) -> None:
    manifest = json.loads((own / "wgap.json").read_text())
    manifest["model"]["inputs"][0]["shape"] = ["N", 96, 96, 3]
    (own / "wgap.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BundleError, match=r"promises image uint8\['N', 96, 96, 3\], got uint8\['N', 64, 64, 3\]; export the bundle"
    ):
        engine_from_bundle(Bundle.open(own))


def test_a_fixed_batch_is_refused_by_session_and_build_alike(own: Path) -> None:
    """One checker: what ONNX Runtime and TensorRT's parser say of the same graph ends in the same words."""
    import onnx

    graph = own / "model.onnx"
    model = onnx.load(str(graph))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    del model.graph.value_info[:]
    onnx.save(model, str(graph))
    edit(own, "fp32", lambda e: e.update(_as_file(graph)))
    for opens in (Localizer, lambda root: engine_from_bundle(Bundle.open(root))):
        with pytest.raises(
            BundleError, match=r"promises image uint8\['N', 64, 64, 3\], got uint8\[4, 64, 64, 3\]; export"
        ):
            opens(own)


def stand_in(folder: Path, code: str) -> Path:
    """A folder whose ``tensorrt`` behaves as the real one does on other machines."""
    folder.mkdir()
    (folder / "tensorrt.py").write_text(code)
    return folder


def test_a_library_that_is_missing_broken_or_has_no_gpu_says_which(own: Path, tmp_path: Path) -> None:
    build = ("build", own, "--flavor", "tensorrt")
    if not gpus():
        import importlib.util

        if importlib.util.find_spec("tensorrt") is None:
            done = wgap(*build)
            assert "the tensorrt flavor needs TensorRT, which is not installed: pip install tensorrt" in done.stderr
    broken = stand_in(tmp_path / "broken", "raise OSError('libnvinfer.so.10: cannot open shared object file')")
    done = wgap(*build, path=broken)
    assert done.returncode == 1
    assert "module is installed, its libraries do not load: libnvinfer.so.10: cannot open" in done.stderr
    halved = stand_in(tmp_path / "halved", "import tensorrt_libs")
    assert "its libraries do not load: No module named 'tensorrt_libs'" in wgap(*build, path=halved).stderr
    alone = stand_in(tmp_path / "alone", "from tensorrt_rtx import *\n__version__ = '10.13.0'")
    done = wgap(*build, "--compute-capability", "8.6", path=alone)
    assert "the flavor tensorrt has no --compute-capability: it builds for the GPU it runs on" in done.stderr
    if not gpus():
        done = wgap(*build, path=alone)
        assert "TensorRT 10.13.0 builds on the GPU that the engine is for" in done.stderr
        assert "take --flavor tensorrt_rtx, which needs no GPU" in done.stderr


def test_without_onnx_the_build_says_what_to_install(own: Path) -> None:
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from wgap.cli import main\nsys.argv = ['wgap', 'build', sys.argv[1]]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(own)], text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert "needs onnx, which is not installed: pip install 'wgap[calibrate]'" in done.stderr


def test_an_unknown_flavor_and_a_missing_library_have_their_own_errors(own: Path) -> None:
    with pytest.raises(DataError, match="unknown flavor"):
        engine_from_bundle(Bundle.open(own), "trt")
    assert issubclass(MissingDependencyError, ImportError)


def test_the_library_log_goes_to_our_logger(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="wgap.tensorrt"):
        engine_from_bundle(Bundle.open(own))
    assert {record.name for record in caplog.records} == {"wgap.tensorrt"}


def test_progress_is_told_phase_by_phase(own: Path) -> None:
    seen: list[tuple[object, ...]] = []

    class Heard:
        def start(self, phase: str, parent: str | None, steps: int) -> None:
            seen.append(("start", phase, parent, steps))

        def step(self, phase: str, step: int) -> None:
            seen.append(("step", phase, step))

        def finish(self, phase: str) -> None:
            seen.append(("finish", phase))

    engine_from_bundle(Bundle.open(own), phases=Heard())
    assert seen[0][0] == "start"
    assert seen[0][2] is None
    assert seen[-1] == ("finish", seen[0][1])
    assert {name for kind, name, *_ in seen if kind == "start"} == {name for kind, name, *_ in seen if kind == "finish"}


def test_ctrl_c_stops_the_build_and_leaves_the_bundle_as_it_was(own: Path) -> None:
    class Stops:
        def start(self, phase: str, parent: str | None, steps: int) -> None:
            raise KeyboardInterrupt

        def step(self, phase: str, step: int) -> None: ...

        def finish(self, phase: str) -> None: ...

    before = content(own)
    with pytest.raises(KeyboardInterrupt):
        engine_from_bundle(Bundle.open(own), phases=Stops())
    assert content(own) == before


def in_small_filesystem(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script where it may mount file systems of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs a user namespace to mount a file system in (unshare -rm)")
    return subprocess.run(["unshare", "-rm", "sh", "-ec", script], text=True, capture_output=True, check=False)


COMMAND = shlex.join(PROGRAM)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_leaves_the_bundle_as_it_was(own: Path, tmp_path: Path, earlier: bool) -> None:
    if earlier:  # an engine that the new one would replace
        engine_from_bundle(Bundle.open(own), options=BuildOptions(batch=(1, 1, 1)))
    size = sum(path.stat().st_size for path in own.rglob("*") if path.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_small_filesystem(
        f"mount -t tmpfs -o size={size // 1024 + 300}k none {disk}; cp -r {own} {disk}/b; "
        f"{COMMAND} build {disk}/b || echo exit $?; diff -r {own} {disk}/b && {COMMAND} inspect {disk}/b > {disk}/i "
        "&& echo whole"
    )
    assert "exit 1" in done.stdout, done.stderr
    assert "No space left on device" in done.stderr
    assert "The bundle is as it was" in done.stderr
    assert "whole" in done.stdout, done.stdout


def test_a_read_only_bundle_is_told(own: Path) -> None:
    done = in_small_filesystem(
        f"mount --bind {own} {own}; mount -o remount,ro,bind {own}; {COMMAND} build {own} || echo exit $?"
    )
    assert "exit 1" in done.stdout
    assert "cannot be written (Read-only file system)" in done.stderr
    with pytest.raises(BundleError, match="holds no engine"):
        Bundle.open(own).file("engine")
