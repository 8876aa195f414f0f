"""The training loop: labelled images in, a checkpoint out."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wgap import __version__
from wgap.datasets import Dataset, open_dataset
from wgap.errors import CheckpointError, DataError, WgapError
from wgap.preprocessing import preprocessing as preprocessing_named
from wgap.train import checkpoint
from wgap.train.config import TrainConfig
from wgap.train.frozen import FrozenPart, open_cache
from wgap.train.model import WgapNetwork
from wgap.train.optim import optimizer_for, set_rates
from wgap.train.progress import Reporter
from wgap.train.run_folder import RunFolder
from wgap.train.views import IGNORED, Batch, EpochBatches, Item, PlainBatches, Views, collate, normalise

Metrics = dict[str, Any]


class Tail(nn.Module):
    """The trained part of a network: from layer ``start`` of its backbone to the logits. Shares its parameters."""

    def __init__(self, model: WgapNetwork, start: int) -> None:
        super().__init__()
        self.model, self.start = model, start

    def forward(self, x: Tensor) -> Tensor:
        """Logits float[N, K] of the frozen part's outputs (of normalised images if ``start`` is 0)."""
        model = self.model
        logits, _ = model.head(model.run_blocks(x, self.start, len(model.layers)))
        return logits


def train(
    config: TrainConfig, *, on_epoch: Callable[[Metrics], None] | None = None, show_progress: bool | None = None
) -> Path:
    """Train a network and write its checkpoint.

    On the CPU the result is a function of the data, the options and the number of threads, to the bit; a run that was
    stopped at any moment and resumed ends with the same weights.

    Args:
        config: the run.
        on_epoch: called after each epoch with that epoch's line of ``metrics.jsonl`` (on the first process only).
        show_progress: whether to draw progress bars on stderr; None draws them on a terminal.

    Returns:
        Path of ``model.safetensors`` in the run folder.

    Raises:
        OutputExistsError: the run folder is not empty.
        CheckpointError: initial weights or the run to resume do not fit.
        DataError: the dataset is not what its layout promises, or too many images are unreadable.
        WgapError: the loss is no longer finite.
    """
    fabric = _fabric(config)
    with torch.random.fork_rng(devices=[]):
        return _Run(config, fabric, show_progress).fit(on_epoch)


def _fabric(config: TrainConfig) -> Fabric:
    """One process, ``devices`` processes that Fabric starts, or those that torchrun has started."""
    cuda = config.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    if config.accelerator == "cuda" and not cuda:
        raise WgapError("accelerator cuda was asked for, but PyTorch finds no CUDA device; use --accelerator cpu")
    precision = config.precision
    if precision == "auto":
        precision = "32-true" if not cuda else "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(config.devices)))
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=local,
        num_nodes=max(1, world // local),
        # Running statistics are averaged after each epoch; broadcast at each pass, they would be rank 0's alone.
        strategy=DDPStrategy(broadcast_buffers=False) if max(world, local) > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric


class _Run:
    """One call of :func:`train`: data, network, optimizer and folder together."""

    def __init__(self, config: TrainConfig, fabric: Fabric, show_progress: bool | None) -> None:
        self.config, self.fabric = config, fabric
        self.first = fabric.global_rank == 0
        self.data = open_dataset(config.data, split="train", layout=config.layout)
        self.val = None
        if config.val_split is not None:
            self.val = open_dataset(config.data, split=config.val_split, layout=config.layout)
        self.folder = RunFolder(config.out)
        if self.first:
            self.folder.begin(config)
        self.reporter = Reporter(show=self.first and show_progress is not False, force=show_progress is True)
        self.bad: dict[str, str] = {}
        self.cache_seconds = 0.0
        self.model, self.preprocessing = self._network()
        self.start = config.frozen_layers
        self.model.freeze(self.start, stored_statistics=config.stored_statistics)
        if self.model.normalised_by_batch() and config.batch_size < 2 * fabric.world_size:
            raise WgapError(
                f"batch_size is {config.batch_size} over {fabric.world_size} processes: a batch's statistics need at "
                "least two images each; raise --batch-size, or give --init FILE and leave --batch-norm at stored"
            )
        self.fingerprint = _fingerprint(self.data, config)

    def _network(self) -> tuple[WgapNetwork, str]:
        config = self.config
        torch.manual_seed(config.seed)
        model = WgapNetwork(
            len(self.data.classes),
            backbone=config.backbone,
            stride=config.stride,
            neck=config.neck,
            pooling=config.pooling,
            width=config.width,
            input_size=config.input_size,
        )
        if config.init is None:
            model.compensate_pooling()
            return model, config.preprocessing or model.backbone.preprocessing
        carried = checkpoint.initialise(model, config.init).get("preprocessing")
        if carried is None and config.preprocessing is None:
            raise CheckpointError(
                f"{config.init} does not say what its network expects of pixels: give --preprocessing torchvision-rgb "
                "(torchvision's own files) or caffe-bgr (the original Caffe VGG16)"
            )
        if carried and config.preprocessing and carried != config.preprocessing:
            raise CheckpointError(
                f"{config.init} was trained with preprocessing {carried!r}, but {config.preprocessing!r} was asked "
                "for; leave --preprocessing out"
            )
        return model, carried or cast(str, config.preprocessing)

    def fit(self, on_epoch: Callable[[Metrics], None] | None) -> Path:
        config, fabric = self.config, self.fabric
        fabric.barrier()
        state = self.folder.load_state() if config.resume else None
        if state is not None:
            if state["fingerprint"] != self.fingerprint:
                raise CheckpointError(
                    f"{config.out} was trained on other images, labels or initial weights; resume needs the same ones"
                )
            self.model.load_state_dict(state["model"])
            self.bad.update(state["bad"])
        history: list[Metrics] = list(state["history"]) if state else []
        self._write_facts(history, finished=False)
        with self.reporter:
            tail, optimizer = fabric.setup(Tail(self.model, self.start), optimizer_for(self.model, config))
            if state is not None:
                optimizer.load_state_dict(state["optimizer"])
                fabric.strategy.precision.load_state_dict(state["precision"])
            if len(history) < config.epochs:
                self._epochs(tail, optimizer, history, on_epoch)
        if self.first:
            checkpoint.save(
                self.model,
                self.folder.model_file,
                classes=self.data.classes,
                preprocessing=self.preprocessing,
                wgap_version=__version__,
            )
            self.folder.write_metrics(history)
            shutil.rmtree(config.out / "frozen", ignore_errors=True)
        self._write_facts(history, finished=True)
        fabric.barrier()
        return self.folder.model_file

    def _epochs(
        self, tail: nn.Module, optimizer: Any, history: list[Metrics], on_epoch: Callable[[Metrics], None] | None
    ) -> None:
        config, fabric = self.config, self.fabric
        batches = EpochBatches(
            len(self.data), config.views, config.batch_size, config.seed, fabric.global_rank, fabric.world_size
        )
        loader = self._loader(self.data, batches, list(range(config.views)))
        val_loader = None
        if self.val is not None:
            val_batches = PlainBatches(len(self.val), config.batch_size, fabric.global_rank, fabric.world_size)
            val_loader = self._loader(self.val, val_batches, [-1])
        for epoch in range(len(history), config.epochs):
            began = time.perf_counter()
            batches.epoch = epoch
            metrics = self._train_epoch(tail, optimizer, loader, epoch, len(batches))
            self._share_statistics()
            seen = metrics.pop("seen")
            trained = time.perf_counter() - began
            metrics["val_acc"] = None if val_loader is None else self._accuracy(tail, val_loader)
            self._share_bad()
            metrics |= {
                "seconds": round(time.perf_counter() - began, 3),
                "images_per_second": round(seen / trained, 2),
                "skipped": len(self.bad),
            }
            history.append(metrics)
            if self.first:
                self.folder.save_state(
                    {
                        "model": self.model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "precision": fabric.strategy.precision.state_dict(),
                        "history": history,
                        "bad": self.bad,
                        "fingerprint": self.fingerprint,
                    }
                )
                self.reporter.epoch(metrics, config.epochs)
                if on_epoch is not None:
                    on_epoch(dict(metrics))
            fabric.barrier()

    def _train_epoch(
        self, tail: nn.Module, optimizer: Any, loader: DataLoader[Item], epoch: int, steps: int
    ) -> Metrics:
        fabric = self.fabric
        totals = torch.zeros(3, dtype=torch.float64, device=fabric.device)  # loss, correct, images
        tail.train()
        normalised = self.model.normalised_by_batch()
        for step, batch in enumerate(self.reporter.track(loader, f"epoch {epoch + 1}/{self.config.epochs}", steps)):
            set_rates(optimizer, epoch * steps + step, self.config.epochs * steps, self.config.warmup)
            inputs, labels = self._placed(batch, self.data)
            if normalised:
                inputs, labels = _without_blanks(inputs, labels, normalised)
            logits = tail(inputs).float()
            loss = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            counted = self._sum((labels != IGNORED).sum())
            # Processes average their gradients: dividing by this makes that the mean over the global batch.
            fabric.backward(loss / (counted / fabric.world_size).clamp(min=1 / fabric.world_size))
            if self.config.clip_norm is not None:
                fabric.clip_gradients(tail, optimizer, max_norm=self.config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            totals += torch.stack([loss.detach(), (logits.argmax(1) == labels).sum(), (labels != IGNORED).sum()])
        loss_sum, correct, seen = self._sum(totals).tolist()
        if not loss_sum < float("inf"):
            raise WgapError(
                f"the loss is {loss_sum} in epoch {epoch + 1}: training diverged. Lower --lr; the last good state is "
                f"in {self.config.out}"
            )
        return {
            "epoch": epoch + 1,
            "loss": loss_sum / max(seen, 1),
            "train_acc": correct / max(seen, 1),
            "lr": optimizer.param_groups[0]["lr"],
            "seen": seen,
        }

    @torch.no_grad()
    def _accuracy(self, tail: nn.Module, loader: DataLoader[Item]) -> float:
        tail.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.fabric.device)
        for batch in loader:
            inputs, labels = self._placed(batch, cast(Dataset, self.val))
            totals += torch.stack([(tail(inputs).argmax(1) == labels).sum(), (labels != IGNORED).sum()])
        correct, seen = self._sum(totals).tolist()
        return float(correct / max(seen, 1))

    def _loader(self, data: Dataset, batches: Any, variants: list[int]) -> DataLoader[Item]:
        """Batches of pixels, or of the frozen part's cached outputs."""
        config = self.config
        items: Any = Views(
            [sample.path for sample in data.samples],
            [sample.label for sample in data.samples],
            config.input_size,
            config.seed,
            keep_bytes=(1 << 30) // max(1, config.workers),
        )
        workers = config.workers
        if config.caching:
            began = time.perf_counter()
            with self.fabric.rank_zero_first(local=True), self.reporter.task(f"frozen {data.split}") as advance:
                items = open_cache(
                    self._frozen_part(),
                    items,
                    variants,
                    config.cache_dir or config.out / "frozen",
                    workers=workers,
                    advance=advance,
                    note_error=lambda sample, text: self._note_bad(data, sample, text),
                )
            self.cache_seconds += time.perf_counter() - began
            workers = 0  # reading a mapped row is cheaper than sending it between processes
        return DataLoader(
            items, batch_sampler=batches, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
        )

    def _frozen_part(self) -> FrozenPart:
        autocast = cast(Callable[[], AbstractContextManager[None]], self.fabric.autocast)
        how = preprocessing_named(self.preprocessing)
        precision = str(self.fabric.strategy.precision.precision)
        return FrozenPart(self.model, self.start, how, self.fabric.device, precision, autocast)

    def _placed(self, batch: Batch, data: Dataset) -> tuple[Tensor, Tensor]:
        """The tail's inputs and the labels, on the device."""
        for sample, text in batch.errors:
            self._note_bad(data, sample, text)
        inputs = batch.inputs.to(self.fabric.device)
        if inputs.dtype == torch.uint8:
            if self.start:
                inputs = self._frozen_part()(inputs)
            else:
                inputs = normalise(inputs, preprocessing_named(self.preprocessing))
        return inputs, batch.labels.to(self.fabric.device)

    def _note_bad(self, data: Dataset, sample: int, text: str) -> None:
        name = str(data.samples[sample].path)
        if name in self.bad:
            return
        self.bad[name] = text
        self.reporter.warn(f"skipped {text}")
        self._check_bad()

    def _check_bad(self) -> None:
        if len(self.bad) > self.config.max_bad:
            listing = "\n  ".join(self.bad.values())
            raise DataError(
                f"{len(self.bad)} unreadable images, more than --max-bad {self.config.max_bad} allows; repair or "
                f"remove them, or raise the limit:\n  {listing}"
            )

    def _share_bad(self) -> None:
        """Let every process know of the images that others could not read."""
        if self.fabric.world_size > 1:
            gathered: list[dict[str, str]] = [{} for _ in range(self.fabric.world_size)]
            torch.distributed.all_gather_object(gathered, self.bad)
            for bad in gathered:
                self.bad.update(bad)
            self._check_bad()

    def _share_statistics(self) -> None:
        """Let every process go on with the mean of all processes' running statistics."""
        if self.fabric.world_size > 1:
            for norm in self.model.normalised_by_batch():
                for value in (norm.running_mean, norm.running_var):
                    cast(Tensor, value).copy_(self._sum(cast(Tensor, value)) / self.fabric.world_size)

    def _sum(self, value: Tensor) -> Tensor:
        return cast(Tensor, self.fabric.all_reduce(value, reduce_op="sum")) if self.fabric.world_size > 1 else value

    def _write_facts(self, history: list[Metrics], *, finished: bool) -> None:
        if not self.first:
            return
        self.folder.write_facts(
            self.config,
            finished=finished,
            preprocessing=self.preprocessing,
            arch=self.model.arch(),
            images=len(self.data),
            classes=len(self.data.classes),
            processes=self.fabric.world_size,
            device=str(self.fabric.device),
            threads=torch.get_num_threads(),
            cache_seconds=round(self.cache_seconds, 3),
            epoch_seconds=round(sum(line["seconds"] for line in history), 3),
            skipped=self.bad,
            versions={"wgap": __version__, "torch": torch.__version__, "python": platform.python_version()},
        )


def _without_blanks(inputs: Tensor, labels: Tensor, normalised: list[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """A batch without places that hold no image, which would count in its statistics.

    Fewer than two images have none worth the name: for this batch the running ones normalise.
    """
    seen = labels != IGNORED
    enough = int(seen.sum()) > 1
    for norm in normalised:
        norm.train(enough)
    return (inputs[seen], labels[seen]) if enough else (inputs, labels)


def _fingerprint(data: Dataset, config: TrainConfig) -> str:
    """What a resumed run must have in common with its beginning: images, labels, classes, initial weights."""
    digest = hashlib.sha256("\n".join(data.classes).encode())
    for sample in data.samples:
        digest.update(f"{os.path.relpath(sample.path, config.data)} {sample.label}\n".encode())
    if config.init is not None:
        digest.update(hashlib.sha256(config.init.read_bytes()).digest())
    return digest.hexdigest()
