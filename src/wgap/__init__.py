"""Weakly supervised object localization: class labels in, classes and boxes out.

Public names load on first use, so that ``import wgap`` needs nothing but the standard library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from wgap import errors

if TYPE_CHECKING:
    from wgap.bundle import Bundle
    from wgap.runtime.localizer import Localization, Localizer

    __version__: str

__all__ = ["Bundle", "Localization", "Localizer", "__version__", "errors"]

_HOMES = {"Bundle": "wgap.bundle", "Localization": "wgap.runtime.localizer", "Localizer": "wgap.runtime.localizer"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("wgap")
    raise AttributeError(f"module 'wgap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
