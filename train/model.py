"""WGAP-VGG16 and its kin: convolutions, weighted global average pooling, and a linear classifier (Sec. 4.1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from wgap.errors import CheckpointError
from wgap.train.backbone import BACKBONES, VGG16, backbone_from_state, scaled

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BLOCK_ENDS", "CONVOLUTIONS", "NECK_CHANNELS", "Neck", "Pooling", "WgapNetwork", "WgapVgg16", "arch_from_state",
    "check_arch", "spatial_softmax", "weighted_average_pool",
]  # fmt: skip

Neck = Literal["none", "conv1024"]
Pooling = Literal["wgap", "gap"]

NECK_CHANNELS = 1024
"""Output channels of the ``conv1024`` neck at width 1."""

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Positions of VGG16's convolutions in ``features``: torchvision's numbering."""

BLOCK_ENDS = {stage.name: stage.end for stage in VGG16.stages}
"""Where each of VGG16's blocks ends in ``features`` (exclusive), its max pooling included."""


def spatial_softmax(features: Tensor) -> Tensor:
    """Softmax of float[N, C, h, w] over the h*w positions of each channel; the maximum is subtracted first (Eq. 1)."""
    flat = features.flatten(2)
    return torch.softmax(flat - flat.amax(dim=2, keepdim=True), dim=2).reshape(features.shape)


def weighted_average_pool(features: Tensor) -> Tensor:
    """Weighted global average pooling (Sec. 4.1): float[N, C, h, w] to float[N, C], ``sum(F * S) / (h * w)``."""
    return (features * spatial_softmax(features)).mean(dim=(2, 3))


def check_arch(backbone: str, stride: int, neck: str, pooling: str, width: float, input_size: int) -> None:
    """Raise ValueError unless :class:`WgapNetwork` can be built with these."""
    if backbone not in BACKBONES:
        raise ValueError(f"backbone is {backbone!r}; expected one of {', '.join(BACKBONES)}")
    strides = BACKBONES[backbone].strides
    if stride not in strides:
        maps = [f"{s} ({224 // s}x{224 // s} maps at 224)" for s in strides]
        raise ValueError(f"stride is {stride}; expected {', '.join(maps[:-1])} or {maps[-1]} of {backbone}")
    if neck not in get_args(Neck) or pooling not in get_args(Pooling):
        raise ValueError(f"neck {neck!r}, pooling {pooling!r}; expected {get_args(Neck)} and {get_args(Pooling)}")
    if not 0 < width < math.inf:
        raise ValueError(f"width is {width}; expected a positive multiplier, 1.0 for {backbone} itself")
    if input_size < stride or input_size % stride:
        raise ValueError(f"input_size is {input_size}; expected a multiple of the stride, {stride}")


class WgapNetwork(nn.Module):
    """A backbone's convolutions, pooled spatially and classified linearly.

    The backbone's parameters have torchvision's names; beside them are ``neck.weight|bias`` (if there is a neck) and
    ``classifier.weight|bias``. Convolutions and the neck start from He's initialisation, the classifier from
    PyTorch's own; see :meth:`compensate_pooling`.

    Args:
        num_classes: K.
        backbone: name of one of :data:`wgap.train.backbone.BACKBONES`.
        stride: input pixels per feature position, one of the backbone's. 16 gives 14x14 maps at 224.
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
        backbone: str = "vgg16",
        stride: int = 16,
        neck: Neck = "none",
        pooling: Pooling = "wgap",
        width: float = 1.0,
        input_size: int = 224,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        check_arch(backbone, stride, neck, pooling, width, input_size)
        self.backbone = BACKBONES[backbone]
        self.num_classes, self.stride, self.neck_kind, self.pooling = num_classes, stride, neck, pooling
        self.width, self.input_size = float(width), input_size
        self._frozen, self._stored_statistics = 0, False
        for name, module in self.backbone.modules(stride, width).items():
            self.add_module(name, module)
        channels = self.backbone.channels(width)
        self.neck: nn.Conv2d | None = None
        if neck == "conv1024":
            self.neck = nn.Conv2d(channels, scaled(NECK_CHANNELS, width), 3, padding=1)
            channels = self.neck.out_channels
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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

    @property
    def layers(self) -> list[nn.Module]:
        """The backbone's layers, which run one after the other."""
        return [self.get_submodule(name) for name in self.backbone.layers]

    def arch(self) -> dict[str, Any]:
        """The arguments that rebuild this network, ready for JSON. VGG16 goes without saying, as it always did."""
        named = {} if self.backbone.name == VGG16.name else {"backbone": self.backbone.name}
        return {
            "num_classes": self.num_classes,
            **named,
            "stride": self.stride,
            "neck": self.neck_kind,
            "pooling": self.pooling,
            "width": self.width,
            "input_size": self.input_size,
        }

    def backbone_parameters(self) -> list[nn.Parameter]:
        """All parameters but the neck's and the classifier's."""
        return [p for name, p in self.named_parameters() if not name.startswith(("neck.", "classifier."))]

    def compensate_pooling(self) -> None:
        """Multiply the classifier's initial weights by h*w, so that small activations reach logits of order one.

        WGAP's division by h*w shrinks a classifier's inputs and gradients. ImageNet features, whose activations reach
        the hundreds, do not need this; a network trained from scratch does, together with the learning rate of
        :func:`wgap.train.optim.parameter_groups`.
        """
        with torch.no_grad():
            self.classifier.weight.mul_(self.pooling_gain)

    def freeze(self, end: int, *, stored_statistics: bool = False) -> None:
        """Keep the first ``end`` layers as they are, their batch normalisation's running statistics included.

        Args:
            end: one of the stages' ends; 0 freezes no layer.
            stored_statistics: whether BatchNorm elsewhere keeps its running statistics too, in place of each batch's;
                its scale and shift learn.
        """
        self._frozen, self._stored_statistics = end, stored_statistics
        for layer in self.layers[:end]:
            layer.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but of what :meth:`freeze` keeps: that stays in evaluation mode."""
        super().train(mode)
        kept = self.layers[: self._frozen]
        if self._stored_statistics:
            kept += [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in kept:
            module.eval()
        return self

    def normalised_by_batch(self) -> list[nn.BatchNorm2d]:
        """The normalisations that take their statistics from each batch in training."""
        learning = [] if self._stored_statistics else self.layers[self._frozen :]
        return [module for layer in learning for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]

    def run_blocks(self, x: Tensor, start: int, end: int) -> Tensor:
        """Layers ``start`` (inclusive) to ``end`` (exclusive) of the backbone."""
        for layer in self.layers[start:end]:
            x = layer(x)
        return x

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Neck, pooling and classifier: the backbone's last activations float[N, C', h, w] to (logits, features)."""
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
        return self.head(self.run_blocks(x, 0, len(self.backbone.layers)))


class WgapVgg16(WgapNetwork):
    """:class:`WgapNetwork` on VGG16, the paper's; its layers are ``features``."""

    features: nn.Sequential

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(num_classes, backbone="vgg16", **options)


def arch_from_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read backbone, classes, width and neck off a state dict; stride and pooling leave no trace in it.

    Raises:
        CheckpointError: if the keys are of no such network.
    """
    found, classifier = backbone_from_state(shapes), shapes.get("classifier.weight", ())
    if found is None or len(classifier) != 2:
        kinds = ", ".join(name for name in BACKBONES if name != VGG16.name)
        raise CheckpointError(
            f"not a WGAP-VGG16 state dict, nor one of {kinds}: expected features.0.weight ... features.28.bias (or "
            "conv1.weight ... layer4.1.bn2.bias and the like), classifier.weight [K, C] and classifier.bias [K]; got "
            f"{', '.join(sorted(shapes)[:6]) or 'no tensors'}{' ...' if len(shapes) > 6 else ''}"
        )
    return {
        "num_classes": classifier[0],
        "backbone": found[0].name,
        "width": found[1],
        "neck": "conv1024" if "neck.weight" in shapes else "none",
    }
