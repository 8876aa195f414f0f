"""Boxes through the C interface from Python alone: python ctypes_boxes.py libwgap_runtime.so BUNDLE IMAGE...

Neither numpy nor the wgap package is needed. Other languages with a C interface of theirs do the same.
"""

from __future__ import annotations

import ctypes as c
import os
import sys
from typing import Any


class RefusedError(Exception):
    """What a call failed with; ``code`` is the name of the Python package's error."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Error(c.Structure):
    """wgap_error."""

    _fields_ = [("struct_size", c.c_uint32), ("status", c.c_int32), ("text", c.c_char * 1016)]


class Picture(c.Structure):
    """wgap_picture."""

    _fields_ = [
        ("struct_size", c.c_uint32), ("class_id", c.c_int32), ("path", c.c_char_p), ("encoded", c.c_char_p),
        ("encoded_bytes", c.c_uint64), ("pixels", c.c_void_p),
    ]  # fmt: skip


class Options(c.Structure):
    """wgap_localizer_options."""

    _fields_ = [
        ("struct_size", c.c_uint32),
        *((name, c.c_int32) for name in ("top_k", "max_boxes", "batch_size", "threads")),
        *((name, c.c_int32) for name in ("ungated", "trusted", "slots")),
        *((name, c.c_char_p) for name in ("backend", "precision", "rule", "map", "library", "device")),
        ("network", c.c_void_p),
    ]  # fmt: skip


class Runtime:
    """libwgap_runtime, loaded."""

    def __init__(self, library: str) -> None:
        self.library = c.CDLL(library)
        for name in ("wgap_status_string", "wgap_results_json", "wgap_results_message"):
            getattr(self.library, name).restype = c.c_char_p
        for name in ("wgap_results_json", "wgap_results_status"):
            getattr(self.library, name).argtypes = [c.c_void_p, c.c_int64]

    def checked(self, call: str, *arguments: object) -> None:
        """Call a function whose last argument is an error; raise it."""
        error = Error(c.sizeof(Error))
        if status := getattr(self.library, call)(*arguments, c.byref(error)):
            raise RefusedError(self.library.wgap_status_string(status).decode(), error.text.decode(errors="replace"))

    def open(self, bundle: str, **options: Any) -> c.c_void_p:
        """A localizer, for wgap_localizer_close; options are those of wgap_localizer_options."""
        given = Options(c.sizeof(Options), **{"top_k": 1, "max_boxes": 1, "batch_size": 1, **options})
        localizer = c.c_void_p()
        self.checked("wgap_localizer_open", os.fsencode(bundle), c.byref(given), c.byref(localizer))
        return localizer

    def localize(self, localizer: c.c_void_p, paths: list[str]) -> list[str]:
        """One JSON line for each image file."""
        pictures = (Picture * len(paths))(*(Picture(c.sizeof(Picture), -1, os.fsencode(path)) for path in paths))
        results = c.c_void_p()
        self.checked("wgap_localizer_run", localizer, pictures, c.c_int64(len(paths)), None, c.byref(results))
        lines = [self.library.wgap_results_json(results, number).decode() for number in range(len(paths))]
        self.library.wgap_results_destroy(results)
        return lines


if __name__ == "__main__":
    runtime = Runtime(sys.argv[1])
    print(*runtime.localize(runtime.open(sys.argv[2]), sys.argv[3:]), sep="\n")
