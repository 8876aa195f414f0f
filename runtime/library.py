"""TensorRT's Python module, where its log goes, and the GPU it would run on."""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from wgap.errors import BackendError, DataError, MissingDependencyError

__all__ = ["FLAVORS", "Gpu", "dtype_name", "gpu", "gpus", "library_log", "load_library"]

FLAVORS = ("tensorrt", "tensorrt_rtx")
"""The Python modules, whose names are also the flavors."""

_INSTALL = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install 'wgap[rtx]'"}
_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR

_LOGGER = logging.getLogger("wgap.tensorrt")
_LOGGER.addHandler(logging.NullHandler())  # who wants the library's log attaches a handler


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver shows.

    Attributes:
        ordinal: its number here; ``CUDA_VISIBLE_DEVICES`` decides which GPU that is.
        uuid: as ``nvidia-smi -L`` prints it, ``GPU-...``: the same GPU always.
        compute_capability: such as ``8.6``.
        name: as the driver gives it.
        cuda: the largest CUDA version that the driver serves, such as ``13.0``.
        driver: the driver's own version, such as ``580.65.06``; None where the kernel module does not tell.
    """

    ordinal: int
    uuid: str
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

    ``errors`` collects messages of severity ERROR or higher. ``interrupted`` is set where Ctrl-C came while it wrote,
    since no exception may pass through the library's frames.
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


def dtype_name(dtype: Any) -> str:
    """TensorRT's name of a type as NumPy's: ``FLOAT`` is ``float32``."""
    return {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}.get(dtype.name, str(dtype.name).lower())


def gpus() -> list[Gpu]:
    """The GPUs that the driver shows; none where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    version, count = ctypes.c_int(), ctypes.c_int()
    if (
        driver.cuInit(0) != 0
        or driver.cuDriverGetVersion(ctypes.byref(version)) != 0
        or driver.cuDeviceGetCount(ctypes.byref(count)) != 0
    ):
        return []
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    found = []
    for ordinal in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name, uuid = ctypes.create_string_buffer(256), (ctypes.c_ubyte * 16)()
        if (
            driver.cuDeviceGet(ctypes.byref(device), ordinal) != 0
            or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device) != 0
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device) != 0
            or driver.cuDeviceGetName(name, len(name), device) != 0
            or driver.cuDeviceGetUuid_v2(uuid, device) != 0
        ):
            continue
        capability = f"{major.value}.{minor.value}"
        title = name.value.decode(errors="replace")
        found.append(Gpu(ordinal, f"GPU-{UUID(bytes=bytes(uuid))}", capability, title, cuda, _driver_version()))
    return found


def gpu(device: int | str | None = None) -> Gpu:
    """The GPU of that ordinal or UUID; the first for None.

    Raises:
        BackendError: if there is none; the message lists those that there are.
    """
    found = gpus()
    for one in found:
        if device in (one.ordinal, one.uuid) or (device is None and one.ordinal == 0):
            return one
    if not found:
        raise BackendError("no NVIDIA driver or GPU on this machine; use the onnxruntime backend")
    have = ", ".join(f"{one.ordinal} ({one.name}, {one.uuid})" for one in found)
    raise BackendError(f"no GPU {device!r} on this machine; expected an ordinal or a UUID of: {have}")


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else None
