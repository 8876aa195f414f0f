"""WGAP-VGG16: VGG16's convolutions, weighted global average pooling, and a linear classifier (Sec. 4.1)."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from wgap.errors import CheckpointError

Neck = Literal["none", "conv1024"]
Pooling = Literal["wgap", "gap"]

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG16's convolutions, block by block, at width 1."""

NECK_CHANNELS = 1024
"""Output channels of the ``conv1024`` neck at width 1."""

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Positions of the convolutions in ``features``: torchvision's numbering."""

BLOCK_ENDS = {"block1": 5, "block2": 10, "block3": 17, "block4": 24, "block5": 30}
"""Where each block ends in ``features`` (exclusive), its max pooling included."""


def scaled(channels: int, width: float) -> int:
    """Channels at a width multiplier, at least 1."""
    return max(1, round(channels * width))


def spatial_softmax(features: Tensor) -> Tensor:
    """Softmax of float[N, C, h, w] over the h*w positions of each channel; the maximum is subtracted first (Eq. 1)."""
    flat = features.flatten(2)
    return torch.softmax(flat - flat.amax(dim=2, keepdim=True), dim=2).reshape(features.shape)


def weighted_average_pool(features: Tensor) -> Tensor:
    """Weighted global average pooling (Sec. 4.1): float[N, C, h, w] to float[N, C], ``sum(F * S) / (h * w)``."""
    return (features * spatial_softmax(features)).mean(dim=(2, 3))


def check_arch(stride: int, neck: str, pooling: str, width: float, input_size: int) -> None:
    """Raise ValueError unless :class:`WgapVgg16` can be built with these."""
    if stride not in (8, 16):
        raise ValueError(f"stride is {stride}; expected 16 (14x14 maps at 224) or 8 (28x28)")
    if neck not in get_args(Neck) or pooling not in get_args(Pooling):
        raise ValueError(f"neck {neck!r}, pooling {pooling!r}; expected {get_args(Neck)} and {get_args(Pooling)}")
    if not 0 < width < math.inf:
        raise ValueError(f"width is {width}; expected a positive multiplier, 1.0 for VGG16 itself")
    if input_size < stride or input_size % stride:
        raise ValueError(f"input_size is {input_size}; expected a multiple of the stride, {stride}")


class WgapVgg16(nn.Module):
    """VGG16 without its last pooling and fully connected layers, pooled spatially and classified linearly.

    Parameter names are ``features.N.weight|bias`` with torchvision's numbers, ``neck.weight|bias`` (if there is a neck)
    and ``classifier.weight|bias``. Convolutions and the neck start from He's initialisation, the classifier from
    :meth:`reset_classifier`.

    Args:
        num_classes: K.
        stride: 16 drops pool5 (14x14 maps at 224); 8 drops pool4 too (28x28).
        neck: ``none``, or ``conv1024``: a 3x3 convolution to 1024 channels (times width) and a ReLU.
        pooling: ``wgap`` (the method) or ``gap`` (plain average, for the ablation).
        width: multiplier of every channel count, for small models.
        input_size: side of the square input in pixels, a multiple of ``stride``.

    Raises:
        ValueError: if an argument is outside these choices.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        stride: int = 16,
        neck: Neck = "none",
        pooling: Pooling = "wgap",
        width: float = 1.0,
        input_size: int = 224,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        check_arch(stride, neck, pooling, width, input_size)
        self.num_classes, self.stride, self.neck_kind, self.pooling = num_classes, stride, neck, pooling
        self.width, self.input_size = float(width), input_size
        layers: list[nn.Module] = []
        channels = 3
        for number, block in enumerate(BLOCKS, start=1):
            for out in block:
                layers += [nn.Conv2d(channels, scaled(out, width), 3, padding=1), nn.ReLU(inplace=True)]
                channels = scaled(out, width)
            if number < 5:
                # An identity keeps torchvision's numbering where stride 8 drops pool4.
                layers.append(nn.Identity() if number == 4 and stride == 8 else nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.neck: nn.Conv2d | None = None
        if neck == "conv1024":
            self.neck = nn.Conv2d(channels, scaled(NECK_CHANNELS, width), 3, padding=1)
            channels = self.neck.out_channels
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the feature maps at ``input_size``."""
        side = self.input_size // self.stride
        return self.classifier.in_features, side, side

    @property
    def pooling_gain(self) -> float:
        """How much smaller the pooled values are than activations: h*w for ``wgap``, 1 for ``gap``."""
        _, h, w = self.feature_shape
        return float(h * w) if self.pooling == "wgap" else 1.0

    def arch(self) -> dict[str, Any]:
        """The arguments that rebuild this network, ready for JSON."""
        return {
            "num_classes": self.num_classes,
            "stride": self.stride,
            "neck": self.neck_kind,
            "pooling": self.pooling,
            "width": self.width,
            "input_size": self.input_size,
        }

    def compensate_pooling(self) -> None:
        """Multiply the classifier's initial weights by h*w, so that small activations reach logits of order one.

        WGAP's division by h*w shrinks a classifier's inputs and gradients. ImageNet features, whose activations reach
        the hundreds, do not need this; a network trained from scratch does, together with the learning rate of
        :func:`wgap.train.optim.parameter_groups`.
        """
        with torch.no_grad():
            self.classifier.weight.mul_(self.pooling_gain)

    def run_blocks(self, x: Tensor, start: int, end: int) -> Tensor:
        """Layers ``start`` (inclusive) to ``end`` (exclusive) of ``features``; the positions of ``BLOCK_ENDS``."""
        for position in range(start, end):
            x = self.features[position](x)
        return x

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Neck, pooling and classifier: VGG16's last activations float[N, C', h, w] to (logits, features)."""
        features = x if self.neck is None else torch.relu(self.neck(x))
        pooled = weighted_average_pool(features) if self.pooling == "wgap" else features.mean(dim=(2, 3))
        return self.classifier(pooled), features

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Classify normalised images and keep the feature maps for localization.

        Args:
            x: float[N, 3, H, W], normalised as the checkpoint's preprocessing says.

        Returns:
            logits float[N, K] and features float[N, C, h, w] (>= 0, after the last ReLU).
        """
        return self.head(self.features(x))


def arch_from_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read classes, width and neck off a state dict's keys and shapes; stride and pooling leave no trace in them.

    Raises:
        CheckpointError: if the keys are not a WGAP-VGG16's.
    """
    try:
        num_classes, _ = shapes["classifier.weight"]
        last = shapes["features.28.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            "not a WGAP-VGG16 state dict: expected features.0.weight ... features.28.bias, classifier.weight [K, C] "
            f"and classifier.bias [K]; got {', '.join(sorted(shapes)[:6]) or 'no tensors'}"
            f"{' ...' if len(shapes) > 6 else ''}"
        ) from error
    return {
        "num_classes": num_classes,
        "width": last / BLOCKS[-1][-1],
        "neck": "conv1024" if "neck.weight" in shapes else "none",
    }
