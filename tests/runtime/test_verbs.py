"""``wgap localize``, ``selftest`` and ``bench`` as a person or a script calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from wgap import Localizer
from wgap.images import decode

KEYS = ["image", "class_id", "class_name", "score", "box", "boxes", "threshold", "degenerate"]


def wgap(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from wgap.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_localize_prints_one_line_per_image_and_writes_the_same_and_overlays(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = wgap("localize", tiny_bundle, pictures, "--out", out, "--json", "--overlay", "--batch-size", "2")
    assert (done.returncode, done.stderr) == (0, "")
    records = lines(done.stdout)
    assert [list(record) for record in records] == [KEYS] * 3
    assert [Path(str(r["image"])).name for r in records] == ["a.jpg", "b.png", "a.jpeg"]
    expected = Localizer(tiny_bundle).one(pictures / "a.jpg")
    assert records[0]["box"] == list(expected.box)
    assert (out / "results.jsonl").read_text() == done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["a-2.jpg", "a.jpg", "b.jpg", "results.jsonl"]
    assert decode(out / "a.jpg").shape == (240, 320, 3)

    again = wgap("localize", tiny_bundle, pictures, "--out", out, "--json", "--overlay")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith(f"error: {out / 'results.jsonl'} and 3 more already there;")
    assert wgap("localize", tiny_bundle, pictures, "--out", out, "--heatmap", "--force").returncode == 0


def test_bad_images_get_their_own_line_and_the_rest_is_done(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    bad = {"empty.jpg": b"", "text.jpg": b"no image", "cut.jpg": (pictures / "a.jpg").read_bytes()[:-300]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    inputs = [tmp_path / "*.jpg", tmp_path / "gone.png", pictures / "a.jpg", pictures / "b.png"]
    done = wgap("localize", tiny_bundle, *inputs, "--json", "--out", tmp_path / "out", "--overlay")
    assert (done.returncode, done.stderr) == (1, "4 of 6 images failed\n")
    records = lines(done.stdout)
    assert [Path(str(r["image"])).name for r in records] == [*sorted(bad), "gone.png", "a.jpg", "b.png"]
    assert [sorted(r) for r in records[:4]] == [["code", "error", "image"]] * 4
    assert {r["code"] for r in records[:4]} == {"ImageError"}
    for record, reason in zip(records, ("cut short", "empty file", "not an image", "no such file"), strict=False):
        assert reason in str(record["error"])
    assert [list(r) for r in records[4:]] == [KEYS] * 2
    assert len(lines((tmp_path / "out" / "results.jsonl").read_text())) == 6

    plain = wgap("localize", tiny_bundle, *inputs)
    assert plain.returncode == 1
    assert len(plain.stdout.splitlines()) == 2
    assert plain.stderr.count("error: ") == 4


def test_options_reach_the_localizer(glass_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "blot.png"
    image = np.full((64, 64, 3), 255, np.uint8)
    image[16:40, 24:48, 0] = 0
    import cv2

    path.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    (record,) = lines(wgap("localize", glass_bundle, path, "--json", "--rule", "fixed:0.5").stdout)
    assert (record["class_name"], record["box"], record["threshold"]) == ("red", [24, 16, 48, 40], 0.5)
    for given in ("blue", "2"):
        (record,) = lines(wgap("localize", glass_bundle, path, "--json", "--class", given).stdout)
        assert (record["class_name"], record["degenerate"]) == ("blue", True)
    (record,) = lines(wgap("localize", glass_bundle, path, "--json", "--top-k", 3, "--map", "positive").stdout)
    assert [other["class_name"] for other in record["others"]] == ["green", "blue"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", ["localize", "evaluate", "check", "bench"])
def test_threshold_is_the_old_name_of_rule(glass_bundle: Path, tiny_bundle: Path, tmp_path: Path, verb: str) -> None:
    """It warns, and does what ``--rule`` does."""
    import cv2

    if verb == "check":
        pytest.importorskip("torch")
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[16:40, 24:48, 1:] = 0
    (tmp_path / "test" / "red").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "test" / "red" / "1.png"), picture)
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\ntest/red/1.png,24,16,48,40\n")
    call: list[object] = {
        "localize": ["localize", glass_bundle, tmp_path],
        "evaluate": ["evaluate", glass_bundle, tmp_path],
        "check": ["check", tiny_bundle],
        "bench": ["bench", glass_bundle, "--image", tmp_path / "test/red/1.png", "--batch", 1, "--iterations", 1],
    }[verb]
    old, new = (wgap(*call, "--json", name, "fixed:0.35") for name in ("--threshold", "--rule"))
    assert old.stderr == "warning: --threshold is now --rule\n"
    assert (old.returncode, new.returncode, new.stderr) == (0, 0, "")
    both = wgap(*call, "--threshold", "fixed:0.35", "--rule", "adaptive")
    assert (both.returncode, both.stderr) == (1, "error: --threshold is the old name of --rule; give --rule alone\n")
    if verb == "bench":
        old_cell, new_cell = (json.loads(done.stdout)["cells"][0] for done in (old, new))
        assert old_cell["settings"] == new_cell["settings"]
        assert (new_cell["settings"]["rule"], new_cell["settings"]["map"]) == ("fixed:0.35", "recombined")
    else:
        assert old.stdout == new.stdout
        assert new.stdout != wgap(*call, "--json").stdout or verb == "check"  # the figures of a check are all alike


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pictures", "--overlay"], "say where with --out DIR"),
        (["empty"], "expected a folder with images in it, found none"),
        (["*.gif"], "the pattern matches no file"),
        (["pictures", "--class", "purple"], "no class 'purple'; expected a name"),
        (["pictures", "--map", "cam"], "map: expected 'recombined', 'positive' or 'signed', got 'cam'"),
        (
            ["pictures", "--rule", "otsu"],
            "rule: expected 'adaptive', 'foreground', 'foreground+colour' or 'fixed:ETA' with ETA in [0, 0.999], got",
        ),
        (["pictures", "--rule", "fixed:1"], "got 'fixed:1'"),
        (["pictures", "--rule", ""], "got ''"),
        (["pictures", "--backend", "tpu"], "unknown backend 'tpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_call_that_cannot_work_ends_with_one_line_and_exit_code_1(
    glass_bundle: Path, pictures: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"pictures": pictures, "empty": tmp_path / "empty", "*.gif": tmp_path / "*.gif"}
    done = wgap("localize", glass_bundle, *(places.get(argument, argument) for argument in arguments))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_selftest_tells_by_its_exit_code(tiny_bundle: Path, tmp_path: Path, rewrite: Callable[..., None]) -> None:
    done = wgap("selftest", tiny_bundle, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["ok"] is True
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    golden = load_file(root / "golden" / "case-0.safetensors")
    golden["box"] = golden["box"] + np.array([0, 0, 0, 3], np.int32)
    rewrite(root, **{"case-0": save(golden)})
    done = wgap("selftest", root)
    assert done.returncode == 1
    assert "kernel box" in done.stdout
    assert "FAILED" in done.stdout
