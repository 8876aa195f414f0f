"""Results in a folder: one JSON line per image, and pictures with their boxes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

from wgap.atomic import atomic_file, remove_residue, require_place
from wgap.errors import ImageError, OutputExistsError, WgapError
from wgap.images import decode
from wgap.runtime.localization import Failure, Localization
from wgap.runtime.overlay import save_picture
from wgap.stores import Picture

__all__ = ["PARTIAL", "RESULTS", "ResultFolder", "picture_names"]

RESULTS = "results.jsonl"

PARTIAL = "results.partial.jsonl"
"""The lines of a run that was ended before its last image."""

_LONGEST = 200  # bytes of a picture's name: file systems take 255, and a temporary name is longer


class ResultFolder:
    """Where results of some images are written, one by one: ``results.jsonl``, whole at the end, and pictures.

    A run that is ended earlier, by an error, an interrupt or SIGTERM, leaves its lines in ``results.partial.jsonl``.

    ::

        with ResultFolder(out, paths, pictures=True) as folder:
            for path, result in zip(paths, localizer(paths, heatmap=True, on_error="yield")):
                folder.add(path, result)

    Args:
        out: the folder; made where it is missing. Other files in it stay.
        images: the images that results are to come of.
        pictures: also write each image with its box, and its heat map where the result has one, under the name that
            :func:`picture_names` gives it; none for an image that failed.
        force: replace files that are already there.

    Raises:
        OutputExistsError: a file to be written is already there and ``force`` is false; nothing has been written then.
        OSError: nothing can be written into ``out``, or it cannot be made.
    """

    def __init__(self, out: Path, images: Sequence[Picture], pictures: bool = False, force: bool = False) -> None:
        require_place(out)
        self._out = out
        self._pictures = {path: out / name for path, name in picture_names(images).items()} if pictures else {}
        there = [file for file in (out / RESULTS, *self._pictures.values()) if not force and file.exists()]
        if there:
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise OutputExistsError(
                f"{there[0]}{more} already there; choose another --out or pass --force to replace them"
            )

    def __enter__(self) -> ResultFolder:
        self._open = ExitStack()
        if self._out.is_dir():
            remove_residue(self._out)
        self._temporary = self._open.enter_context(atomic_file(self._out / RESULTS))
        self._lines: TextIO = self._open.enter_context(self._temporary.open("w", encoding="utf-8"))
        return self

    def __exit__(self, *raised: Any) -> None:
        partial = self._out / PARTIAL
        with suppress(OSError):
            if raised[0] is None:
                partial.unlink(missing_ok=True)
            else:
                self._lines.flush()
                shutil.copyfile(self._temporary, partial)
        self._open.__exit__(*raised)

    def add(self, path: Picture, result: Localization | Failure) -> Localization | Failure:
        """Write one image's line, and its picture.

        Returns:
            the result; or a failure where its picture could not be made or written, which the line then says too.
        """
        line, failure = result.to_json(), None
        if path in self._pictures and isinstance(result, Localization):
            try:
                save_picture(self._pictures[path], result.draw(decode(path)))
            except (WgapError, OSError) as error:
                why = error if isinstance(error, WgapError) else error.strerror or error
                text = f"{self._pictures[path]}: the picture was not written ({why})"
                failure = Failure(os.fspath(path), ImageError(text))
                line.update(failure.to_json())
        self._lines.write(json.dumps(line) + "\n")
        return failure or result


def picture_names(images: Sequence[Picture]) -> dict[Picture, str]:
    """``<stem>.jpg`` for each image; where several share a stem, ``<stem>-2.jpg`` and so on in their order."""
    taken: set[str] = set()
    names = {}
    for path in images:
        stem = path.stem.encode(errors="surrogateescape")[:_LONGEST].decode(errors="ignore")
        name, count = stem, 1
        while name.casefold() in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name.casefold())
        names[path] = f"{name}.jpg"
    return names
