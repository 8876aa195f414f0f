"""Everything that needs an NVIDIA GPU in one go: tests, parity, timings, a profile of the kernel.

    python -m benchmarks.gpu_check [--bundle BUNDLE] [--data CUB] [--out benchmarks/results]
                                     [--maps 10000] [--only PART ...] [--batches 1,8,64,256]

Parts: environment, tests, parity, kernel, profile, network, end_to_end, cpp. One that cannot run here is reported by
name with its reason and does not stop the rest; the exit code is 1 if a part *failed*. Writes ``gpu-<device>.json`` and
``gpu-<device>.md``.

Times are medians over rounds in which the peers take turns; p25 and p75 beside them. The kernel's time is that of one
launch among fifty in a replayed CUDA graph, between two events. Without ``--bundle`` a bundle of the full network with
random weights is exported, on which times mean the same and boxes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import ROOT, AbsentError
from benchmarks.gpu_check.correctness import environment, parity, tests
from benchmarks.gpu_check.cpp import cpp
from benchmarks.gpu_check.kernel import kernel, profile
from benchmarks.gpu_check.network import end_to_end, network
from benchmarks.gpu_check.report import table, write

from wgap.errors import MissingDependencyError

PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "environment": environment,
    "tests": tests,
    "parity": parity,
    "kernel": kernel,
    "profile": profile,
    "network": network,
    "end_to_end": end_to_end,
    "cpp": cpp,
}


def main() -> int:
    """Run the parts, write both files, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("WGAP_DATA", ROOT.parent / "shared")) / "data/cub10"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--maps", type=int, default=10_000)
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="*", choices=sorted(PARTS))
    arguments = parser.parse_args()
    arguments.batches = [int(n) for n in arguments.batches.split(",")]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        arguments.scratch = Path(folder)
        for name, part in PARTS.items():
            if arguments.only and name not in arguments.only and name != "environment":
                continue
            print(f"== {name}", flush=True)
            start = time.perf_counter()
            try:
                if found and found["environment"]["state"] != "ran":
                    raise AbsentError(found["environment"]["reason"])
                found[name] = {"state": "ran", **part(arguments)}
            except (AbsentError, MissingDependencyError, ImportError) as error:
                found[name] = {"state": "absent", "reason": str(error)}
            except Exception as error:  # noqa: BLE001  (a part's failure is a result, and the next part still counts)
                found[name] = {"state": "failed", "reason": repr(error), "trace": traceback.format_exc()}
            found[name]["seconds"] = round(time.perf_counter() - start, 1)
            print(json.dumps(found[name], indent=1, default=str), flush=True)
            write(found, arguments.out)
    print(table(found))
    return int(any(part["state"] == "failed" for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
