"""Many pictures through one localizer, and many localizers one after the other: what the process holds stays as it is.

python -m tests.faults.soak BUNDLE [--pictures N] [--sessions N] [--threads N] prints a line every tenth of the way;
exit code 1 if descriptors or threads grew after the first tenth, or memory by more than a tenth.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from wgap import Localizer
from wgap.runtime.localizer import Failure


class Held(NamedTuple):
    """What this process holds: KiB resident, open descriptors, threads."""

    memory: int
    descriptors: int
    threads: int

    @staticmethod
    def now() -> Held:
        """Read from the system."""
        told = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return Held(int(told["VmRSS"].split()[0]), len(os.listdir("/proc/self/fd")), int(told["Threads"]))  # noqa: PTH208


def encoded(count: int = 200) -> list[bytes]:
    """JPEGs and PNGs of many sizes, and one in twenty cut short."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        height, width = rng.integers(40, 500, 2)
        pixels = cv2.resize(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8), (int(width), int(height)))
        data = bytes(cv2.imencode(".png" if number % 10 == 0 else ".jpg", pixels)[1])
        files.append(data[: len(data) // 2] if number % 20 == 1 else data)
    return files


def flat(what: str, count: int, run: Callable[[range], None]) -> bool:
    """Run ``count`` of something in tenths, and print and judge what the process holds after each."""
    seen = []
    for part in range(10):
        run(range(part * count // 10, (part + 1) * count // 10))
        seen.append(Held.now())
        memory, descriptors, threads = seen[-1]
        told = f"{memory / 1024:.1f} MiB, {descriptors} descriptors, {threads} threads"
        print(f"{what} {(part + 1) * count // 10:7}: {told}", flush=True)  # noqa: T201
    first, last = seen[0], seen[-1]
    return last.descriptors <= first.descriptors and last.threads <= first.threads and last.memory < first.memory * 1.1


def main() -> int:
    """Return 0 where everything stayed flat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg tells every fault there
    files = encoded()

    def sessions(numbers: range) -> None:
        for number in numbers:
            with Localizer(args.bundle) as localizer:
                list(localizer([files[number % len(files)]], on_error="yield"))

    fine = flat("sessions", args.sessions, sessions)
    with Localizer(args.bundle, threads=1) as localizer, ThreadPoolExecutor(args.threads) as pool:

        def one(number: int) -> bool:
            [result] = localizer([files[number % len(files)]], on_error="yield")
            return isinstance(result, Failure) == (number % len(files) % 20 == 1)

        def pictures(numbers: range) -> None:
            if not all(pool.map(one, numbers)):
                raise SystemExit("a picture came out otherwise than it should")

        fine &= flat("pictures", args.pictures, pictures)
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
