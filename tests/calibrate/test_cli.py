"""``wgap calibrate`` and ``wgap gate`` as people call them, and what can be wrong with what they are given."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.errors import GateError

LENIENT = ("--max-drop", "1", "--min-iou", "0", "--min-agreement", "0")
"""The quick network is random: it is not its accuracy that is tested here."""

PROGRAM = [sys.executable, "-c", "from wgap.cli import main; main()"]


def wgap(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, arguments)], text=True, capture_output=True, check=False)


def content(root: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too, by hash."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def own(copied: Callable[[Path], Path], tiny_bundle: Path) -> Path:
    return copied(tiny_bundle)


@pytest.fixture(scope="module")
def calibrated(tiny_bundle: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick bundle with an INT8 model that passed a lenient gate."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("calibrated") / "tiny"))
    manifest = json.loads((root / "wgap.json").read_text())
    manifest["rule"] = {
        "kind": "fixed",
        "map": "recombined",
        "eta": 0.7,
    }  # lower ones give this random network the whole image
    (root / "wgap.json").write_text(json.dumps(manifest))
    done = wgap("calibrate", root, "--images", shapes, "--count", "16", "--gate", shapes, *LENIENT)
    assert done.returncode == 0, done.stderr
    return root


def test_calibrate_judges_and_enters_a_file_that_every_verb_then_runs(own: Path, shapes: Path, tmp_path: Path) -> None:
    done = wgap("calibrate", own, "--images", shapes, "--count", "16", "--gate", shapes, *LENIENT, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    entry = json.loads(done.stdout)
    assert entry["usable"] is True
    assert entry["path"] == "model.int8.onnx"
    gate = entry["gate"]
    assert gate["passed"]
    assert gate["rule"] == {"kind": "adaptive", "map": "recombined"}
    assert gate["figures"]["images"] == 16
    assert gate["figures"]["gt_known"]["images"] == 16
    test = shapes / "test"
    for verb in (
        ("localize", own, test / "disc", "--json"),
        ("evaluate", own, shapes, "--json"),
        ("bench", own, "--batch", "1", "--iterations", "1", "--json"),
        *([("check", own, "--images", test)] if importlib.util.find_spec("torch") else ()),
    ):
        ran = wgap(*verb, "--precision", "int8")
        assert ran.returncode == 0 or verb[0] == "check", ran.stderr  # a random network may disagree with itself
        assert "error" not in ran.stderr
    timed = wgap("bench", own, "--batch", "1", "--iterations", "1", "--json", "--precision", "int8").stdout
    assert json.loads(timed)["cells"][0]["settings"]["precision"] == "int8"
    assert "passed" in wgap("inspect", own).stdout


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
def test_the_same_inputs_give_the_same_file_and_a_cache_changes_nothing(
    tiny_bundle: Path, shapes: Path, tmp_path: Path, precision: str
) -> None:
    hashes, cache = [], tmp_path / "cache"
    for name, options in (("a", []), ("b", ["--cache-dir", cache]), ("c", ["--cache-dir", cache])):
        root = Path(shutil.copytree(tiny_bundle, tmp_path / name))
        done = wgap(
            "calibrate", root, "--images", shapes, "--count", "16", "--precision", precision, *options, "--json"
        )
        assert done.returncode == 0, done.stderr
        hashes.append(json.loads(done.stdout)["sha256"])
    assert len(set(hashes)) == 1
    (cached,) = cache.iterdir()
    before = cached.read_text()
    moved = Path(shutil.copytree(shapes / "train", tmp_path / "renamed"))  # other names, the same pictures: same cache
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "d"))
    assert wgap("calibrate", root, "--images", moved, "--count", "16", "--cache-dir", cache, "--precision", precision)
    assert [p.read_text() for p in cache.iterdir()] == [before]
    cached.write_text(before[: len(before) // 2])
    done = wgap("calibrate", root, "--images", shapes, "--count", "16", "--cache-dir", cache, "--precision", precision)
    assert done.returncode == 1
    assert "is not a range cache written by wgap" in done.stderr
    assert "delete it" in done.stderr


def test_without_a_gate_the_file_waits_for_one(own: Path, shapes: Path) -> None:
    done = wgap("calibrate", own, "--images", shapes, "--count", "16")
    assert done.returncode == 0
    assert "not judged" in done.stdout
    with pytest.raises(GateError, match=r"never measured; run `wgap gate"):
        Localizer(own, precision="int8")
    refused = wgap("localize", own, shapes / "test", "--precision", "int8")
    assert refused.returncode == 1
    assert "--ungated" in refused.stderr
    assert wgap("localize", own, shapes / "test", "--precision", "int8", "--ungated").returncode == 0
    judged = wgap("gate", own, "--images", shapes, *LENIENT)
    assert judged.returncode == 0, judged.stderr
    assert Localizer(own, precision="int8").network.precision == "int8"


def test_a_refused_file_exits_3_stays_aside_and_may_be_judged_again(
    calibrated: Path, shapes: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    import cv2

    own = copied(calibrated)
    usable = Bundle.open(own).model_file("int8")
    dark = tmp_path / "dark"  # ranges from nearly black pictures cut off every bright one
    for number, path in enumerate(sorted((shapes / "train").rglob("*.png"))):
        dark.mkdir(exist_ok=True)
        cv2.imwrite(str(dark / f"{number}.png"), cv2.imread(str(path)) // 40)
    calibrate = ("calibrate", own, "--images", dark, "--count", "16", "--gate", shapes, "--json", "--min-iou", "0.99")
    done = wgap(*calibrate)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["usable"] is False
    assert Bundle.open(own).model_file("int8") == usable  # a refused file never takes the place of a good one
    (own / "model.int8.onnx").unlink()
    manifest = json.loads((own / "wgap.json").read_text())
    manifest["files"] = [e for e in manifest["files"] if e["path"] != "model.int8.onnx"]
    (own / "wgap.json").write_text(json.dumps(manifest))
    done = wgap("gate", own, "--images", shapes, "--min-iou", "0.99", "--json")
    assert done.returncode == 3, done.stderr
    entry = json.loads(done.stdout)
    assert entry["usable"] is False
    assert entry["path"] == "rejected/model.int8.onnx"
    assert "mean box IoU" in entry["gate"]["reasons"][0]
    assert not (own / "model.int8.onnx").exists()
    assert wgap("localize", own, shapes / "test", "--precision", "int8").returncode == 1
    Bundle.open(own)
    again = wgap("gate", own, "--images", shapes, *LENIENT)
    assert again.returncode == 0, again.stderr
    assert not (own / "rejected").exists()
    assert Localizer(own, precision="int8").network.precision == "int8"


def test_a_verdict_holds_for_the_file_it_was_measured_on_alone(
    calibrated: Path, copied: Callable[[Path], Path]
) -> None:
    own = copied(calibrated)
    manifest = json.loads((own / "wgap.json").read_text())
    entry = next(e for e in manifest["files"] if e["precision"] == "int8")
    entry["gate"]["candidate_sha256"] = "0" * 64
    (own / "wgap.json").write_text(json.dumps(manifest))
    with pytest.raises(GateError, match="its gate ran on other files"):
        Localizer(own, precision="int8")


def test_damaged_pictures_are_left_out_as_far_as_told(own: Path, shapes: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(shapes, tmp_path / "damaged"))
    for split in ("train", "test"):
        pictures = sorted((damaged / split / "ring").glob("*.png"))
        pictures[0].write_bytes(pictures[0].read_bytes()[:200])
    command = ("calibrate", own, "--images", damaged, "--gate", damaged, "--count", "1000", *LENIENT)
    refused = wgap(*command)
    assert refused.returncode == 1
    assert "1 of the calibration images cannot be read, --max-bad allows 0" in refused.stderr
    done = wgap(*command, "--max-bad", "1")
    assert done.returncode == 0, done.stderr
    for purpose in ("calibration", "gate"):
        assert f"{purpose} images cannot be read and are left out; {damaged}" in done.stderr
    assert "--max-bad allows 0" in wgap("gate", own, "--images", damaged, *LENIENT).stderr
    assert wgap("gate", own, "--images", damaged, "--max-bad", "1", *LENIENT).returncode == 0
    assert "--max-bad allows 0" in wgap("sensitivity", own, "--images", damaged, "--count", "1000").stderr


def test_a_picture_that_comes_again_counts_once(own: Path, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes / "train", tmp_path / "twice")
    for number in (90, 91):
        shutil.copy(tmp_path / "twice" / "disc" / "00.png", tmp_path / "twice" / "disc" / f"{number}.png")
    done = wgap("calibrate", own, "--images", tmp_path / "twice", "--count", "1000")
    assert done.returncode in (0, 3), done.stderr
    pictures = len(list((shapes / "train").rglob("*.png")))
    assert f"2 of {pictures + 2} calibration images come again" in done.stderr
    made = Bundle.open(own).model_file("int8", ungated=True).calibration
    assert made is not None
    assert len(made.images) == pictures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{empty}"], "found none"),
        (["--images", "{shapes}", "--count", "4"], "expected at least 8 calibration images, got 4"),
        (["--images", "{damaged}"], "03.png: the image is cut short or corrupt"),
        (["--images", "{shapes}", "--method", "magic"], "unknown method 'magic'; expected one of minmax, entropy"),
        (["--images", "{shapes}", "--precision", "fp8"], "unknown precision 'fp8'; expected one of int8, fp16, bf16"),
        (["--images", "{shapes}", "--precision", "fp16", "--method", "entropy"], "fp16 needs the whole range"),
        (["--images", "{shapes}", "--keep-float", "conv9"], "no convolution is called 'conv9'"),
        (["--images", "{shapes}", "--keep-float", "conv9", "--precision", "fp16"], "no convolution is called 'conv9'"),
        (["--images", "{shapes}", "--keep-float", "conv9", "--precision", "bf16"], "no convolution is called 'conv9'"),
        (
            ["--images", "{shapes}", "--rule", "otsu"],
            "rule: expected 'adaptive', 'foreground'",
        ),
        (["--images", "{shapes}", "--map", "cam"], "expected 'recombined', 'positive' or 'signed', got 'cam'"),
        (["--images", "{shapes}", "--auto"], "give --gate"),
        (["--images", "{shapes}", "--gate", "{shapes}", "--min-iou", "98"], "min_iou is a share of 0..1, got 98"),
        (["--images", "{shapes}", "--gate", "{shapes}", "--gate-split", "train"], "16 of 16 gate images took part"),
        (["--images", "{shapes}", "--gate", "{again}"], "1 of 17 gate images took part in calibration"),
    ],
)
def test_bad_input_is_told_and_leaves_the_bundle_as_it_was(
    own: Path, shapes: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    import cv2

    places = {name: tmp_path / name for name in ("empty", "damaged", "again")}
    places["empty"].mkdir()
    shutil.copytree(shapes / "train", places["damaged"])
    damaged = places["damaged"] / "disc" / "03.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    shutil.copytree(shapes / "test", places["again"])  # one calibration picture among them, in another container
    cv2.imwrite(str(places["again"] / "disc" / "99.bmp"), cv2.imread(str(shapes / "train" / "disc" / "00.png")))
    before = content(own)
    done = wgap("calibrate", own, *(a.format(shapes=shapes, **places) for a in arguments))
    assert done.returncode == 1, done.stdout
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3  # an error after warnings, no traceback
    assert content(own) == before


def test_one_class_and_too_few_images_are_warned_of_by_name(own: Path, shapes: Path) -> None:
    one = wgap("calibrate", own, "--images", shapes, "--split", "train", "--count", "64")
    assert one.returncode == 0
    assert "has 16 calibration images, 64 were asked for" in one.stderr
    judged = wgap("calibrate", own, "--images", shapes, "--count", "16", "--gate", shapes, "--json")
    assert "one of 16 images with boxes weighs 0.062, more than the allowed drop of 0.01" in judged.stderr
    assert "judge on more images" in json.loads(judged.stdout)["gate"]["figures"]["warnings"][0]
    few = shapes.parent / "one-class"
    for index, path in enumerate(sorted((shapes / "train").rglob("*.png"))):
        target = few / "train" / "ring" / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    done = wgap("calibrate", own, "--images", few)
    assert done.returncode == 0
    assert "calibration images are of one class, ring" in done.stderr


def test_a_bundle_whose_network_is_already_quantised_is_refused(
    calibrated: Path, shapes: Path, copied: Callable[[Path], Path]
) -> None:
    own = copied(calibrated)
    manifest = json.loads((own / "wgap.json").read_text())
    int8 = next(e for e in manifest["files"] if e["precision"] == "int8")
    manifest["files"] = [e for e in manifest["files"] if (e["role"], e["precision"]) != ("onnx", "fp32")]
    int8.pop("gate")
    (own / "wgap.json").write_text(json.dumps(manifest))
    done = wgap("calibrate", own, "--images", shapes)
    assert done.returncode == 1
    assert "holds no fp32 model; it has: int8" in done.stderr
    manifest["files"][0]["precision"] = "fp32"  # and one that calls its INT8 graph float32
    (own / "wgap.json").write_text(json.dumps(manifest))
    done = wgap("calibrate", own, "--images", shapes)
    assert done.returncode == 1
    assert "already has DequantizeLinear nodes" in done.stderr


def in_small_filesystem(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script where it may mount file systems of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs a user namespace to mount a file system in (unshare -rm)")
    return subprocess.run(["unshare", "-rm", "sh", "-ec", script], text=True, capture_output=True, check=False)


COMMAND = shlex.join(PROGRAM)


def test_a_full_disk_leaves_the_bundle_as_it_was(own: Path, shapes: Path, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in own.rglob("*") if path.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_small_filesystem(
        f"mount -t tmpfs -o size={size // 1024 + 90}k none {disk}; cp -r {own} {disk}/b; "
        f"{COMMAND} calibrate {disk}/b --images {shapes} --count 16 || echo exit $?; ls -A {disk}/b; "
        f"cmp {own}/wgap.json {disk}/b/wgap.json && {COMMAND} inspect {disk}/b > /dev/null && echo whole"
    )
    assert "exit 1" in done.stdout, done.stderr
    assert "No space left on device" in done.stderr
    assert "The bundle is as it was" in done.stderr
    assert "whole" in done.stdout
    assert sorted(done.stdout.split("exit 1")[1].split("whole")[0].split()) == sorted(p.name for p in own.iterdir())


def test_a_read_only_bundle_is_told_before_any_work(own: Path, shapes: Path) -> None:
    done = in_small_filesystem(
        f"mount --bind {own} {own}; mount -o remount,ro,bind {own}; "
        f"{COMMAND} calibrate {own} --images {shapes}/nowhere || echo exit $?"
    )
    assert "exit 1" in done.stdout
    assert "cannot be written (Read-only file system)" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_the_bundle_as_it_was(
    own: Path, shapes: Path, tmp_path: Path, how: signal.Signals
) -> None:
    before = content(own)
    python, option, program = PROGRAM  # that heeds SIGINT even where the tests run in the background
    program = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {program}"
    run = subprocess.Popen(
        [python, option, program, "calibrate", str(own), "--images", str(shapes), "--count=16", "--method=entropy"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    for _ in range(400):  # wait until it measures ranges, then stop it
        if any(tmp_path.glob("wgap-ranges-*")):
            break
        time.sleep(0.02)
    assert run.poll() is None
    run.send_signal(how)
    assert run.wait(60) != 0
    assert content(own) == before
    assert wgap("calibrate", own, "--images", shapes, "--count", "16").returncode == 0
