"""Pictures of a localization: box, class and score, and the heat map where there is one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.atomic import atomic_file
from wgap.errors import ImageError
from wgap.geometry import Box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.runtime.localization import Localization

    RgbImage = NDArray[np.uint8]

__all__ = ["overlay", "save_picture"]

PREDICTED = (255, 106, 0)
TRUE = (0, 200, 83)
READABLE_SIDE = 320
"""Smaller images are enlarged by a whole factor first, so that a label fits and lines stay thin against the object."""


def overlay(
    image: RgbImage, localization: Localization, truth: Iterable[Box] = (), heatmap: bool = True, opacity: float = 0.45
) -> RgbImage:
    """Draw a localization on its image.

    Args:
        image: uint8[H, W, 3] RGB, the image that was localized, in its original size.
        localization: its result; boxes are orange, the first is labelled with class and score.
        truth: ground-truth boxes to draw in green, half-open, in pixels of ``image``.
        heatmap: blend the localization's heat map over the image, if it has one.
        opacity: weight of the heat map where it is 1; it fades with the map, so that the background stays visible.

    Returns:
        uint8[H', W', 3] RGB, a new array. H' and W' are H and W times the smallest whole factor that makes the longer
        side at least ``READABLE_SIDE``; 1 for most photographs. Characters outside ASCII appear as ``?``.

    Raises:
        ImageError: if ``image`` is not uint8[H, W, 3].
    """
    import cv2
    import numpy as np

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"expected an RGB image uint8[H, W, 3], got {image.dtype}{list(image.shape)}")
    factor = -(-READABLE_SIDE // max(image.shape[:2]))
    height, width = image.shape[0] * factor, image.shape[1] * factor
    if factor > 1:
        canvas: Any = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    else:
        canvas = image.copy()
    if heatmap and localization.heatmap is not None:
        canvas = _blend(canvas, localization.heatmap, opacity)
    line = max(2, round(max(height, width) / 200))
    for box in truth:
        _rectangle(canvas, box, factor, TRUE, line)
    for box in reversed(localization.boxes):
        _rectangle(canvas, box, factor, PREDICTED, line)
    text = f"{localization.class_name} {100 * localization.score:.0f}%"
    if localization.degenerate:
        text += " (no map)"
    _label(canvas, text, localization.box, factor, line)
    drawn: RgbImage = canvas
    return drawn


def save_picture(path: str | Path, picture: RgbImage) -> None:
    """Write uint8[H, W, 3] RGB as the format its suffix names, whole or not at all; JPEG at quality 92.

    Raises:
        ImageError: if the suffix names no format that OpenCV writes.
    """
    import cv2

    path = Path(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix.lower() in (".jpg", ".jpeg") else []
    try:
        written, encoded = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    except cv2.error:
        written = False
    if not written:
        raise ImageError(f"{path}: cannot be written as {path.suffix or 'a file without suffix'}; use .jpg or .png")
    with atomic_file(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _blend(canvas: Any, heatmap: NDArray[np.float32], opacity: float) -> Any:
    import cv2
    import numpy as np

    smooth = cv2.resize(heatmap, (canvas.shape[1], canvas.shape[0]), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((smooth * 255).round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    weight = (opacity * np.sqrt(smooth))[..., None]
    return (canvas + weight * (colours.astype(np.float32) - canvas)).round().clip(0, 255).astype(np.uint8)


def _rectangle(canvas: Any, box: Box, factor: int, colour: tuple[int, int, int], line: int) -> None:
    """An unblended frame whose outer edge is the box (half-open); a dark hairline inside sets it off."""
    x0, y0, x1, y1 = (round(v * factor) for v in box)
    for grow, paint in ((line + max(1, line // 3), (0, 0, 0)), (line, colour)):
        inner = min(grow, (x1 - x0 + 1) // 2, (y1 - y0 + 1) // 2)
        for top, left, bottom, right in (
            (y0, x0, y0 + inner, x1),
            (y1 - inner, x0, y1, x1),
            (y0, x0, y1, x0 + inner),
            (y0, x1 - inner, y1, x1),
        ):
            canvas[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = paint


def _label(canvas: Any, text: str, box: Box, factor: int, line: int) -> None:
    """Text on a plate of the box's colour: above the box where there is room, else inside it, never off the picture."""
    import cv2

    height, width = canvas.shape[:2]
    text = text.encode("ascii", "replace").decode()
    font, weight = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(line / 2))
    scale = max(0.45, max(height, width) / 1000)
    (text_width, text_height), base = cv2.getTextSize(text, font, scale, weight)
    if text_width + 2 * line > width:  # too long for the picture: shrink it rather than cut it
        scale *= width / (text_width + 2 * line)
        (text_width, text_height), base = cv2.getTextSize(text, font, scale, weight)
    plate = text_height + base + line
    left = max(0, min(round(box[0] * factor), width - text_width - 2 * line))
    top = round(box[1] * factor)
    top = top - plate if top >= plate else min(top, max(0, height - plate))
    canvas[top : top + plate, left : left + text_width + 2 * line] = PREDICTED
    at = (left + line, top + text_height + line // 2 + base // 2)
    cv2.putText(canvas, text, at, font, scale, (255, 255, 255), weight, cv2.LINE_AA)
