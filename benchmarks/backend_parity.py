"""The same pictures through several backends and precisions: ``python benchmarks/backend_parity.py BUNDLE IMAGES...``.

Every network runs once for each picture and the kernel under every rule; boxes, classes and scores are compared with
those of the first backend, at the same precision and at float32. A row for each rule, backend and precision.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from wgap import Bundle, Localizer
from wgap.errors import BackendError, BundleError
from wgap.geometry import iou
from wgap.images import decode, find_images, resize
from wgap.rule import Rule


def main() -> None:
    """Print a row for each rule, backend and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--rules", nargs="+", default=["adaptive", "foreground", "foreground+colour"])
    parser.add_argument("--backends", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8", "bf16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", type=Path, help="folder where records are kept, and taken from by the next run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    paths = find_images(options.images)
    found: dict[tuple[str, str, str], list[Any]] = {}
    for backend, precision in product(options.backends, options.precisions):
        try:
            with Localizer(bundle, backend, precision=precision, threads=options.threads, ungated=True) as localizer:
                rows = recorded(
                    localizer, paths, options.rules, options.keep and options.keep / f"{backend}-{precision}"
                )
        except (BackendError, BundleError) as error:
            print(f"{backend} {precision} is left out: {str(error)[:160]}", file=sys.stderr)
            continue
        for number, rule in enumerate(options.rules):
            found[backend, precision, rule] = [row[number] for row in rows]
    report = []
    first = options.backends[0]
    for (backend, precision, rule), records in found.items():
        for against in dict.fromkeys((precision, "fp32")):
            other = found.get((first, against, rule))
            if other is None or (backend, precision) == (first, against):
                continue
            report.append({"rule": rule, "of": f"{backend} {precision}", "against": f"{first} {against}"})
            report[-1] |= compared(records, other)
            if not options.json:
                print("  ".join(f"{name} {value}" for name, value in report[-1].items()), flush=True)
    if options.json:
        print(json.dumps(report))


def recorded(localizer: Localizer, paths: list[Path], rules: list[str], kept: Path | None) -> list[list[Any]]:
    """For each picture, and each rule: class, box, score and level."""
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept is not None and kept.exists() else []
    for path in paths[len(rows) :]:
        picture = resize(decode(path), *localizer.bundle.manifest.model.input_size)[None]
        outputs = {**localizer.network.run(picture), "picture": picture}
        located = [localizer.locator.with_rule(Rule.parse(rule)).locate(outputs)[0][0] for rule in rules]
        rows.append([[one.class_id, list(one.box), one.score, one.level] for one in located])
        if kept is not None:
            with kept.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


def compared(records: list[Any], other: list[Any]) -> dict[str, Any]:
    """How two lists of (class, box, score, level) differ."""
    pairs = list(zip(records, other, strict=True))
    ious = [iou(a[1], b[1]) if a[0] == b[0] else 0.0 for a, b in pairs]
    return {
        "pictures": len(pairs),
        "same_class": sum(a[0] == b[0] for a, b in pairs),
        "same_level": sum(a[3] == b[3] for a, b in pairs),
        "same_box": sum(a[:2] == b[:2] for a, b in pairs),
        "mean_iou": round(sum(ious) / len(ious), 5),
        "worst_iou": round(min(ious), 3),
        "largest_score_change": float(f"{max(abs(a[2] - b[2]) for a, b in pairs):.1e}"),
    }


if __name__ == "__main__":
    main()
