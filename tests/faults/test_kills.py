"""Verbs killed at any moment: what they extend or replace is whole, and the next run leaves nothing else behind.

WGAP_KILLS=200 kills more often than the suite does, WGAP_ROUNDS=30 runs two at once more often.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from wgap.bundle import MANIFEST, Bundle

KILLS = int(os.environ.get("WGAP_KILLS", "10"))
ROUNDS = int(os.environ.get("WGAP_ROUNDS", "3"))
PROGRAM = [sys.executable, "-c", "from wgap.cli import main; main()"]
VERBS = ("train", "export", "foreground", "calibrate", "localize")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty bright discs on a dim ground, for a network that sees brightness or nothing."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(40):
        picture = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        centre = (int(rng.integers(18, 46)), int(rng.integers(18, 46)))
        cv2.circle(picture, centre, int(rng.integers(9, 17)), (250, 240, 200), -1)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


@pytest.mark.slow
def test_two_commands_on_one_bundle(tiny_checkpoint: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    """As test_bundles.py does with calls, with processes: each ends with its entry there, or refused by name."""
    pytest.importorskip("onnx")
    root, place = tmp_path / "place" / "bundle", tmp_path / "place"
    verbs: dict[str, list[object]] = {
        "calibrate int8": ["calibrate", root, "--images", pictures],
        "calibrate fp16": ["calibrate", root, "--images", pictures, "--precision", "fp16"],
        "foreground": ["foreground", root, "--images", pictures],
        "export": [
            "export", tiny_checkpoint, "--classes", tiny_checkpoint.with_name("classes.txt"), "--preprocessing",
            "torchvision-rgb", "--input-size", 64, "--out", root, "--force",
        ],
    }  # fmt: skip
    pairs = list(itertools.combinations_with_replacement(verbs, 2))
    random.Random(3).shuffle(pairs)
    for number in range(ROUNDS):
        pair = pairs[number % len(pairs)]
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tiny_bundle, root)
        before = {(entry.path, entry.sha256) for entry in Bundle.open(root).manifest.files}
        running = [
            subprocess.Popen([*PROGRAM, *map(str, verbs[name])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for name in pair
        ]
        said = [process.communicate()[1].decode() for process in running]
        codes = [process.returncode for process in running]
        now = {(entry.path, entry.sha256) for entry in Bundle.open(root).manifest.files}
        assert 0 in codes, (pair, said)
        for code, text in zip(codes, said, strict=True):
            assert code == 0 or "by another process" in text, (pair, text)
            assert "Traceback" not in text, (pair, text)
        if codes == [0, 0] and pair == ("calibrate int8", "calibrate fp16"):
            assert len(now - before) == 2
        left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        assert left == {path for path, _ in now} | {MANIFEST}
        assert [path.name for path in place.iterdir()] == ["bundle"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_leaves_something_whole(
    verb: str, tiny_checkpoint: Path, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    place = tmp_path / "place"
    place.mkdir()
    root, out = Path(shutil.copytree(tiny_bundle, place / "bundle")), place / "out"
    commands: dict[str, list[object]] = {
        "export": [
            "export", tiny_checkpoint, "--classes", tiny_checkpoint.with_name("classes.txt"), "--preprocessing",
            "torchvision-rgb", "--input-size", 64, "--out", root, "--force",
        ],
        "train": [
            "train", tmp_path / "set", "--out", out, "--width", 0.0625, "--input-size", 32, "--epochs", 3,
            "--layout", "folder",
        ],
        "foreground": ["foreground", root, "--images", pictures],
        "calibrate": ["calibrate", root, "--images", pictures],
        "localize": ["localize", root, pictures, "--out", out, "--overlay", "--force"],
    }  # fmt: skip
    command = [*PROGRAM, *map(str, commands[verb])]

    for name in ("disc", "ring"):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(pictures)

    def command_now() -> list[str]:
        """A training run that was killed is gone on with, one that ended is replaced."""
        if verb != "train":
            return command
        begun = (out / "run.json").exists() and not (out / "model.safetensors").exists()
        return [*command, "--resume" if begun else "--force"]

    def finished() -> None:
        done = subprocess.run(command_now(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        bundle = Bundle.open(root)
        files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        assert files == {entry.path for entry in bundle.manifest.files} | {MANIFEST}
        assert {path.name for path in place.iterdir()} <= {"bundle", "out"}
        if verb == "localize":
            assert len(list(out.iterdir())) == 41
        if verb == "train":
            assert {path.suffix for path in out.iterdir()} == {".json", ".jsonl", ".pt", ".safetensors"}
            assert len(list(out.iterdir())) == 4

    start = time.monotonic()
    finished()
    took, chance = time.monotonic() - start, random.Random(verb)
    killed = 0
    for number in range(max(1, KILLS // len(VERBS))):
        process = subprocess.Popen(command_now(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(took * chance.uniform(0.3, 1.05))
        process.kill()
        killed += process.wait() == -9
        Bundle.open(root)
        if number % 4 == 0:
            finished()
    finished()
    assert killed > 0 or KILLS < 40
