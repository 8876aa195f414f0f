"""The whole method in plain PyTorch, from feature maps to the box: the oracle for every kernel.

Nothing here is fast. Each step is written as the definition reads, one level at a time, so that it can be checked
against the paper by eye. Two modes:

* ``float32`` features (the default): the arithmetic that every kernel must reproduce bit for bit. Sums over channels
  run in channel order without fused multiply-add, decisions are taken on the fixed-point map :func:`quantise` returns.
* ``float64`` features: the same steps in double precision on the unquantised map, an independent check of the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wgap.rule import Rule

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

SCORE_SHIFT = 16
"""Scores are whole multiples of 2**-16 from here on."""

MOST = 1 << 20
"""Magnitude at which scores are clamped, in those units: 16."""

BINS = 512
"""Colours that the colour step tells apart: the top three bits of each channel."""

SHARE = 10
"""A further component counts if its weight is at least that of the heaviest divided by this."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ReferenceBox:
    """What the method says of one image and one class.

    Attributes:
        map: float[H, W], the normalised map u in [0, 1]; of a foreground rule what of the scores is above 0, divided by
            its maximum.
        level: index l of the chosen threshold, 0..20; -1 for other rules than the adaptive one and a degenerate map.
        threshold: eta in [0, 0.999]; 0 for a foreground rule and a degenerate map.
        boxes: half-open pixel boxes (x0, y0, x1, y1) on the H x W map, of the best component first.
        degenerate: True when the mask is empty and the box is the whole image.
        edge_mean: float64[21], V_l; NaN where the edge set is empty. None when no threshold was searched.
    """

    map: Tensor
    level: int
    threshold: float
    boxes: tuple[Box, ...]
    degenerate: bool
    edge_mean: Tensor | None = None

    @property
    def box(self) -> Box:
        """The first of the boxes."""
        return self.boxes[0]


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


def components(mask: Tensor) -> Tensor:
    """int64[H, W]: of every pixel of bool[H, W] the raster index of its 8-connected component's first; else H * W.

    Every pixel repeatedly takes the smallest label around it, then its label's label, until nothing changes.
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
            return label
        label = following


def heaviest(mask: Tensor, weight: Tensor, most: int = 1, ranking: Tensor | None = None) -> tuple[Box, ...]:
    """Half-open boxes of the heaviest 8-connected components; ties go to the one that comes first in raster order.

    Args:
        mask: bool[H, W], not empty.
        weight: int64[H, W], not negative: a component weighs the sum of its pixels'.
        most: at most so many components, each of at least a tenth of the heaviest's weight.
        ranking: int64[H, W]: of those heavy enough, the ones with the largest sum of this come first.
    """
    label = components(mask)

    def total(values: Tensor) -> list[int]:
        sums = torch.zeros(mask.numel() + 1, dtype=torch.int64)
        found: list[int] = sums.index_add(0, label.flatten(), values.flatten()).tolist()
        return found

    weights = total(weight)
    firsts = sorted(set(label[mask].tolist()), key=lambda first: (-weights[first], first))
    firsts = [first for first in firsts if SHARE * weights[first] >= weights[firsts[0]]]
    if ranking is not None:
        masses = total(ranking)
        firsts.sort(key=lambda first: (-masses[first], first))
    boxes = []
    for first in firsts[:most]:
        ys, xs = (label == first).nonzero(as_tuple=True)
        boxes.append((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    return tuple(boxes)


def class_map(features: Tensor, weight: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    """int64[H, W]: a class's map in fixed point, as :func:`quantise` gives it; 0 where it is flat.

    Raises:
        ValueError: see :func:`box_from_features`.
    """
    big, base, span = _class_map(features, weight, size, kind)
    return torch.zeros(size, dtype=torch.int64) if float(span) < FLATTEST else quantise(big - base, span)


def _class_map(features: Tensor, weight: Tensor, size: tuple[int, int], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """The upsampled map, its base and its span."""
    low = recombine(features, weight, kind)
    if not bool((low.abs() <= LARGEST).all()):
        raise ValueError("features or weights are not finite, or too large to recombine in float32")
    big = upsample(low, *size)
    base = big.min() if kind == "signed" else torch.zeros((), dtype=big.dtype)
    return big, base, big.max() - base


def box_from_features(
    features: Tensor, weight: Tensor, size: tuple[int, int], kind: str = "recombined", threshold: float | None = None,
    most: int = 1,
) -> ReferenceBox:  # fmt: skip
    """Feature maps of one image and one class's weights to a box: Sec. 4.2 and 4.3 in full.

    Args:
        features: float32 or float64 [C, h, w] (see the module for what the dtype means).
        weight: float[C], the classifier row of the class to localize.
        size: (H, W) of the map, normally the network's input.
        kind: as in :func:`recombine`; ``signed`` is min-max normalised, the others max-normalised.
        threshold: a fixed eta in [0, 0.999], or None for the adaptive two-stage rule.
        most: boxes at most, see :func:`heaviest`; a component weighs as much as it has pixels.

    Raises:
        ValueError: if features or weights hold NaN or infinity, or the recombined map exceeds ``LARGEST``.
    """
    big, base, span = _class_map(features, weight, size, kind)
    height, width = size
    if float(span) < FLATTEST:
        return ReferenceBox(torch.zeros_like(big), -1, 0.0, ((0, 0, width, height),), True)
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
    return ReferenceBox(u, level, eta, heaviest(mask, mask.long(), most), False, means)


def foreground_scores(activations: Sequence[Tensor], head: dict[str, Tensor]) -> Tensor:
    """The score map S = up2(up2(A) + B) + C, above 0 on the object: what the graph's output ``foreground`` holds.

    Args:
        activations: the features float[C, h, w], the activation of twice that resolution float[D, 2h, 2w], that of four
            times; further ones as far as the head has vectors for them.
        head: ``A.weight`` [C], ``A.bias`` [1], and ``B`` and ``C`` likewise.
    """
    scores: Tensor | None = None
    for name, activation in zip("ABC", activations, strict=False):
        if f"{name}.weight" not in head:
            break
        weight, bias = (head[f"{name}.{what}"].to(activation.dtype) for what in ("weight", "bias"))
        own = torch.einsum("c,chw->hw", weight, activation) + bias
        scores = own if scores is None else upsample(scores, *own.shape) + own
    if scores is None:
        raise ValueError("expected a head with A.weight and A.bias")
    return scores


def _exact_taps(size_in: int, size_out: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """As :func:`_taps`, with whole numbers for blends: of the returned unit, the smallest that does."""
    common = math.gcd(size_in, size_out)
    unit = 2 * size_out // common
    centre = ((2 * torch.arange(size_out) + 1) * size_in - size_out).clamp(min=0) // common
    lower = (centre // unit).clamp(max=size_in - 1)
    return lower, (lower + 1).clamp(max=size_in - 1), centre % unit, unit


def exact_upsample(scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, int]:
    """float[h, w] to int64[H, W], bilinear and without any rounding, and what a score of 2**-16 is in it."""
    q = torch.round(scores * 2.0**SCORE_SHIFT).clamp(-MOST, MOST).to(torch.int64)
    y0, y1, ty, rows = _exact_taps(scores.shape[0], size[0])
    x0, x1, tx, columns = _exact_taps(scores.shape[1], size[1])
    wide = q[:, x0] * (columns - tx) + q[:, x1] * tx
    return wide[y0] * (rows - ty)[:, None] + wide[y1] * ty[:, None], rows * columns


def colour_evidence(mask: Tensor, picture: Tensor) -> Tensor:
    """int64[512]: how much each colour speaks for the object, in units of 2**-16, weighted by how well colours predict.

    Args:
        mask: bool[H, W], some of it true and some not.
        picture: uint8[H, W, 3] RGB.
    """
    height, width = mask.shape
    log = [0, *(round(2**SCORE_SHIFT * math.log(n)) for n in range(1, height * width + BINS + 1))]
    red, green, blue = (picture[..., channel].long() >> 5 for channel in range(3))
    colour = red * 64 + green * 8 + blue
    lower, right = 2 * torch.arange(height) >= height, 2 * torch.arange(width) >= width
    quadrant = 2 * lower.long()[:, None] + right.long()
    a = [torch.bincount(colour[mask & (quadrant == j)], minlength=BINS).tolist() for j in range(4)]
    b = [torch.bincount(colour[~mask & (quadrant == j)], minlength=BINS).tolist() for j in range(4)]

    def ratio(ours: list[int], theirs: list[int]) -> list[int]:
        n, m = sum(ours), sum(theirs)
        return [log[x + 1] - log[n + BINS] - log[y + 1] + log[m + BINS] for x, y in zip(ours, theirs, strict=True)]

    every_a, every_b = [sum(x) for x in zip(*a, strict=True)], [sum(x) for x in zip(*b, strict=True)]
    inside, outside = sum(every_a), sum(every_b)
    right_inside = right_outside = 0
    for ours, theirs in zip(a, b, strict=True):
        others = ratio(
            [x - y for x, y in zip(every_a, ours, strict=True)], [x - y for x, y in zip(every_b, theirs, strict=True)]
        )
        right_inside += sum(x for x, r in zip(ours, others, strict=True) if r > 0)
        right_outside += sum(x for x, r in zip(theirs, others, strict=True) if r <= 0)
    skill = right_inside * outside + right_outside * inside - inside * outside
    weight = 256 * max(0, skill) // (inside * outside)
    return torch.tensor([weight * r >> 8 for r in ratio(every_a, every_b)])


def box_from_scores(
    scores: Tensor, size: tuple[int, int], picture: Tensor | None = None, most: int = 1,
    ranking: Tensor | None = None,
) -> ReferenceBox:  # fmt: skip
    """A score map to boxes: the rule ``foreground``, or with a picture ``foreground+colour``. Exact from S on.

    Args:
        scores: float32[h, w], above 0 on the object.
        size: (H, W) of the map.
        picture: uint8[H, W, 3] RGB, the network's input.
        most: boxes at most, see :func:`heaviest`; a pixel weighs what its score is above 0.
        ranking: int64[H, W], such as :func:`class_map`: components with most of it come first.

    Raises:
        ValueError: if a score is NaN or infinite.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("scores are not finite")
    height, width = size
    u, unit = exact_upsample(scores, size)
    mask = u > 0
    if picture is not None and bool(mask.any()) and not bool(mask.all()):
        red, green, blue = (picture[..., channel].long() >> 5 for channel in range(3))
        mask = u + unit * colour_evidence(mask, picture)[red * 64 + green * 8 + blue] > 0
    above = u.clamp(min=0)
    heat = above.float() / max(int(above.max()), 1)
    if not bool(mask.any()):
        return ReferenceBox(heat, -1, 0.0, ((0, 0, width, height),), True)
    return ReferenceBox(heat, -1, 0.0, heaviest(mask, above, most, ranking), False)


def by_rule(
    rule: Rule, size: tuple[int, int], outputs: Mapping[str, Tensor], weight: Tensor, picture: Tensor, most: int = 1
) -> ReferenceBox:
    """What a rule makes of one image.

    Args:
        rule: which.
        size: (H, W) of the map.
        outputs: ``features`` [C, h, w] and ``foreground`` [1, h', w'], as far as the rule reads them.
        weight: float[C], the classifier row of the class to localize.
        picture: uint8[H, W, 3] RGB, the network's input.
        most: boxes at most.
    """
    if not rule.on_scores:
        return box_from_features(outputs["features"], weight, size, rule.map, rule.eta, most)
    ranking = None if rule.map == "none" else class_map(outputs["features"], weight, size, rule.map)
    shown = picture if rule.reads_picture else None
    return box_from_scores(outputs["foreground"][0], size, shown, most, ranking)
