"""What a very large run costs outside of the network: the figures that docs/scale.md counts with.

    python -m benchmarks.scale BUNDLE PICTURES --lines 10000000 --shards 20000

Of a run of so many paths: what it takes to begin and to open it; of so many finished shards, to ask whether each is
done. Then on one core: files to pixels at the network's size; Python around the network, a picture; a result's bytes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from wgap import Localizer
from wgap.images import decode, find_images, resize
from wgap.plain import to_plain
from wgap.runtime.shards import Shards, Sidecar

BATCH = 64
PLACE = "/data/pictures/{:05d}/picture-{:010d}.jpg"


def seconds(work: Callable[[], object]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def opencv(content: bytes) -> object:
    """Decode without a check; the part that does not hold Python's lock."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def print_pictures(bundle: Path, paths: list[Path]) -> None:
    """Decoding and resizing on one core: the files as they are, and one made 12 megapixels large."""
    cv2.setNumThreads(1)
    size = Localizer(bundle, threads=1).bundle.manifest.model.input_size
    files = [path.read_bytes() for path in paths]
    large = cv2.resize(cv2.imdecode(np.frombuffer(files[0], np.uint8), cv2.IMREAD_COLOR), (4000, 3000))
    for name, contents in (("as they are", files), ("4000x3000", [cv2.imencode(".jpg", large)[1].tobytes()] * 5)):
        decoded = [decode(content) for content in contents]
        works = (
            lambda c=contents: [decode(one) for one in c],
            lambda c=contents: [opencv(one) for one in c],
            lambda d=decoded: [resize(one, *size) for one in d],
        )
        rounds = [[1e3 * seconds(work) / len(contents) for work in works] for _ in range(9)]
        whole, bare, resizing = (min(times) for times in zip(*rounds, strict=True))
        pixels = statistics.mean(one.shape[0] * one.shape[1] for one in decoded)
        print(
            f"{len(contents)} pictures, {name}: {statistics.mean(map(len, contents)) / 1e3:.0f} kB, {pixels / 1e6:.2f} "
            f"megapixels; ms: decode {whole:.2f}, of which OpenCV {bare:.2f}; resize {resizing:.2f}"
        )


def print_python(bundle: Path) -> None:
    """A localizer whose network takes no time, without its kernel's share; and its JSON lines."""
    real = Localizer(bundle, threads=1)
    image = np.random.default_rng(0).integers(0, 256, (1, *real.bundle.manifest.model.input_size, 3), dtype=np.uint8)
    outputs = {name: np.repeat(value, BATCH, 0) for name, value in real.network.run(image).items()}
    images = np.repeat(image, BATCH, 0)
    idle = Localizer(bundle, network=lambda _: outputs, locator=real.locator, batch_size=BATCH)
    given = {**outputs, "picture": images}
    lines = [json.dumps(result.to_json()) for result in idle(images)]
    whole = min(seconds(lambda: [json.dumps(result.to_json()) for result in idle(images)]) for _ in range(20)) / BATCH
    kernel = min(seconds(lambda: real.locator.locate(given)) for _ in range(20)) / BATCH
    line = statistics.mean(map(len, lines))
    reading = min(seconds(lambda: [json.loads(line) for line in lines]) for _ in range(20)) / BATCH
    print(
        f"Python around network and kernel, results and JSON lines: {1e6 * (whole - kernel):.0f} us a picture at batch "
        f"{BATCH} (kernel on one core: {1e6 * kernel:.0f} us); a line: {line:.0f} bytes and the path, "
        f"read again in {1e6 * reading:.1f} us"
    )


def begun(folder: Path, lines: int) -> str:
    """Begin a run in a process of its own."""
    images = [Path(PLACE.format(n // 10_000, n)) for n in range(lines)]
    given = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = seconds(lambda: Shards(folder, images, {"rule": "adaptive"}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"begin {took:.1f} s, {peak / 1e6:.2f} GB at most, of which the list it was given {given / 1e6:.2f}"


def opened(folder: Path) -> str:
    """Open it in another and come to its first pictures, as each worker does."""
    took = seconds(lambda: Shards(folder).part(0))
    return f"open {took:.1f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most"


def print_run(lines: int, shards: int) -> None:
    """Beginning, opening and asking."""
    with tempfile.TemporaryDirectory(prefix="wgap-scale-") as name:
        folder = Path(name) / "run"
        apart = multiprocessing.get_context("spawn")
        for work in ((begun, folder, lines), (opened, folder)):
            with ProcessPoolExecutor(1, mp_context=apart) as pool:
                print(f"{lines} paths: {pool.submit(*work).result()}")
        print(f"its list: {sum(path.stat().st_size for path in folder.glob('images-*')) / lines:.0f} bytes a picture")
        small = Shards(Path(name) / "small", [Path(f"/{n}.jpg") for n in range(shards)], {}, 1)
        for shard in range(shards):
            small.table(shard).touch()
            known = Sidecar(small.sha256, shard, 1, 0, 0, "0" * 64, "worker", 1.0, {})
            small.table(shard).with_suffix(".json").write_text(json.dumps(to_plain(known)))
        took = seconds(lambda: [small.done(shard) for shard in range(shards)])
        print(f"{shards} finished shards: {1e6 * took / shards:.0f} us each to ask whether it is done, on a local disk")


def main() -> None:
    """Print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--lines", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=20_000)
    options = parser.parse_args()
    print_run(options.lines, options.shards)  # first: a process begins with the peak of the one that started it
    print_pictures(options.bundle, find_images(options.pictures))
    print_python(options.bundle)


if __name__ == "__main__":
    main()
