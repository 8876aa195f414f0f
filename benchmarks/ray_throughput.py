"""Images per second of Ray's `map_batches` with two actors of one thread, and of the plain localizer, in turns.

    python benchmarks/ray_throughput.py BUNDLE PICTURES --images 96 --rounds 3

Ray's rate counts from the first block that is done to the last one: what starting two actors takes is printed apart.
Ray listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path

os.environ.update(
    RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0", RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
)  # fmt: skip
import ray
import ray.data

from wgap import Localizer
from wgap.images import find_images
from wgap.serve.ray import TableLocalizer

BLOCK = 8


def plain(localizer: Localizer, paths: list[Path]) -> float:
    """Images per second."""
    began = time.perf_counter()
    done = sum(1 for _ in localizer(paths))
    return done / (time.perf_counter() - began)


def by_ray(bundle: str, paths: list[Path]) -> tuple[float, float]:
    """Images per second, and the seconds until the first block was done."""
    listed = ray.data.from_items([{"path": str(path)} for path in paths], override_num_blocks=len(paths) // BLOCK)
    found = listed.map_batches(
        TableLocalizer, fn_constructor_args=(bundle, "path"), batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=2),
    )  # fmt: skip
    began, times, rows = time.perf_counter(), [], []
    for block in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        times.append(time.perf_counter())
        rows.append(block.num_rows)
    return sum(rows[1:]) / (times[-1] - times[0]), times[0] - began


def main() -> None:
    """Print medians and spreads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("pictures")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    paths = list(itertools.islice(itertools.cycle(find_images(options.pictures)), options.images))
    one, two = (Localizer(options.bundle, threads=threads) for threads in (1, 2))
    rates: dict[str, list[float]] = {"plain, 1 thread": [], "plain, 2 threads": [], "Ray, 2 actors of 1 thread": []}
    starts = []
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False,
            _temp_dir=folder,
        )  # fmt: skip
        try:
            for _ in range(options.rounds):
                rates["plain, 1 thread"].append(plain(one, paths))
                rates["plain, 2 threads"].append(plain(two, paths))
                rate, start = by_ray(options.bundle, paths)
                rates["Ray, 2 actors of 1 thread"].append(rate)
                starts.append(start)
        finally:
            ray.shutdown()
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):.2f} images/s ({min(found):.2f} to {max(found):.2f})")
    print(f"Ray's first block of {BLOCK}: after {statistics.median(starts):.1f} s")


if __name__ == "__main__":
    main()
