"""Workers of one sharded run are killed in the middle of shards; the merged table is that of an undisturbed run.

    python -m benchmarks.shards_killed BUNDLE PICTURES --images 20000 --workers 4 --kills 30

PICTURES is a folder; its files are linked again and again, under other names, until there are enough.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from wgap.images import find_images
from wgap.runtime.shards import Shards


def begin(words: list[str]) -> subprocess.Popen[bytes]:
    """One ``wgap localize``."""
    program = [sys.executable, "-c", "from wgap.cli import main; main()", "localize", *words, "--threads", "1"]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    """Print how often who was killed, and whether it made a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--shard-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--format", default="jsonl", help="of the tables: jsonl or parquet")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="wgap-shards-", dir=options.pictures.absolute().parent) as name:
        root, many = Path(name), Path(name) / "pictures"
        many.mkdir()
        for number, path in enumerate(itertools.islice(itertools.cycle(find_images(options.pictures)), options.images)):
            (many / f"{number:08d}{path.suffix}").hardlink_to(path)
        size = ["--shard-size", str(options.shard_size), "--format", options.format]
        began = time.perf_counter()
        begin([options.bundle, str(many), "--shards", str(root / "one"), *size]).wait()
        alone = time.perf_counter() - began
        words, killed = [options.bundle, str(many), "--shards", str(root / "run"), *size, "--lease", "2"], 0
        began = time.perf_counter()
        workers = {one.pid: one for one in (begin(words) for _ in range(options.workers))}
        while killed < options.kills and any(one.poll() is None for one in workers.values()):
            time.sleep(rng.uniform(0.2, 1.5))
            claims = sorted((root / "run" / "claims").glob("shard-*"))
            with suppress(OSError, ValueError, IndexError, KeyError):  # done meanwhile
                holder = workers.pop(int(rng.choice(claims).read_text().split()[1]))
                holder.kill()
                holder.wait()
                killed += 1
                one = begin(words)
                workers[one.pid] = one
        codes = [one.wait() for one in workers.values()]
        together = time.perf_counter() - began
        for run in ("one", "run"):
            Shards(root / run).merge(root / f"{run}.merged")
        same = (root / "one.merged").read_bytes() == (root / "run.merged").read_bytes()
        print(
            f"{options.images} pictures, {Shards(root / 'run').plan.shards} shards: one worker alone {alone:.0f} s; "
            f"{options.workers} workers, {killed} killed while they held a claim, {together:.0f} s, exit codes "
            f"{sorted(set(codes))}; merged tables {'are the same bytes' if same else 'DIFFER'}"
        )
        shutil.rmtree(many)
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
