"""The kernel's source to machine code for one GPU architecture, through NVRTC: neither nvcc nor a GPU is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wgap.errors import BackendError, MissingDependencyError
from wgap.runtime.cache import read_cached, require_own, write_cached

__all__ = ["ARCHITECTURES", "SYMBOL", "Compiled", "compile_kernel"]

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""What the kernel is known to compile for without spills; others are tried all the same."""

SYMBOL = b"wgap_localize_cuda"

THREADS = 512
"""Of a block, by default: ``wgap::kCudaThreads``."""

_INCLUDE = Path(__file__).resolve().parents[1] / "include"
_SOURCE = '#include "wgap/kernel/cuda_kernel.h"\n'


class Compiled(NamedTuple):
    """A CUBIN; ``log`` is the compiler's, empty where the file came from the cache."""

    cubin: bytes
    log: str


def nvrtc_version() -> tuple[int, int]:
    """Major and minor version.

    Raises:
        MissingDependencyError: if cuda-bindings or NVRTC is not installed.
    """
    try:
        from cuda.bindings import nvrtc

        major, minor = nvrtc.nvrtcVersion()[1:]
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"the CUDA kernel needs cuda-bindings and NVRTC, which cannot be loaded ({error}): pip install 'wgap[cuda]'"
        ) from error
    return int(major), int(minor)


def compile_kernel(
    arch: str, cache: Path | None = None, threads: int = THREADS, macros: Sequence[str] = ()
) -> Compiled:
    """Compile the kernel, or take it from the cache.

    The cache names a file by the hash of every header, the options, the architecture and NVRTC's version; a file that
    is cut short or changed is compiled again.

    Args:
        arch: such as ``sm_89``.
        cache: a folder, see :func:`wgap.runtime.cache.cache_folder`; None compiles anew.
        threads: of a block, a multiple of 32.
        macros: to define.

    Raises:
        BackendError: if NVRTC does not know the architecture, or refuses the source, with its log; or others may write
            into the cache.
        MissingDependencyError: if cuda-core or NVRTC is not installed.
    """
    version = ".".join(map(str, nvrtc_version()))
    from cuda.bindings import nvrtc

    options = [
        f"--gpu-architecture={arch}", "--std=c++17", "--fmad=false", "--ptxas-options=-v",
        *(f"--define-macro={macro}" for macro in (f"WGAP_CUDA_THREADS={threads}", *macros)),
    ]  # fmt: skip
    path = None
    if cache is not None:
        require_own(cache, "code for the GPU is kept there")
        path = cache / f"{_key(options, version)}.cubin"
    if path is not None and (cubin := read_cached(path)) is not None:
        return Compiled(cubin, "")
    name = f"NVRTC {version}"
    program = _checked(name, nvrtc.nvrtcCreateProgram(_SOURCE.encode(), b"wgap.cu", 0, [], []))
    try:
        flags = [option.encode() for option in (*options, f"--include-path={_INCLUDE}")]
        (code,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
        log = _read_out(name, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        text = log.rstrip(b"\0").decode(errors="replace")
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            reason = nvrtc.nvrtcGetErrorString(code)[1].decode()
            raise BackendError(f"{name} cannot compile the kernel for {arch}: {reason}\n{text}".strip())
        cubin = _read_out(name, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    if path is not None:
        write_cached(path, cubin)
    return Compiled(cubin, text)


def _checked(name: str, answer: tuple[Any, ...]) -> Any:
    """The value of a call of NVRTC."""
    code, *values = answer
    if code.value != 0:
        raise BackendError(f"{name} failed: {code.name}")
    return values[0] if values else None


def _read_out(name: str, size_of: Any, get: Any, program: Any) -> bytes:
    """Bytes that NVRTC copies into memory that it is given."""
    content = bytes(_checked(name, size_of(program)))
    _checked(name, get(program, content))
    return content


def _key(options: list[str], version: str) -> str:
    digest = hashlib.sha256(repr((options, version, _SOURCE)).encode())
    for header in sorted((_INCLUDE / "wgap" / "kernel").glob("*.h")):
        digest.update(header.name.encode() + b"\0" + header.read_bytes())
    return digest.hexdigest()[:32]
