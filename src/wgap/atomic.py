"""Writes that are whole or absent: a temporary name beside the target, fsync, then rename."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wgap.errors import OutputExistsError


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it replaces ``path``, on any error it is removed.

    The temporary name keeps the target's suffix, since some writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(6)}{path.suffix}")
    temporary.touch()
    mode = temporary.stat().st_mode & 0o777
    try:
        yield temporary
        temporary.chmod(mode)  # some writers make their files private
        _sync(temporary)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file that is already on the disk to its own name, and see the folder to the disk before going on."""
    temporary.replace(path)
    _sync(path.parent)


def require_new(folder: Path, force: bool, mark: str = "report.json", what: str = "report") -> None:
    """Refuse to replace a folder unless told, and one that is something else even then.

    Args:
        folder: where something is to be written.
        force: whether an earlier one may be replaced.
        mark: the file that an earlier one holds.
        what: what messages call it.

    Raises:
        OutputExistsError: if ``folder`` exists, and ``force`` is false or ``mark`` is not in it.
    """
    if not folder.exists():
        return
    if not force:
        raise OutputExistsError(f"{folder} already exists; choose another place or pass --force to replace it")
    if not (folder / mark).is_file():
        raise OutputExistsError(f"{folder} exists and is not a {what} (no {mark}); refusing to replace it")


@contextmanager
def atomic_dir(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside the target; on success it becomes ``path``, on any error it is removed.

    Raises:
        OutputExistsError: if ``path`` exists and ``overwrite`` is false; nothing has been written then.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} already exists; choose another place or pass --force to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    retired = temporary.with_name(temporary.name + "-old")
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(temporary.stat().st_mode & 0o666)  # some writers make their files private
            _sync(file)
        if path.exists():
            path.rename(retired)
        try:
            temporary.rename(path)
        except OSError:
            if retired.exists():
                retired.rename(path)
            raise
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
