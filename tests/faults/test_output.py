"""Disks, signals and streams: one line that says what and where, exit code 1, and what was done is kept."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from wgap.bundle import Bundle, describe_file, write_manifest
from wgap.cli import app

OLD = Path(__file__).parents[1] / "house" / "schema1" / "bundle"
PROGRAM = [sys.executable, "-c", "from wgap.cli import main; main()"]
pytest.importorskip("onnxruntime")


def wgap(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*PROGRAM, *map(str, arguments)], text=True, check=False, **streams)  # type: ignore[call-overload]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for name in ("a.png", "b.png", f"{'long' * 60}.png"):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    cv2.imwrite(str(folder / "wide.png"), np.zeros((2, 66_000, 3), np.uint8))  # more than a JPEG can hold
    return folder


def test_one_picture_that_cannot_be_written_is_one_error_line(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = wgap("localize", OLD, images, "--out", out, "--overlay")
    assert done.returncode == 1
    assert "wide.jpg: the picture was not written" in done.stderr
    assert "1 of 4 images failed" in done.stderr
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [("error" in line, "box" in line) for line in lines] == [(False, True)] * 3 + [(True, True)]
    assert len(list(out.glob("*.jpg"))) == 3
    assert "Traceback" not in done.stderr


def test_output_that_takes_nothing_is_one_line(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    gone = tmp_path / "gone"
    gone.mkdir()
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ends = [wgap("localize", OLD, images, *more, stdout=full) for more in ((), ("--json",))]
        ends.append(wgap("inspect", OLD, "--json", stdout=full))
    assert all("output or working directory: No space left on device" in done.stderr for done in ends)
    ends.append(wgap("localize", OLD, images, "--out", tmp_path / "file" / "below"))
    assert f"{tmp_path / 'file' / 'below'}: Not a directory" in ends[-1].stderr
    ends.append(wgap("localize", OLD, images, "--out", "/proc/wgap"))
    program = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); from wgap.cli import main; main()"
    ends.append(
        subprocess.run(
            [sys.executable, "-c", program, "localize", OLD, "x.png"], text=True, capture_output=True, check=False
        )
    )
    for done in ends:
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("place", ["a file/below", "/proc/nothing/below"])
@pytest.mark.parametrize(
    "verb",
    [
        "localize BUNDLE DAMAGED --out PLACE", "evaluate BUNDLE DAMAGED --out PLACE",
        "report BUNDLE DAMAGED --out PLACE", "inspect BUNDLE --html PLACE",
        "calibrate BUNDLE --images DAMAGED --report PLACE", "sensitivity BUNDLE --images DAMAGED --out PLACE",
        "foreground BUNDLE --images DAMAGED --report PLACE", "export DAMAGED --out PLACE --force",
        "import DAMAGED --classes DAMAGED --preprocessing DAMAGED --out PLACE --force",
        "train SET --init DAMAGED --out PLACE", "demo --out PLACE --force",
    ],
)  # fmt: skip
def test_a_place_that_takes_nothing_is_refused_before_the_work(verb: str, place: str, tmp_path: Path) -> None:
    """The network and the pictures are damaged: whichever were opened first would be what the error is about."""
    training = (
        ("torch", "lightning_fabric", "onnxscript") if verb.startswith(("export", "import", "train", "demo")) else ()
    )
    for module in ("onnx", "matplotlib", *training):
        pytest.importorskip(module)
    bundle, damaged, one = tmp_path / "bundle", tmp_path / "damaged.png", tmp_path / "set" / "train" / "one"
    shutil.copytree(OLD, bundle)
    (bundle / "model.onnx").write_bytes(b"damaged")
    manifest = Bundle.open(bundle, verify=False).manifest
    model = describe_file(bundle, bundle / "model.onnx", "onnx", "fp32")
    files = tuple(model if entry.path == model.path else entry for entry in manifest.files)
    write_manifest(bundle, replace(manifest, files=files))
    one.mkdir(parents=True)
    for path in (damaged, tmp_path / "a file", one / "1.png"):
        path.write_bytes(b"damaged")
    places = {"BUNDLE": bundle, "DAMAGED": damaged, "SET": tmp_path / "set", "PLACE": tmp_path / place}
    with pytest.raises(OSError, match=r"Not a directory|No such file or directory") as caught:
        CliRunner().invoke(app, [str(places.get(word, word)) for word in verb.split()], catch_exceptions=False)
    assert str(caught.value.filename) in (str(tmp_path / place), str((tmp_path / place).parent), "/proc")


def test_a_closed_output_is_no_error(images: Path) -> None:
    for arguments in (["inspect", OLD], ["inspect", OLD, "--json"], ["localize", OLD, images / "a.png"]):
        command = " ".join(f"'{word}'" for word in (*PROGRAM, *arguments))
        done = subprocess.run(f"{command} >&-", shell=True, text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


SLOW = """
import os, signal, sys
from wgap.runtime.localizer import Localizer
one, seen, number = Localizer._localize, [], int(sys.argv.pop())
def slow(self, *given):
    seen.append(0)
    if len(seen) == 3:
        print("two are done", flush=True)
        os.kill(os.getpid(), number)
    return one(self, *given)
Localizer._localize = slow
from wgap.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_ended_keeps_what_it_has_and_leaves_nothing_else(
    images: Path, number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", SLOW, "localize", OLD, images, "--out", out, str(int(number))],
        text=True, capture_output=True, check=False,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    assert done.returncode not in (0, -number)
    assert "Traceback" not in done.stderr
    assert [path.name for path in out.iterdir()] == ["results.partial.jsonl"]
    assert len((out / "results.partial.jsonl").read_text().splitlines()) == 2
    again = wgap("localize", OLD, images, "--out", out)
    assert again.returncode == 0, again.stderr
    assert [path.name for path in out.iterdir()] == ["results.jsonl"]


def test_a_hang_up_that_the_parent_ignores_is_ignored(images: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW, "localize", OLD, images, "--out", tmp_path / "out", str(int(signal.SIGHUP))],
        text=True, capture_output=True, check=False, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 4


def test_no_descriptor_is_left_open(images: Path) -> None:
    from wgap import Localizer

    with Localizer(OLD) as localizer:
        list(localizer([images / "a.png"]))
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(50):
            list(localizer([images / "a.png", "/dev/zero", images, images / "missing.png"], on_error="yield"))
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_a_killed_run_left_is_removed_and_what_is_in_use_is_not(images: Path, tmp_path: Path) -> None:
    from wgap.atomic import atomic_file

    out = tmp_path / "out"
    out.mkdir()
    (out / ".results-0123456789ab.jsonl").write_text("left")
    (out / ".a-0123456789ab.jpg").write_text("left")
    (out / ".hidden").write_text("theirs")
    with atomic_file(out / "theirs.jsonl") as used:
        assert wgap("localize", OLD, images / "a.png", "--out", out, "--overlay").returncode == 0
        assert used.exists()
    assert sorted(path.name for path in out.iterdir()) == [".hidden", "a.jpg", "results.jsonl", "theirs.jsonl"]


def test_names_reach_a_terminal_escaped(tmp_path: Path) -> None:
    import os
    import pty

    cv2.imwrite(str(tmp_path / "a\x1b[31m.png"), np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "b\x1b]0;title\x07.png").write_bytes(b"not an image")
    (tmp_path / os.fsdecode(b"c\xff.png")).write_bytes(b"not an image")
    terminal, end = pty.openpty()
    done = wgap("localize", OLD, tmp_path, stdout=end, stderr=end)
    os.close(end)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # nobody writes any more
        pass
    os.close(terminal)
    assert done.returncode == 1
    assert b"a\\x1b[31m.png: " in shown
    assert b"b\\x1b]0;title\\x07.png" in shown
    assert b"c\\udcff.png" in shown
    assert b"\x1b" not in shown
    assert b"2 of 3 images failed" in shown


@pytest.mark.parametrize("given", ["9" * 5000, "7", "nothing"])
def test_a_class_that_is_not_there_is_named(given: str, images: Path) -> None:
    done = wgap("localize", OLD, images / "a.png", "--class", given)
    assert done.returncode == 1
    assert "class" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 6000
