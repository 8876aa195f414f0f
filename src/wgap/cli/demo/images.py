"""A small labelled image set made from nothing: textured pebbles on cluttered ground, boxes kept aside.

The class is the texture. Outline, size, place, hue, lighting and ground vary freely and say nothing about it, so that a
classifier has to look at the pebble; most pebbles lie far from the centre, so that a centred box will not do.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]
    Picture = NDArray[np.float32]

CLASSES = ("checked", "dotted", "ringed", "scaled", "striped", "wavy")
"""Class names: the textures, in label order."""

_INK = {  # two inks per class: BGR, 0..1
    "checked": ((0.16, 0.20, 0.85), (0.92, 0.95, 0.98)),
    "dotted": ((0.10, 0.72, 0.98), (0.16, 0.12, 0.20)),
    "ringed": ((0.82, 0.42, 0.10), (0.95, 0.92, 0.80)),
    "scaled": ((0.35, 0.62, 0.12), (0.78, 0.95, 0.88)),
    "striped": ((0.12, 0.10, 0.12), (0.25, 0.85, 0.98)),
    "wavy": ((0.60, 0.14, 0.55), (0.98, 0.80, 0.95)),
}


@dataclass(frozen=True)
class DemoImage:
    """One generated picture.

    Attributes:
        pixels: uint8[H, W, 3], BGR (OpenCV's order, for writing).
        label: index into :data:`CLASSES`.
        box: (x0, y0, x1, y1), half-open pixels, tight around the pebble.
    """

    pixels: NDArray[np.uint8]
    label: int
    box: tuple[int, int, int, int]


def make_image(label: int, rng: np.random.Generator) -> DemoImage:
    """One picture of one class, 160 to 240 pixels a side; everything but the texture is drawn from ``rng``."""
    import cv2
    import numpy as np

    height, width = (int(n) for n in rng.integers(160, 241, 2))
    ground = _ground(height, width, rng)
    mask = _outline(height, width, rng)
    texture = _texture(CLASSES[label], height, width, rng)
    shadow = cv2.GaussianBlur(np.roll(mask, (5, 4), axis=(0, 1)), (0, 0), 5)
    picture = ground * (1 - 0.55 * shadow[..., None])
    light = cv2.GaussianBlur(mask, (0, 0), 6) * 0.45 + 0.6  # darker towards the rim: roundness
    picture = picture * (1 - mask[..., None]) + texture * light[..., None] * mask[..., None]
    picture += rng.normal(0, 0.015, picture.shape)
    pixels = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    ys, xs = np.nonzero(mask > 0.5)
    return DemoImage(pixels, label, (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))


def _noise(height: int, width: int, cell: float, rng: np.random.Generator) -> Any:
    """float32[H, W] smooth noise in 0..1 whose features are about ``cell`` pixels wide."""
    import cv2

    small = rng.random((max(2, round(height / cell)), max(2, round(width / cell))), dtype="float32")
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _ground(height: int, width: int, rng: np.random.Generator) -> Any:
    """Muted earth with grain, leaves of plain colour and thin twigs: clutter without any class's texture."""
    import cv2
    import numpy as np

    tone = rng.uniform(0.36, 0.54) + rng.normal(0, 0.03, 3)
    relief = (
        0.5 * _noise(height, width, 50, rng)
        + 0.3 * _noise(height, width, 14, rng)
        + 0.2 * _noise(height, width, 3, rng)
    )
    ground = (tone[None, None] + 0.28 * (relief[..., None] - 0.5)).astype(np.float32)
    for _ in range(int(rng.integers(10, 22))):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(5, 22)), int(rng.integers(3, 9)))
        colour = (tone + rng.uniform(-0.16, 0.16) + rng.normal(0, 0.05, 3)).tolist()
        cv2.ellipse(ground, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(6, 14))):
        start = rng.integers(0, (width, height))
        end = start + rng.integers(-70, 71, 2)
        colour = (tone + rng.uniform(-0.24, 0.10) * np.array([1.0, 0.9, 0.7])).tolist()
        cv2.line(ground, start.tolist(), end.tolist(), colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    return cv2.GaussianBlur(ground, (0, 0), 0.7)


def _outline(height: int, width: int, rng: np.random.Generator) -> Any:
    """float32[H, W] coverage of a random smooth outline that lies wholly inside the picture."""
    import cv2
    import numpy as np

    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = np.ones_like(angle)
    for wave in (2, 3, 4):
        radius += rng.uniform(0, 0.22 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    stretch = rng.uniform(0.55, 1.0)
    turn = rng.uniform(0, np.pi)
    shape = np.stack([radius * np.cos(angle), stretch * radius * np.sin(angle)])
    shape = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ shape
    low, high = shape.min(1), shape.max(1)
    side = rng.uniform(0.46, 0.80) * min(height, width)  # of the longer side of its box
    shape = (shape - low[:, None]) * side / (high - low).max()
    extent = (high - low) * side / (high - low).max()
    room = np.array([width, height]) - extent - 4
    shape += (2 + room * rng.beta(0.7, 0.7, 2))[:, None]  # the beta favours the margins over the middle
    mask = np.zeros((height * 4, width * 4), np.uint8)
    cv2.fillPoly(mask, [np.round(shape.T * 4).astype(np.int32)], 255)
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _texture(name: str, height: int, width: int, rng: np.random.Generator) -> Any:
    """float32[H, W, 3] of one class: its pattern, turned and scaled at random, in its two inks with some drift."""
    import cv2
    import numpy as np

    turn, period = rng.uniform(0, np.pi), rng.uniform(11, 17)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x + 3 * _noise(height, width, 40, rng), y + 3 * _noise(height, width, 40, rng)
    u = (x * np.cos(turn) + y * np.sin(turn)) * (2 * np.pi / period)
    v = (y * np.cos(turn) - x * np.sin(turn)) * (2 * np.pi / period)
    pattern = {
        "checked": lambda: np.sin(u) * np.sin(v) * 3,
        "dotted": lambda: np.cos(u) + np.cos(v) - 0.7,
        "ringed": lambda: np.cos(
            1.2 * np.hypot((u + np.pi) % (4 * np.pi) - 2 * np.pi, (v + np.pi) % (4 * np.pi) - 2 * np.pi)
        ),
        "scaled": lambda: np.hypot((u + np.pi * (np.floor(v / 3) % 2)) % (2 * np.pi) - np.pi, v % 3) - 2.2,
        "striped": lambda: np.sin(u),
        "wavy": lambda: np.sin(u + 1.6 * np.sin(0.8 * v)),
    }[name]()
    blend = cv2.GaussianBlur(1 / (1 + np.exp(-6 * pattern)), (0, 0), 0.6)[..., None]
    first, second = (np.clip(np.array(ink) + rng.normal(0, 0.06, 3), 0, 1) for ink in _INK[name])
    return (blend * first + (1 - blend) * second).astype(np.float32)


def write_demo_set(root: Path, per_class: dict[str, int], seed: int) -> None:
    """Write ``root/<split>/<class>/NNN.jpg`` and, apart from the pictures' folders, ``root/boxes.csv``.

    Args:
        root: an empty or missing folder.
        per_class: pictures per class for each split, for example ``{"train": 80, "test": 20}``.
        seed: the same seed gives the same bytes on the same machine.
    """
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[object, ...]] = []
    for split, count in per_class.items():
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = make_image(label, rng)
                path = folder / f"{number:03}.jpg"
                if not cv2.imwrite(str(path), image.pixels, [cv2.IMWRITE_JPEG_QUALITY, 92]):
                    raise OSError(f"{path}: could not be written")
                rows.append((path.relative_to(root).as_posix(), *image.box))
    with (root / "boxes.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "x0", "y0", "x1", "y1"])
        writer.writerows(rows)
