"""What a person sees of a run: progress bars on a terminal, a line per epoch, warnings as they come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
_log = logging.getLogger("wgap.train")


class Reporter:
    """Draws on stderr if ``show`` and stderr is a terminal, or if ``force``; otherwise warnings go to ``logging``."""

    def __init__(self, *, show: bool, force: bool = False) -> None:
        console = Console(stderr=True)
        self._visible = show and (force or console.is_terminal)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not self._visible,
            transient=True,
        )

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """The items, with a bar that moves as they are taken."""
        task = self._progress.add_task(label, total=total)
        try:
            for item in items:
                yield item
                self._progress.advance(task)
        finally:
            self._progress.remove_task(task)

    @contextmanager
    def task(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar moved by calling what this yields with (done, total)."""
        task = self._progress.add_task(label, total=None)
        try:
            yield lambda done, total: self._progress.update(task, completed=done, total=total)
        finally:
            self._progress.remove_task(task)

    def epoch(self, metrics: dict[str, Any], epochs: int) -> None:
        """One line about a finished epoch."""
        if self._visible:
            val = "" if metrics["val_acc"] is None else f"  val {metrics['val_acc']:.3f}"
            self._progress.console.print(
                f"epoch {metrics['epoch']}/{epochs}  loss {metrics['loss']:.4f}  train {metrics['train_acc']:.3f}{val}"
                f"  {metrics['seconds']:.1f} s  {metrics['images_per_second']:.1f} images/s"
            )

    def warn(self, text: str) -> None:
        """Tell of something skipped."""
        if self._visible:
            self._progress.console.print(f"warning: {text}", style="yellow", markup=False)
        else:
            _log.warning("%s", text)
