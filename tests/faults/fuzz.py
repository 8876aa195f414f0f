"""Damaged inputs for as long as you like: `make fuzz SECONDS=600`, or python -m tests.faults.fuzz SECONDS [FIRST].

Prints a line for each kind: how many, how many a second, what came of them, and what should not have; exit code 1 then.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tests.faults.manifests import attack, damaged

from wgap.bundle import Bundle, classifier_tensors, golden_case
from wgap.errors import ImageError, WgapError
from wgap.images import decode, image_size, resize
from wgap.rule import MAPS, Rule
from wgap.runtime.postprocess import Classifier, postprocess

OLD = Path(__file__).parents[1] / "house" / "schema1" / "bundle"
CHUNK = {"manifest": 200, "checkpoint": 50, "tensors": 1000, "image": 500, "kernel": 2000, "resize": 1000}
Attack = Callable[[range], tuple[dict[str, int], list[str]]]


def encoded() -> list[bytes]:
    """Small pictures of every kind, to be damaged."""
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8), (45, 34))
    kinds = [
        (".jpg", []), (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".png", []), (".bmp", []), (".webp", []),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 40]), (".tif", []), (".tif", [cv2.IMWRITE_TIFF_COMPRESSION, 5]),
    ]  # fmt: skip
    made = [bytes(cv2.imencode(kind, pixels, options)[1]) for kind, options in kinds]
    return [*made, animated(made[2])]


def animated(png: bytes) -> bytes:
    """A PNG of one IDAT chunk with itself as a second frame."""
    head, (length,) = png[:33], struct.unpack_from(">I", png, 33)
    data, end = png[41 : 41 + length], png[45 + length :]
    frame = [struct.pack(">IIIIIHHBB", n, 45, 34, 0, 0, 1, 10, 0, 0) for n in (0, 1)]
    chunks = [(b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", frame[0]), (b"IDAT", data), (b"fcTL", frame[1])]
    chunks.append((b"fdAT", struct.pack(">I", 2) + data))
    return head + b"".join(struct.pack(">I", len(body)) + kind + body + bytes(4) for kind, body in chunks) + end


def mended(data: bytes) -> bytes:
    """A PNG with right checksums, as far as its chunks can be told apart: damage then reaches the decoder."""
    made, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(made):
        end = at + 8 + struct.unpack_from(">I", made, at)[0]
        if end + 4 > len(made):
            break
        struct.pack_into(">I", made, end, zlib.crc32(made[at + 4 : end]))
        at = end + 4
    return bytes(made)


def image(data: bytes) -> str:
    """Decode it: an image whose size was told before, or an error of ours."""
    try:
        shape = decode(data).shape
    except ImageError:
        return "refused"
    if image_size(data) != shape[:2]:
        raise ValueError(f"image_size said {image_size(data)}, it is {shape}")
    return "decoded"


def broken(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, or taken for lengths."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at, kind = chance.randrange(len(changed)), chance.randrange(5)
        if kind == 0:
            changed[at] = chance.randrange(256)
        elif kind == 1:
            del changed[at : at + chance.choice([1, 4, 200])]
        elif kind == 2:
            changed[at:at] = changed[max(0, at - 40) : at]
        elif kind == 3:
            changed[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\x01"])
        else:
            changed[at : at + 2] = chance.choice([b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"\xff\xe1", b"II"])
        if not changed:
            return b"\0"
    return bytes(changed)


def checkpoint(path: Path, whole: bytes, number: int) -> str:
    """Load a checkpoint with faults in what it says of itself, or anywhere: whole weights, or an error of ours."""
    from wgap.train.checkpoint import load_model

    chance = random.Random(number)
    if number % 4:
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        facts = damaged(header["__metadata__"]["wgap"], number).decode("utf-8", "replace")
        text = json.dumps({**header, "__metadata__": {"wgap": facts}}).encode()
        tensors = whole[8 + int.from_bytes(whole[:8], "little") :]
        path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)
    else:
        path.write_bytes(broken(whole[:3000], chance) + whole[3000:])
    try:
        loaded = load_model(path)
    except WgapError as error:
        if not str(error).replace("\n", "").isprintable():
            raise ValueError(f"a message that no terminal should get: {str(error)!a}") from error
        return "refused"
    if len(loaded.classes) != loaded.model.num_classes:
        raise ValueError(f"{loaded.classes}")
    return "loaded"


def tensors(files: list[tuple[Path, str, bytes]], channels: int, number: int) -> str:
    """Read a bundle's classifier or a golden case from damaged bytes, as if their hash were right."""
    chance = random.Random(number)
    path, role, whole = chance.choice(files)
    data = broken(whole[:600], chance) + whole[600:]
    try:
        classifier_tensors(data, path, 3, channels) if role == "classifier" else golden_case(data, path)
    except WgapError:
        return "refused"
    return "read"


@np.errstate(over="ignore")
def kernel(chance: random.Random, rng: np.random.Generator) -> str:
    """One call of the kernel with anything a network may give it: a box inside the map, or an error that names it."""
    classes, channels = chance.randint(1, 6), chance.randint(1, 9)
    low, size = (chance.randint(1, 9), chance.randint(1, 9)), (chance.randint(1, 70), chance.randint(1, 70))
    kind = chance.choice(["adaptive", f"fixed:{chance.random() * 0.99:.3f}", "foreground", "foreground+colour"])
    rule = Rule.parse(kind, chance.choice(MAPS) if "foreground" not in kind else chance.choice([None, *MAPS]))
    scale = chance.choice([1.0, 1e-30, 1e30, 1e38])
    features = (rng.standard_normal((1, channels, *low)) * scale).astype(np.float32)
    logits = rng.standard_normal((1, classes)).astype(np.float32)
    scores = (rng.standard_normal((1, 1, *[chance.randint(1, n) for n in size])) * scale).astype(np.float32)
    for array in (features, logits, scores):
        if chance.random() < 0.1:
            array.flat[chance.randrange(array.size)] = chance.choice([np.nan, np.inf, -np.inf])
    most = chance.choice([1, 1, 3, 64])
    given: dict[str, Any] = {"size": size, "rule": rule, "max_boxes": most, "top_k": chance.randint(1, classes)}
    if rule.on_scores:
        given["scores"] = scores
    if rule.reads_picture:
        given["pictures"] = rng.integers(0, 256, (1, *size, 3), dtype=np.uint8)
    reads = features if "features" in rule.outputs else None
    try:
        [records] = postprocess(logits, reads, Classifier(np.ones((classes, channels), np.float32)), **given)
    except WgapError:
        return "refused"
    for record in records:
        for x0, y0, x1, y1 in record.boxes:
            if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
                raise ValueError(f"box {(x0, y0, x1, y1)} on a map of {size}")
    return "localized"


def resized(chance: random.Random, rng: np.random.Generator) -> str:
    """A resize from and to any size, of a view of any stride."""
    channels = chance.randint(1, 5)
    whole = rng.integers(0, 256, (chance.randint(1, 60), chance.randint(1, 60), channels), dtype=np.uint8)
    view = whole[:: chance.choice([1, 2, -1]), : chance.randint(1, whole.shape[1])]
    height, width = chance.choice([0, 1, 7, 90, 224]), chance.choice([-1, 1, 5, 224])
    try:
        out = resize(view, height, width)
    except (ImageError, ValueError):
        return "refused"
    if out.shape != (height, width, channels):
        raise ValueError(f"{out.shape}")
    return "resized"


def repeated(one: Callable[[int], str]) -> Attack:
    """The attack that does one thing for each number."""

    def run(numbers: range) -> tuple[dict[str, int], list[str]]:
        outcomes: Counter[str] = Counter()
        found = []
        for number in numbers:
            try:
                outcomes[one(number)] += 1
            except Exception as error:
                outcomes["finding"] += 1
                found.append(f"{number}: {type(error).__name__}: {error}")
        return outcomes, found

    return run


def attacks(folder: Path) -> dict[str, Attack]:
    """Name to what does a range of numbers."""
    pictures = encoded()

    def manifest(numbers: range) -> tuple[dict[str, int], list[str]]:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            return attack(OLD, Path(own), numbers)

    def picture(number: int) -> str:
        chance = random.Random(number)
        data = broken(mended(chance.choice(pictures)), chance)
        return image(mended(data) if number % 2 else data)

    kinds: dict[str, Attack] = {"manifest": manifest}
    if importlib.util.find_spec("torch"):
        from wgap.train.checkpoint import save
        from wgap.train.model import WgapVgg16

        path = folder / "checkpoint.safetensors"
        save(WgapVgg16(3, width=1 / 64, input_size=32), path, classes=["a", "b", "c"], preprocessing="caffe-bgr")
        whole = path.read_bytes()
        kinds["checkpoint"] = repeated(lambda number: checkpoint(path, whole, number))
    old = Bundle.open(OLD)
    channels = old.manifest.model.feature_shape[0]
    files = [(OLD / e.path, e.role, old.content(e)) for e in old.manifest.files if e.role in ("classifier", "golden")]
    return kinds | {
        "tensors": repeated(lambda number: tensors(files, channels, number)),
        "image": repeated(picture),
        "kernel": repeated(lambda number: kernel(random.Random(number), np.random.default_rng(number))),
        "resize": repeated(lambda number: resized(random.Random(number), np.random.default_rng(number))),
    }


def main(seconds: float, first: int = 0) -> int:
    """Attack for so long, every kind for as long as the others; 1 where something was found."""
    found = 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg tells every fault there
    with tempfile.TemporaryDirectory() as folder:
        kinds = attacks(Path(folder))
        for kind, run in kinds.items():
            outcomes: Counter[str] = Counter()
            start, at = time.monotonic(), first
            while time.monotonic() - start < seconds / len(kinds):
                told, findings = run(range(at, at + CHUNK[kind]))
                outcomes.update(told)
                found += len(findings)
                at += CHUNK[kind] + (kind == "manifest")  # every other one of the other schema
                for finding in findings[:5]:
                    print(f"{kind} {finding[:300]}")  # noqa: T201
            count = outcomes.total()
            print(f"{kind:10} {count:9} at {count / (time.monotonic() - start):.0f}/s: {dict(outcomes)}", flush=True)  # noqa: T201
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
