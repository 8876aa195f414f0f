"""Learning rates: which layers learn how fast, and how that falls over the run."""

from __future__ import annotations

import math
from typing import Any

import torch

from wgap.train.config import TrainConfig
from wgap.train.model import WgapNetwork


def parameter_groups(model: WgapNetwork, config: TrainConfig) -> list[dict[str, Any]]:
    """Optimizer groups of the parameters that require gradients; ``lr`` is each group's peak.

    Beside pretrained layers, new ones (neck, classifier) learn ``new_layer_rate`` times as fast. From scratch all
    layers are new and share one rate, and the classifier's weights learn as if WGAP's division by h*w stood behind them
    rather than before: with W = (h*w) W' and gradient descent on W', W moves (h*w)^2 times as far under SGD, h*w times
    under AdamW, and decays as before.
    """
    backbone = [p for p in model.backbone_parameters() if p.requires_grad]
    neck = [] if model.neck is None else list(model.neck.parameters())
    rate, gain = (1.0, model.pooling_gain) if config.init is None else (config.new_layer_rate, 1.0)
    moved = gain**2 if config.optimizer == "sgd" else gain
    classifier = {"lr": config.lr * rate * moved, "weight_decay": config.weight_decay / moved}
    if config.classifier_rate is not None:
        classifier = {"lr": config.lr * config.classifier_rate, "weight_decay": config.weight_decay}
    groups = [
        {"name": "backbone", "params": backbone, "lr": config.lr, "weight_decay": config.weight_decay},
        {"name": "neck", "params": neck, "lr": config.lr * rate, "weight_decay": config.weight_decay},
        {"name": "classifier.weight", "params": [model.classifier.weight], **classifier},
        {
            "name": "classifier.bias",
            "params": [model.classifier.bias],
            "lr": config.lr * rate,
            "weight_decay": config.weight_decay,
        },
    ]
    return [group for group in groups if group["params"]]


def optimizer_for(model: WgapNetwork, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over :func:`parameter_groups`; each group keeps its peak rate as ``peak_lr``."""
    groups = [{**group, "peak_lr": group["lr"]} for group in parameter_groups(model, config)]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return torch.optim.AdamW(groups)


def rate_fraction(step: int, steps: int, warmup: float = 0.0) -> float:
    """Fraction of the peak rate at a step: half a cosine from 1 down towards 0, after a linear rise (warm-up)."""
    rise = min(1.0, (step + 1) / (warmup * steps)) if warmup else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: float = 0.0) -> None:
    """Give every group its rate for a step; a function of the step alone, so that resuming needs no scheduler state."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * rate_fraction(step, steps, warmup)
