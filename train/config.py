"""Everything a training run can be told, as one dataclass: the command line and Python share it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from wgap.errors import CheckpointError
from wgap.preprocessing import PREPROCESSING
from wgap.train.backbone import BACKBONES
from wgap.train.model import Neck, Pooling, check_arch

Optimizer = Literal["sgd", "adamw"]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
Accelerator = Literal["auto", "cpu", "cuda"]
Statistics = Literal["auto", "batch", "stored"]

FREE_TO_CHANGE = frozenset(
    {"out", "data", "cache_dir", "workers", "max_bad", "resume", "force", "devices", "accelerator"}
)
"""Fields a resumed run may set anew: where things lie and how fast they go, not what comes out."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        data: dataset root; see :mod:`wgap.datasets` for the layouts.
        out: run folder; receives ``run.json``, ``metrics.jsonl``, ``last.pt`` and ``model.safetensors``.
        layout: dataset layout, or ``auto``.
        backbone: name of one of :data:`wgap.train.backbone.BACKBONES`.
        init: ``.safetensors`` or ``.pth`` file with the backbone's weights; None trains from scratch.
        preprocessing: name from :mod:`wgap.preprocessing`. None takes the one ``init`` carries (``torchvision-rgb``
            when training from scratch).
        pooling: ``wgap`` or ``gap``.
        neck: ``none`` or ``conv1024``.
        stride: input pixels per feature position: 16, 8, or 32 (``vgg16``: 16 or 8).
        width: channel multiplier.
        input_size: side of the square input in pixels.
        epochs: passes over images x max(views, 1).
        batch_size: images per optimizer step, over all processes together.
        lr: peak learning rate of pretrained layers; every layer's when training from scratch.
        new_layer_rate: factor on ``lr`` for the neck and classifier beside pretrained layers.
        classifier_rate: factor on ``lr`` for the classifier's weights; None lets :mod:`wgap.train.optim` derive it.
        warmup: fraction of the steps over which the rate first rises from 0 to its peak.
        clip_norm: largest norm of all gradients together; longer ones are scaled down to it. None clips nothing.
        optimizer: ``sgd`` (momentum) or ``adamw``.
        momentum: of SGD.
        weight_decay: on every parameter.
        freeze_through: name of one of the backbone's stages: it and all before it stay as they are; None trains all.
        batch_norm: what normalises in the trained stages: each ``batch``'s statistics, or the ``stored`` ones of the
            initial weights. ``auto``: ``stored`` beside ``init``, else ``batch``. Frozen stages keep the stored ones.
        views: fixed augmentations per image; 0 draws a fresh one each epoch.
        cache: keep the frozen part's outputs on disk; needs ``freeze_through`` and ``views``.
        cache_dir: where; None means ``out/frozen``.
        seed: of initialisation, order and augmentation.
        workers: processes that decode images; 0 decodes in the training process.
        val_split: split to measure accuracy on after each epoch (``val``, or ``test``); None measures none. It never
            decides anything.
        max_bad: unreadable images to skip before giving up.
        precision: ``auto`` (mixed on a GPU, float32 on the CPU), ``32-true``, ``16-mixed`` or ``bf16-mixed``.
        accelerator: ``auto``, ``cpu`` or ``cuda``.
        devices: processes on this machine; under torchrun, torchrun's number counts instead.
        resume: continue the run in ``out``; with more ``epochs`` than it had, go on to those. The rates of the epochs
            to come are those of a run of that length, so the first of them is higher than the last one's was.
        force: replace the run in ``out``.
    """

    data: Path
    out: Path
    layout: str = "auto"
    backbone: str = "vgg16"
    init: Path | None = None
    preprocessing: str | None = None
    pooling: Pooling = "wgap"
    neck: Neck = "none"
    stride: int = 16
    width: float = 1.0
    input_size: int = 224
    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    new_layer_rate: float = 10.0
    classifier_rate: float | None = None
    warmup: float = 0.0
    clip_norm: float | None = None
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    freeze_through: str | None = None
    batch_norm: Statistics = "auto"
    views: int = 0
    cache: bool = True
    cache_dir: Path | None = None
    seed: int = 0
    workers: int = 0
    val_split: str | None = None
    max_bad: int = 10
    precision: Precision = "auto"
    accelerator: Accelerator = "auto"
    devices: int = 1
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError where values contradict each other or mean nothing."""
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("views", 0),
            ("workers", 0),
            ("max_bad", 0),
            ("devices", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        check_arch(self.backbone, self.stride, self.neck, self.pooling, self.width, self.input_size)
        for name in ("lr", "new_layer_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        for name in ("classifier_rate", "clip_norm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number, or none")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; expected a fraction of the run in [0, 1)")
        if self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"weight_decay {self.weight_decay}, momentum {self.momentum}; expected >= 0 and a number in [0, 1)"
            )
        for name, choices in (
            ("optimizer", Optimizer),
            ("precision", Precision),
            ("accelerator", Accelerator),
            ("batch_norm", Statistics),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(choices))}")
        if self.preprocessing is not None and self.preprocessing not in PREPROCESSING:
            raise ValueError(f"preprocessing is {self.preprocessing!r}; expected one of {', '.join(PREPROCESSING)}")
        stages = [stage.name for stage in BACKBONES[self.backbone].stages]
        if self.freeze_through is not None and self.freeze_through not in stages:
            raise ValueError(
                f"freeze_through is {self.freeze_through!r}; expected one of {self.backbone}'s: {', '.join(stages)}"
            )
        if self.freeze_through is not None and self.init is None:
            raise ValueError("freeze_through without initial weights would freeze random layers; give --init FILE")
        if self.batch_norm == "stored" and self.init is None:
            raise ValueError("batch_norm is 'stored', but without initial weights nothing is stored; give --init FILE")
        if self.caching and self.views == 0:
            raise ValueError(
                "a frozen cache holds fixed augmentations, and views is 0: give --views N (6 is usual), or --no-cache "
                "to compute the frozen part anew for fresh augmentations each epoch"
            )
        if self.resume and self.force:
            raise ValueError("resume continues a run and force replaces it; choose one")

    @property
    def caching(self) -> bool:
        """Whether frozen outputs are kept on disk."""
        return self.cache and self.freeze_through is not None

    @property
    def frozen_layers(self) -> int:
        """How many of the backbone's layers are frozen."""
        ends = (s.end for s in BACKBONES[self.backbone].stages if s.name == self.freeze_through)
        return next(ends, 0)

    @property
    def stored_statistics(self) -> bool:
        """Whether trained stages normalise by the initial weights' statistics."""
        return self.batch_norm == "stored" or (self.batch_norm == "auto" and self.init is not None)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, paths as text."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: if a field is unknown, as in a file from a newer version.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown training options {', '.join(unknown)}; was this run made by a newer version?")
        paths = {"data", "out", "init", "cache_dir"}
        fields: dict[str, Any] = {k: Path(v) if k in paths and v is not None else v for k, v in values.items()}
        return cls(**fields)


def stored_options(out: Path) -> dict[str, Any]:
    """The options that the run in folder ``out`` was started with, as :meth:`TrainConfig.to_json` gives them.

    Raises:
        CheckpointError: if there is no run.
    """
    try:
        stored = json.loads((out / "run.json").read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{out}: no run to resume here ({error}); start it without --resume") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{out / 'run.json'}: expected the options of a run; start again with --force")
    return {name: value for name, value in stored.items() if name not in ("resume", "force")}  # the command's, not its


def check_same_run(config: TrainConfig) -> None:
    """Refuse to resume a run under options that would change its result; more epochs make the run longer.

    Raises:
        CheckpointError: naming every option that differs, or if there is no run.
    """
    # An option that the run's version did not know yet had its default's effect.
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    stored, new = {**defaults, **stored_options(config.out)}, config.to_json()
    if isinstance(stored["epochs"], int):
        stored["epochs"] = max(stored["epochs"], config.epochs)  # a run may be made longer
    wrong = [
        f"{name} was {stored[name]!r}, now {new[name]!r}"
        for name in new
        if name not in FREE_TO_CHANGE and stored[name] != new[name]
    ]
    if wrong:
        raise CheckpointError(f"{config.out} was trained with other options: {'; '.join(wrong)}; give the same ones")
