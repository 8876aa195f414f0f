"""``wgap evaluate --protocol`` from files to figures: what it reads, resumes, tells and refuses."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.conftest import scored
from typer.testing import CliRunner, Result

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.cli import app
from wgap.datasets import Dataset, open_dataset
from wgap.errors import DataError, ImageError, OutputExistsError, WgapError
from wgap.evaluate import public_protocol
from wgap.evaluate.box_accuracy import ALL, LARGEST, BoxAccuracy
from wgap.evaluate.counts import Scored
from wgap.evaluate.public_protocol import Protocol, evaluate_protocol
from wgap.evaluate.score_maps import grid, normalised

CLASSES = ("disc", "ring", "cross")


def picture(path: Path, seed: int, size: tuple[int, int] = (80, 100)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    assert cv2.imwrite(str(path), rng.integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Splits test (9 images) and val (4) of the tiny bundle's classes in the public lists, one or two boxes each."""
    root = tmp_path / "boxed"
    for split, count in (("test", 9), ("val", 4)):
        ids = [f"{split}/{n}.png" for n in range(count)]
        for n, name in enumerate(ids):
            picture(root / "images" / name, n + 100 * count)
        listing = root / "metadata" / split
        listing.mkdir(parents=True)
        (listing / "image_ids.txt").write_text("\n".join(ids) + "\n")
        (listing / "class_labels.txt").write_text("".join(f"{name},{n % 3}\n" for n, name in enumerate(ids)))
        boxes = [f"{name},{5 * n},10,{60 + 4 * n},70" for n, name in enumerate(ids)]
        boxes += [f"{name},2,3,30,40" for name in ids[::2]]
        (listing / "localization.txt").write_text("\n".join(boxes) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Six images as OpenImages are listed, masks of half their side beside them, one or two objects an image."""
    root = tmp_path / "masked"
    ids, lines = [f"test/{n}.jpg" for n in range(6)], []
    for n, name in enumerate(ids):
        picture(root / name, n)
        for k in range(1 + n % 2):
            mask = np.zeros((40, 50), np.uint8)
            mask[5 + n : 25, 5 + 10 * k : 20 + 10 * k] = 255
            assert cv2.imwrite(str(root / f"test/{n}_{k}.png"), mask)
            lines.append(f"{name},test/{n}_{k}.png,{f'test/{n}_ignore.png' if k == 0 else ''}")
        assert cv2.imwrite(str(root / f"test/{n}_ignore.png"), np.full((40, 50), 255 * (n % 3 == 0), np.uint8))
    (root / "test" / "image_ids.txt").write_text("\n".join(ids) + "\n")
    (root / "test" / "class_labels.txt").write_text("".join(f"{name},{n % 3}\n" for n, name in enumerate(ids)))
    (root / "test" / "localization.txt").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


@pytest.fixture
def localizer(tiny_bundle: Path) -> Localizer:
    return Localizer(tiny_bundle)


def wgap(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def by_hand(localizer: Localizer, data: Dataset, first: int = 0) -> BoxAccuracy:
    """The counts from what the localizer itself gives for each image."""
    counts = BoxAccuracy(3, grid(0.01))
    for n, (sample, truth) in enumerate(zip(data.samples, data.boxes(), strict=True)):
        found = localizer.one(sample.path, sample.label, heatmap=True)
        ranked = next(Localizer(localizer.bundle, top_k=3)(sample.path))
        order = [ranked.class_id, *(other.class_id for other in ranked.others)]
        scores = normalised(np.asarray(found.heatmap))
        counts.add([Scored(sample.path, n, sample.label, order.index(sample.label), scores, (80, 100), truth)])
    return counts


@pytest.mark.parametrize(("name", "contours"), [("maxboxacc", LARGEST), ("MaxBoxAccV2", ALL)])
def test_the_figures_are_those_of_the_localizer_s_heat_maps(
    name: str, contours: int, localizer: Localizer, tiny_bundle: Path, boxed: Path
) -> None:
    done = wgap(tiny_bundle, boxed, "--protocol", name, "--json", "--batch-size", 4)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    counts = by_hand(localizer, open_dataset(boxed, "test"))
    wanted = counts.report(counts.best(), contours, CLASSES)
    assert {key: printed[key] for key in wanted} == json.loads(json.dumps(wanted))
    assert set(printed["max_box_acc_v2"]) == {"30", "50", "70", "mean"}
    assert printed["max_box_acc"] > 0, "else nothing is compared"
    assert (printed["protocol"], printed["images"], printed["map"]) == (name.lower(), 9, "recombined")
    assert (printed["split"], printed["tuned_on"], printed["uses_ground_truth"]) == ("test", "test", True)
    assert sum(printed["errors"].values()) + printed["top1_loc"] == pytest.approx(1)


def test_thresholds_of_another_split_are_named_and_used(localizer: Localizer, tiny_bundle: Path, boxed: Path) -> None:
    done = wgap(tiny_bundle, boxed, "--protocol", "maxboxacc", "--tune", "val", "--json")
    printed = json.loads(done.stdout)
    assert (printed["split"], printed["tuned_on"], printed["uses_ground_truth"]) == ("test", "val", False)
    tuning, counts = (by_hand(localizer, open_dataset(boxed, split)) for split in ("val", "test"))
    assert tuning.best().tolist() != counts.best().tolist(), "else nothing is compared"
    wanted = counts.report(tuning.best(), LARGEST, CLASSES)
    assert {key: printed[key] for key in wanted} == json.loads(json.dumps(wanted))
    told = wgap(tiny_bundle, boxed, "--protocol", "maxboxacc", "--tune", "val").stdout
    assert "thresholds tuned on the true boxes of split val\n" in told
    own = wgap(tiny_bundle, boxed, "--protocol", "maxboxacc").stdout
    assert "thresholds tuned on the true boxes of split test, the images that are scored" in own


def test_out_holds_the_report_and_the_table_of_classes(tiny_bundle: Path, boxed: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = wgap(tiny_bundle, boxed, "--protocol", "maxboxaccv2", "--json", "--out", out)
    printed = json.loads(done.stdout)
    assert json.loads((out / "report.json").read_text()) == printed
    with (out / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(CLASSES)
    assert [float(row["top1_loc"]) for row in rows] == [row["top1_loc"] for row in printed["per_class"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxed", "report"], "no state is left"
    assert isinstance(wgap(tiny_bundle, boxed, "--protocol", "pxap", "--out", out).exception, OutputExistsError)


def test_pxap_of_masks_from_files(localizer: Localizer, tiny_bundle: Path, masked: Path, tmp_path: Path) -> None:
    done = wgap(tiny_bundle, masked, "--protocol", "pxap", "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    pairs: list[tuple[float, bool]] = []
    for n in range(6):
        found = localizer.one(masked / f"test/{n}.jpg", n % 3, heatmap=True)
        parts = [cv2.imread(str(masked / f"test/{n}_{k}.png"), cv2.IMREAD_GRAYSCALE) for k in range(1 + n % 2)]
        near = [cv2.resize(part, (64, 64), interpolation=cv2.INTER_NEAREST) > 0 for part in parts]
        objects = np.any(near, axis=0)
        counted = objects if n % 3 == 0 else np.ones_like(objects)  # everything else is ignored there
        scores = normalised(np.asarray(found.heatmap))
        pairs += [(float(s), bool(o)) for s, o in zip(scores[counted], objects[counted], strict=True)]
    values, objects = np.array([s for s, _ in pairs]), np.array([o for _, o in pairs])
    area, before = 0.0, 0.0
    for threshold in [1.0, *grid(0.01)[::-1]]:
        marked = values >= threshold
        recall = float((marked & objects).sum() / objects.sum())
        area += float((marked & objects).sum() / marked.sum()) * (recall - before)
        before = recall
    assert printed["pxap"] == pytest.approx(area, abs=1e-9)
    low, high = printed["confidence_95"]["pxap"]
    assert low < printed["pxap"] < high
    assert "tuned_on" not in printed
    (masked / "masks").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (masked / "test").glob("*.png"):
        (elsewhere / "test").mkdir(exist_ok=True)
        shutil.move(path, elsewhere / "test" / path.name)
    assert "--masks says where they lie" in str(wgap(tiny_bundle, masked, "--protocol", "pxap").exception)
    moved = wgap(tiny_bundle, masked, "--protocol", "pxap", "--json", "--masks", elsewhere)
    assert json.loads(moved.stdout) == printed
    shutil.copytree(elsewhere / "test", masked / "masks" / "test")
    assert json.loads(wgap(tiny_bundle, masked, "--protocol", "pxap", "--json").stdout) == printed


def test_a_foreground_rule_is_scored_by_its_heat_map(tiny_bundle: Path, boxed: Path, tmp_path: Path) -> None:
    bundle = scored(tiny_bundle, tmp_path / "scored")
    printed = json.loads(wgap(bundle, boxed, "--protocol", "maxboxacc", "--json").stdout)
    assert printed["map"] == "foreground"
    counts = by_hand(Localizer(bundle), open_dataset(boxed, "test"))
    assert printed["max_box_acc_v2"] == counts.report(counts.best(), LARGEST, CLASSES)["max_box_acc_v2"]
    asked = json.loads(
        wgap(bundle, boxed, "--protocol", "maxboxacc", "--json", "--map", "signed", "--rule", "adaptive").stdout
    )
    assert asked["map"] == "signed"


def test_of_equal_logits_the_lower_id_is_first(localizer: Localizer, boxed: Path) -> None:
    """As the kernel takes the top class; labels are 0, 1, 2 in turn."""
    run = localizer.network.run

    def undecided(images: np.ndarray) -> dict[str, np.ndarray]:
        given = run(images)
        return {**given, "logits": np.zeros_like(given["logits"])}

    equal = Localizer(localizer.bundle, network=undecided)
    report = evaluate_protocol(equal, open_dataset(boxed, "test"), Protocol("maxboxacc")).to_json()
    assert [row["top1_cls"] for row in report["per_class"]] == [1.0, 0.0, 0.0]
    assert [row["top5_cls"] for row in report["per_class"]] == [1.0, 1.0, 1.0]


class Ends(Exception):
    """What ends a run in the middle."""


@pytest.fixture
def ending(localizer: Localizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts are written after every 2 images; the network takes images[0] at most, and counts them in images[1]."""
    monkeypatch.setattr(public_protocol, "SAVE_EVERY", 2)
    images, run = [10**9, 0], localizer.network.forward

    def forward(batch: np.ndarray, *arguments: object, **options: object) -> object:
        images[1] += len(batch)
        if images[1] > images[0]:
            raise Ends
        return run(batch, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(localizer.network, "forward", forward)
    return images


@pytest.mark.parametrize("split", [None, "val"])
@pytest.mark.parametrize("seen", [0, 3, 7, 11])
def test_a_run_that_was_ended_goes_on_and_ends_with_the_same_figures(
    split: str | None, seen: int, localizer: Localizer, boxed: Path, tmp_path: Path, ending: list[int]
) -> None:
    data, tune = open_dataset(boxed, "test"), split and open_dataset(boxed, split)
    run, state = Protocol("maxboxaccv2"), tmp_path / "state"
    whole = evaluate_protocol(localizer, data, run, tune or None)
    total = len(data) + (len(tune) if tune else 0)
    ending[:] = [seen, 0]
    if seen < total:
        with pytest.raises(Ends):
            evaluate_protocol(localizer, data, run, tune or None, batch_size=1, state=state)
    else:
        evaluate_protocol(localizer, data, run, tune or None, batch_size=1, state=state)
    ending[:] = [10**9, 0]
    if seen < 2:
        with pytest.raises(DataError, match="expected the counts of a run to resume, found nothing"):
            evaluate_protocol(localizer, data, run, tune or None, batch_size=3, state=state, resume=True)
        return
    with pytest.raises(OutputExistsError, match="pass --resume to go on from them, or --force"):
        evaluate_protocol(localizer, data, run, tune or None, state=state)
    resumed = evaluate_protocol(localizer, data, run, tune or None, batch_size=3, state=state, resume=True)
    assert resumed.to_json() == whole.to_json()
    assert ending[1] <= total - min(seen, total) + 1, "only what was not counted is run again"
    public_protocol.remove_state(state)
    assert not list(tmp_path.glob("state*"))


def test_skipped_images_are_remembered_over_a_resume(
    localizer: Localizer, boxed: Path, tmp_path: Path, ending: list[int]
) -> None:
    broken = boxed / "images" / "test" / "1.png"
    broken.write_bytes(broken.read_bytes()[:99])
    data, run, state = open_dataset(boxed, "test"), Protocol("maxboxacc"), tmp_path / "state"
    ending[0] = 5
    with pytest.raises(Ends):
        evaluate_protocol(localizer, data, run, batch_size=1, state=state)
    ending[:] = [10**9, 0]
    with pytest.raises(DataError, match="unreadable images, at most 0 allowed"):
        evaluate_protocol(localizer, data, run, max_bad=0)
    report = evaluate_protocol(localizer, data, run, state=state, resume=True)
    assert [path for path, _ in report.skipped] == [str(broken)]
    assert report.to_json()["images"] == 8
    assert report.to_json()["skipped"][0]["image"] == str(broken)


def test_counts_of_anything_else_are_refused_by_name(
    localizer: Localizer, tiny_bundle: Path, boxed: Path, masked: Path, tmp_path: Path
) -> None:
    data, run, state = open_dataset(boxed, "test"), Protocol("maxboxacc"), tmp_path / "state"
    evaluate_protocol(localizer, data, run, state=state)

    def refused(match: str, localizer: Localizer = localizer, data: Dataset = data, run: Protocol = run) -> None:
        with pytest.raises(DataError, match=match):
            evaluate_protocol(localizer, data, run, state=state, resume=True)

    other = scored(tiny_bundle, tmp_path / "scored")
    refused("was counted with the bundle ", Localizer(other, rule="adaptive"))
    refused("was counted with map recombined, not signed", Localizer(tiny_bundle, map="signed"))
    refused("was counted with --threshold-step 0.01, not 0.05", run=Protocol("maxboxacc", 0.05))
    refused("was counted with boxes or masks boxes, not masks", data=open_dataset(masked, "test"), run=Protocol("pxap"))
    refused("was counted with split test, not val", data=open_dataset(boxed, "val"))
    refused("was counted with the images, labels and truth ", data=replace(data, samples=data.samples[1:]))
    one = Localizer(Bundle.open(tiny_bundle), network=localizer.network.run)
    refused("was counted with backend onnxruntime .*, not callable", one)
    evaluate_protocol(localizer, data, Protocol("maxboxaccv2"), state=state, resume=True)  # the same counts
    whole = state.read_bytes()
    for damaged in (whole[:100], whole[:-8], b"", b"\xff" * 64, whole.replace(b"done", b"gone")):
        state.write_bytes(damaged)
        refused("expected the counts of a run to resume; it cannot be read")
    state.write_bytes(whole.replace(b"right", b"wrong"))
    refused("its arrays are of other shapes; remove it, or pass --force")
    evaluate_protocol(localizer, data, run, state=state, force=True)


def test_a_state_lies_beside_out_and_is_told_of(tiny_bundle: Path, boxed: Path, tmp_path: Path) -> None:
    out, command = tmp_path / "report", ["--protocol", "maxboxacc", "--json", "--out", tmp_path / "report"]
    evaluate_protocol(
        Localizer(tiny_bundle), open_dataset(boxed, "test"), Protocol("maxboxacc"), state=tmp_path / "report.state"
    )
    assert isinstance(wgap(tiny_bundle, boxed, *command).exception, OutputExistsError)
    assert not out.exists()
    assert wgap(tiny_bundle, boxed, *command, "--resume").exit_code == 0
    assert (out / "report.json").is_file()
    assert not (tmp_path / "report.state").exists()


@pytest.mark.slow
def test_a_killed_run_is_resumed(tiny_bundle: Path, boxed: Path, tmp_path: Path) -> None:
    """More images than counts are written after, killed once they are."""
    ids = [f"test/{n}.png" for n in range(520)]
    for n, name in enumerate(ids[9:]):
        (boxed / "images" / name).symlink_to(boxed / "images" / ids[n % 9])
    listing = boxed / "metadata" / "test"
    (listing / "image_ids.txt").write_text("\n".join(ids) + "\n")
    (listing / "class_labels.txt").write_text("".join(f"{name},{n % 3}\n" for n, name in enumerate(ids)))
    (listing / "localization.txt").write_text("".join(f"{name},5,{n % 30},60,70\n" for n, name in enumerate(ids)))
    out = tmp_path / "report"
    command = ["evaluate", tiny_bundle, boxed, "--protocol", "maxboxaccv2", "--out", out, "--json"]
    main = [sys.executable, "-c", "from wgap.cli import main; main()", *map(str, command)]
    with subprocess.Popen(main, stdout=subprocess.PIPE) as run:
        while run.poll() is None and not (tmp_path / "report.state").exists():
            time.sleep(0.005)
        run.kill()
    assert run.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not out.exists()
    resumed = wgap(*command[1:], "--resume")
    assert resumed.exit_code == 0, resumed.output
    whole = wgap(*command[1:-2], tmp_path / "other", "--json")
    assert json.loads(resumed.stdout) == json.loads(whole.stdout)
    assert json.loads(whole.stdout)["images"] == 520


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "map"], "unknown protocol 'map'; expected one of maxboxacc, maxboxaccv2, pxap"),
        (["--protocol", "maxboxacc", "--threshold-step", "0.03"], "expected 1 divided by a whole number"),
        (["--protocol", "maxboxacc", "--threshold-step", "nan"], "expected 1 divided by a whole number"),
        (["--protocol", "maxboxacc", "--ablation"], "are not of --protocol"),
        (["--protocol", "maxboxacc", "--max-boxes", "2"], "are not of --protocol"),
        (["--protocol", "maxboxacc", "--resume"], "say where with --out DIR"),
        (["--protocol", "maxboxacc", "--masks", "x"], "--masks is of the protocol pxap"),
        (["--protocol", "maxboxacc", "--tune", "test"], "leave --tune out"),
        (["--protocol", "maxboxacc", "--tune", "dev"], "unknown split"),
        (["--protocol", "pxap", "--tune", "val"], "pxap has none"),
        (["--protocol", "maxboxacc", "--batch-size", "0"], "batch_size must be"),
        (["--protocol", "pxap"], r"localization.txt:1: expected `<image id>,<mask file>"),
        (["--tune", "val"], "are of --protocol; name one"),
        (["--threshold-step", "0.001"], "are of --protocol; name one"),
    ],
)
def test_wrong_options_say_what_is_possible(arguments: list[str], message: str, tiny_bundle: Path, boxed: Path) -> None:
    done = wgap(tiny_bundle, boxed, *arguments)
    assert isinstance(done.exception, DataError), done.output
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_bad_truth_is_one_line(tiny_bundle: Path, boxed: Path, masked: Path) -> None:
    def error(data: Path, name: str) -> str:
        raised = wgap(tiny_bundle, data, "--protocol", name).exception
        assert isinstance(raised, WgapError), raised
        assert "\n" not in str(raised)
        return str(raised)

    assert "localization.txt:1: expected `<image id>,<x0>" in error(masked, "maxboxacc")
    assert "--protocol pxap" in error(masked, "maxboxacc")
    listing = boxed / "metadata" / "test" / "localization.txt"
    listing.write_text(listing.read_text().replace("test/0.png,0,10,60,70", "test/0.png,200,10,260,70"))
    assert "0.png: expected boxes inside the image, 100 x 80 pixels, got 200 10 260 70" in error(boxed, "maxboxacc")
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[3:6]))
    assert "no box for" in error(boxed, "maxboxaccv2")
    listing.unlink()
    assert "expected this list, found nothing" in error(boxed, "maxboxacc")

    cv2.imwrite(str(masked / "test/2_ignore.png"), np.zeros((50, 40), np.uint8))
    assert "2_ignore.png: expected a mask in the proportions of its image, 100 x 80, got 40 x 50" in error(
        masked, "pxap"
    )
    (masked / "test/2_ignore.png").write_bytes(b"no image")
    assert "2_ignore.png" in error(masked, "pxap")
    (masked / "test/2_ignore.png").unlink()
    assert "2_ignore.png: expected a mask that" in error(masked, "pxap")
    listing = masked / "test" / "localization.txt"
    lines = listing.read_text().splitlines()
    for wrong, told in (
        ("test/2.jpg,,", "localization.txt:4: expected `<image id>,<mask file>"),
        ("test/1.jpg,test/1_0.png,test/1_ignore.png", "beside the image's first mask alone"),
        ("test/9.jpg,test/2_0.png,", "no mask for"),
    ):
        listing.write_text("\n".join([*lines[:3], wrong, *lines[4:]]) + "\n")
        assert told in error(masked, "pxap")


def test_masks_without_an_object_have_no_recall(tiny_bundle: Path, masked: Path) -> None:
    for path in (masked / "test").glob("?_?.png"):
        cv2.imwrite(str(path), np.zeros((40, 50), np.uint8))
    raised = wgap(tiny_bundle, masked, "--protocol", "pxap").exception
    assert isinstance(raised, DataError)
    assert "expected a pixel of an object in at least one mask" in str(raised)


def test_folders_have_boxes_and_no_masks(tiny_bundle: Path, tmp_path: Path) -> None:
    picture(tmp_path / "set" / "test" / "disc" / "1.png", 1)
    (tmp_path / "set" / "boxes.csv").write_text("image,x0,y0,x1,y1\ntest/disc/1.png,1,2,30,40\n")
    raised = wgap(tiny_bundle, tmp_path / "set", "--protocol", "pxap").exception
    assert isinstance(raised, DataError)
    assert "the folder layout has boxes and no masks" in str(raised)
    done = wgap(tiny_bundle, tmp_path / "set", "--protocol", "maxboxacc", "--json")
    assert done.stderr == "no image of 2 of 3 classes: ring, cross\n"
    assert [row["images"] for row in json.loads(done.stdout)["per_class"]] == [1, 0, 0]


def test_a_set_that_cannot_be_read_at_all_is_refused(localizer: Localizer, boxed: Path) -> None:
    for path in (boxed / "images" / "test").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image of split 'test' could be read"):
        evaluate_protocol(localizer, open_dataset(boxed, "test"), Protocol("maxboxacc"))


def test_a_damaged_mask_names_its_file(localizer: Localizer, masked: Path) -> None:
    (masked / "test/3_1.png").write_bytes((masked / "test/3_1.png").read_bytes()[:50])
    with pytest.raises(ImageError, match=r"3_1\.png"):
        evaluate_protocol(localizer, open_dataset(masked, "test"), Protocol("pxap"))
