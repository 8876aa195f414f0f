"""Backbones: the convolutions below the pooling, in named stages that can be cut, frozen and cached."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

__all__ = ["BACKBONES", "RESNETS", "VGG16", "Backbone", "Stage", "backbone_from_state", "folded", "scaled"]

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Stage:
    """A part of a backbone after which it can be cut.

    Attributes:
        name: what ``--freeze-through`` takes.
        end: where it ends in the backbone's ``layers`` (exclusive).
        channels: of its output, at width 1.
        stride: input pixels per position of its output, at the backbone's natural stride.
    """

    name: str
    end: int
    channels: int
    stride: int


class Backbone(Protocol):
    """What training, freezing, caching and export ask of a network's convolutions.

    Attributes:
        name: what ``--backbone``, checkpoints and manifests call it.
        stages: in order; the last one's output, >= 0 after a ReLU, is the features.
        layers: names of the modules that run one after the other, as in ``named_modules``.
        strides: input pixels per feature position that it can be built for; the first is its natural one.
        preprocessing: of a network that starts from no weights.
    """

    name: str
    stages: tuple[Stage, ...]
    layers: tuple[str, ...]
    strides: tuple[int, ...]
    preprocessing: str

    def modules(self, stride: int, width: float) -> dict[str, nn.Module]:
        """The network's own modules by name. Their parameters and buffers are named as in torchvision's files."""

    def channels(self, width: float) -> int:
        """Channels of the features at a width multiplier."""

    def width_of(self, shapes: Mapping[str, Sequence[int]]) -> float | None:
        """The width multiplier of a state dict with these shapes; None where it is another network's."""


def scaled(channels: int, width: float) -> int:
    """Channels at a width multiplier, at least 1."""
    return max(1, round(channels * width))


class _Sequential:
    """What backbones share whose convolutions all stand in ``features``.

    Attributes:
        last: the weights of the last convolution.
        stages: see :class:`Backbone`.
    """

    last: str
    stages: tuple[Stage, ...]

    def channels(self, width: float) -> int:
        """Those of the last stage, scaled."""
        return scaled(self.stages[-1].channels, width)

    def width_of(self, shapes: Mapping[str, Sequence[int]]) -> float | None:
        """Read off the last convolution."""
        last = shapes.get(self.last)
        return last[0] / self.stages[-1].channels if last else None


class Vgg16(_Sequential):
    """VGG16 without its last pooling and fully connected layers. Stride 8 drops the pooling after block4 too."""

    name = "vgg16"
    last = "features.28.weight"
    blocks = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    stages: tuple[Stage, ...] = (
        Stage("block1", 5, 64, 2),
        Stage("block2", 10, 128, 4),
        Stage("block3", 17, 256, 8),
        Stage("block4", 24, 512, 16),
        Stage("block5", 30, 512, 16),
    )
    layers: tuple[str, ...] = tuple(f"features.{number}" for number in range(30))
    strides: tuple[int, ...] = (16, 8)
    preprocessing = "torchvision-rgb"

    def modules(self, stride: int, width: float) -> dict[str, nn.Module]:
        """``features``: 13 convolutions with their ReLUs, a max pooling after each block but the last."""
        layers: list[nn.Module] = []
        channels = 3
        for number, block in enumerate(self.blocks, start=1):
            for out in block:
                layers += [nn.Conv2d(channels, scaled(out, width), 3, padding=1), nn.ReLU(inplace=True)]
                channels = scaled(out, width)
            if number < len(self.blocks):
                # An identity keeps torchvision's numbering where stride 8 drops pool4.
                layers.append(nn.Identity() if number == 4 and stride == 8 else nn.MaxPool2d(2))
        return {"features": nn.Sequential(*layers)}


class Residual(nn.Module):
    """Convolutions with batch normalisation, and the input added before the last ReLU.

    Args:
        incoming: channels of the input.
        channels: of the 3x3 convolutions.
        stride: of the block; a bottleneck has it in its 3x3 convolution.
        bottleneck: 1x1, 3x3 and a 1x1 to four times the channels, in place of two 3x3.
        project: whether the input passes a 1x1 convolution of its own, ``downsample``.
    """

    def __init__(self, incoming: int, channels: int, stride: int, *, bottleneck: bool, project: bool) -> None:
        super().__init__()
        pair = ((3, channels, stride), (3, channels, 1))
        triple = ((1, channels, 1), (3, channels, stride), (1, 4 * channels, 1))
        first = incoming
        self.steps = triple if bottleneck else pair
        for number, (kernel, out, step) in enumerate(self.steps, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(first, out, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(out))
            first = out
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if project:
            self.downsample = nn.Sequential(nn.Conv2d(incoming, first, 1, stride, bias=False), nn.BatchNorm2d(first))

    def forward(self, x: Tensor) -> Tensor:
        """float[N, incoming, H, W] to float[N, channels or 4 * channels, H/stride, W/stride], >= 0."""
        out = x
        for number in range(1, len(self.steps) + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if number < len(self.steps):
                out = self.relu(out)
        added: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return added


class ResNet:
    """A ResNet of torchvision's layout without pooling and ``fc``.

    Stride 16 drops the stride of layer4, 8 that of layer3 too. Nothing is dilated in return.

    Args:
        name: such as ``resnet50``.
        counts: residual blocks in layer1 ... layer4.
        bottleneck: of three convolutions each, in place of two.
    """

    layers: tuple[str, ...] = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    strides: tuple[int, ...] = (32, 16, 8)
    preprocessing = "torchvision-rgb"

    def __init__(self, name: str, counts: tuple[int, int, int, int], *, bottleneck: bool) -> None:
        self.name, self.counts, self.bottleneck = name, counts, bottleneck
        self.expansion = 4 if bottleneck else 1
        self.stages: tuple[Stage, ...] = (
            Stage("stem", 4, 64, 4),
            *(Stage(f"layer{n}", 4 + n, 32 * 2**n * self.expansion, 2 ** (n + 1)) for n in (1, 2, 3, 4)),
        )

    def modules(self, stride: int, width: float) -> dict[str, nn.Module]:
        """``conv1``, ``bn1``, ``relu``, ``maxpool`` and ``layer1`` ... ``layer4``."""
        channels = scaled(64, width)
        modules: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            "bn1": nn.BatchNorm2d(channels),
            "relu": nn.ReLU(inplace=True),
            "maxpool": nn.MaxPool2d(3, 2, 1),
        }
        for stage, count in zip(self.stages[1:], self.counts, strict=True):
            inner = scaled(stage.channels // self.expansion, width)
            blocks = []
            for number in range(count):
                first = number == 0 and stage.name != "layer1"
                blocks.append(
                    Residual(
                        channels,
                        inner,
                        2 if first and stage.stride <= stride else 1,
                        bottleneck=self.bottleneck,
                        project=first or (number == 0 and self.bottleneck),
                    )
                )
                channels = inner * self.expansion
            modules[stage.name] = nn.Sequential(*blocks)
        return modules

    def channels(self, width: float) -> int:
        """512 at width 1, or 2048 of bottlenecks."""
        return scaled(512, width) * self.expansion

    def width_of(self, shapes: Mapping[str, Sequence[int]]) -> float | None:
        """Read off layer4; the number of blocks and of their convolutions tells which ResNet it is."""
        for number, count in enumerate(self.counts, start=1):
            first, last, beyond = (f"layer{number}.{n}.conv1.weight" for n in (0, count - 1, count))
            if first not in shapes or last not in shapes or beyond in shapes:
                return None
        if ("layer4.0.conv3.weight" in shapes) != self.bottleneck:
            return None
        return shapes["layer4.0.conv1.weight"][0] / 512 if shapes["layer4.0.conv1.weight"] else None


class InvertedResidual(nn.Module):
    """A 1x1 convolution to six times the channels, a depthwise 3x3, and a linear 1x1; the input is added where told.

    Args:
        incoming: channels of the input.
        channels: of the output.
        stride: of the depthwise convolution.
        expand: whether the first convolution is there.
        add: whether the input is added to the output, which has no activation of its own.
    """

    def __init__(self, incoming: int, channels: int, stride: int, *, expand: bool, add: bool) -> None:
        super().__init__()
        inner = 6 * incoming if expand else incoming
        first = [_clipped(incoming, inner, 1)] if expand else []
        last = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv = nn.Sequential(*first, _clipped(inner, inner, 3, stride, inner), *last)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        """float[N, incoming, H, W] to float[N, channels, H/stride, W/stride], of either sign."""
        out: Tensor = self.conv(x)
        return x + out if self.add else out


def _clipped(incoming: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    convolution = nn.Conv2d(incoming, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True))


class MobileNetV2(_Sequential):
    """MobileNetV2 of torchvision's layout without pooling and classifier.

    Stride 16 drops the stride of stage4, 8 that of stage3 too.
    """

    name = "mobilenet_v2"
    last = "features.18.0.weight"
    groups = ((16, 1, 2), (24, 2, 4), (32, 3, 8), (64, 4, 16), (96, 3, 16), (160, 3, 32), (320, 1, 32))
    """Output channels, blocks, and natural stride of each row of the paper's table."""
    stages: tuple[Stage, ...] = (
        Stage("stem", 2, 16, 2),
        Stage("stage1", 4, 24, 4),
        Stage("stage2", 7, 32, 8),
        Stage("stage3", 14, 96, 16),
        Stage("stage4", 19, 1280, 32),
    )
    layers: tuple[str, ...] = tuple(f"features.{number}" for number in range(19))
    strides: tuple[int, ...] = (32, 16, 8)
    preprocessing = "torchvision-rgb"

    def modules(self, stride: int, width: float) -> dict[str, nn.Module]:
        """``features``: a convolution, 17 blocks, a 1x1 convolution to 1280 channels at width 1."""
        channels, reached = scaled(32, width), 2
        layers: list[nn.Module] = [_clipped(3, channels, 3, 2)]
        for row, (natural, count, coarse) in enumerate(self.groups):
            out = scaled(natural, width)
            for number in range(count):
                step = 2 if reached < min(coarse, stride) else 1
                layers.append(InvertedResidual(channels, out, step, expand=row > 0, add=number > 0))
                channels, reached = out, reached * step
        layers.append(_clipped(channels, self.channels(width), 1))
        return {"features": nn.Sequential(*layers)}


VGG16 = Vgg16()

RESNETS = (
    ResNet("resnet18", (2, 2, 2, 2), bottleneck=False),
    ResNet("resnet34", (3, 4, 6, 3), bottleneck=False),
    ResNet("resnet50", (3, 4, 6, 3), bottleneck=True),
    ResNet("resnet101", (3, 4, 23, 3), bottleneck=True),
)

BACKBONES: dict[str, Backbone] = {backbone.name: backbone for backbone in (VGG16, *RESNETS, MobileNetV2())}
"""By name."""


def backbone_from_state(shapes: Mapping[str, Sequence[int]]) -> tuple[Backbone, float] | None:
    """The backbone whose state dict has these keys, and its width multiplier; None if it is none of ``BACKBONES``."""
    widths = ((backbone, backbone.width_of(shapes)) for backbone in BACKBONES.values())
    return next(((backbone, width) for backbone, width in widths if width), None)


def folded(network: Network) -> Network:
    """A copy of a network in evaluation mode whose convolutions do the work of the batch normalisation behind them.

    Each BatchNorm that is registered next to a convolution becomes an identity, the convolution gets a bias. It is
    computed in float64; a network without BatchNorm is copied to the bit.
    """
    made = copy.deepcopy(network).double().eval()
    for parent in list(made.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for (name, convolution), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, nn.utils.fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())
    return made.float()
