"""A cluster of Ray on this machine that is reached from nowhere else, and of which nothing is left behind.

`make test-ray` and `make test-spark` run these tests; where Ray or PySpark is not installed they skip.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

# Read when Ray is imported. The last one, named after where it is the default, is what binds it to 127.0.0.1.
os.environ.update(
    RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0", RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
)  # fmt: skip


def descendants(of: int) -> dict[int, str]:
    """Processes below one, with the time at which each began."""
    parents, began = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            parents[int(entry.parent.name)], began[int(entry.parent.name)] = int(fields[1]), fields[19]
    found, rest = {of}, dict(parents)
    while more := {pid for pid, parent in rest.items() if parent in found} - found:
        found |= more
    return {pid: began[pid] for pid in found - {of}}


def end(processes: dict[int, str], patience: float = 10.0) -> None:
    """See processes that are told to end to their end."""
    until = time.monotonic() + patience
    while left := [pid for pid, began in processes.items() if runs(pid, began)]:
        for pid in left if time.monotonic() > until else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def runs(pid: int, began: str) -> bool:
    """Whether there is such a process, the one that began then, and it is no zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[19] == began and fields[0] != "Z"


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray with four CPUs and two GPUs by name, whatever the machine has."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # names of sockets have 107 characters at most
    try:
        ray.init(
            address="local", num_cpus=4, num_gpus=2, include_dashboard=False, object_store_memory=100 << 20,
            log_to_driver=False, _temp_dir=folder,
        )  # fmt: skip
        yield
    finally:
        started = descendants(os.getpid())
        ray.shutdown()
        end(started)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 small pictures of different sizes, the 17th of which is none."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(6)
    for number in range(40):
        cv2.imwrite(str(folder / f"{number:03d}.png"), rng.integers(0, 256, (40 + number % 3, 50, 3), dtype=np.uint8))
    (folder / "017.png").write_bytes(b"no picture")
    return folder


def examples(heading: str, **places: object) -> list[str]:
    """The Python below one heading of docs/ray.md, its paths replaced."""
    page = ROOT / "docs" / "ray.md"
    if not page.exists():
        pytest.skip("docs/ray.md is not beside the tests (installed wheel)")
    section = page.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    for name, place in {"/bundles/birds": places["bundle"], "/photos": places["photos"], **places}.items():
        found = [code.replace(f'"{name}"', repr(str(place))) for code in found]
    return found
