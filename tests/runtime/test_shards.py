"""Runs in shards: killed, resumed, shared and damaged, they end in the same bytes or are refused by name."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from wgap import Localizer
from wgap.atomic import remove_residue
from wgap.bundle import sha256_of
from wgap.cli import app
from wgap.errors import DataError, MissingDependencyError, StoreError
from wgap.images import find_images
from wgap.runtime.shards import Shards, settings_of
from wgap.runtime.tables import FORMATS
from wgap.stores import Stored, find_pictures

COUNT, SIZE = 50, 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 small pictures, one of them no picture."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(6)
    for number in range(COUNT):
        cv2.imwrite(str(folder / f"{number:03d}.png"), rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    (folder / "017.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def localizer(tiny_bundle: Path) -> Localizer:
    return Localizer(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def undisturbed(localizer: Localizer, pictures: Path) -> bytes:
    """The lines that a run in one go has."""
    results = localizer(find_images(pictures), on_error="yield")
    return "".join(json.dumps(result.to_json()) + "\n" for result in results).encode()


def begun(folder: Path, localizer: Localizer, pictures: Path, size: int | None = SIZE) -> Shards:
    return Shards(folder, find_images(pictures), settings_of(localizer), size)


def merged(folder: Path, out: Path) -> bytes:
    Shards(folder).merge(out)
    return out.read_bytes()


def wgap(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_tables_together_are_the_lines_of_one_run(
    localizer: Localizer, pictures: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", localizer, pictures)
    seen: list[int] = []
    assert run.work(localizer, finished=lambda sidecar: seen.append(sidecar.shard)) == 7
    assert seen == list(range(7))
    assert merged(tmp_path / "run", tmp_path / "all.jsonl") == undisturbed
    failed = [run.sidecar(shard).failed for shard in range(7)]  # type: ignore[union-attr]
    assert failed == [0, 0, 1, 0, 0, 0, 0]
    assert run.verify() == []
    assert begun(tmp_path / "run", localizer, pictures, None).work(localizer) == 0, "all is done"
    assert not list((tmp_path / "run" / "claims").iterdir())


def test_workers_by_number_make_their_own_shards_and_no_others(
    localizer: Localizer, pictures: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", localizer, pictures)
    assert run.work(localizer, worker=(2, 3)) == 2
    assert [run.done(shard) is not None for shard in range(7)] == [False, True, False, False, True, False, False]
    assert run.work(localizer, worker=(1, 3)) == 3
    assert run.work(localizer) == 2, "who has no number makes the rest"
    assert merged(tmp_path / "run", tmp_path / "all.jsonl") == undisturbed


def test_killed_in_the_middle_again_and_again_four_workers_end_in_the_same_bytes(
    localizer: Localizer, tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    """Whoever holds a claim is killed, and another takes its place, until eight were."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(400):
        (many / f"{number:03d}.png").hardlink_to(pictures / f"{number % COUNT:03d}.png")
    command = [
        sys.executable, "-c", "from wgap.cli import main; main()", "localize", str(tiny_bundle), str(many),
        "--shards", str(tmp_path / "run"), "--shard-size", "20", "--lease", "1", "--threads", "1",
    ]  # fmt: skip
    rng, killed, claims = random.Random(4), 0, tmp_path / "run" / "claims"

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    workers = {one.pid: one for one in (begin() for _ in range(4))}
    while killed < 8 and any(one.poll() is None for one in workers.values()):
        time.sleep(rng.uniform(0, 0.02))
        for claim in claims.glob("shard-*"):
            with suppress(OSError, ValueError, IndexError):  # done, or not yet written
                holder = workers.pop(int(claim.read_text().split()[1]), None)
                if holder is not None and killed < 8:
                    holder.kill()
                    holder.communicate()
                    killed += 1
                    one = begin()
                    workers[one.pid] = one
                elif holder is not None:
                    workers[holder.pid] = holder
    for worker in workers.values():
        _, said = worker.communicate(timeout=240)
        assert worker.returncode == 0, said
    assert killed >= 3
    results = localizer(find_images(many), on_error="yield")
    expected = "".join(json.dumps(result.to_json()) + "\n" for result in results).encode()
    assert merged(tmp_path / "run", tmp_path / "all.jsonl") == expected
    assert begun(tmp_path / "run", localizer, many, 20).work(localizer) == 0
    left = {path.name.split("-")[0] for path in (tmp_path / "run").iterdir()}
    assert left == {"plan.json", "images", "shard", "claims"}, "what the killed ones left is gone"


def test_a_claim_holds_until_its_worker_is_silent_by_the_folder_s_clock(
    localizer: Localizer, pictures: Path, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", localizer, pictures, 25)
    (tmp_path / "run" / "claims").mkdir()
    held = tmp_path / "run" / "claims" / "shard-00000"
    held.write_text("another machine")  # before it has written its lease
    assert run._claimed(0, 60) is None
    ahead = time.time() + 1e6  # its worker's clock is wrong; that counts for nothing but the file's time
    os.utime(held, (ahead, ahead))
    assert run._claimed(0, 60) is None
    old = time.time() - 61
    os.utime(held, (old, old))
    assert run._claimed(0, 60) == held
    assert held.read_text() != "another machine"
    assert run._claimed(0, 60) is None, "now it is this worker's"
    os.utime(held, (time.time() - 30,) * 2)
    assert run._claimed(0, 5) is None, "whose lease counts, not that of who asks"
    assert [path.name for path in held.parent.iterdir()] == ["shard-00000"]


def test_two_that_make_one_shard_make_the_same(
    localizer: Localizer, pictures: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    one, two = (begun(tmp_path / "run", localizer, pictures) for _ in range(2))
    made = one.make(3, localizer)
    again = two.make(3, localizer)
    assert (made.sha256, made.bytes, made.rows) == (again.sha256, again.bytes, again.rows)
    one.work(localizer)
    assert merged(tmp_path / "run", tmp_path / "all.jsonl") == undisturbed


def test_another_run_is_refused_by_what_differs(
    localizer: Localizer, tiny_bundle: Path, glass_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", localizer, pictures)
    for make in (run.work, lambda localizer: run.make(0, localizer)):
        with pytest.raises(DataError, match="its classes is 1 a picture, not 2 a picture"):
            make(Localizer(tiny_bundle, top_k=2))
    assert run.sidecars() == []
    paths = find_images(pictures)
    other = settings_of(Localizer(tiny_bundle, rule="fixed:0.3", top_k=2))
    for images, settings, size, said in (
        (paths, other, SIZE, r"its rule is adaptive on .*, not fixed:0\.3"),
        (paths, settings_of(Localizer(glass_bundle)), SIZE, "its bundle is "),
        (paths, settings_of(localizer, "disc"), SIZE, "its classes is 1 a picture, not disc"),
        (paths, settings_of(localizer), 9, "its shards are of 8 pictures, not 9"),
        (paths[:-1], settings_of(localizer), SIZE, "its list has 50 pictures, not 49"),
        (paths[::-1], settings_of(localizer), SIZE, r"picture 0 of its list is .*000\.png, not .*049\.png"),
    ):
        with pytest.raises(DataError, match=f"run is of another run: {said}.*; take another folder"):
            Shards(tmp_path / "run", images, settings, size)


def test_a_bundle_s_gate_or_engine_does_not_make_it_another_run(localizer: Localizer, tiny_bundle: Path) -> None:
    assert settings_of(localizer) == settings_of(Localizer(tiny_bundle, threads=2))


def damage(folder: Path, how: str) -> None:
    table, sidecar = folder / "shard-00001.jsonl", folder / "shard-00001.json"
    if how == "table gone":
        table.unlink()
    elif how == "table cut":
        table.write_bytes(table.read_bytes()[:-9])
    elif how == "byte flipped":
        content = bytearray(table.read_bytes())
        content[40] ^= 1
        table.write_bytes(content)
    elif how == "sidecar edited":
        sidecar.write_text(sidecar.read_text().replace('"rows": 8', '"rows": "8"'))
    elif how == "of another shard":
        for name in ("json", "jsonl"):
            shutil.copy(folder / f"shard-00000.{name}", folder / f"shard-00001.{name}")
    elif how == "list changed":
        [listed] = folder.glob("images-*")
        listed.write_text(listed.read_text().replace("003.png", "004.png"))
    elif how == "plan edited":
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps({**plan, "images": 48}))
    elif how == "plan emptied":
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps({**plan, "images": -5}))
    elif how == "plan cut":
        (folder / "plan.json").write_text((folder / "plan.json").read_text()[:-20])
    elif how == "rows of others":
        digests = json.loads(sidecar.read_text())
        lines = table.read_text().replace("010.png", "110.png")
        table.write_text(lines)
        import hashlib

        digests["sha256"] = hashlib.sha256(lines.encode()).hexdigest()
        sidecar.write_text(json.dumps(digests))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("table gone", "shard-00001.jsonl is not done"),
        ("table cut", "is not the table that its sidecar tells of"),
        ("byte flipped", "is not the table that its sidecar tells of"),
        ("sidecar edited", "expected a shard's sidecar (rows"),
        ("of another shard", "is of another run, or of another shard"),
        ("list changed", "was changed after the run began"),
        ("plan cut", "expected the plan of a run"),
        ("plan edited", "says 48 pictures, which its list has not"),
        ("plan emptied", "got version 1, -5 pictures, 8 in a shard"),
        ("rows of others", "has other pictures than the plan"),
    ],
)
def test_damage_is_named_and_never_merged(
    how: str, said: str, localizer: Localizer, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    begun(folder, localizer, pictures).work(localizer)
    damage(folder, how)
    found = wgap("shards", "verify", folder)
    assert found.exit_code == 1
    text = found.stderr + str(found.exception)
    assert said in text
    done = wgap("shards", "merge", folder, "--out", tmp_path / "all.jsonl")
    assert done.exit_code == 1
    assert said in str(done.exception)
    assert not (tmp_path / "all.jsonl").exists()


def test_the_commands(tiny_bundle: Path, pictures: Path, undisturbed: bytes, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "all.jsonl"
    command = ["localize", tiny_bundle, pictures, "--shards", run, "--threads", 1]
    first = wgap(*command, "--shard-size", SIZE, "--worker", "1/2", "--json")
    figures = json.loads(first.stdout)
    speeds = figures.pop("speeds")
    assert figures == {"shards": 7, "made": 4, "done": 4, "images": 50, "failed": 1}
    assert set(speeds) == {"total", "prepare", "network", "waiting"}
    assert speeds["network"] >= speeds["total"] > 0
    assert 0 <= speeds["waiting"] < 1
    status = json.loads(wgap("shards", "status", run, "--json").stdout)
    assert (status["images_done"], status["speeds"]) == (26, speeds)
    assert "images/s of a worker" in wgap("shards", "status", run).stdout
    assert "4 of 7 shards done, 26 of 50 pictures, 1 of them failed" in wgap("shards", "status", run).stdout
    assert isinstance(wgap("shards", "merge", run, "--out", out).exception, DataError)
    assert "made 3 shards, 7 of 7 are done" in wgap(*command).stdout
    assert json.loads(wgap("shards", "verify", run, "--json").stdout) == {"ok": True, "shards": 7, "problems": []}
    assert json.loads(wgap("shards", "merge", run, "--out", out, "--json").stdout) == {"out": str(out), "rows": 50}
    assert out.read_bytes() == undisturbed
    assert "already there" in str(wgap("shards", "merge", run, "--out", out).exception)
    assert "tables are jsonl" in str(wgap("shards", "merge", run, "--out", tmp_path / "all.parquet").exception)
    assert wgap("shards", "merge", run, "--out", out, "--force").exit_code == 0
    joined = wgap("localize", tiny_bundle, "--shards", run, "--threads", 1)
    assert "made 0 shards, 7 of 7 are done" in joined.stdout, "the run has its list"
    for words, said in (
        (["--format", "xml"], "expected jsonl or parquet"),
        (["--devices", "0,1", "--worker", "1/2"], "leave --worker and --device out"),
        (["--devices", "0,"], "expected devices separated by commas"),
        (["--worker", "3/2"], "expected I/N with 1 <= I <= N"),
        (["--worker", "two"], "expected I/N"),
        (["--out", tmp_path], "--shards writes tables alone"),
        (["--shard-size", 9], "its shards are of 8 pictures, not 9"),
        (["--rule", "fixed:0.5"], "its rule is"),
    ):
        assert said in str(wgap(*command, *words).exception)
    assert "are of --shards" in str(wgap("localize", tiny_bundle, pictures, "--worker", "1/2").exception)
    (tmp_path / "file").write_text("")
    assert isinstance(wgap(*command[:4], tmp_path / "file").exception, OSError)
    assert "found none" in str(wgap("shards", "status", tmp_path).exception)
    assert "found none" in str(wgap("localize", tiny_bundle, "--shards", tmp_path / "no").exception)
    assert "expected images" in str(wgap("localize", tiny_bundle).exception)


def test_parquet_tables_hold_what_the_lines_do(
    tiny_bundle: Path, pictures: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    command = ["localize", tiny_bundle, pictures, "--threads", 1, "--shard-size", SIZE, "--format", "parquet"]
    for run in ("one", "two"):
        assert wgap(*command, "--shards", tmp_path / run).exit_code == 0
        assert wgap("shards", "verify", tmp_path / run).exit_code == 0
        assert wgap("shards", "merge", tmp_path / run, "--out", tmp_path / f"{run}.parquet").exit_code == 0
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    table = parquet.read_table(tmp_path / "one.parquet")
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    assert rows == [json.loads(line) for line in undisturbed.splitlines()]
    assert parquet.ParquetFile(tmp_path / "one.parquet").num_row_groups == 7
    whole = FORMATS["parquet"]().read((tmp_path / "one.parquet").read_bytes())
    assert whole.equals(FORMATS["jsonl"]().read(undisturbed))
    table, sidecar = tmp_path / "one" / "shard-00002.parquet", tmp_path / "one" / "shard-00002.json"
    table.write_bytes(b"no table")
    about = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**about, "bytes": 8, "sha256": sha256_of(table)}))
    assert "shard-00002.parquet has other pictures than the plan" in wgap("shards", "verify", tmp_path / "one").stderr


def test_a_run_of_lines_does_not_go_on_in_parquet(localizer: Localizer, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    begun(tmp_path / "run", localizer, pictures)
    with pytest.raises(DataError, match="its kind of tables is JSON lines, not Parquet"):
        Shards(tmp_path / "run", None, settings_of(localizer), tables="parquet")


def test_parquet_without_its_library_is_refused_before_the_work(
    localizer: Localizer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pyarrow, which is not installed: pip install 'wgap\[shards\]'"):
        Shards(tmp_path / "run", find_images(pictures), settings_of(localizer), tables="parquet")
    assert not (tmp_path / "run" / "plan.json").exists()


def test_a_store_that_fails_ends_the_worker_and_not_the_picture(
    localizer: Localizer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is forever; that a store could not be reached is not."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for path in find_images(pictures)[:20]:
        store.pipe_file(f"/wgap-shards/{path.name}", path.read_bytes())
    found = find_pictures("memory://wgap-shards")
    run = Shards(tmp_path / "run", found, settings_of(localizer), SIZE)
    read = type(store).cat_file

    expired = True

    def refused(self: Any, path: str, **span: int) -> bytes:
        if path.endswith("012.png") and expired:
            raise PermissionError("the token has expired")
        if path.endswith("013.png"):
            raise FileNotFoundError(path)
        return read(self, path, **span)

    monkeypatch.setattr(type(store), "cat_file", refused)
    with pytest.raises(StoreError, match=r"012\.png: cannot be read \(PermissionError.*shard 1 is left"):
        run.work(localizer)
    assert [run.done(shard) is not None for shard in range(3)] == [True, False, False]
    assert not list((tmp_path / "run" / "claims").iterdir())
    assert not list((tmp_path / "run").glob(".*"))
    expired = False
    assert Shards(tmp_path / "run").work(localizer) == 2, "whose list is in the folder"
    rows = [json.loads(line) for line in merged(tmp_path / "run", tmp_path / "all.jsonl").splitlines()]
    assert [row["image"] for row in rows] == [f"memory:///wgap-shards/{number:03d}.png" for number in range(20)]
    assert [number for number, row in enumerate(rows) if "error" in row] == [13, 17]


def test_a_full_disk_ends_a_worker_and_loses_nothing(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    """A file system of 64 KiB of its own, which is full after some shards; then it is made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = f"localize '{tiny_bundle}' '{pictures}' --threads 1 --shard-size 4 --shards '{disk}/run'"
    script = f"""
        set -e
        mount -t tmpfs -o size=64k none '{disk}'
        wgap() {{ '{sys.executable}' -c 'from wgap.cli import main; main()' "$@"; }}
        if wgap {words}; then exit 9; fi
        ls -a '{disk}/run' '{disk}/run/claims'
        wgap shards status '{disk}/run' --json
        mount -o remount,size=1m '{disk}'
        wgap {words}
        wgap shards merge '{disk}/run' --out '{tmp_path}/all.jsonl'
    """
    spaces = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = [*spaces, "mount", "-t", "tmpfs", "none", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no file system of one's own may be mounted here")
    done = subprocess.run([*spaces, "bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"error: \S*disk/run/\S+: No space left on device", done.stderr)
    assert "Traceback" not in done.stderr
    names = done.stdout.split()
    assert not [name for name in names if name.startswith(".") and name not in (".", "..")], (
        "nothing half-written stays"
    )
    [status] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert 0 < status["done"] < status["shards"] == 13
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == COUNT


def test_lists_that_no_run_begins_with(localizer: Localizer, tmp_path: Path) -> None:
    for picture, tables, said in (
        (Path("a.jpg"), "jsonl", r"a\.jpg: expected absolute paths"),
        (Stored("tar://a.jpg::b.tar", (512, 1, 0)), "jsonl", "expected absolute paths"),
        (Path("/a\udcff.jpg"), "parquet", "Parquet holds texts of whole characters alone"),
    ):
        if tables == "parquet":
            pytest.importorskip("pyarrow")
        with pytest.raises(DataError, match=said):
            Shards(tmp_path / "run", [picture], settings_of(localizer), tables=tables)
    for options in ({"shard_size": 0}, {"tables": "xml"}):
        with pytest.raises(DataError, match="expected shards of 1 picture or more, and jsonl or parquet"):
            Shards(tmp_path / "run", [], settings_of(localizer), **options)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_a_class_is_the_same_by_name_and_number(localizer: Localizer) -> None:
    name = localizer.classes[1]
    assert settings_of(localizer, 1) == settings_of(localizer, name) != settings_of(localizer, 0)


def test_relative_paths_are_those_of_who_began(
    tiny_bundle: Path, pictures: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    assert wgap("localize", tiny_bundle, pictures.name, "--shards", tmp_path / "run", "--worker", "1/2").exit_code == 0
    monkeypatch.chdir(tmp_path)
    Shards(tmp_path / "run").table(0).unlink()
    assert wgap("localize", tiny_bundle, "--shards", "run", "--threads", 1).exit_code == 0
    assert merged(tmp_path / "run", tmp_path / "all.jsonl") == undisturbed


def test_many_that_begin_at_once_begin_one_run(localizer: Localizer, pictures: Path, tmp_path: Path) -> None:
    images, settings = find_images(pictures), settings_of(localizer)

    def begin(number: int) -> str:
        run = Shards(tmp_path / f"run-{number // 8}", images, settings)
        remove_residue(run.folder)  # as work() does first
        return run.sha256

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(begin, range(400)))) == 1
    assert not list(tmp_path.glob("run-*/.*"))


def test_a_dead_one_s_name_that_another_took_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening of what seems dead and its lock, another removes it, and its maker makes it anew."""
    path, lock = tmp_path / ".table-0123456789ab.jsonl", fcntl.flock
    path.write_text("dead")

    def late(descriptor: int, how: int) -> None:
        if path.read_text() == "dead":
            path.unlink()
            path.write_text("alive")
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    remove_residue(tmp_path)
    assert path.read_text() == "alive"
    monkeypatch.undo()
    remove_residue(tmp_path)
    assert not path.exists(), "once nobody holds it"


def test_workers_on_devices_end_with_who_began_them(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(4000):
        (many / f"{number:04d}.png").hardlink_to(pictures / f"{number % COUNT:03d}.png")
    command = [
        sys.executable, "-c", "from wgap.cli import main; main()", "localize", str(tiny_bundle), str(many),
        "--backend", "openvino", "--devices", "CPU,CPU", "--shards", str(tmp_path / "run"), "--shard-size", "50",
    ]  # fmt: skip
    for ending in (signal.SIGKILL, signal.SIGINT):
        one = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hears)  # noqa: PLW1509
        until = time.monotonic() + 120
        while time.monotonic() < until and not list((tmp_path / "run").glob("shard-*.json")):
            time.sleep(0.02)
        (os.killpg if ending == signal.SIGINT else os.kill)(one.pid, ending)
        _, said = one.communicate(timeout=120)  # which ends once nobody holds the other end: the workers have gone
        assert "Traceback" not in said
        for sidecar in (tmp_path / "run").glob("shard-*.json"):
            sidecar.unlink()


def hears() -> None:
    """Ctrl-C is heard, whatever the tests themselves ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_list_of_any_length_is_read_a_shard_at_a_time(localizer: Localizer, tmp_path: Path) -> None:
    names = [Path(f"/pictures/{number:07d}.jpg") for number in range(200_000)]
    Shards(tmp_path / "run", names, settings_of(localizer), 1000)
    tracemalloc.start()
    run = Shards(tmp_path / "run")
    assert run.part(150) == names[150_000:151_000]
    assert run.part(199) == names[199_000:]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2 << 20, "all of them are 30 MiB"


@pytest.mark.parametrize("devices", ["CPU,CPU", "CPU,NOPE"])
def test_a_worker_on_each_device(devices: str, tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    command = [
        "localize", tiny_bundle, pictures, "--backend", "openvino", "--shard-size", SIZE, "--shards", tmp_path / "run",
        "--threads", 1, "--lease", 5,
    ]  # fmt: skip
    program = [sys.executable, "-c", "from wgap.cli import main; main()", *map(str, command), "--devices", devices]
    done = subprocess.run([*program, "--json"], capture_output=True, text=True, check=False)
    if devices == "CPU,CPU":
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout)
        assert (figures["made"], figures["done"], figures["failed"]) == (7, 7, 1)
    else:
        assert done.returncode == 1
        assert "error: device NOPE: " in done.stderr
        assert "the worker on device NOPE ended with an error" in done.stderr
        assert "Traceback" not in done.stderr
    assert len(Shards(tmp_path / "run").sidecars()) == 7, "the other one made them all"
