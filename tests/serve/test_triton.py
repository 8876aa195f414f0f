"""A real tritonserver with models of `wgap serve`: the localizer's boxes, whatever clients do."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.conftest import encode, scene
from tests.serve.conftest import WIDE
from tests.serve.server import Server
from tests.serve.test_model import edited

from wgap import Localizer
from wgap.bundle import Bundle, write_manifest
from wgap.errors import ImageError, OverloadError, ServerError
from wgap.runtime.localization import Failure
from wgap.serve.check import check_server
from wgap.serve.client import Client
from wgap.serve.repository import Options, Queue, write_repository

pytestmark = pytest.mark.usefixtures("triton")
EXAMPLES = Path(__file__).parents[2] / "examples"
BOTH = pytest.mark.parametrize("protocol", ["http", "grpc"])


@pytest.fixture(scope="module")
def local(tiny_bundle: Path) -> Localizer:
    return Localizer(tiny_bundle, top_k=2, max_boxes=3)


def mixed(count: int) -> list[Any]:
    """Pictures of several sizes, encoded and as pixels."""
    scenes = [scene(40 + n % 7 * 9, 50 + n % 5 * 11) for n in range(count)]
    return [one if n % 3 else encode(one, (".jpg", ".png")[n % 2]) for n, one in enumerate(scenes)]


@BOTH
def test_pictures_of_any_size_in_and_the_localizers_results_out(
    server: Server, local: Localizer, protocol: str
) -> None:
    pictures = [*mixed(20), b"no image", np.zeros((3, 0, 3), np.uint8), *mixed(3)]
    with Client(getattr(server, protocol)) as client:
        got = list(client(pictures))
    expected = list(local(pictures, on_error="yield"))
    assert [one for one in got if not isinstance(one, Failure)] == [e for e in expected if not isinstance(e, Failure)]
    assert [type(one.error) for one in got if isinstance(one, Failure)] == [ImageError, ImageError]
    assert isinstance(got[20], Failure)
    assert isinstance(got[21], Failure)


def test_500_requests_of_8_clients_are_batched_and_a_bad_one_fails_alone(server: Server, local: Localizer) -> None:
    pictures = mixed(35)
    expected = list(local(pictures))
    with Client(server.http) as client:
        before = client.statistics()

    def ask(caller: int) -> int:
        right = 0
        with Client((server.http, server.grpc)[caller % 2], timeout=60) as client:
            for n in range(caller, 500, 8):
                if n % 50 == 7:
                    [failed] = client.request([b"bad"])
                    right += isinstance(failed, Failure)
                else:
                    right += client.request([pictures[n % 35]]) == [expected[n % 35]]
        return right

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 500
    with Client(server.http) as client:
        after = client.statistics()
    counted = {name: int(after[name]) - int(before.get(name, 0)) for name in ("inference_count", "execution_count")}
    assert counted["inference_count"] == 500
    assert counted["execution_count"] < 500, "nothing was batched"
    counts = server.counts()
    assert counts['wgap_pictures_total{model="wgap",outcome="ok"}'] >= 490
    assert counts['wgap_pictures_total{model="wgap",outcome="ImageError"}'] >= 10
    assert counts['wgap_seconds_total{model="wgap",stage="localize"}'] > 0


def test_pixels_of_different_sizes_go_into_one_batch(server: Server) -> None:
    pictures = [scene(40 + n, 60) for n in range(160)]

    def ask(caller: int) -> None:
        with Client((server.http, server.grpc)[caller % 2], timeout=60) as client:
            for picture in pictures[caller::8]:
                client.request([picture])

    with Client(server.http) as client:
        before = client.statistics()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
        after = client.statistics()
    counted = {name: int(after[name]) - int(before.get(name, 0)) for name in ("inference_count", "execution_count")}
    assert counted["execution_count"] < counted["inference_count"] == 160


def test_paths_are_only_bytes_to_a_server(server: Server, tmp_path: Path) -> None:
    real = tmp_path / "real.jpg"
    real.write_bytes(encode(scene(50, 50), ".jpg"))
    given = [os.fsencode(real), f"file://{real}".encode(), b"/etc/passwd", b"http://127.0.0.1/a.jpg"]
    with Client(server.http) as client:
        results = list(client(given))
    assert all(isinstance(one, Failure) and "not an image" in str(one.error) for one in results)


def errors_of(server: Server) -> Iterator[str]:
    """What clients are told, in every way that we know to be told an error."""
    import tritonclient.http as triton

    port = server.http.removeprefix("http://")
    with triton.InferenceServerClient(port) as client:

        def ask(*inputs: tuple[str, str, np.ndarray], model: str = "wgap") -> str:
            given = []
            for name, datatype, array in inputs:
                given.append(triton.InferInput(name, list(array.shape), datatype))
                given[-1].set_data_from_numpy(array)
            try:
                answer = client.infer(model, given)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return answer.as_numpy("ERROR")[0, 0].decode()

        text, pixels = np.array([[b"x"]], object), np.zeros((1, 8, 8, 3), np.uint8)
        yield ask()
        yield ask(("IMAGE", "BYTES", text), ("PIXELS", "UINT8", pixels))
        yield ask(("PIXELS", "FP32", np.full((1, 8, 8, 3), np.nan, np.float32)))
        yield ask(("PIXELS", "UINT8", pixels[..., :2]))
        yield ask(("PIXELS", "UINT8", pixels[0]))
        yield ask(("PIXELS", "UINT8", np.zeros((9, 8, 8, 3), np.uint8)))
        yield ask(("PIXELS", "UINT8", np.zeros((4, 1500, 1500, 3), np.uint8)))
        yield ask(("IMAGE", "BYTES", np.array([[b"x", b"y"]], object)))
        yield ask(("OTHER", "BYTES", text))
        yield ask(("IMAGE", "BYTES", text), model="none")
        yield ask(("IMAGE", "BYTES", np.array([[b"\xff\xd8" + bytes(9 << 20)]], object)))
        yield ask(("IMAGE", "BYTES", np.array([[b"\x89PNG\r\n\x1a\n" + bytes(60)]], object)))
        yield ask(("IMAGE", "BYTES", np.array([[encode(scene(4200, 4000), ".jpg")]], object)))
        yield ask(("IMAGE", "BYTES", np.array([[_broken_webp()]], object)))
    for body in (b"{", b"[1]", b'{"inputs": [{"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "data": [5]}]}'):
        connection = http.client.HTTPConnection(port, timeout=30)
        connection.request("POST", "/v2/models/wgap/infer", body)
        yield connection.getresponse().read().decode()


def _broken_webp() -> bytes:
    whole = bytearray(encode(scene(64, 64), ".webp"))
    whole[40:-1] = bytes(len(whole) - 41)
    return bytes(whole)


def test_every_error_says_something_and_names_no_path_of_the_server(server: Server, repository: Path) -> None:
    told = list(errors_of(server))
    assert all(told), told
    here = [str(repository), str(Path.home()), sys.prefix, "site-packages", "/serve/", ".py", str(Path.cwd())]
    assert [(text, word) for text in told for word in here if word in text] == []
    for words, place in (
        ("0 inputs", 0), ("got IMAGE and PIXELS", 1), ("FP32", 2), ("unexpected shape", 3), ("batch", 5),
        ("27000000 bytes exceed the limit of 25165824 bytes a request", 6), ("unexpected shape", 7),
        ("OTHER", 8), ("none", 9), ("exceed the limit of 8388608 bytes", 10), ("cut short or corrupt", 11),
        ("pixels exceed the limit of 16777216 pixels", 12), ("WebP", 13),
    ):  # fmt: skip
        assert words in told[place], (place, told[place])
    assert "" not in [text.strip() for text in told]


def test_a_huge_body_is_refused_others_are_answered_and_memory_stays(server: Server, local: Localizer) -> None:
    body, others, done = b"\xff\xd8" + bytes(150 << 20), [], threading.Event()
    picture, [expected] = scene(50, 60), list(local(scene(50, 60)))

    def ask() -> None:
        with Client(server.http, timeout=120) as client:
            while not done.is_set():
                others.append(client.request([picture]) == [expected])

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            for _ in range(3):
                with (
                    Client(server.http, timeout=120) as client,
                    pytest.raises(ServerError, match=r"157286402 bytes exceed the limit of 25165824 bytes a request"),
                ):
                    client.request([body])
        finally:
            done.set()
        asking.result()
    assert len(others) > 3
    assert all(others)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith("kB")}
    assert kilobytes["VmHWM"] << 10 < 3 * len(body)
    assert kilobytes["RssAnon"] << 10 < len(body)


def example(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / "triton_client.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@BOTH
@pytest.mark.parametrize("way", [[], ["--pixels"], ["--pixels", "--shared-memory"]], ids=["file", "pixels", "shared"])
def test_the_example_prints_the_localizers_boxes(
    server: Server, local: Localizer, tmp_path: Path, protocol: str, way: list[str]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(scene(90, 70), ".png"))
    done = example(getattr(server, protocol), path, *way)
    assert (done.returncode, done.stderr) == (0, "")
    best = local.one(path)
    assert json.loads(done.stdout) == {
        "image": str(path),
        "classes": [
            {"class_name": one.class_name, "score": one.score, "boxes": [list(box) for box in one.boxes]}
            for one in (best, *best.others)
        ],
    }


def test_the_example_tells_an_image_that_failed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    done = example(server.http, tmp_path / "a.jpg")
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == "ImageError"


@BOTH
def test_overload_is_answered_and_passes(server: Server, tiny_bundle: Path, slow: bytes, protocol: str) -> None:
    [expected] = list(Localizer(tiny_bundle)(slow))

    def ask(_: int) -> object:
        with Client(getattr(server, protocol), "narrow", timeout=60) as client:
            try:
                return client.request([slow])
            except OverloadError as error:
                return error

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    refused = [answer for answer in answers if isinstance(answer, OverloadError)]
    assert refused, "one at a time, two may wait, and twelve came"
    assert "Exceeds maximum queue size" in str(refused[0])
    assert all(answer == [expected] for answer in answers if not isinstance(answer, OverloadError))
    assert len(refused) < 12
    assert ask(0) == [expected]


@BOTH
def test_a_client_that_has_waited_long_enough_says_so(server: Server, slow: bytes, protocol: str) -> None:
    with (
        Client(getattr(server, protocol), timeout=0.02) as client,
        pytest.raises(ServerError, match=r": no answer within 0.02 s$") as raised,
    ):
        client.request([slow])
    assert not isinstance(raised.value, OverloadError)


def test_a_request_that_waits_for_too_long_is_refused_and_not_run(server: Server, slow: bytes) -> None:
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    def ask(timeout: int | None) -> str:
        with triton.InferenceServerClient(server.http.removeprefix("http://")) as client:
            given = triton.InferInput("IMAGE", [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[slow]], object))
            try:
                client.infer("narrow", [given], timeout=timeout)
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"
            return "answered"

    with ThreadPoolExecutor(2) as pool:
        earlier = [pool.submit(ask, None) for _ in range(2)]
        _until(lambda: _pending(server, "narrow") == 1)  # one runs, one waits
        assert ask(1000) == "503 Request timeout expired"  # 1000 us
        assert [one.result() for one in earlier] == ["answered"] * 2


def _pending(server: Server, model: str) -> float:
    """Requests in the model's queue."""
    return server.counts()[f'nv_inference_pending_request_count{{model="{model}",version="1"}}']


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@BOTH
def test_the_check_finds_the_same_boxes_or_says_what_differs(
    server: Server, tiny_bundle: Path, scored_bundle: Path, tmp_path: Path, protocol: str
) -> None:
    url = getattr(server, protocol)
    report = check_server(url, tiny_bundle, WIDE)
    assert (report.ok, report.pictures, report.identical) == (True, 6, 6)
    (tmp_path / "a.jpg").write_bytes(encode(scene(90, 70), ".jpg"))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    report = check_server(url, tiny_bundle, WIDE, [tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert (report.ok, report.pictures, report.identical) == (True, 2, 2)
    report = check_server(url, tiny_bundle, Options(rule="fixed:0.5"))
    told = " ".join(report.problems)
    assert "--rule: fixed:0.5 here, adaptive on the server" in told
    assert "--top-k: 1 here, 2 on the server" in told
    report = check_server(url, scored_bundle, Options(top_k=2, max_boxes=3, rule="adaptive", map="recombined"))
    assert report.ok, "the same network and rule with a further output"


def test_the_verb_exits_1_where_something_differs(server: Server, tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", "from wgap.cli import main; main()", "serve", tiny_bundle, "--check"]

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    status, text = run(server.http, "--top-k", "2", "--max-boxes", "3", "--json")
    assert (status, json.loads(text)["ok"]) == (0, True)
    status, text = run(server.http)
    assert status == 1
    assert "--max-boxes: 1 here, 3 on the server" in text
    assert run(server.http, "--name", "absent")[1].startswith(f"error: {server.http}: no model 'absent' is ready")
    status, text = run("grpc://127.0.0.1:9")
    assert (status, text) == (
        1,
        "error: grpc://127.0.0.1:9: no server answers there; is it running, and is this its port?\n",
    )


def test_other_classes_on_the_server_are_found(tiny_bundle: Path, server: Server, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    manifest = Bundle.open(root).manifest
    write_manifest(root, replace(manifest, model=replace(manifest.model, classes=("a", "b", "c"))))
    report = check_server(server.http, root, WIDE)
    assert len(report.problems) == report.pictures == 6
    assert re.match(
        r"golden picture 0: expected class \d '[abc]', the server gave \d '(disc|ring|cross)'", report.problems[0]
    )


@pytest.mark.parametrize("whole_group", [False, True], ids=["server", "group"])
def test_sigterm_answers_what_was_accepted_and_ends(
    tiny_bundle: Path, tmp_path: Path, slow: bytes, whole_group: bool
) -> None:
    one = tmp_path / "one"
    one.mkdir()
    write_repository(tiny_bundle, one, options=Options(max_batch=1), queue=Queue(timeout_ms=60_000))
    [expected] = list(Localizer(tiny_bundle)(slow))
    with Server(one, tmp_path / "log.txt") as server:

        def ask(caller: int) -> bool:
            with Client((server.http, server.grpc)[caller % 2], timeout=60) as client:
                return client.request([slow]) == [expected]

        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask, caller) for caller in range(6)]
            _until(lambda: _pending(server, "wgap") >= 5)  # the sixth runs
            (os.killpg if whole_group else os.kill)(server.process.pid, signal.SIGTERM)
            assert [one.result() for one in asked] == [True] * 6
        assert server.process.wait(30) == 0
        with Client(server.http) as client, pytest.raises(ServerError, match="no server answers there"):
            client.request([slow])


def test_a_model_that_must_not_be_served_is_not_and_the_server_says_why(tiny_bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_repository(edited(tiny_bundle, tmp_path / "moved", 3), root, "moved")
    write_repository(tiny_bundle, root, "changed")
    with (root / "changed" / "1" / "bundle" / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    write_repository(tiny_bundle, root, "ungated")
    config = root / "ungated" / "config.pbtxt"
    config.write_text(config.read_text().replace('\\"fp32\\"', '\\"int8\\"'))
    write_repository(tiny_bundle, root, "good")
    with Server(root, tmp_path / "log.txt", "--exit-on-error=false", "--strict-readiness=false") as server:
        request = urllib.request.Request(f"{server.http}/v2/repository/index", method="POST")
        told = {one["name"]: one for one in json.load(urllib.request.urlopen(request))}
        assert told["good"]["state"] == "READY"
        for name, words in (
            ("moved", "CheckFailedError: .* of the selftest failed"),
            ("changed", "HashMismatchError: .*it was changed after export"),
            ("ungated", "BundleError: .* holds no int8 model"),
        ):
            assert told[name]["state"] == "UNAVAILABLE"
            assert re.search(words, told[name]["reason"]), told[name]
            assert re.search(words, server.text())


def test_a_python_without_wgap_or_with_the_wrong_numpy_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    root, bare = tmp_path / "models", tmp_path / "bare"
    write_repository(tiny_bundle, root)
    venv.create(bare, with_pip=False)
    (next((bare / "lib").glob("python*/site-packages")) / "numpy.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for python, words in (
        (bare / "bin", "cannot import wgap"),
        (Path(__file__).parents[2] / ".venv" / "bin", "cannot hand arrays to NumPy 2"),
    ):
        with pytest.raises(RuntimeError, match="tritonserver ended"), Server(root, tmp_path / "log.txt", python=python):
            pass
        assert words in (tmp_path / "log.txt").read_text()


def test_doors_that_the_command_shuts_are_shut(tiny_bundle: Path, tmp_path: Path) -> None:
    from tests.serve.server import server_program

    from wgap.serve.repository import server_command

    root = tmp_path / "models"
    options = write_repository(tiny_bundle, root)
    command = server_command(root, options, Queue(), server=str(server_program()))
    assert not any("max-input-size" in word for word in command), "2.51 has no such flag, and would not start"
    with Server(root, tmp_path / "log.txt", *command[1:]) as server:
        for path in ("repository/index", "systemsharedmemory/region/a/register", "logging", "trace/setting"):
            request = urllib.request.Request(f"{server.http}/v2/{path}", b"{}", method="POST")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert "restricted" in refused.value.read().decode(), path
        with Client(server.http) as client:
            assert len(list(client(mixed(3)))) == 3


def test_a_server_ends_with_its_test(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Server(repository, tmp_path / "log.txt") as server:
        1 / 0  # noqa: B018
    assert server.process.returncode == -signal.SIGKILL
    program = f"from tests.serve.server import *; Server(Path({str(repository)!r}), Path('log.txt')).__enter__()"
    program += "; print(1, flush=True); time.sleep(99)"
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, env=_ROOTED)
    assert killed.stdout is not None
    killed.stdout.read(1)
    killed.kill()
    killed.wait()
    killed.stdout.close()
    _until(lambda: not _listens(tmp_path / "log.txt"))


_ROOTED = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def _listens(log: Path) -> bool:
    [port] = re.findall(r"Started HTTPService at 127.0.0.1:(\d+)", log.read_text())
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_a_check_on_nothing_that_is_a_picture_does_not_pass(server: Server, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    report = check_server(server.http, tiny_bundle, WIDE, [tmp_path / "a.jpg"])
    assert not report.ok
    assert "none of the pictures could be localized here" in report.problems[0]
