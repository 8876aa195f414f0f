"""Ray's actors make the localizer's boxes, all of them and each once, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import pytest

from wgap import Localizer
from wgap.errors import DataError
from wgap.images import find_images
from wgap.runtime.shards import Shards, settings_of
from wgap.serve import ray as ours
from wgap.serve.ray import ShardMaker, TableLocalizer, make_shards, read_shards

pytest.importorskip("ray.data", reason="Ray is not installed; `make test-ray` runs this")  # this folder is a ray, too
import ray

pytestmark = pytest.mark.usefixtures("cluster")
from tests.ray.conftest import descendants, examples  # noqa: E402

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the actors cannot import this file


class KilledOnce(TableLocalizer):
    """As the class above, but the first that meets a picture is killed when it has half of its batch."""

    def __init__(self, bundle: Path, picture: str, mark: Path) -> None:
        super().__init__(bundle, threads=1)
        self.picture, self.mark = picture, mark

    def __call__(self, table: Any) -> Any:
        if any(path.endswith(self.picture) for path in table["path"].to_pylist()) and not self.mark.exists():
            super().__call__(table.slice(0, table.num_rows // 2))
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(table).append_column("pid", [[os.getpid()] * table.num_rows])


def test_one_of_two_actors_is_killed_in_the_middle_and_every_row_is_there_once(
    tiny_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "killed"
    found = ray.data.read_binary_files(str(photos), include_paths=True, override_num_blocks=10).map_batches(
        KilledOnce, fn_constructor_args=(tiny_bundle, "021.png", mark), batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=2),
    )  # fmt: skip
    rows = sorted(found.take_all(), key=lambda row: row["path"])
    assert int(mark.read_text()) not in {row["pid"] for row in rows if row["path"].endswith("021.png")}
    paths = find_images(photos)
    assert [row["path"] for row in rows] == list(map(str, paths)), "all of them, none twice"
    for row, result in zip(rows, Localizer(tiny_bundle, threads=1)(paths, on_error="yield"), strict=True):
        expected = {key: value for key, value in result.to_json().items() if key not in ("image", "error")}
        assert {key: row[key] for key in expected} == expected
        assert (row["error"] is None) == ("017.png" not in row["path"])


def test_pixels_of_read_images(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    for number in (0, 1, 3):  # of two sizes
        (tmp_path / f"{number}.png").hardlink_to(photos / f"{number:03d}.png")
    cv2.imwrite(str(tmp_path / "grey.png"), cv2.imread(str(tmp_path / "0.png"), cv2.IMREAD_GRAYSCALE))
    found = ray.data.read_images(str(tmp_path), include_paths=True, override_num_blocks=1).map_batches(
        TableLocalizer, fn_constructor_args=(tiny_bundle, "image"), fn_constructor_kwargs={"drop": True},
        batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1),
    )  # fmt: skip
    rows = {Path(row["path"]).stem: row for row in found.take_all()}
    assert "image" not in rows["0"]
    for number in (0, 1, 3):
        assert rows[str(number)]["box"] == list(Localizer(tiny_bundle).one(photos / f"{number:03d}.png").box)
    assert "expected a path, the bytes of an image file, or RGB pixels" in rows["grey"]["error"]


def test_an_error_of_the_call_ends_the_job_with_its_own_words(tiny_bundle: Path) -> None:
    numbers = ray.data.from_items([{"bytes": 1}])
    for options, said in (({}, "got int64"), ({"backend": "tensorrt"}, "ask for it with num_gpus=1")):
        made = numbers.map_batches(
            TableLocalizer, fn_constructor_args=(str(tiny_bundle),), fn_constructor_kwargs=options,
            batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1),
        )  # fmt: skip
        with pytest.raises(Exception, match=said):
            made.take_all()


class Probe(TableLocalizer):
    """Says what its actor was given."""

    def __init__(self, bundle: str, **options: Any) -> None:
        super().__init__(bundle, **options)

    def told(self, **options: Any) -> Any:
        return self.localizer.threads, ours._options_here(options), os.environ.get("CUDA_VISIBLE_DEVICES")


def test_threads_and_gpus_are_those_of_the_actor(tiny_bundle: Path) -> None:
    actor = ray.remote(Probe)
    two = actor.options(num_cpus=2).remote(str(tiny_bundle))
    one = actor.options(num_cpus=1).remote(str(tiny_bundle), threads=3)
    assert ray.get(two.told.remote())[0] == 2
    assert ray.get(one.told.remote())[0] == 3
    for each in (one, two):
        ray.kill(each)
    gpus = [actor.options(num_cpus=1, num_gpus=1).remote(str(tiny_bundle)) for _ in range(2)]
    told = ray.get([each.told.remote(backend="tensorrt", slots=2) for each in gpus])
    assert [options for _, options, _ in told] == [{"backend": "tensorrt", "slots": 2}] * 2
    assert {visible for _, _, visible in told} == {"0", "1"}, "the first that is visible is each one's own"
    for each in gpus:
        ray.kill(each)


@pytest.fixture
def run(tiny_bundle: Path, photos: Path, tmp_path: Path) -> Shards:
    """A run of 960 pictures in six shards, nothing of which is made."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(960):
        (many / f"{number:03d}.png").hardlink_to(photos / f"{number % 40:03d}.png")
    return Shards(tmp_path / "run", find_images(many), settings_of(Localizer(tiny_bundle)), 160)


def kill_who_writes_into(folder: Path, killed: list[int]) -> None:
    """SIGKILL one process of Ray, once, while it writes a table."""
    until = time.monotonic() + 120
    while not killed and time.monotonic() < until:
        for pid in descendants(os.getpid()):
            with suppress(OSError):
                opened = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
                if not killed and any(name.startswith(f"{folder}/.shard-") for name in opened):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
        time.sleep(0.005)


def test_shards_whose_actor_is_killed_are_made_once_and_never_again(run: Shards, tiny_bundle: Path) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_who_writes_into, args=(run.folder, killed))
    killer.start()
    with pytest.raises(DataError, match="is not done; make_shards makes what is missing"):
        read_shards(run.folder)
    sidecars = sorted(make_shards(run.folder, tiny_bundle, actors=2).take_all(), key=lambda row: row["shard"])
    killer.join()
    assert len(killed) == 1
    assert [row["shard"] for row in sidecars] == list(range(6))
    assert [row["failed"] for row in sidecars] == [4] * 6
    assert run.verify() == []
    pictures = [picture for shard in range(6) for picture in run.part(shard)]
    results = list(Localizer(tiny_bundle, threads=1)(pictures, on_error="yield"))
    run.merge(run.folder.parent / "all.jsonl")
    expected = [json.dumps(result.to_json()) for result in results]
    assert (run.folder.parent / "all.jsonl").read_text().splitlines() == expected
    assert not list(run.folder.glob(".*")), "nothing is left of the killed one"

    made = {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    again = make_shards(run.folder, tiny_bundle, actors=2).take_all()
    assert [row["made"] for row in again] == [False] * 6
    assert {path: path.stat().st_mtime_ns for path in run.folder.iterdir()} == made

    rows = sorted(read_shards(run.folder).take_all(), key=lambda row: row["image"])
    assert [row["image"] for row in rows] == [str(picture) for picture in pictures]
    for row, result in zip(rows, results, strict=True):
        known = result.to_json()
        assert {key: row[key] for key in known} == known
    run.table(3).write_bytes(run.table(3).read_bytes().replace(b"0.", b"1.", 1))
    with pytest.raises(Exception, match=r"shard-00003.jsonl is not the table that its sidecar tells of"):
        read_shards(run.folder).take_all()


def test_options_other_than_the_run_s_are_refused_by_name(run: Shards, tiny_bundle: Path) -> None:
    for options, said in (
        ({"rule": "fixed:0.3"}, r"its rule is adaptive on .*, not fixed:0\.3"),
        ({"top_k": 2}, "its classes is 1 a picture, not 2"),
    ):
        with pytest.raises(DataError, match=f"is of another run: {said}"):
            ShardMaker(run.folder, tiny_bundle, **options)
    with pytest.raises(DataError, match="found none"):
        make_shards(run.folder.parent, tiny_bundle, actors=1)


def test_the_page_s_datasets_run_as_they_stand(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    places = {"bundle": tiny_bundle, "photos": photos, "/boxes": tmp_path / "boxes", "/run": tmp_path / "run"}
    known: dict[str, Any] = {}
    results = [result.to_json() for result in Localizer(tiny_bundle)(find_images(photos), on_error="yield")]
    exec(examples("In a Dataset", **places)[0], known)
    written = ray.data.read_parquet(str(tmp_path / "boxes")).take_all()
    assert {row["path"]: row["code"] for row in written} == {r["image"]: r.get("code") for r in results}
    exec(examples("Exactly once", **places)[0], known)
    made = known["boxes"].take_all()
    assert {row["image"]: row["score"] for row in made} == {r["image"]: r.get("score") for r in results}


def test_the_page_s_deployment_answers_while_a_replica_is_killed(tiny_bundle: Path, photos: Path) -> None:
    serve = pytest.importorskip("ray.serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    [code] = examples("Ray Serve", bundle=tiny_bundle, photos=photos)
    exec(code, {"__name__": "deployment"})

    def asked(content: bytes) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", content, timeout=60) as answer:
            return json.load(answer)

    contents = [path.read_bytes() for path in find_images(photos)]
    localizer = Localizer(tiny_bundle, threads=1)
    expected = [next(localizer([one], on_error="yield")).to_json() for one in contents]
    assert [asked(one) for one in contents[:20]] == expected[:20]
    assert asked(str(photos / "000.png").encode())["code"] == "ImageError", "a path is no picture"
    replicas = [
        pid for pid in descendants(os.getpid())
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ServeReplica:default:Boxes")
    ]  # fmt: skip
    assert len(replicas) == 2
    os.kill(replicas[0], signal.SIGKILL)
    assert [asked(one) for one in contents[20:]] == expected[20:]
    serve.shutdown()
