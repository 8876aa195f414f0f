"""wgap-localize against wgap localize: ``python benchmarks/cpp_parity.py BUNDLE IMAGES...``.

Both print a JSON line for each picture, under each rule and precision; the lines are compared field by field.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().parents[1] / "build" / "sdk" / "wgap-localize"


def lines(*command: str | Path) -> list[dict[str, Any]]:
    """The JSON lines of a command, which may end with 1: a picture failed."""
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix}
    done = subprocess.run([*command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Compare, print a row for each rule and precision, and exit with 1 where a line differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--rules", nargs="+", default=["adaptive", "foreground", "foreground+colour"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--backend", default="onnxruntime")
    options = parser.parse_args()
    python = Path(sys.executable).with_name("wgap")
    differ = 0
    for precision in options.precisions:
        for rule in options.rules:
            asked = [options.bundle, *options.images, "--json", "--rule", rule, "--precision", precision, "--ungated"]
            asked += ["--backend", options.backend]
            theirs, ours = lines(python, "localize", *asked), lines(options.program, *asked)
            if [a["image"] for a in theirs] != [b["image"] for b in ours]:
                raise SystemExit("the two took other pictures, or in another order")
            pairs = list(zip(theirs, ours, strict=True))
            same = sum(a == b for a, b in pairs)
            boxes = sum(a.get("boxes") == b.get("boxes") for a, b in pairs)
            scores = max(abs(a.get("score", 0) - b.get("score", 0)) for a, b in pairs)
            failed = sum("error" in b for b in ours)
            row = f"{precision} {rule}: {len(pairs)} pictures, {same} lines equal, {boxes} boxes equal"
            print(f"{row}, scores within {scores:.1e}, {failed} failed alike", flush=True)
            differ += same < len(pairs)
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
