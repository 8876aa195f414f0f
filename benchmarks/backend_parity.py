"""The same pictures through several backends and precisions: ``python benchmarks/backend_parity.py BUNDLE IMAGES...``.

Every network runs once for each picture and the kernel under every rule; boxes, classes and scores are compared with
those of the first backend, at the same precision and at float32. A row for each rule, backend and precision.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    size = bundle.manifest.model.input_size
    localizers: dict[tuple[str, str], Localizer] = {}
    for backend, precision in product(options.backends, options.precisions):
        try:
            localizers[backend, precision] = Localizer(bundle, backend, precision=precision, ungated=True)
        except (BackendError, BundleError) as error:
            print(f"{backend} {precision} is left out: {str(error)[:160]}", flush=True)
    rules = {rule: Rule.parse(rule) for rule in options.rules}
    found: dict[tuple[str, str, str], list[Any]] = {(*key, rule): [] for key in localizers for rule in rules}
    for path in find_images(options.images):
        picture = resize(decode(path), *size)[None]
        for key, localizer in localizers.items():
            outputs = {**localizer.network.run(picture), "picture": picture}
            for rule, parsed in rules.items():
                [[record]] = localizer.locator.with_rule(parsed).locate(outputs)
                found[(*key, rule)].append((record.class_id, tuple(record.box), record.score, record.level))
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
