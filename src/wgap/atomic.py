"""Writes that are whole or absent: a temporary name beside the target, fsync, then rename."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from wgap.errors import OutputExistsError

TEMPORARY = re.compile(r"\.[^/]*-[0-9a-f]{12}(\.[^/.]*)?(-old)?")
"""The names under which things are written here before they get their own."""


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
    held = _made(temporary, temporary.touch)
    mode = temporary.stat().st_mode & 0o777
    try:
        yield temporary
        temporary.chmod(mode)  # some writers make their files private
        _sync(temporary)
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file that is already on the disk to its own name, and see the folder to the disk before going on."""
    temporary.replace(path)
    _sync(path.parent)


def require_place(folder: Path) -> None:
    """Find out, before there is anything to write, whether a folder can be written into, or made.

    Raises:
        OSError: what lies above is a file, or the system takes no file there.
    """
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    try:
        with tempfile.TemporaryFile(dir=above) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(above)) from None


def require_new(folder: Path, force: bool, mark: str = "report.json", what: str = "report") -> None:
    """Refuse to replace a folder unless told, and one that is something else even then.

    Args:
        folder: where something is to be written.
        force: whether an earlier one may be replaced.
        mark: the file that an earlier one holds.
        what: what messages call it.

    Raises:
        OutputExistsError: if ``folder`` exists, and ``force`` is false or ``mark`` is not in it.
        OSError: see :func:`require_place`.
    """
    require_place(folder.absolute().parent)
    if not folder.exists():
        return
    if not force:
        raise OutputExistsError(f"{folder} already exists; choose another place or pass --force to replace it")
    if not (folder / mark).is_file():
        raise OutputExistsError(f"{folder} exists and is not a {what} (no {mark}); refusing to replace it")


@contextmanager
def atomic_dir(
    path: Path | str, overwrite: bool = False, alone: Callable[[Path], AbstractContextManager[None]] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside the target; on success it becomes ``path``, on any error it is removed.

    The folder is locked while it is in use, so that what a killed run left is told from it, and removed.

    Args:
        path: the target.
        overwrite: whether it may be there already; the two then change places in one step where the system can.
        alone: held while they do, for instance the lock of the bundle that is replaced.

    Raises:
        OutputExistsError: if ``path`` exists and ``overwrite`` is false, or it is a link; nothing was written then.
    """
    path = Path(path)
    if path.is_symlink():
        raise OutputExistsError(f"{path} is a link to {os.readlink(path)}; name the folder itself, or remove the link")  # noqa: PTH115
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} already exists; choose another place or pass --force to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_residue(path)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    retired = temporary.with_name(temporary.name + "-old")
    held = _made(temporary, temporary.mkdir)
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(temporary.stat().st_mode & 0o666)  # some writers make their files private
            _sync(file)
        with alone(path) if alone is not None and path.exists() else nullcontext():
            if not path.exists():
                temporary.rename(path)
            elif not _exchanged(temporary, path):
                path.rename(retired)
                try:
                    temporary.rename(path)
                except OSError:
                    retired.rename(path)
                    raise
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
        if held is not None:
            os.close(held)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the kernel or the file system cannot."""
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _made(path: Path, make: Callable[[], object]) -> int | None:
    """Make a temporary file or folder and lock it; anew if another, in between, took it for a dead one's."""
    while True:
        make()
        with suppress(FileNotFoundError):
            held = _locked(path, 0)
            if path.exists():
                return held
            if held is not None:
                os.close(held)


def _locked(path: Path, wait: int = fcntl.LOCK_NB) -> int | None:
    """A descriptor that holds the lock of a file or a folder; None if another has it, or the file system has none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | wait)
        same = os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        same = False
    if not same:  # the name may be another file's by now, whose maker holds a lock of its own
        os.close(descriptor)
        return None
    return descriptor


def remove_residue(folder: Path) -> None:
    """Remove temporary files in a folder whose makers are gone."""
    for path in [entry for entry in folder.iterdir() if TEMPORARY.fullmatch(entry.name) and entry.is_file()]:
        with suppress(OSError):
            if (held := _locked(path)) is not None:
                path.unlink()
                os.close(held)


def _remove_residue(path: Path) -> None:
    """Remove temporary folders of the target whose makers are gone. A retired one comes back if there is none else."""
    mine = re.compile(rf"\.{re.escape(path.name)}-[0-9a-f]{{12}}(-old)?")
    for folder in [entry for entry in path.parent.iterdir() if mine.fullmatch(entry.name)]:
        with suppress(OSError):  # not a folder, or gone
            if (held := _locked(folder)) is not None:
                if folder.name.endswith("-old") and not path.exists():
                    folder.rename(path)
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                os.close(held)
