"""TensorRT's Python module, where its log goes, and the GPU it would run on."""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgap.errors import DataError, MissingDependencyError

__all__ = ["FLAVORS", "Gpu", "library_log", "load_library", "running_gpu"]

FLAVORS = ("tensorrt", "tensorrt_rtx")
"""The Python modules, whose names are also the flavors."""

_INSTALL = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install 'wgap[rtx]'"}
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR

_LOGGER = logging.getLogger("wgap.tensorrt")
_LOGGER.addHandler(logging.NullHandler())  # who wants the library's log attaches a handler


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver shows.

    Attributes:
        compute_capability: such as ``8.6``.
        name: as the driver gives it.
        cuda: the largest CUDA version that the driver serves, such as ``13.0``.
        driver: the driver's own version, such as ``580.65.06``; None where the kernel module does not tell.
    """

    compute_capability: str
    name: str
    cuda: str
    driver: str | None


def load_library(flavor: str) -> Any:
    """The flavor's Python module.

    Raises:
        DataError: if there is no such flavor.
        MissingDependencyError: if it is not installed, or installed without the libraries it needs.
    """
    if flavor not in FLAVORS:
        raise DataError(f"unknown flavor {flavor!r}; expected one of {', '.join(FLAVORS)}")
    try:
        return importlib.import_module(flavor)
    except ModuleNotFoundError as error:
        if error.name == flavor:
            raise MissingDependencyError(
                f"the {flavor} flavor needs {_TITLES[flavor]}, which is not installed: {_INSTALL[flavor]}"
            ) from error
        reason: Exception = error
    except (ImportError, OSError) as error:
        reason = error
    raise MissingDependencyError(
        f"{_TITLES[flavor]}'s Python module is installed, its libraries do not load: {reason}. Install them together, "
        f"with {_INSTALL[flavor]} in a fresh environment; those of tensorrt may be in NVIDIA's own package index alone"
    ) from reason


def library_log(library: Any) -> Any:
    """An ``ILogger`` of that library which writes to ``logging.getLogger("wgap.tensorrt")``.

    ``errors`` lists what was told at severity error and above, for messages of our own; ``interrupted`` is set where
    Ctrl-C came while it wrote, since no exception may pass through the library's frames.
    """
    severity = library.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []
            self.interrupted = False

        def log(self, level: Any, message: str) -> None:
            """Called by the library, from any of its threads."""
            try:
                if level in (severity.INTERNAL_ERROR, severity.ERROR):
                    self.errors.append(message)
                _LOGGER.log(levels[level], "%s", message)
            except KeyboardInterrupt:
                self.interrupted = True

    return Log()


def running_gpu() -> Gpu | None:
    """The first GPU that the driver shows; None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, version, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    if (
        driver.cuInit(0) != 0
        or driver.cuDeviceGet(ctypes.byref(device), 0) != 0
        or driver.cuDriverGetVersion(ctypes.byref(version)) != 0
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device) != 0
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device) != 0
        or driver.cuDeviceGetName(name, len(name), device) != 0
    ):
        return None
    return Gpu(
        compute_capability=f"{major.value}.{minor.value}",
        name=name.value.decode(errors="replace"),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        driver=_driver_version(),
    )


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None
