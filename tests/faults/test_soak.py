"""What a process holds does not grow with pictures, nor with sessions; soak.py beside this file does it at length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_memory_descriptors_and_threads_stay_flat(tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.soak", str(tiny_bundle), "--pictures", "3000", "--sessions", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 20
