"""Pictures of a foreground head: how far it separates, what it sees, and where it is least certain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.atomic import atomic_dir, require_new
from wgap.figures import fitted, new_figure
from wgap.plain import to_plain
from wgap.runtime.overlay import save_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wgap.calibrate.foreground import Foreground

__all__ = ["write_foreground_report"]

SHOWN = 6
"""Pictures of each sheet."""

TILE = 200


def write_foreground_report(out: Path, made: Foreground, force: bool = False) -> None:
    """Write report.json, separation.png, cells.png and uncertain.png; whole or not at all.

    A picture is the less certain, the smaller the mean magnitude of its cells' scores: many of them near 0.

    Args:
        out: folder to make.
        made: the head.
        force: replace an earlier report there.

    Raises:
        OutputExistsError: see :func:`wgap.atomic.require_new`.
        MissingDependencyError: if matplotlib is not installed.
    """
    import numpy as np

    require_new(out, force)
    certainty = [float(np.abs(scores).mean()) for scores in made.fit.scores]
    order = sorted(range(len(certainty)), key=lambda n: (certainty[n], n))
    names = [str(picture.path) for picture in made.images.pictures]
    content = {
        "head": to_plain(made.record),
        "certainty": dict(zip(names, certainty, strict=True)),
        "least_certain": [names[n] for n in order[:SHOWN]],
    }
    spread = order[:: max(1, len(order) // SHOWN)][:SHOWN]
    with atomic_dir(out, overwrite=force) as folder:
        (folder / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _separation(made, folder / "separation.png")
        save_picture(folder / "cells.png", _sheet(made, spread))
        save_picture(folder / "uncertain.png", _sheet(made, order[:SHOWN]))


def _separation(made: Foreground, path: Path) -> None:
    import numpy as np

    scores = np.concatenate([grid.reshape(-1) for grid in made.fit.scores])
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    edges = np.linspace(scores.min(), scores.max(), 101)
    for part, colour, label in ((scores <= 0, "0.6", "ground"), (scores > 0, "tab:orange", "object")):
        axes.hist(scores[part], bins=edges, color=colour, label=f"{label}: {part.mean():.1%} of the cells")
    axes.axvline(0, color="0.2", linewidth=1)
    axes.set_xlabel("coarse score of a cell, in standard deviations")
    axes.set_ylabel("cells")
    found = made.record.separation
    fine = "no finer activation" if found["fine"] is None else f"finer {found['fine']:.2f}"
    axes.set_title(
        f"{len(made.images)} pictures; object and ground lie {found['coarse']:.2f} standard deviations apart, {fine}",
        fontsize=10,
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _sheet(made: Foreground, chosen: Sequence[int]) -> NDArray[np.uint8]:
    """Each picture beside its coarse scores: orange above 0, blue below."""
    import cv2
    import numpy as np

    tiles = []
    for n in chosen:
        grid = made.fit.scores[n]
        shade = np.clip(np.abs(grid) / 2, 0, 1)[..., None]
        colour = np.where(grid[..., None] > 0, np.array([255, 140, 0]), np.array([40, 110, 220]))
        cells: Any = cv2.resize(
            (24 + shade * (colour - 24)).astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST
        )
        pair = [np.full((TILE + 4, TILE + 4, 3), 24, np.uint8) for _ in range(2)]
        for tile, picture in zip(pair, (fitted(made.images.pictures[n].pixels, TILE), cells), strict=True):
            tile[: picture.shape[0], : picture.shape[1]] = picture
        tiles.append(np.hstack(pair))
    while len(tiles) % 2:
        tiles.append(np.full_like(tiles[0], 24))
    return np.vstack([np.hstack(tiles[n : n + 2]) for n in range(0, len(tiles), 2)])
