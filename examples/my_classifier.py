"""A classifier as ``wgap import my_classifier:network`` takes it: a function that returns a PyTorch module.

Its weights are random here, of a fixed seed; yours load what you have trained.
"""

import torch
from torch import nn


def network() -> nn.Module:
    """float32 [N, 3, H, W] to the logits of three classes: convolutions, mean over positions, one linear layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))
