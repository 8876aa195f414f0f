"""Labelled image sets in the layouts people already have. Class labels on opening, boxes only on request.

Nothing here decodes an image or imports more than the standard library. Training reads :attr:`Dataset.samples`;
:meth:`Dataset.boxes` is the one place that opens a box file, and only evaluation calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from wgap.datasets import cub, folder, ilsvrc, wsolevaluation
from wgap.datasets.dataset import Dataset, Sample
from wgap.datasets.label_map import with_label_map
from wgap.errors import DataError
from wgap.images import tell_left_out

__all__ = ["LAYOUTS", "SPLITS", "Dataset", "Sample", "layout_of", "open_dataset", "with_label_map"]

_READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, str], Dataset]]] = {
    "cub": (cub.recognises, cub.open_split),
    "ilsvrc": (ilsvrc.recognises, ilsvrc.open_split),
    "wsolevaluation": (wsolevaluation.recognises, wsolevaluation.open_split),
    "folder": (folder.recognises, folder.open_split),
}

LAYOUTS = ("auto", *_READERS)
"""Names accepted as ``layout``; ``auto`` takes the first of the others, in this order, whose marks are there."""

SPLITS = ("train", "val", "test", "all")
"""Names accepted as ``split``; which of them a set has depends on its layout. ``all`` is never chosen silently."""


def layout_of(root: Path) -> str | None:
    """The first of :data:`LAYOUTS` whose marks are in the folder; None where there is none."""
    return next((name for name, (recognises, _) in _READERS.items() if recognises(root)), None)


def open_dataset(root: Path | str, split: str = "train", layout: str = "auto") -> Dataset:
    """Classes and labelled image paths of one split.

    Args:
        root: the set's folder.
        split: one of :data:`SPLITS`.
        layout: one of :data:`LAYOUTS`: ``cub`` (CUB-200-2011's text files), ``ilsvrc`` (synset folders, validation
            list, XML boxes), ``wsolevaluation`` (image_ids.txt, class_labels.txt, localization.txt), ``folder``
            (one folder per class, boxes in boxes.csv).

    What the searched folders hold and the split does not is in its ``left_out`` and told by a warning of the logger
    ``wgap.images``: hidden names, links back, other endings, images beside the folders of classes, folders that are
    no synsets'.

    Raises:
        DataError: if the folder, a list or a label is not what the layout promises; names file, line, expected, got.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder of labelled images, found {'a file' if root.exists() else 'nothing'}"
        )
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if layout == "auto":
        layout = layout_of(root) or ""
        if not layout:
            raise DataError(
                f"{root}: no known layout: expected images.txt (cub), image_ids.txt (wsolevaluation), synset folders "
                "such as train/n01440764 (ilsvrc), or one folder of images per class (folder). Name one with --layout "
                "to see what exactly is missing"
            )
    dataset = _READERS[layout][1](root, split)
    if not dataset.samples:
        raise DataError(f"{root}: split {split!r} of layout {layout!r} holds no images")
    tell_left_out(root, dataset.left_out, logging.WARNING)
    return dataset
