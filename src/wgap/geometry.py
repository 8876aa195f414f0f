"""Boxes: scaling, clipping and two conventions of IoU.

Results and ground truth are half-open (x0, y0, x1, y1) in pixels: x0 <= x < x1. The localization protocol follows the
public wsolevaluation code: boxes are compared on the network-input scale (224 x 224), corners are clipped to the last
pixel, and widths and heights count both end pixels (``+1``).
"""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1), half-open, in pixels."""

RIGHT = 0.5
"""IoU from which a box counts as right."""


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two half-open boxes of positive area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def inclusive_iou(a: Box, b: Box) -> float:
    """IoU of two corner boxes whose widths and heights count both end pixels: width = x1 - x0 + 1."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def clipped(box: Box, size: tuple[int, int]) -> Box:
    """Corners of a half-open box as the protocol compares them: clipped to the last pixel of an (H, W) image."""
    height, width = size
    return (max(box[0], 0.0), max(box[1], 0.0), min(box[2], width - 1.0), min(box[3], height - 1.0))


def scaled(box: Box, original: tuple[int, int], size: tuple[int, int]) -> Box:
    """A box in pixels of an (H, W) ``original`` image in pixels of ``size``."""
    (old_height, old_width), (height, width) = original, size
    x0, y0, x1, y1 = box  # multiplied first: whole results come out whole
    return (x0 * width / old_width, y0 * height / old_height, x1 * width / old_width, y1 * height / old_height)


def best_iou(predicted: Box, truth: Sequence[Box], size: tuple[int, int]) -> float:
    """IoU of a predicted half-open box with the true box it fits best; all in pixels of the (H, W) map."""
    return max(inclusive_iou(clipped(predicted, size), clipped(box, size)) for box in truth)


def centred_box(size: tuple[int, int]) -> Box:
    """The baseline that has seen nothing: half the image's area, centred, half-open, on an (H, W) image."""
    height, width = size
    share = 0.5**0.5
    return (width * (1 - share) / 2, height * (1 - share) / 2, width * (1 + share) / 2, height * (1 + share) / 2)
