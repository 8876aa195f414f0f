"""The folder of one training run: what it was told, how it went, and the state that survives ``kill -9``.

``run.json`` (options, versions, timings), ``metrics.jsonl`` (a line per epoch), ``last.pt`` (everything a resumed run
needs) and at the end ``model.safetensors``. Each is replaced whole, by one rename.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from wgap.atomic import atomic_file
from wgap.errors import CheckpointError, OutputExistsError
from wgap.train.config import TrainConfig, check_same_run

STATE_FORMAT = 1
_OURS = ("run.json", "metrics.jsonl", "last.pt", "model.safetensors")
_UNFINISHED = (".run-*.json", ".metrics-*.jsonl", ".last-*.pt", ".model-*.safetensors")


class RunFolder:
    """Reads and writes one run's files.

    Args:
        root: the folder; made if need be by :meth:`begin`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model_file = root / "model.safetensors"
        self._run_file, self._metrics_file, self._state_file = (
            root / "run.json",
            root / "metrics.jsonl",
            root / "last.pt",
        )

    def begin(self, config: TrainConfig) -> None:
        """Make the folder ready for a new run, or check that it holds the run to be resumed.

        Raises:
            OutputExistsError: the folder is not empty, and neither resume nor force was asked for.
            CheckpointError: the run to resume is not there, or was started with other options.
        """
        if config.resume:
            check_same_run(config)
        elif self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())) and not config.force:
            raise OutputExistsError(
                f"{self.root} is not empty; choose another --out, --resume to continue the run in it, or --force to "
                "replace it"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        stale = [path for pattern in _UNFINISHED for path in self.root.glob(pattern)]
        if not config.resume:
            stale += [self.root / name for name in _OURS]
        for path in stale:
            path.unlink(missing_ok=True)

    def write_facts(self, config: TrainConfig, **facts: Any) -> None:
        """Write ``run.json``."""
        with atomic_file(self._run_file) as temporary:
            temporary.write_text(json.dumps({"config": config.to_json(), **facts}, indent=2) + "\n")

    def save_state(self, state: dict[str, Any]) -> None:
        """Write ``last.pt``, then ``metrics.jsonl`` from the history in it, so that both tell of the same epochs."""
        with atomic_file(self._state_file) as temporary:
            torch.save({"format": STATE_FORMAT, **state}, temporary)
        self.write_metrics(state["history"])

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write ``metrics.jsonl``: one JSON object per epoch."""
        with atomic_file(self._metrics_file) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in history))

    def load_state(self) -> dict[str, Any] | None:
        """The state after the last whole epoch; None if the run was stopped before its first one ended.

        Raises:
            CheckpointError: the file is damaged or of another version. It is never executed.
        """
        if not self._state_file.exists():
            return None
        try:
            state = torch.load(self._state_file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch documents no list; whatever it was, the file is no state
            raise CheckpointError(f"{self._state_file}: cannot be read ({error}); start again with --force") from error
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise CheckpointError(f"{self._state_file}: not a training state of this version; start again with --force")
        return state
