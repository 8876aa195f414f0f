"""What rooms that draw share: a matplotlib figure, and a picture fitted into a tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wgap.extras import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches, without the global state of ``pyplot``; texts stand as they are written.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
    """
    require("a figure", "matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    class Plain(Figure):
        def savefig(self, *arguments: Any, **options: Any) -> None:
            for text in self.findobj(Text):
                text.set_parse_math(False)  # a class may be called $x^_$
            super().savefig(*arguments, **options)

    return Plain(figsize=(width, height), layout="constrained")


def fitted(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture uint8[H, W, 3] scaled so that its longer side is ``side`` pixels."""
    import cv2

    scale = side / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    tile: Any = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    scaled: NDArray[np.uint8] = tile
    return scaled
