"""Published classifiers as small PyTorch modules: their blocks, strides, joints and heads; fewer blocks and channels.

Written down from the papers, since torchvision and timm are no dependency; `benchmarks/import_families.py` has theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 7


def conv(
    before: int, after: int, kernel: Any = 1, stride: int = 1, *, groups: int = 1, padding: Any = None,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:  # fmt: skip
    """Convolution, batch normalisation and activation."""
    if padding is None:
        padding = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else kernel // 2
    layers = [nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Sum(nn.Module):
    """A residual block: branch + shortcut, activated or not."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.shortcut, self.act = branch, shortcut or nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.branch(x))  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Branches side by side, joined by their channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Excitation(nn.Module):
    """Squeeze and excitation."""

    def __init__(
        self, channels: int, squeezed: int, act: Callable[[], nn.Module], gate: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1), act(), nn.Conv2d(squeezed, channels, 1), gate()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x)  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """Features, pooled by ``AdaptiveAvgPool2d(1)``, then what follows."""

    def __init__(self, features: nn.Module, *head: nn.Module) -> None:
        super().__init__()
        self.features, self.pool, self.head = features, nn.AdaptiveAvgPool2d(1), nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))  # type: ignore[no-any-return]


def resnet(bottleneck: bool, depths: Sequence[int], width: int = 8) -> nn.Module:
    """ResNet-18 (He et al. 2015) has depths 2, 2, 2, 2; ResNet-50 bottlenecks and 3, 4, 6, 3; both width 64."""
    layers: list[nn.Module] = [conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    before = width
    for stage, depth in enumerate(depths):
        inner = width * 2**stage
        after = inner * (4 if bottleneck else 1)
        for number in range(depth):
            stride = 2 if stage and not number else 1
            if bottleneck:
                branch = nn.Sequential(conv(before, inner), conv(inner, inner, 3, stride), conv(inner, after, act=None))
            else:
                branch = nn.Sequential(conv(before, inner, 3, stride), conv(inner, after, 3, act=None))
            shortcut = None if (before, stride) == (after, 1) else conv(before, after, 1, stride, act=None)
            layers.append(Sum(branch, shortcut, nn.ReLU()))
            before = after
    return Classifier(nn.Sequential(*layers), nn.Linear(before, CLASSES))


def densenet(depths: Sequence[int], growth: int = 4) -> nn.Module:
    """DenseNet-121 (Huang et al. 2016) has depths 6, 12, 24, 16 and growth 32."""

    def first(before: int, after: int, kernel: int = 1) -> list[nn.Module]:
        return [nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)]

    channels = 2 * growth
    layers: list[nn.Module] = [conv(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        if stage:
            layers += [*first(channels, channels // 2), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            branch = nn.Sequential(*first(channels, 4 * growth), *first(4 * growth, growth, 3))
            layers.append(Joined(nn.Identity(), branch))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), nn.Linear(channels, CLASSES))


def regnet(excited: bool, depths: Sequence[int], widths: Sequence[int], group: int = 8) -> nn.Module:
    """RegNetY-400MF (Radosavovic et al. 2020) has depths 1, 3, 6, 6 and widths 48, 104, 208, 440; X no excitation."""
    layers: list[nn.Module] = [conv(3, 16, 3, 2)]
    before = 16
    for depth, after in zip(depths, widths, strict=True):
        for number in range(depth):
            stride = 1 if number else 2
            branch = nn.Sequential(
                conv(before, after),
                conv(after, after, 3, stride, groups=after // group),
                Excitation(after, before // 4, nn.ReLU, nn.Sigmoid) if excited else nn.Identity(),
                conv(after, after, act=None),
            )
            shortcut = None if (before, stride) == (after, 1) else conv(before, after, 1, stride, act=None)
            layers.append(Sum(branch, shortcut, nn.ReLU()))
            before = after
    return Classifier(nn.Sequential(*layers), nn.Linear(before, CLASSES))


def inverted(
    before: int, after: int, expansion: int, kernel: int, stride: int, act: Callable[[], nn.Module],
    excitation: nn.Module | None = None,
) -> nn.Module:  # fmt: skip
    """Expansion, depthwise convolution, excitation, linear projection (MobileNetV2, Sandler et al. 2018)."""
    inner = before * expansion
    branch = nn.Sequential(
        conv(before, inner, act=act) if expansion > 1 else nn.Identity(),
        conv(inner, inner, kernel, stride, groups=inner, act=act),
        excitation or nn.Identity(),
        conv(inner, after, act=None),
    )
    return Sum(branch) if (before, stride) == (after, 1) else branch


def mobilenet_v2() -> nn.Module:
    """One or two blocks of each of its seven stages, where it has up to four, an eighth of the channels, ReLU6."""
    layers: list[nn.Module] = [conv(3, 8, 3, 2, act=nn.ReLU6)]
    before = 8
    for expansion, after, depth, stride in (
        (1, 8, 1, 1), (6, 8, 2, 2), (6, 8, 1, 2), (6, 16, 1, 2), (6, 16, 1, 1), (6, 24, 2, 2), (6, 40, 1, 1)
    ):  # fmt: skip
        for number in range(depth):
            layers.append(inverted(before, after, expansion, 3, 1 if number else stride, nn.ReLU6))
            before = after
    layers.append(conv(before, 64, act=nn.ReLU6))
    return Classifier(nn.Sequential(*layers), nn.Dropout(0.2), nn.Linear(64, CLASSES))


def efficientnet_b0() -> nn.Module:
    """One block of each of its seven stages (Tan and Le 2019), where it has up to four, some eighth of the channels."""
    layers: list[nn.Module] = [conv(3, 8, 3, 2, act=nn.SiLU)]
    before = 8
    for expansion, after, kernel, stride in (
        (1, 8, 3, 1), (6, 8, 3, 2), (6, 8, 5, 2), (6, 16, 3, 2), (6, 16, 5, 1), (6, 24, 5, 2), (6, 40, 3, 1)
    ):  # fmt: skip
        excitation = Excitation(before * expansion, before // 4, nn.SiLU, nn.Sigmoid)
        layers.append(inverted(before, after, expansion, kernel, stride, nn.SiLU, excitation))
        before = after
    layers.append(conv(before, 64, act=nn.SiLU))
    return Classifier(nn.Sequential(*layers), nn.Dropout(0.2), nn.Linear(64, CLASSES))


def inception_v3(c: int = 8) -> nn.Module:
    """Each kind of block once (Szegedy et al. 2015), where it has up to four; every convolution has c channels."""

    def chain(before: int, *kernels: Any, down: bool = False) -> nn.Sequential:
        last = len(kernels) - 1
        return nn.Sequential(*(
            conv(c if n else before, c, kernel, **({"stride": 2, "padding": 0} if down and n == last else {}))
            for n, kernel in enumerate(kernels)
        ))  # fmt: skip

    def pooled(before: int) -> nn.Module:
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), *chain(before, 1))

    def split(before: int, *kernels: Any) -> nn.Module:
        return nn.Sequential(*chain(before, *kernels), Joined(chain(c, (1, 3)), chain(c, (3, 1))))

    a, b = 4 * c, 6 * c
    return Classifier(
        nn.Sequential(
            conv(3, c, 3, 2, padding=0), conv(c, c, 3, padding=0), conv(c, c, 3), nn.MaxPool2d(3, 2),
            conv(c, c), conv(c, c, 3, padding=0), nn.MaxPool2d(3, 2),
            Joined(chain(c, 1), chain(c, 1, 5), chain(c, 1, 3, 3), pooled(c)),
            Joined(chain(a, 3, down=True), chain(a, 1, 3, 3, down=True), nn.MaxPool2d(3, 2)),
            Joined(chain(b, 1), chain(b, 1, (1, 7), (7, 1)), chain(b, 1, (7, 1), (1, 7), (7, 1), (1, 7)), pooled(b)),
            Joined(chain(a, 1, 3, down=True), chain(a, 1, (1, 7), (7, 1), 3, down=True), nn.MaxPool2d(3, 2)),
            Joined(chain(b, 1), split(b, 1), split(b, 1, 3), pooled(b)),
        ),
        nn.Dropout(),
        nn.Linear(b, CLASSES),
    )  # fmt: skip


class ChannelsLast(nn.Module):
    """A classifier that takes [N, H, W, 3], pools [N, h, w, C] and ends with a softmax, as Keras lays them out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.features, self.last = network.features, network.head[-1]

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.softmax(features.mean((1, 2)) @ self.last.weight.T + self.last.bias, 1)


class Wgap(nn.Module):
    """The logits alone of a network that has features as well."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]  # type: ignore[no-any-return]


def mobilenet_v3() -> nn.Module:
    """Three blocks of MobileNetV3-Small (Howard et al. 2019), and its head: a hidden layer after the pooling."""
    layers: list[nn.Module] = [
        conv(3, 16, 3, 2, act=nn.Hardswish),
        inverted(16, 16, 1, 3, 2, nn.ReLU, Excitation(16, 8, nn.ReLU, nn.Hardsigmoid)),
        inverted(16, 24, 4, 3, 2, nn.ReLU),
        inverted(24, 24, 4, 5, 1, nn.Hardswish, Excitation(96, 24, nn.ReLU, nn.Hardsigmoid)),
        conv(24, 64, act=nn.Hardswish),
    ]
    return Classifier(
        nn.Sequential(*layers), nn.Linear(64, 32), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(32, CLASSES)
    )


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of [N, C, h, w] over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permuted(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


def convnext(width: int = 16) -> nn.Module:
    """Two stages of one block (Liu et al. 2022), and its head: normalisation between pooling and classifier."""

    def block(c: int) -> nn.Module:
        return Sum(nn.Sequential(
            nn.Conv2d(c, c, 7, padding=3, groups=c), Permuted(0, 2, 3, 1), nn.LayerNorm(c), nn.Linear(c, 4 * c),
            nn.GELU(), nn.Linear(4 * c, c), Permuted(0, 3, 1, 2),
        ))  # fmt: skip

    stem = [nn.Conv2d(3, width, 4, 4), ChannelNorm(width), block(width)]
    down = [ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, 2), block(2 * width)]
    return Classifier(nn.Sequential(*stem, *down), nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES))


class VisionTransformer(nn.Module):
    """Two layers of the vision transformer (Dosovitskiy et al. 2020), with its class token."""

    def __init__(self, side: int, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (side // 16) ** 2 + 1, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([
                nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width),
                nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
            ])
            for _ in range(2)
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for first, qkv, out, second, mlp in self.layers:  # type: ignore[misc]
            q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in qkv(first(x)).chunk(3, 2))
            x = x + out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + mlp(second(x))
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


class Detector(nn.Module):
    """Boxes and scores at two scales (SSD, Liu et al. 2015)."""

    def __init__(self, width: int = 16, anchors: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, width, 3, 2), conv(width, width, 3, 2), conv(width, width, 3, 2))
        self.down = conv(width, width, 3, 2)
        self.scores = nn.ModuleList(nn.Conv2d(width, anchors * CLASSES, 3, padding=1) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(width, anchors * 4, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = [self.stem(x)]
        maps.append(self.down(maps[0]))

        def every(heads: nn.ModuleList, each: int) -> Tensor:
            found = (head(x).permute(0, 2, 3, 1).flatten(1) for head, x in zip(heads, maps, strict=True))
            return torch.cat([x.unflatten(1, (-1, each)) for x in found], 1)

        return every(self.boxes, 4), torch.softmax(every(self.scores, CLASSES), 2)
