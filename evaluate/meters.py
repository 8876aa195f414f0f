"""What the machine tells of itself: memory of this process, clocks, and energy where it is readable."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from wgap.errors import BackendError

__all__ = ["GpuMeter", "Meter", "PackageMeter", "cpu_mhz", "meters", "peak_rss_mib", "rss_mib"]

POWERCAP = Path("/sys/class/powercap")
CPUINFO = Path("/proc/cpuinfo")


class Meter(Protocol):
    """Counts energy."""

    def joules(self) -> float:
        """Used so far; only differences mean something."""


class PackageMeter:
    """The processor's packages, by the kernel's RAPL counters: all that runs there, not this process alone.

    Args:
        root: where the kernel shows them.

    Raises:
        BackendError: there are none, or they are for root alone.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains = []
        for folder in sorted(root.glob("intel-rapl:*")) if root.is_dir() else []:
            if folder.name.count(":") == 1 and (folder / "name").read_text().startswith("package"):
                self._domains.append(folder)
        if not self._domains:
            raise BackendError(f"no counter of a processor's package under {root}")
        try:
            self._last = [self._read(folder, "energy_uj") for folder in self._domains]
            self._range = [self._read(folder, "max_energy_range_uj") for folder in self._domains]
        except OSError as error:
            raise BackendError(f"{error.filename}: {error.strerror}") from None
        self._microjoules = 0

    @staticmethod
    def _read(folder: Path, name: str) -> int:
        return int((folder / name).read_text())

    def joules(self) -> float:
        """See :class:`Meter`. The counters begin anew every few minutes or hours: to be read more often than that."""
        for n, folder in enumerate(self._domains):
            now = self._read(folder, "energy_uj")
            self._microjoules += now - self._last[n] + (self._range[n] if now < self._last[n] else 0)
            self._last[n] = now
        return self._microjoules / 1e6


class GpuMeter:
    """One NVIDIA GPU, by NVML: energy of the whole board, and the clock of its multiprocessors.

    Args:
        uuid: as ``nvidia-smi -L`` prints it.

    Raises:
        BackendError: NVML is not there, or does not know the GPU or its energy.
    """

    def __init__(self, uuid: str) -> None:
        try:
            self._library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise BackendError(f"no NVML ({error})") from None
        self._handle = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(self._handle))
        self.joules()

    def _call(self, name: str, *arguments: object) -> None:
        if code := getattr(self._library, name)(*arguments):
            raise BackendError(f"{name} failed with {code}")

    def joules(self) -> float:
        """See :class:`Meter`."""
        millijoules = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    def mhz(self) -> int:
        """The multiprocessors' clock now."""
        clock = ctypes.c_uint()
        self._call("nvmlDeviceGetClockInfo", self._handle, 1, ctypes.byref(clock))  # NVML_CLOCK_SM
        return clock.value


def meters(gpu: int | None, powercap: Path = POWERCAP) -> tuple[dict[str, Meter], dict[str, str]]:
    """The meters that are readable here, ``cpu`` and of a run on a GPU ``gpu``, and why others are not, by name."""
    from wgap.runtime.library import gpus

    found: dict[str, Meter] = {}
    absent: dict[str, str] = {}
    try:
        found["cpu"] = PackageMeter(powercap)
    except BackendError as error:
        absent["energy of the processor"] = str(error)
    if gpu is not None:
        try:
            found["gpu"] = GpuMeter(next(one.uuid for one in gpus() if one.ordinal == gpu))
        except BackendError as error:
            absent["energy and clock of the GPU"] = str(error)
    return found, absent


def rss_mib() -> float:
    """Memory of this process that is in RAM, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_rss_mib() -> float:
    """The most that it had, MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_mhz(source: Path = CPUINFO) -> float | None:
    """Mean clock of the cores now; None where the machine does not tell."""
    lines: Sequence[str] = source.read_text().splitlines() if source.is_file() else ()
    found = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(found) / len(found) if found else None
