"""The kernel's source to machine code for one GPU architecture, through NVRTC: neither nvcc nor a GPU is needed."""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wgap.atomic import atomic_file
from wgap.errors import BackendError, MissingDependencyError

__all__ = ["ARCHITECTURES", "SYMBOL", "Compiled", "Resources", "cache_folder", "compile_kernel"]

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""What the kernel is known to compile for without spills; others are tried all the same."""

SYMBOL = b"wgap_localize_cuda"

THREADS = 512
"""Of a block, unless told otherwise: ``wgap::kCudaThreads``."""

_INCLUDE = Path(__file__).resolve().parents[1] / "include"
_SOURCE = '#include "wgap/cuda_kernel.h"\n'


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of one kernel.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread.
        spilled: bytes that spilling stores and loads.
        shared: bytes of static shared memory of a block.
    """

    registers: int
    stack: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class Compiled:
    """A CUBIN; ``log`` is the compiler's, empty where the file came from the cache."""

    cubin: bytes
    arch: str
    log: str

    def resources(self) -> Resources:
        """Read from the log.

        Raises:
            BackendError: if the log holds no report, since it came from the cache.
        """
        patterns = {
            "registers": r"Used (\d+) registers",
            "stack": r"(\d+) bytes stack frame",
            "spilled": r"(\d+) bytes spill stores",
            "loads": r"(\d+) bytes spill loads",
        }
        found = {name: re.search(pattern, self.log) for name, pattern in patterns.items()}
        if missing := [name for name, match in found.items() if match is None]:
            raise BackendError(f"the compiler's log tells no {', '.join(missing)}; compile with cache=None")
        values = {name: int(match[1]) for name, match in found.items() if match}
        shared = re.search(r"(\d+) bytes smem", self.log)
        return Resources(
            values["registers"],
            values["stack"],
            values["spilled"] + values["loads"],
            int(shared[1]) if shared else 0,
        )


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$WGAP_CACHE``, or ``wgap`` in the user's cache folder."""
    if given := os.environ.get("WGAP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wgap"


def compile_kernel(arch: str, cache: Path | None = None, threads: int = THREADS) -> Compiled:
    """Compile the kernel, or take it from the cache.

    The cache names a file by the hash of every header, the options, the architecture and NVRTC's version; a file that
    is cut short or changed is compiled again.

    Args:
        arch: such as ``sm_89``.
        cache: a folder, see :func:`cache_folder`; None compiles anew.
        threads: of a block, a multiple of 32.

    Raises:
        BackendError: if NVRTC does not know the architecture, or refuses the source; with its log.
        MissingDependencyError: if cuda-core or NVRTC is not installed.
    """
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program, ProgramOptions

        version = nvrtc.nvrtcVersion()[1:]
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"the CUDA kernel needs cuda-core and NVRTC, which cannot be loaded ({error}): pip install 'wgap[cuda]'"
        ) from error
    options = {
        "std": "c++17",
        "fma": False,
        "ptxas_options": ["-v"],
        "define_macro": ("WGAP_CUDA_THREADS", str(threads)),
    }
    path = None if cache is None else cache / f"{_key(arch, options, version)}.cubin"
    if path is not None and (cubin := _read(path)) is not None:
        return Compiled(cubin, arch, "")
    log = io.StringIO()
    try:
        program = Program(
            _SOURCE, "c++", ProgramOptions(name="wgap.cu", arch=arch, include_path=str(_INCLUDE), **options)
        )
        cubin = bytes(program.compile("cubin", logs=log).code)
    except Exception as error:  # cuda-core has no common exception class
        name = f"NVRTC {'.'.join(map(str, version))}"
        raise BackendError(f"{name} cannot compile the kernel for {arch}: {error}\n{log.getvalue()}".strip()) from error
    if path is not None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(hashlib.sha256(cubin).digest() + cubin)
    return Compiled(cubin, arch, log.getvalue())


def _key(arch: str, options: object, version: object) -> str:
    digest = hashlib.sha256(repr((arch, options, version, _SOURCE)).encode())
    for header in sorted((_INCLUDE / "wgap").glob("*.h")):
        digest.update(header.name.encode() + b"\0" + header.read_bytes())
    return digest.hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    """A cached CUBIN, None where there is none or it is not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    told, cubin = content[:32], content[32:]
    return cubin if hashlib.sha256(cubin).digest() == told else None
