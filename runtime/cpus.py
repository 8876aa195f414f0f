"""How many CPUs this process may use, and how they sum products of eight bits."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Literal

__all__ = ["allowed_cpus", "int8_sums"]

_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


def allowed_cpus() -> int:
    """CPUs that the affinity mask and the quota of the control group leave to this process, at least 1.

    A container with a quota of two CPUs on a machine of 64 still sees 64: libraries that start a thread for each spend
    their time waiting for each other.
    """
    return max(1, min(len(os.sched_getaffinity(0)), _quota()))


def _quota() -> int:
    """Of the control group, rounded up; a large number without one."""
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):  # version 2, version 1
        try:
            words = (_CGROUP / name).read_text().split()
            if name != "cpu.max":
                words.append((_CGROUP / "cpu/cpu.cfs_period_us").read_text())
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # none there, or "max"
            continue
        if quota > 0 < period:
            return -(-quota // period)
    return 1 << 20


def int8_sums() -> Literal["exact", "saturating"]:
    """How ONNX Runtime's CPU provider sums products of eight bits here: ``exact`` or ``saturating``.

    On x86-64 without VNNI two products are added in 16 bits, where large ones saturate (``vpmaddubsw``); with VNNI, and
    on other processors, they are added in 32 bits.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return "exact"
    return "exact" if re.search(r"\b(avx512_vnni|avx_vnni)\b", _CPUINFO.read_text()) else "saturating"
