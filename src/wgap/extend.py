"""How files enter a bundle that is there: one writer at a time, whole at every instant, as it was on any error."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from wgap.atomic import TEMPORARY, atomic_file, require_place
from wgap.bundle import Bundle, confined, write_manifest
from wgap.errors import BundleError
from wgap.manifest import BundleFile, Manifest

__all__ = ["LOCK", "NewFile", "change_files", "enter_file", "enter_files", "one_writer", "require_writable", "writing"]

LOCK = ".lock"
"""The file that a writer holds locked, and removes. What is left of a killed one holds nobody up."""

PATIENCE = 120.0
"""Seconds that a writer waits for another. Files are entered in a few; making them needs no lock."""

_ORDER = {"onnx": 0, "rejected": 0, "engine": 2}
_MARK = re.compile(r"-[0-9a-f]{8}(?=\.\w+$)")
"""In the name of a file until its own is free."""

_MADE_HERE = re.compile(
    r"(rejected/)?model(\.(int8|fp16|bf16))?(-[0-9a-f]{8})?\.onnx|foreground(-[0-9a-f]{8})?\.safetensors"
    r"|golden/case-\d+(-[0-9a-f]{8})?\.safetensors|engines/model\.[^/]+-[0-9a-f]{8}\.plan"
    r"|(|rejected/|golden/|engines/)(" + TEMPORARY.pattern + r"|\.incoming-[^/]+)"
)
"""Paths in a bundle that nobody else gives a file: unlisted, such a file is what a killed writer left."""


@dataclass(frozen=True)
class NewFile:
    """A file that is to enter a bundle.

    Attributes:
        content: its bytes.
        path: where it goes, relative to the bundle.
        role: see :class:`wgap.manifest.BundleFile`.
        precision: likewise.
        records: likewise, by their names there.
    """

    content: bytes
    path: str
    role: str
    precision: str
    records: dict[str, Any] = field(default_factory=dict)


def enter_file(
    bundle: Bundle, content: bytes, path: str, role: str, precision: str,
    superseded: Callable[[BundleFile], bool], made_from: Collection[str] = (), **records: Any,
) -> Bundle:  # fmt: skip
    """One file, as :func:`enter_files` puts several into a bundle."""
    return enter_files(bundle, [NewFile(content, path, role, precision, records)], superseded, made_from)


Change: TypeAlias = tuple[Sequence[NewFile], Callable[[BundleFile], bool]]
"""New files, and whether an entry goes."""


def enter_files(
    bundle: Bundle, files: Sequence[NewFile], superseded: Callable[[BundleFile], bool],
    made_from: Collection[str] = (), **changes: Any,
) -> Bundle:  # fmt: skip
    """Put files into a bundle at once, in place of the entries that they supersede or share their path with.

    They are written under names that nothing has; one rename of the manifest brings all of them in and the superseded
    ones out, whose files are then removed, and the new ones get their own names.

    Args:
        bundle: which; its manifest is read again.
        files: the new files.
        superseded: whether an entry goes.
        made_from: sha256 of the bundle's files that they were made from. If one is no longer there, nothing is entered.
        changes: of the manifest's other fields.

    Returns:
        the bundle as it then was.

    Raises:
        BundleError: if another process writes it for minutes, it cannot be written, or what the files were made from
            was replaced; it is as it was then.
    """
    return change_files(bundle, lambda _: (files, superseded), made_from, **changes)


def change_files(
    bundle: Bundle, change: Callable[[Manifest], Change], made_from: Collection[str] = (), **changes: Any
) -> Bundle:
    """As :func:`enter_files`, for files that go by what the manifest says when nobody else can write it."""
    root = bundle.root
    with writing(bundle), one_writer(root):
        manifest = Bundle.open(root, verify=False).manifest
        files, superseded = change(manifest)
        listed = {entry.path for entry in manifest.files}
        if gone := set(made_from) - {entry.sha256 for entry in manifest.files}:
            raise BundleError(
                f"{root}: the file of sha256 {min(gone)[:12]}... was replaced by another process while "
                f"{', '.join(new.path for new in files)} was made from it, which is therefore not entered; run it again"
            )
        for path in listed:
            confined(root, path)  # now, while nothing has changed: some of them may have to be removed
        _remove_residue(root, listed)
        wanted = {new.path for new in files}
        kept = [e for e in manifest.files if _MARK.sub("", e.path) not in wanted and not superseded(e)]
        entered: list[BundleFile] = []
        written: list[Path] = []
        try:
            for new in files:
                target, digest = confined(root, new.path), hashlib.sha256(new.content).hexdigest()
                if target.exists() and (not target.is_file() or target.read_bytes() != new.content):
                    target = target.with_name(f"{target.stem}-{digest[:8]}{target.suffix}")
                if not target.exists():
                    written.append(target)
                    with atomic_file(target) as temporary:
                        temporary.write_bytes(new.content)
                path, size = target.relative_to(root).as_posix(), len(new.content)
                entered.append(BundleFile(path, new.role, new.precision, digest, size, **new.records))
            manifest = replace(manifest, files=_sorted([*entered, *kept]), **changes)
            write_manifest(root, manifest)
        except BaseException:
            with suppress(BundleError, OSError):  # the manifest's rename may have happened: what it lists stays
                named_there = {entry.path for entry in Bundle.open(root, verify=False).manifest.files}
                for target in written:
                    if target.relative_to(root).as_posix() not in named_there:
                        target.unlink(missing_ok=True)
                _remove_empty(root)
            raise
        with suppress(OSError):  # the bundle is whole; names that could not be tidied are tidied by the next writer
            named = [replace(entry, path=new.path) for entry, new in zip(entered, files, strict=True)]
            _remove(root, listed=manifest.files, files=listed)
            if named != entered:
                manifest = _renamed(root, replace(manifest, files=_sorted([*named, *kept])), entered, named)
    return Bundle(root, manifest)


def _sorted(files: Sequence[BundleFile]) -> tuple[BundleFile, ...]:
    return tuple(sorted(files, key=lambda entry: _ORDER.get(entry.role, 1)))


def _renamed(root: Path, manifest: Any, entered: Sequence[BundleFile], named: Sequence[BundleFile]) -> Any:
    """Give files their own names: a second name first, then the manifest that says so, then the first name goes."""
    for old, new in zip(entered, named, strict=True):
        if old.path != new.path:
            second = (root / new.path).with_name(f".name-{secrets.token_hex(6)}")
            os.link(root / old.path, second)
            second.replace(root / new.path)
    write_manifest(root, manifest)
    _remove(root, listed=manifest.files, files={entry.path for entry in entered})
    return manifest


def _remove(root: Path, listed: Sequence[BundleFile], files: Collection[str]) -> None:
    """Remove those files that the manifest no longer lists, and folders that are then empty."""
    for path in set(files) - {entry.path for entry in listed}:
        confined(root, path).unlink(missing_ok=True)
    _remove_empty(root)


def _remove_empty(root: Path) -> None:
    for folder in ("engines", "rejected", "golden"):
        with suppress(OSError):  # not empty, or not there
            (root / folder).rmdir()


def _remove_residue(root: Path, listed: Collection[str]) -> None:
    """Remove what killed writers left."""
    for folder in (root, *(root / name for name in ("engines", "rejected", "golden"))):
        for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
            name = path.relative_to(root).as_posix()
            if name not in listed and _MADE_HERE.fullmatch(name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


@contextmanager
def one_writer(root: Path) -> Iterator[None]:
    """Hold the bundle's lock: of all processes and threads, one at a time writes into a bundle.

    Raises:
        BundleError: if another one holds it for two minutes.
    """
    path, start = root / LOCK, time.monotonic()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # else its holder removed it
                break
        except BlockingIOError:
            if time.monotonic() - start > PATIENCE:
                os.close(descriptor)
                raise BundleError(
                    f"{root}: another process has been writing into this bundle for {PATIENCE:.0f} s ({path} is "
                    "locked); wait for it or end it, and run this again. The bundle is as it was"
                ) from None
            time.sleep(0.02)
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def require_writable(bundle: Bundle) -> None:
    """Find out before minutes of work whether the bundle can be extended.

    Raises:
        BundleError: if nothing can be written into its folder.
    """
    with writing(bundle):
        require_place(bundle.root)


@contextmanager
def writing(bundle: Bundle) -> Iterator[None]:
    """Turn the system's refusals to write into a :class:`BundleError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{bundle.root} cannot be written ({error.strerror}); free space or allow writing and run it again. "
            "The bundle is as it was"
        ) from error
