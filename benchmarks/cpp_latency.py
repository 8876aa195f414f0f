"""JPEG to box from C++ and from Python, in turns: ``python benchmarks/cpp_latency.py BUNDLE IMAGES...``.

Every round runs ``wgap-bench`` and then the same pictures through a ``Localizer``, each in a process of its own, and
one picture through ``wgap-localize`` and ``wgap localize``, whose whole time is that of starting, opening and one box.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).resolve().parents[1] / "build" / "sdk"


def in_python(bundle: str, precision: str, iterations: int, images: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds of the network and of the whole, picture by picture, after five untimed ones."""
    from wgap import Localizer

    times: dict[str, list[float]] = {"network": [], "total": []}
    with Localizer(bundle, precision=precision, ungated=True) as localizer:
        session = localizer.network.session  # type: ignore[attr-defined]
        run = session.run

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            made = run(*arguments)
            times["network"].append((time.perf_counter() - start) * 1e3)
            return made

        session.run = timed
        for number in range(iterations + 5):
            start = time.perf_counter()
            localizer.one(images[number % len(images)])
            times["total"].append((time.perf_counter() - start) * 1e3)
    return {name: values[5:] for name, values in times.items()}


def ran(*command: str) -> tuple[str, float, float]:
    """What a command prints, its seconds, and its largest memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "VIRTUAL_ENV": sys.prefix})
    assert process.stdout is not None
    text = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return text, time.perf_counter() - start, usage.ru_maxrss / 1024


def told(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Print medians and quartiles over all rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--programs", type=Path, default=PROGRAMS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(in_python(options.bundle, options.precision, options.iterations, options.images)))
        return
    asked = [options.bundle, *options.images, "--precision", options.precision, "--iterations", str(options.iterations)]
    one = [options.bundle, options.images[0], "--precision", options.precision, "--ungated"]
    stages: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {"C++": [], "Python": []}
    memory: dict[str, list[float]] = {"C++": [], "Python": []}
    for _ in range(options.rounds):
        report = json.loads(ran(str(options.programs / "wgap-bench"), *asked, "--ungated", "--json")[0])
        [cell] = report["cells"]
        for name, times in cell["samples"].items():
            stages.setdefault(f"C++ {name}", []).extend(times)
        overhead = [t - n for t, n in zip(cell["samples"]["total"], cell["samples"]["network"], strict=True)]
        stages.setdefault("C++ total - network", []).extend(overhead)
        python = json.loads(ran(sys.executable, __file__, *asked, "--worker")[0])
        for name, times in python.items():
            stages.setdefault(f"Python {name}", []).extend(times)
        overhead = [t - n for t, n in zip(python["total"], python["network"], strict=True)]
        stages.setdefault("Python total - network", []).extend(overhead)
        for name, program in (
            ("C++", [str(options.programs / "wgap-localize")]),
            ("Python", [str(Path(sys.executable).with_name("wgap")), "localize"]),
        ):
            _, took, most = ran(*program, *one)
            seconds[name].append(took)
            memory[name].append(most)
    print(f"{options.precision}, {options.rounds} rounds of {options.iterations}: median ms (quartiles)")
    for name, times in stages.items():
        print(f"  {name:22} {told(times)}")
    for name, values in seconds.items():
        print(f"  {name}: start to one box {told(values)} s, peak memory {told(memory[name])} MiB")


if __name__ == "__main__":
    main()
