"""What the README tells people to type works as it stands there, in its order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from wgap.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="README.md is not beside the tests (installed wheel)")

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs")


def blocks(language: str, after: str = "") -> list[str]:
    return re.findall(rf"{re.escape(after)}```{language}\n(.*?)```", README.read_text(), flags=re.S)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README supposes: photos, VGG16's weights (random here), the demo's bundle and images."""
    torch = pytest.importorskip("torch")
    import cv2
    import numpy as np

    from wgap.train.model import WgapVgg16

    here = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    boxes = ["image,x0,y0,x1,y1"]
    for split, count in (("train", 15), ("test", 4)):
        for name, colour in (("otter", (40, 90, 200)), ("heron", (200, 160, 60))):
            folder = here / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(1, count + 1):
                picture = rng.integers(0, 60, (120, 160, 3), dtype=np.uint8)
                cv2.circle(picture, (45 + 5 * number, 60), 30, colour, -1)
                cv2.imwrite(str(folder / f"{number}.jpg"), picture)
                boxes.append(f"{split}/{name}/{number}.jpg,{15 + 5 * number},30,{76 + 5 * number},91")
    (here / "photos" / "boxes.csv").write_text("\n".join(boxes) + "\n")
    torch.manual_seed(0)
    state = {k: v for k, v in WgapVgg16(1).state_dict().items() if k.startswith("features.")}
    torch.save(state, here / "vgg16.pth")
    return here


def run(command: str, desk: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "wgap"
    wgap = Path(sys.executable).with_name("wgap")
    return subprocess.run([wgap, *arguments], cwd=desk, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_commands_run_in_order_and_the_python_after_them(desk: Path, tiny_bundle: Path) -> None:
    listing, many = blocks("console", after="<!-- run -->\n")
    outputs = {}
    few = listing.replace("--views 6 --epochs 4", "--views 1 --epochs 1")  # nothing is learnt of these photos anyway
    assert few != listing
    for command in [*few.splitlines(), *many.splitlines()]:
        result = run(command, desk)
        # the desk's network is random: whether its boxes survive INT8 is for the gate to say, and 3 is how it says no
        expected = (0, 3) if command.startswith("wgap calibrate") else (0,)
        assert result.returncode in expected, f"{command}\n{result.stdout}\n{result.stderr}"
        outputs.setdefault(command.split()[1], result.stdout)
    assert Bundle.open(desk / "bundle").manifest.model.classes == ("heron", "otter")
    records = [json.loads(line) for line in outputs["localize"].splitlines()]
    assert len(records) == 8
    assert {"image", "class_id", "class_name", "score", "box", "threshold", "degenerate"} <= records[0].keys()
    assert len(list((desk / "boxes").rglob("*.*"))) >= 9
    assert "gate on 8 images" in outputs["calibrate"]
    assert outputs["shards"] == "many.parquet: 8 rows\n"
    assert (desk / "models" / "wgap" / "1" / "bundle" / "wgap.json").is_file()
    assert "13 convolutions in INT8" in outputs["calibrate"]
    assert (desk / "int8-report" / "worst.png").stat().st_size > 1000
    assert "int8" in outputs["inspect"]

    (desk / "demo-out" / "data").mkdir(parents=True)
    (desk / "demo-out" / "bundle").symlink_to(tiny_bundle)
    (desk / "demo-out" / "data" / "test").symlink_to(desk / "photos" / "test")
    for code in blocks("python"):
        result = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{code}\n{result.stderr}"
    first = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=desk, capture_output=True, text=True, check=True
    )
    assert len(first.stdout.splitlines()) == 8


def test_the_import_runs_as_it_stands(tmp_path: Path) -> None:
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import cv2
    import numpy as np

    (listing,) = blocks("console", after="<!-- run import -->\n")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "demo-out" / "data" / "test").mkdir(parents=True)
    for number in range(2):
        picture = cv2.circle(np.full((100, 120, 3), 40, np.uint8), (40 + 30 * number, 50), 20, (60, 220, 90), -1)
        cv2.imwrite(str(tmp_path / "demo-out" / "data" / "test" / f"{number}.jpg"), picture)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-ec", listing], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "features 64x16x16" in result.stdout
    records = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [record["class_name"] in ("disc", "ring", "cross") for record in records] == [True, True]
    assert len(list((tmp_path / "imported-boxes").rglob("*.*"))) >= 2


def test_every_make_target_and_preset_that_is_named_exists() -> None:
    text = README.read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    assert "release" in {p["name"] for p in presets["configurePresets"]}
    assert "release" in {p["name"] for p in presets["buildPresets"]}


def test_every_verb_of_the_command_is_in_the_readme_or_the_changelog_and_has_json() -> None:
    import typer.main

    from wgap.cli import app

    text = README.read_text() + (ROOT / "CHANGELOG.md").read_text()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"wgap {name}" in text or name == "demo", name
        for each in getattr(command, "commands", {name: command}).values():
            assert any("--json" in parameter.opts for parameter in each.params), f"{each.name} lacks --json"


def test_links_between_pages_lead_somewhere() -> None:
    pages = [p for page in PAGES for p in ([ROOT / page] if (ROOT / page).is_file() else (ROOT / page).rglob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_kernel_s_benchmark_is_printed_in_one_page_and_the_readme_rounds_it() -> None:
    """A second table goes on to say what the first one no longer does."""
    printed = [
        page for page in (ROOT / "docs").rglob("*.md") if re.search(r"^\|.*OpenCV.*\d+x", page.read_text(), re.M)
    ]
    assert [page.name for page in printed] == ["results.md"]
    rows = dict(re.findall(r"^\| ([^|]+) \| \**([\d. ]+)\** \|.*\|$", printed[0].read_text(), flags=re.M))
    ours, opencv, torch = (
        float(rows[name].replace(" ", ""))
        for name in ("wgap, AVX-512", "OpenCV + NumPy, level by level", "PyTorch reference")
    )
    said = re.search(r"(\d+) µs \(OpenCV \+ NumPy (\d+) times, PyTorch (\d+) times as long\)", README.read_text())
    assert said is not None
    assert [int(n) for n in said.groups()] == [round(ours), int(opencv / ours), round(torch / ours, -2)]
