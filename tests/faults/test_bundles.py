"""What files, disks and other processes do to a bundle: an error of ours, and a bundle that opens."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from tests.faults.manifests import attack
from tests.faults.writers import Writer, together, writers

from wgap import Localizer, atomic
from wgap.bundle import MANIFEST, Bundle, describe_file, sha256_of, write_manifest
from wgap.calibrate.candidate import Candidate, enter
from wgap.calibrate.images import ImageSet, image_set
from wgap.errors import BundleError, HashMismatchError, ManifestError, WgapError
from wgap.extend import LOCK, change_files, enter_file, one_writer
from wgap.manifest import CalibrationRecord, GateRecord

OLD = Path(__file__).parents[1] / "house" / "schema1" / "bundle"


@pytest.mark.parametrize("first", [0, 1], ids=["schema 1", "schema 2"])
def test_a_damaged_manifest_is_judged_by_every_verb(first: int, tmp_path: Path) -> None:
    """`make fuzz` goes on where this stops."""
    outcomes, found = attack(OLD, tmp_path, range(first, 2500 + first))
    assert not found, found[:5]
    assert outcomes["ManifestError"] > 1000
    assert outcomes["ok"] > 100  # free text


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "bundle"))


def noise(folder: Path, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    return folder


ROUNDS = int(os.environ.get("WGAP_ROUNDS", "2"))
"""Of every pair of writers."""


@pytest.fixture(scope="module")
def verbs(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Writer]:
    pytest.importorskip("onnx")
    pytest.importorskip("torch")  # the foreground verb's module reads a checkpoint's layout
    folder, opened = tmp_path_factory.mktemp("writers"), Bundle.open(tiny_bundle)

    def images(name: str, seed: int) -> ImageSet:
        return image_set(opened, noise(folder / name, seed), split="all", count=8)

    return writers(tiny_bundle, images("calibration", 1), images("gate", 2), folder)


def test_two_writers_are_one_after_the_other(verbs: dict[str, Writer], tiny_bundle: Path, tmp_path: Path) -> None:
    """Both entries are there, or one is refused because what it was made from is gone; the bundle opens."""
    before = {(entry.path, entry.sha256) for entry in Bundle.open(tiny_bundle).manifest.files}
    pairs = [*itertools.combinations(verbs, 2), *((name, name) for name in verbs)]
    for number, pair in enumerate(pairs * ROUNDS):
        root = Path(shutil.copytree(tiny_bundle, tmp_path / str(number)))
        ends = together(root, *(verbs[name] for name in pair))
        now = {(entry.path, entry.sha256) for entry in Bundle.open(root).manifest.files}
        done = [end for end in ends if isinstance(end, Bundle)]
        refused = [str(end) for end in ends if not isinstance(end, Bundle)]
        assert done, (pair, refused)
        assert all("was replaced by another process" in text for text in refused), (pair, refused)
        # The one that came last left what it says it left; the other's files are there unless the last replaced them.
        assert any({(e.path, e.sha256) for e in end.manifest.files} == now for end in done), pair
        independent = len({name.split(" ")[0] for name in pair} & {"foreground", "export"}) == 0
        if independent and pair[0][:11] != pair[1][:11] and pair[0][:7] != pair[1][:7]:
            assert len(done) == 2, (pair, refused)
            assert len(now - before) == 2, pair
        left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        assert left == {path for path, _ in now} | {MANIFEST}
        shutil.rmtree(root)


def test_a_reader_that_a_writer_overtakes_reads_again(
    verbs: dict[str, Writer], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    stale = Bundle.open(root)
    now = verbs["foreground"](root).manifest
    with pytest.raises(BundleError, match="was changed by another process while it was read; run it again"):
        stale.verify()
    with pytest.raises(BundleError, match="by another process"):
        stale.content(stale.file("golden"))
    read, readings = Bundle._read, [stale, stale]
    monkeypatch.setattr(
        Bundle, "_read", staticmethod(lambda root: readings.pop() if len(readings) == 2 else read(root))
    )
    assert Bundle.open(root).manifest == now
    damaged = root / stale.file("classifier").path
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(HashMismatchError, match="cut short or replaced"):
        Bundle.open(root)


def test_what_was_made_from_a_model_that_is_gone_is_not_entered(
    verbs: dict[str, Writer], tiny_bundle: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    verbs["foreground"](root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for name in set(verbs) - {"export --force"}:
        with pytest.raises(BundleError, match=r"was replaced by another process while .* was made from it"):
            verbs[name](root)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_file_keeps_its_name_when_another_takes_its_place(own: Path) -> None:
    bundle = Bundle.open(own)
    for content in (b"one", b"two", b"two", b"three"):
        bundle = enter_file(bundle, content, "notes.txt", "notes", "", lambda _: False)
        assert (own / "notes.txt").read_bytes() == content
        assert Bundle.open(own).manifest == bundle.manifest
    assert sorted(path.name for path in own.glob("*notes*")) == ["notes.txt"]


def test_an_interruption_behind_the_rename_leaves_the_bundle_whole(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(root: Path, manifest: Any) -> None:
        write_manifest(root, manifest)
        raise KeyboardInterrupt

    monkeypatch.setattr("wgap.extend.write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        enter_file(Bundle.open(own), b"new", "notes.txt", "notes", "", lambda _: False)
    assert Bundle.open(own).file("notes", "").path.startswith("notes")


def test_a_file_that_is_refused_late_removes_no_usable_one(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was judged where another process has since put a model that passed."""
    bundle = Bundle.open(own)
    float32 = bundle.model_file("fp32").sha256
    made = CalibrationRecord(float32, "0" * 64, (), (), (), {})

    def candidate(name: str) -> Candidate:
        (own.parent / name).write_bytes(name.encode())
        return Candidate(own.parent / name, "int8", made)

    old = enter(bundle, candidate("old"), None).file("onnx", "int8")
    figures: Any = ({}, {}, None)
    record = GateRecord(False, ("no",), bundle.manifest.rule, old.sha256, float32, "onnxruntime 1", *figures)

    def late(*rest: Any) -> Bundle:
        monkeypatch.undo()
        enter(bundle, candidate("better"), None)
        return change_files(*rest)

    monkeypatch.setattr("wgap.calibrate.candidate.change_files", late)
    refused: Any = SimpleNamespace(record=record)
    with pytest.raises(BundleError, match="was replaced by another process"):
        enter(bundle, Candidate(own / old.path, "int8", made), refused, [old.sha256])
    assert (own / "model.int8.onnx").read_bytes() == b"better"
    monkeypatch.setattr("wgap.calibrate.candidate.change_files", late)
    (own.parent / "old").write_bytes(b"old")
    again = enter(
        bundle, Candidate(own.parent / "old", "int8", made), refused
    )  # a file of its own: beside the usable one
    assert again.file("onnx", "int8").sha256 == sha256_of(own.parent / "better")
    assert again.file("rejected", "int8").sha256 == old.sha256


def test_what_a_killed_writer_left_is_cleared_by_the_next(own: Path) -> None:
    residue = [
        f".model-{'0' * 12}.onnx", ".incoming-wgap.json", "model.bf16.onnx", "model.int8-0a1b2c3d.onnx", LOCK,
        "golden/.case-0-0123456789ab.safetensors", "rejected/model.bf16.onnx", "engines/model.fp32.x-0a1b2c3d.plan",
    ]  # fmt: skip
    theirs = ["notes.md", "engines/own.plan", "golden/mine.safetensors", ".hidden"]
    for name in residue + theirs:
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_bytes(b"left")
    enter_file(Bundle.open(own), b"new", "notes.txt", "notes", "", lambda _: False)
    assert not [name for name in residue if (own / name).exists()]
    assert all((own / name).exists() for name in theirs)


def test_a_writer_that_is_alive_is_waited_for_and_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wgap.extend.PATIENCE", 0.2)
    before = (own / MANIFEST).read_bytes()
    with one_writer(own), pytest.raises(BundleError, match=r"another process has been writing .*\.lock is locked"):
        enter_file(Bundle.open(own), b"new", "notes.txt", "notes", "", lambda _: False)
    assert (own / MANIFEST).read_bytes() == before
    assert not (own / LOCK).exists()


def test_a_killed_writer_holds_nobody_up(own: Path) -> None:
    program = "import os, sys; from pathlib import Path; from wgap.extend import one_writer\n"
    program += "with one_writer(Path(sys.argv[1])): print('held', flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", program, own], capture_output=True, text=True, check=False)
    assert (killed.returncode, killed.stdout) == (-9, "held\n")
    assert (own / LOCK).exists()
    enter_file(Bundle.open(own), b"new", "notes.txt", "notes", "", lambda _: False)
    assert not (own / LOCK).exists()


def swapped(own: Path, name: str, make: Callable[[Path], object]) -> None:
    """Something else in the place of a listed file."""
    (own / name).unlink()
    make(own / name)


@pytest.mark.parametrize("name", ["model.onnx", "classifier.safetensors", "golden/case-0.safetensors", MANIFEST])
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_no_file_is_not_read(own: Path, name: str, verify: bool) -> None:
    for what, make in {"pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}.items():
        copy = Path(shutil.copytree(own, own.with_name(what)))
        swapped(copy, name, make)
        with pytest.raises(BundleError, match=r"is no regular file|leads out of the bundle"):
            Bundle.open(Localizer(copy, verify=verify).bundle.root, verify=False).golden()


@pytest.mark.parametrize("name", ["model.onnx", "classifier.safetensors", "golden"])
def test_a_link_out_of_the_bundle_is_refused_and_what_it_leads_to_stays(own: Path, name: str) -> None:
    outside = own.with_name("outside")
    (own / name).rename(outside)
    (own / name).symlink_to(outside)
    before = {p: p.read_bytes() for p in [outside, *outside.rglob("*")] if p.is_file()}
    with pytest.raises(BundleError, match=rf"{Path(name).stem}.* leads out of the bundle, to .*outside"):
        Bundle.open(own)
    unverified = Bundle.open(own, verify=False)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        enter_file(unverified, b"x", f"{name}/x", "golden", "", lambda e: e.role in ("golden", "onnx"))
    with pytest.raises(BundleError, match="leads out of the bundle"):  # which another file would have removed
        enter_file(unverified, b"x", "notes.txt", "notes", "", lambda e: e.path.startswith(name))
    assert Bundle.open(own, verify=False).manifest == unverified.manifest
    assert not (own / "notes.txt").exists()
    assert {p: p.read_bytes() for p in [outside, *outside.rglob("*")] if p.is_file()} == before


@pytest.mark.parametrize("leads", ["somewhere", "nowhere"])
def test_a_folder_does_not_take_a_link_s_place(own: Path, leads: str) -> None:
    from wgap.atomic import atomic_dir
    from wgap.errors import OutputExistsError

    link = own.with_name("link")
    link.symlink_to(own if leads == "somewhere" else own.with_name("gone"))
    with (
        pytest.raises(OutputExistsError, match=r"link is a link to .*; name the folder itself"),
        atomic_dir(link, True),
    ):
        pass
    assert link.is_symlink()
    assert sorted(path.name for path in own.parent.iterdir()) == ["bundle", "link"]


def test_folders_change_places_and_residue_goes(own: Path) -> None:
    from wgap.atomic import atomic_dir

    dead = own.with_name(".bundle-0123456789ab")
    dead.mkdir()
    with atomic_dir(own, True) as one, atomic_dir(own, True) as other:  # of the living neither takes the other's
        assert not dead.exists()
        (one / "x").write_text("1")
        (other / "x").write_text("2")
    assert (own / "x").read_text() == "1"
    assert [path.name for path in own.parent.iterdir()] == ["bundle"]
    own.rename(own.with_name(".bundle-0123456789ab-old"))  # killed between two renames, where they were two
    with pytest.raises(RuntimeError), atomic_dir(own, True):
        raise RuntimeError
    assert (own / "x").read_text() == "1"


@pytest.mark.parametrize("write", [atomic.atomic_dir, atomic.atomic_file])
@pytest.mark.parametrize("after", ["", "while it is locked"])
def test_what_another_takes_for_residue_before_it_is_locked_is_made_anew(
    write: Callable[[Path], AbstractContextManager[Path]], after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = atomic._locked, []

    def remove(path: Path) -> None:
        path.rmdir() if path.is_dir() else path.unlink()

    def late(path: Path, *given: int) -> int | None:
        if not taken:
            taken.append(path)
            held = real(path)
            assert held is not None
            if after:
                threading.Timer(0.1, lambda: (remove(path), os.close(held))).start()
            else:
                remove(path)
                os.close(held)
        return real(path, *given)

    monkeypatch.setattr(atomic, "_locked", late)
    with write(tmp_path / "whole") as temporary:
        assert temporary.exists()
        assert taken == [temporary]
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_link_inside_the_bundle_will_do(own: Path) -> None:
    (own / "model.onnx").rename(own / "graph")
    (own / "model.onnx").symlink_to("graph")
    Bundle.open(own)


def test_the_bytes_that_were_hashed_are_the_bytes_that_run(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced between the check of the whole bundle and the opening of the network."""
    real = Bundle.verify

    def replaced_after(bundle: Bundle) -> None:
        real(bundle)
        data = bytearray((own / "model.onnx").read_bytes())
        data[-40] ^= 1
        (own / "model.onnx").write_bytes(data)

    monkeypatch.setattr(Bundle, "verify", replaced_after)
    with pytest.raises(HashMismatchError, match=r"model\.onnx has sha256"):
        Localizer(own)


def test_a_session_does_not_hold_its_file_in_memory(own: Path) -> None:
    from wgap.runtime.networks.onnxruntime import open_session

    content = (own / "model.onnx").read_bytes()
    held = sys.getrefcount(content)
    session = open_session(own / "model.onnx", None, content=content)
    assert sys.getrefcount(content) == held
    assert session.get_inputs()[0].name == "image"


@pytest.mark.parametrize("where", ["beside", "outside", "absolute"])
def test_values_in_another_file_are_refused(own: Path, where: str) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(own / "model.onnx"))
    onnx.save_model(
        model, str(own / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=16
    )
    if where != "beside":
        (own / "weights.bin").rename(own.with_name("weights.bin"))
        model = onnx.load(str(own / "model.onnx"), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../weights.bin" if where == "outside" else str(own.with_name("weights.bin"))
        (own / "model.onnx").write_bytes(model.SerializeToString())
    manifest = Bundle.open(own, verify=False).manifest
    new = describe_file(own, own / "model.onnx", "onnx", "fp32")
    files = [new if entry.path == new.path else entry for entry in manifest.files]
    write_manifest(own, replace(manifest, files=tuple(files)))
    for work in (lambda: Localizer(own), lambda: Bundle.open(own).content(Bundle.open(own).file("onnx", "fp32"))):
        with pytest.raises(BundleError, match=r"the values of the tensor '[^']+' lie in another file"):
            work()


@pytest.mark.parametrize("text", [b"", b"\x00", b"not a model", b"\x3a\xff\xff\xff\xff\x7f", b"\x3b\x08", b"\xff" * 80])
def test_what_is_no_graph_is_refused(text: bytes) -> None:
    from wgap.onnx_wire import require_self_contained

    if text:
        with pytest.raises(BundleError, match=r"x\.onnx is not an ONNX file"):
            require_self_contained(text, "x.onnx")
    else:
        require_self_contained(text, "x.onnx")  # ONNX Runtime says what it lacks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 2, "schema": 2}', "the key 'schema' stands twice"),
        ('{"schema": 2, "x": ' + "[" * 40 + "]" * 40 + "}", "deeper than 32 levels"),
        ('{"schema": 2, "x": ' + "[" * 5000 + "]" * 5000 + "}", "deeper than 32 levels"),
    ],
)
def test_json_that_says_too_much_is_refused(own: Path, text: str, message: str) -> None:
    (own / MANIFEST).write_text(text)
    with pytest.raises(ManifestError, match=message):
        Bundle.open(own)


def test_a_manifest_of_thirty_thousand_files_is_refused_at_once(own: Path) -> None:
    raw = json.loads(Bundle.open(own).manifest.to_json())
    raw["files"] = [{**raw["files"][0], "path": f"x{number}", "precision": str(number)} for number in range(30_000)]
    (own / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(ManifestError, match="files: expected at most 1000, got 30000"):
        Bundle.open(own)
    (own / MANIFEST).write_bytes(b" " * (65 << 20))
    with pytest.raises(ManifestError, match="more than 64 MiB"):
        Bundle.open(own)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_classifier_that_is_not_finite_is_refused_by_name(name: str, value: float, own: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = own / "classifier.safetensors"
    tensors = load_file(file)
    tensors[name].flat[-1] = value
    save_file(tensors, file)
    manifest, new = Bundle.open(own, verify=False).manifest, describe_file(own, file, "classifier", "fp32")
    files = tuple(new if entry.path == new.path else entry for entry in manifest.files)
    write_manifest(own, replace(manifest, files=files))
    with pytest.raises(WgapError, match=rf"finite numbers in {name}|{name}s hold NaN or infinity"):
        Localizer(own)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "keys",
    ["preprocessing.mean[1]", "preprocessing.std[2]", "files[1].gate.limits.min_iou", "files[1].gate.figures.x[0]"],
)
def test_a_number_of_the_manifest_that_is_not_finite_is_refused_by_name(keys: str, value: float, own: Path) -> None:
    raw = json.loads(Bundle.open(own).manifest.to_json())
    raw["files"][1]["gate"]["figures"]["x"] = [1.0]
    *way, last = [int(key) if key.isdecimal() else key for key in re.findall(r"\w+", keys)]
    functools.reduce(operator.getitem, way, raw)[last] = value
    (own / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(ManifestError, match=rf"{re.escape(keys)}: expected a finite number, got {value}"):
        Bundle.open(own, verify=False)


@pytest.mark.data
def test_manifests_that_once_ended_in_something_else(cub10: Path, own: Path) -> None:
    cases = sorted((cub10.parents[1] / "cases" / "manifests").glob("*.json"))
    assert len(cases) > 10
    for case in cases:
        shutil.copyfile(case, own / MANIFEST)
        with pytest.raises(WgapError):
            Localizer(own)
