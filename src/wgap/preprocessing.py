"""What a network expects of its pixels. The choice travels with the weights: in checkpoints, graphs and bundles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wgap.errors import CheckpointError


@dataclass(frozen=True)
class Preprocessing:
    """Channel order and normalisation: ``(pixel * scale - mean) / std`` per channel, in ``channel_order``.

    Attributes:
        name: the name that checkpoints and manifests carry.
        channel_order: ``rgb`` or ``bgr``; images enter as RGB bytes and are reversed inside the graph where needed.
        scale: factor applied to the bytes (0..255) first.
        mean: per channel, in ``channel_order``, after scaling.
        std: per channel, in ``channel_order``, after scaling.
    """

    name: str
    channel_order: Literal["rgb", "bgr"]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PREPROCESSING = {
    p.name: p
    for p in (
        Preprocessing("torchvision-rgb", "rgb", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        Preprocessing("caffe-bgr", "bgr", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
    )
}


def preprocessing(name: str) -> Preprocessing:
    """The preprocessing of that name.

    Raises:
        CheckpointError: if the name is unknown; the message lists the known ones.
    """
    try:
        return PREPROCESSING[name]
    except KeyError:
        known = ", ".join(sorted(PREPROCESSING))
        raise CheckpointError(
            f"unknown preprocessing {name!r}; expected one of: {known}. It belongs to the weights: torchvision's own "
            "files want torchvision-rgb, the original Caffe VGG16 wants caffe-bgr"
        ) from None
