"""The whole method in plain PyTorch, from feature maps to the box: the oracle for every kernel.

Nothing here is fast. Each step is written as the definition reads, one level at a time, so that it can be checked
against the paper by eye. Two modes:

* ``float32`` features (the default): the arithmetic that every kernel must reproduce bit for bit. Sums over channels
  run in channel order without fused multiply-add, decisions are taken on the fixed-point map :func:`quantise` returns.
* ``float64`` features: the same steps in double precision on the unquantised map, an independent check of the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 20
"""Number of threshold steps: eta_l = l / LEVELS for l = 0..LEVELS."""

ONE = LEVELS << 19
"""Fixed-point value of u = 1. Every eta_l is then a whole number, l << 19, and float32 loses nothing above 2**-24."""

FALLBACK_LEVEL = 4
"""The level (eta = 0.20, CAM's fixed threshold) taken when no difference exceeds the mean."""

LARGEST = 2.0**125
"""Recombined values beyond this magnitude are refused: interpolation between them could overflow float32."""

FLATTEST = 2.0**-60
"""A map whose peak (or range, for signed maps) is below this is degenerate: there is nothing to normalise."""

MAPS = ("recombined", "positive", "signed")


@dataclass(frozen=True)
class ReferenceBox:
    """What the method says of one image and one class.

    Attributes:
        map: float[H, W], the normalised map u in [0, 1].
        level: index l of the chosen threshold, 0..20; -1 for a fixed threshold or a degenerate map.
        threshold: eta in [0, 0.999]; 0 for a degenerate map.
        box: half-open pixel box (x0, y0, x1, y1) on the H x W map.
        degenerate: True when the map is flat at zero and the box is the whole image.
        edge_mean: float64[21], V_l; NaN where the edge set is empty. None when no threshold was searched.
    """

    map: Tensor
    level: int
    threshold: float
    box: tuple[int, int, int, int]
    degenerate: bool
    edge_mean: Tensor | None


def recombine(features: Tensor, weight: Tensor, kind: str = "recombined") -> Tensor:
    """Class activation map of one class at feature resolution (Sec. 4.2, Eq. 3).

    Args:
        features: float[C, h, w] feature maps after the last ReLU.
        weight: float[C], the classifier row of the class.
        kind: ``recombined`` sums |w_c| F_c (Eq. 3), ``positive`` max(w_c, 0) F_c, ``signed`` w_c F_c (plain CAM).

    Returns:
        float[h, w], summed in channel order, one rounded product and one rounded sum per channel.
    """
    w = {"recombined": weight.abs(), "positive": weight.clamp(min=0), "signed": weight}[kind].to(features.dtype)
    total = torch.zeros_like(features[0])
    for c in range(features.shape[0]):
        total = total + w[c] * features[c]
    return total


def _taps(size_in: int, size_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Source index pair and blend weight per output index; half-pixel centres, edges clamped, exact integers inside."""
    d = torch.arange(size_out)
    centre = ((2 * d + 1) * size_in - size_out).clamp(min=0)  # source coordinate times 2 * size_out
    lower = (centre // (2 * size_out)).clamp(max=size_in - 1)
    upper = (lower + 1).clamp(max=size_in - 1)
    blend = (centre % (2 * size_out)).to(dtype) / torch.tensor(2 * size_out, dtype=dtype)
    return lower, upper, blend


def upsample(low: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation of float[h, w] to float[height, width], columns first (OpenCV's INTER_LINEAR sampling)."""
    x0, x1, tx = _taps(low.shape[1], width, low.dtype)
    y0, y1, ty = _taps(low.shape[0], height, low.dtype)
    wide = low[:, x0] + tx * (low[:, x1] - low[:, x0])
    return wide[y0] + ty[:, None] * (wide[y1] - wide[y0])


def quantise(raised: Tensor, span: Tensor) -> Tensor:
    """int64[H, W] fixed-point map: u * ONE rounded to nearest even, in [0, ONE]. ``raised`` is M minus its base."""
    scale = torch.tensor(ONE, dtype=raised.dtype) / span
    return torch.round(raised * scale).to(torch.int64).clamp(0, ONE)


def edge_set(mask: Tensor) -> Tensor:
    """bool[H, W]: pixels of the mask with a 4-neighbour inside the image that is not in it; the border is no edge."""
    outside = ~mask
    near = torch.zeros_like(mask)
    near[1:] |= outside[:-1]
    near[:-1] |= outside[1:]
    near[:, 1:] |= outside[:, :-1]
    near[:, :-1] |= outside[:, 1:]
    return mask & near


def edge_means(u: Tensor, one: float) -> Tensor:
    """float64[21]: V_l, the mean of the map over each level's edge set, in units of u; NaN where it is empty.

    Args:
        u: the map in units where 1.0 is ``one``: the integers of :func:`quantise`, or u itself with ``one`` = 1.
        one: value of u = 1.
    """
    means = torch.full((LEVELS + 1,), math.nan, dtype=torch.float64)
    for level in range(LEVELS + 1):
        edge = edge_set(u > level * one / LEVELS)
        if edge.any():
            means[level] = u[edge].sum().double() / edge.sum().double() / one
    return means


def choose_level(edge_mean: Tensor) -> int:
    """The smallest level whose difference D_l = |V_l - V_(l-1)| exceeds the mean of all twenty (Sec. 4.3, Fig. 3)."""
    v = edge_mean.tolist()
    d = [abs(v[i] - v[i - 1]) for i in range(1, LEVELS + 1)]
    d = [0.0 if math.isnan(x) else x for x in d]
    total = 0.0
    for x in d:
        total += x
    mean = total / LEVELS
    return next((i + 1 for i, x in enumerate(d) if x > mean), FALLBACK_LEVEL)


def largest_component(mask: Tensor) -> tuple[int, int, int, int]:
    """Half-open box of the largest 8-connected component; ties go to the one that comes first in raster order.

    Every pixel repeatedly takes the smallest label around it, then its label's label, until nothing changes; a
    component's label is then the raster index of its first pixel.
    """
    height, width = mask.shape
    nothing = height * width
    own = torch.arange(nothing).reshape(height, width)
    label = torch.where(mask, own, nothing)
    while True:
        padded = torch.nn.functional.pad(label, (1, 1, 1, 1), value=nothing)
        smallest = label
        for dy in range(3):
            for dx in range(3):
                smallest = torch.minimum(smallest, padded[dy : dy + height, dx : dx + width])
        jump = torch.cat([smallest.flatten(), torch.tensor([nothing])])
        following = torch.where(mask, jump[smallest], nothing)
        if torch.equal(following, label):
            break
        label = following
    sizes = torch.bincount(label[mask], minlength=nothing)
    first = int((sizes == sizes.max()).nonzero()[0])
    ys, xs = (label == first).nonzero(as_tuple=True)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def box_from_features(
    features: Tensor, weight: Tensor, size: tuple[int, int], kind: str = "recombined", threshold: float | None = None
) -> ReferenceBox:
    """Feature maps of one image and one class's weights to a box: Sec. 4.2 and 4.3 in full.

    Args:
        features: float32 or float64 [C, h, w] (see the module for what the dtype means).
        weight: float[C], the classifier row of the class to localize.
        size: (H, W) of the map, normally the network's input.
        kind: as in :func:`recombine`; ``signed`` is min-max normalised, the others max-normalised.
        threshold: a fixed eta in [0, 0.999], or None for the adaptive two-stage rule.

    Raises:
        ValueError: if features or weights hold NaN or infinity, or the recombined map exceeds ``LARGEST``.
    """
    low = recombine(features, weight, kind)
    if not bool((low.abs() <= LARGEST).all()):
        raise ValueError("features or weights are not finite, or too large to recombine in float32")
    height, width = size
    big = upsample(low, height, width)
    base = big.min() if kind == "signed" else torch.zeros((), dtype=big.dtype)
    span = big.max() - base
    if float(span) < FLATTEST:
        return ReferenceBox(torch.zeros_like(big), -1, 0.0, (0, 0, width, height), True, None)
    u = ((big - base) / span).clamp(min=0)
    exact = features.dtype == torch.float64
    decisive, one = (u, 1.0) if exact else (quantise(big - base, span), float(ONE))
    if threshold is None:
        means = edge_means(decisive, one)
        level = choose_level(means)
        eta = level / LEVELS
        mask = decisive > level * one / LEVELS
    else:
        means, level, eta = None, -1, threshold
        mask = decisive > (threshold if exact else round(threshold * one))
    return ReferenceBox(u, level, eta, largest_component(mask), False, means)
