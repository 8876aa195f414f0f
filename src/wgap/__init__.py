"""Weakly supervised object localization: class labels in, classes and boxes out.

Public names load on first use, so that ``import wgap`` needs nothing but the standard library.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from wgap import errors

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.runtime.localizer import Localization, Localizer

    __version__: str

__all__ = ["Bundle", "Localization", "Localizer", "__version__", "errors", "get_cmake_path", "get_include"]

_HOMES = {"Bundle": "wgap.bundle", "Localization": "wgap.runtime.localizer", "Localizer": "wgap.runtime.localizer"}


def get_include() -> str:
    """Folder to give a C or C++ compiler (``-I``) so that it finds ``wgap/wgap.h`` and other headers of wgap."""
    return str(_beside_the_module("include"))


def get_cmake_path() -> str:
    """Folder of ``wgapConfig.cmake``, for CMake's ``find_package(wgap)``: ``-Dwgap_DIR=`` takes it."""
    return str(_beside_the_module("lib", "cmake", "wgap"))


def _beside_the_module(*parts: str) -> Path:
    """A folder of the C++ package, which is installed beside the extension module; in an editable install, not here."""
    from wgap import _native

    folder = Path(_native.__file__).parent.joinpath(*parts)
    if not folder.is_dir():
        raise errors.MissingDependencyError(
            f"{folder}: expected the C++ package there, which comes with the wheel: pip install --force-reinstall wgap"
        )
    return folder


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("wgap")
    raise AttributeError(f"module 'wgap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
