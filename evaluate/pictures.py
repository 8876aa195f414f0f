"""Pictures of an evaluation: prediction and truth side by side, and how the threshold was chosen (Fig. 3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wgap.atomic import atomic_file
from wgap.figures import fitted, new_figure
from wgap.images import decode, resize
from wgap.rule import Rule
from wgap.runtime.locator import Request
from wgap.runtime.overlay import overlay

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.evaluate.protocol import ImageResult
    from wgap.runtime.localizer import Localization, Localizer

    RgbImage = NDArray[np.uint8]

TILE = 240
"""Height and width of one montage tile in pixels."""


def montage(localizer: Localizer, images: Sequence[ImageResult]) -> RgbImage:
    """Tiles of localized images: heat map of the label's class, predicted box in orange, true boxes in green.

    Returns:
        uint8[rows * TILE, columns * TILE, 3] RGB; each image is fitted into its tile on a dark ground.
    """
    import numpy as np

    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * TILE, columns * TILE, 3), 24, np.uint8)
    for index, image in enumerate(images):
        picture = decode(image.path)
        found = localizer.one(image.path, image.label, heatmap=True)
        tile = fitted(overlay(picture, found, truth=image.truth), TILE - 4)
        top = index // columns * TILE + (TILE - tile.shape[0]) // 2
        left = index % columns * TILE + (TILE - tile.shape[1]) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def plot_levels(localizer: Localizer, image: ImageResult, path: Path) -> None:
    """Write the paper's Fig. 3 for one image: picture and box, V and D over the levels, mean of D, chosen level.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
    """
    mean_values, found = edge_curve(localizer, image)
    levels = [level / (len(mean_values) - 1) for level in range(len(mean_values))]
    steps = [abs(b - a) for a, b in itertools.pairwise(mean_values)]
    steps = [0.0 if math.isnan(step) else step for step in steps]

    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    left.imshow(overlay(decode(image.path), found, truth=image.truth))
    left.set_axis_off()
    left.set_title(f"{found.class_name}: predicted (orange), true (green)", fontsize=9)
    right.plot(levels, mean_values, "o-", color="0.55", markersize=3, label="V, mean of the map along the mask's edge")
    right.set_xlabel("threshold level")
    right.set_ylabel("V")
    right.set_ylim(0, 1)
    other = right.twinx()
    other.plot(levels[1:], steps, "s-", color="tab:red", markersize=3, label="D, difference to the level before")
    other.axhline(sum(steps) / len(steps), color="tab:blue", linewidth=1, label="mean of D")
    other.axvline(found.threshold, color="tab:green", linestyle="--", label=f"chosen: {found.threshold:.2f}")
    other.set_ylabel("D")
    other.set_ylim(bottom=0)
    handles = [*right.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    other.legend(handles=handles, fontsize=8, loc="lower center")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110)


def edge_curve(localizer: Localizer, image: ImageResult) -> tuple[list[float], Localization]:
    """V_l for l = 0..20 of the label's map (NaN where the edge set is empty), and the localization."""
    import numpy as np

    adaptive = localizer.locator.with_rule(Rule(map="recombined" if localizer.rule.on_scores else localizer.rule.map))
    pixels = np.ascontiguousarray(resize(decode(image.path), *localizer.locator.size))[None]
    classes = None if image.label is None else [image.label]
    [[record]] = localizer.network.locate(pixels, adaptive, Request(classes, edge_means=True))
    found = localizer.one(image.path, image.label, heatmap=True)
    return list(record.edge_means or [math.nan] * 21), found
