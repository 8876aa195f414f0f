"""Images per second of a sharded run, of the plain loop, and of the network alone, in turns, in one process.

    python -m benchmarks.shards_throughput BUNDLE PICTURES --rounds 5 --images 200

The network alone gets images that are decoded and resized already, one batch again and again. Memory is that of the
process after each round of shards.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from wgap import Localizer
from wgap.evaluate.meters import peak_rss_mib
from wgap.images import decode, find_images, resize
from wgap.runtime.shards import Shards, settings_of, speeds


def main() -> None:
    """Print medians and spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--images", type=int, default=200, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--prepare", type=int, default=2, help="threads, of shards and of one of the loops")
    options = parser.parse_args()
    paths = list(itertools.islice(itertools.cycle(find_images(options.pictures)), options.images))
    given: dict[str, Any] = {"precision": options.precision, "batch_size": options.batch_size, "ungated": True}
    ahead = Localizer(options.bundle, options.backend, prepare=options.prepare, **given)
    plain = Localizer(ahead.bundle, options.backend, network=ahead.network, batch_size=options.batch_size)
    size = ahead.bundle.manifest.model.input_size
    ready = [resize(decode(path), *size) for path in paths]
    rates: dict[str, list[float]] = {}
    memory: list[float] = []
    with tempfile.TemporaryDirectory(prefix="wgap-shards-") as name:

        def sharded(turn: int) -> None:
            run = Shards(Path(name) / str(turn), paths, settings_of(ahead), 64)
            run.work(ahead)
            memory.append(peak_rss_mib())
            if turn == options.rounds:
                rates["of stages"] = [speeds(run.sidecars())["waiting"]]

        turns = {
            "network and kernel alone": lambda _: list(plain(ready, on_error="yield")),
            "plain loop": lambda _: list(plain(paths, on_error="yield")),
            "loop, prepared ahead": lambda _: list(ahead(paths, on_error="yield")),
            "shards, prepared ahead": sharded,
        }
        for turn in range(options.rounds + 1):  # the first one warms up
            for what in itertools.islice(itertools.cycle(turns), turn, turn + len(turns)):
                began = time.perf_counter()
                turns[what](turn)
                if turn:
                    rates.setdefault(what, []).append(options.images / (time.perf_counter() - began))
    [waiting] = rates.pop("of stages")
    bare = rates["network and kernel alone"]
    for what, own in rates.items():
        ratios = sorted(one / other for one, other in zip(own, bare, strict=True))
        print(
            f"{what:26} {statistics.median(own):8.2f} images/s ({min(own):.2f} to {max(own):.2f}); over the bare "
            f"network of its round {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )
    print(f"the network of the last shards waited {waiting:.1%} of the time; MiB at most: {[round(m) for m in memory]}")


if __name__ == "__main__":
    main()
