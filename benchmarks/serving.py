"""A real tritonserver under load beside calls of the localizer in this process, and what carries pixels fastest.

    .venv-serve/bin/python -m benchmarks.serving BUNDLE PICTURES --requests 500 --clients 8
    .venv-serve/bin/python -m benchmarks.serving BUNDLE --transports
    .venv-serve/bin/python -m benchmarks.serving BUNDLE --body 1024

The environment is that of `make test-serve`. Clients are a closed loop: each asks again once it has its answer, for one
picture at a time. In-process calls are made by one thread, with a batch of one, before and after the load.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tests.serve.server import Server

from wgap import Localizer
from wgap.errors import OverloadError, ServerError
from wgap.images import find_images
from wgap.serve.client import Client
from wgap.serve.repository import Options, Queue, write_repository

HEAD = f"{'':28} {'calls':>6} {'p50 ms':>10} {'p99 ms':>10} {'per second':>10}"
SIZES = {"224 x 224": (224, 224), "1920 x 1080": (1080, 1920), "3840 x 2160": (2160, 3840)}


def row(name: str, seconds: Sequence[float], wall: float, more: str = "") -> None:
    """Print one line of the table."""
    p50, p99 = np.percentile(np.asarray(seconds) * 1e3, [50, 99])
    print(f"{name:28} {len(seconds):6} {p50:10.2f} {p99:10.2f} {len(seconds) / wall:10.1f}  {more}", flush=True)


def in_process(localizer: Localizer, pictures: Sequence[bytes], count: int) -> tuple[list[float], float]:
    """Seconds of each call, and of all."""
    took, began = [], time.perf_counter()
    for picture in itertools.islice(itertools.cycle(pictures), count):
        start = time.perf_counter()
        localizer.one(picture)
        took.append(time.perf_counter() - start)
    return took, time.perf_counter() - began


def load(url: str, pictures: Sequence[bytes], expected: Sequence[Any], count: int, clients: int) -> list[float]:
    """Seconds of each request; raises where a result is not the localizer's."""
    numbers, lock = iter(range(count)), threading.Lock()

    def ask(_: int) -> list[float]:
        took = []
        with Client(url, timeout=120) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return took
                start = time.perf_counter()
                got = client.request([pictures[number % len(pictures)]])
                took.append(time.perf_counter() - start)
                if got != [expected[number % len(pictures)]]:
                    raise AssertionError(f"request {number}: {got}")

    with ThreadPoolExecutor(clients) as pool:
        return [seconds for part in pool.map(ask, range(clients)) for seconds in part]


def measure_load(server: Server, localizer: Localizer, options: argparse.Namespace) -> None:
    """Latencies of requests by HTTP and gRPC beside those of calls."""
    pictures = [path.read_bytes() for path in find_images(options.pictures)[:64]]
    expected = list(localizer(pictures))
    print(HEAD, flush=True)
    row("in process, before", *in_process(localizer, pictures, options.requests // 2))
    for protocol in ("http", "grpc"):
        url = getattr(server, protocol)
        load(url, pictures, expected, 2 * options.clients, options.clients)
        with Client(url) as client:
            before = client.statistics()
            began = time.perf_counter()
            took = load(url, pictures, expected, options.requests, options.clients)
            wall = time.perf_counter() - began
            after = client.statistics()
        runs = int(after["execution_count"]) - int(before["execution_count"])
        row(f"{protocol}, {options.clients} clients", took, wall, f"{runs} executions, all boxes equal")
    row("in process, after", *in_process(localizer, pictures, options.requests // 2))


def measure_transports(server: Server) -> None:
    """One client's requests of pixels, by size: over the connection, and through shared memory."""
    import tritonclient.utils.shared_memory as shared
    from tritonclient import http

    print(HEAD, flush=True)
    for name, size in SIZES.items():
        picture = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        with (
            Client(server.http) as by_http,
            Client(server.grpc) as by_grpc,
            http.InferenceServerClient(server.http.removeprefix("http://")) as client,
        ):
            region = shared.create_shared_memory_region("pixels", "/wgap-pixels", picture.nbytes)
            client.register_system_shared_memory("pixels", "/wgap-pixels", picture.nbytes)
            given = http.InferInput("PIXELS", [1, *picture.shape], "UINT8")
            given.set_shared_memory("pixels", picture.nbytes)

            def through(region: Any = region, client: Any = client, given: Any = given, picture: Any = picture) -> None:
                shared.set_shared_memory_region(region, [picture[None]])
                client.infer("wgap", [given])

            ways: dict[str, Callable[[], Any]] = {
                "http": lambda by=by_http, picture=picture: by.request([picture]),
                "grpc": lambda by=by_grpc, picture=picture: by.request([picture]),
                "http, shared memory": through,
            }
            took: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(60):
                for way, call in ways.items():
                    start = time.perf_counter()
                    call()
                    if turn >= 10:
                        took[way].append(time.perf_counter() - start)
            for way, seconds in took.items():
                row(f"{name}, {way}", seconds, sum(seconds))
            client.unregister_system_shared_memory("pixels")
            shared.destroy_shared_memory_region(region)


def measure_bodies(server: Server, mebibytes: int) -> None:
    """A body far beyond the limits, twice by each protocol, while another client goes on asking."""
    body = b"\xff\xd8" + bytes(mebibytes << 20)
    small = np.zeros((64, 64, 3), np.uint8)
    for protocol in ("http", "grpc") * 2:
        ended, waits = threading.Event(), []

        def ask(ended: threading.Event = ended, waits: list[float] = waits) -> int:
            refused = 0
            with Client(server.http, timeout=120) as client:
                while not ended.is_set():
                    start = time.perf_counter()
                    try:
                        client.request([small])
                    except OverloadError:
                        refused += 1
                    waits.append(time.perf_counter() - start)
            return refused

        with ThreadPoolExecutor(1) as pool:
            asking, said, start = pool.submit(ask), "answered", time.perf_counter()
            try:
                with Client(getattr(server, protocol), timeout=600) as client:
                    client.request([body])
            except ServerError as error:
                said = str(error).partition(": ")[2]
            took = time.perf_counter() - start
            ended.set()
            refused = asking.result()
        status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        held = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in status if line.endswith("kB")}
        print(
            f"{protocol}: {said} after {took:.1f} s; the server held {held['VmHWM']:.1f} GiB at most so far, "
            f"{held['RssAnon']:.1f} now; another client: {len(waits)} requests, {refused} refused, the longest "
            f"{max(waits):.1f} s",
            flush=True,
        )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pictures", type=Path, nargs="?")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--transports", action="store_true")
    parser.add_argument("--body", type=int, metavar="MIB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wgap-serving-") as name:
        repository = Path(name) / "models"
        asked = Options(max_batch=options.max_batch, precision=options.precision)
        queue = Queue() if options.body else Queue(timeout_ms=600_000)
        write_repository(options.bundle, repository, options=asked, queue=queue)
        with Server(repository, Path(name) / "log.txt") as server:
            if options.transports:
                measure_transports(server)
            elif options.body:
                measure_bodies(server, options.body)
            else:
                with Localizer(options.bundle, precision=options.precision) as localizer:
                    measure_load(server, localizer, options)


if __name__ == "__main__":
    main()
