"""Pictures that are not files beside each other: named in lists and tables, in tar archives, in stores of fsspec's."""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeAlias

from wgap.errors import DataError, ImageError, StoreError
from wgap.extras import require
from wgap.images import SUFFIXES, expand

__all__ = ["CONTAINERS", "Picture", "Stored", "find_pictures", "require_stores"]


@dataclass(frozen=True)
class Stored(os.PathLike[str]):
    """A picture in a store or an archive, which is taken wherever a picture's path is.

    Attributes:
        name: its URL; of an archive's member ``tar://MEMBER::ARCHIVE``, as fsspec writes it.
        place: of an archive's member the offset of its first byte, and how many it has.
    """

    name: str
    place: tuple[int, int] | None = None

    def __fspath__(self) -> str:
        return self.name

    @property
    def stem(self) -> str:
        """Its name without folders and ending."""
        return PurePosixPath(self.name.removeprefix("tar://").partition("::")[0] if self.place else self.name).stem

    def read(self, size: int) -> bytes:
        """Its first ``size`` bytes.

        Raises:
            ImageError: it is not there.
            StoreError: the store cannot be reached, or does not let it be read.
        """
        try:
            if self.place is None:
                return _start(self.name, size)
            archive, (start, length) = self.name.partition("::")[2], self.place
            end = start + min(size, length)
            if _is_url(archive):
                data = _cat(archive, start, end)
            else:
                with Path(archive).open("rb") as file:
                    file.seek(start)
                    data = file.read(end - start)
        except FileNotFoundError as error:
            raise ImageError(f"{self.name}: no such file") from error
        except Exception as error:  # each store raises what its own library does
            raise StoreError(f"{self.name}: cannot be read ({type(error).__name__}: {error})") from error
        if len(data) < end - start:
            raise ImageError(f"{self.name}: the archive is shorter than when it was listed")
        return data


Picture: TypeAlias = "Path | Stored"
"""A picture by its name."""


def find_pictures(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    missing: Literal["raise", "keep"] = "raise", column: str | None = None,
) -> list[Picture]:  # fmt: skip
    """Expand inputs into pictures.

    Beside the files, folders and globs of :func:`wgap.images.find_images` these are taken:

    - a list ``.txt``, a picture a line, or a column of a ``.csv``, ``.tsv`` or ``.parquet``: paths, relative ones from
      the list's own folder, URLs, and tar archives;
    - an uncompressed ``.tar``: its pictures, in its order, other members left out (WebDataset's shards);
    - ``scheme://...``, a file, folder or glob in a store that fsspec reaches; also a list or an archive there.

    Order and repetition are as of :func:`~wgap.images.find_images`. Nothing is read but lists, tables, and an archive's
    headers.

    Args:
        inputs: one or several.
        missing: as of :func:`~wgap.images.find_images`; for pictures. A list or an archive must be there.
        column: of tables; None where they have one alone.

    Raises:
        DataError: as :func:`~wgap.images.find_images`; a list or table is unreadable, or has no such column; an archive
            is compressed, cut short, or has a member twice; a URL is of no store that is reached from here.
        MissingDependencyError: fsspec, or for Parquet pyarrow, is not installed.
    """
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    found: dict[str, Picture] = {}
    for entry in [os.fspath(entry) for entry in inputs]:
        for picture in _store(entry) if _is_url(entry) else expand(entry, missing):
            suffix = PurePosixPath(picture).suffix.lower()
            for one in CONTAINERS[suffix](os.fspath(picture), column) if suffix in CONTAINERS else [picture]:
                if missing == "raise" and isinstance(one, Path) and not one.exists():
                    raise DataError(f"{one}: no such file")
                name = os.path.abspath(one) if isinstance(one, Path) else one.name  # noqa: PTH100  (two names of one file are two)
                found.setdefault(name, one)
    pictures = list(found.values())
    require_stores(pictures)
    return pictures


def require_stores(pictures: Iterable[Picture]) -> None:
    """Refuse to begin with pictures in stores that nothing installed here reaches.

    Raises:
        DataError: a URL is of no store, or its library is not installed.
        MissingDependencyError: fsspec is not.
    """
    roots: dict[str, str] = {}
    for one in pictures:
        if isinstance(one, Stored) and _is_url(url := one.name.partition("::")[2] if one.place else one.name):
            roots.setdefault(url.partition("://")[0], url)
    for url in roots.values():
        _file_system(url)


def _is_url(name: str) -> bool:
    return "://" in name


def _file_system(url: str) -> tuple[Any, str]:
    """The store, and the name of something in it."""
    require(f"{url}: a store", "fsspec")
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown scheme; one whose own library is missing
        raise DataError(f"{url}: there is no such store here ({error})") from error
    return store, path


def _cat(url: str, start: int, end: int) -> bytes:
    store, path = _file_system(url)
    data: bytes = store.cat_file(path, start=start, end=end)
    return data


def _start(url: str, size: int) -> bytes:
    """A file of a store, and of one that is larger its first bytes."""
    store, path = _file_system(url)
    try:
        data: bytes = store.cat_file(path, start=0, end=size)
    except FileNotFoundError:
        raise
    except Exception:  # no byte of an empty file can be asked for, and some stores refuse to go beyond a file's end
        if (store.info(path)["size"] or 0) >= size:
            raise
        data = store.cat_file(path)
    return data


def _store(url: str) -> list[Picture]:
    """Files of a store: one, those of a folder that are pictures, or those that a pattern matches."""
    store, path = _file_system(url)
    try:
        if any(sign in path for sign in "*?["):
            found = [name for name, about in store.glob(path, detail=True).items() if about["type"] == "file"]
        elif store.isdir(path):
            found = [name for name in store.find(path) if _is_shown(name[len(path) :])]
        elif not url.endswith("/"):
            return [Stored(url)]
        else:
            found = []
    except Exception as error:  # each store raises what its own library does
        raise DataError(f"{url}: cannot be listed ({type(error).__name__}: {error})") from error
    if not found:
        raise DataError(f"{url}: expected images there, found none (looked for {' '.join(sorted(SUFFIXES))})")
    return [Stored(store.unstrip_protocol(name)) for name in sorted(found)]


def _is_shown(path: str) -> bool:
    """Whether a picture below a folder is taken, as in one of files."""
    parts = PurePosixPath(path).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(path).suffix.lower() in SUFFIXES


def _opened(name: str) -> IO[bytes]:
    """A list, a table or an archive, to be read.

    Raises:
        DataError: it cannot be.
    """
    try:
        if not _is_url(name):
            return Path(name).open("rb")
        store, path = _file_system(name)
        file: IO[bytes] = store.open(path, "rb")
    except Exception as error:  # each store raises what its own library does
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return file


def _named(text: str, where: str) -> Iterator[Picture]:
    """What a list calls a picture, or the pictures of an archive that it names."""
    name = text if _is_url(text) else os.path.join(where.rpartition("/")[0], text)  # noqa: PTH118  (a store's, too)
    if name.lower().endswith(".tar"):
        yield from _members(name)
    else:
        yield Stored(name) if _is_url(name) else Path(name)


def _text(name: str) -> Iterator[str]:
    """Lines of a text in UTF-8, their ends kept."""
    with _opened(name) as file:
        try:
            yield from io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: expected a text in UTF-8 ({error})") from error


def _lines(name: str, _column: str | None) -> Iterator[Picture]:
    empty = True
    for line in _text(name):
        if text := line.strip("\r\n"):
            empty = False
            yield from _named(text, name)
    if empty:
        raise DataError(f"{name}: expected a list of pictures, one a line, found none")


def _column_of(name: str, columns: list[str], column: str | None) -> str:
    if column is None and len(columns) == 1:
        return columns[0]
    if column is None or column not in columns:
        asked = "say which column names the pictures (--column)" if column is None else f"there is no column {column}"
        raise DataError(f"{name}: {asked}; it has {', '.join(columns) or 'none'}")
    return column


def _csv(name: str, column: str | None) -> Iterator[Picture]:
    rows = csv.DictReader(_text(name), delimiter="\t" if name.lower().endswith(".tsv") else ",", strict=True)
    try:
        chosen = _column_of(name, list(rows.fieldnames or ()), column)
        for row in rows:
            if not (text := row[chosen]):
                raise DataError(f"{name}, line {rows.line_num}: nothing in the column {chosen}")
            yield from _named(text, name)
    except csv.Error as error:
        raise DataError(
            f"{name}, line {rows.line_num}: expected a table of comma-separated values ({error})"
        ) from error


def _parquet(name: str, column: str | None) -> Iterator[Picture]:
    require(f"{name}: a Parquet table", "pyarrow")
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with _opened(name) as file:
        try:
            table = ParquetFile(file)
            chosen = _column_of(name, table.schema_arrow.names, column)
            kind = table.schema_arrow.field(chosen).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"{name}: expected paths or URLs in the column {chosen}, it has {kind}")
            for batch in table.iter_batches(columns=[chosen]):
                for text in batch.column(0).to_pylist():
                    if not text:
                        raise DataError(f"{name}: nothing in a row of the column {chosen}")
                    yield from _named(text, name)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{name}: expected a Parquet table ({error})") from error


def _members(name: str, _column: str | None = None) -> Iterator[Picture]:
    seen: set[str] = set()
    with _opened(name) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it keeps every one
                    if not (member.isreg() and not member.issparse() and _is_shown(member.name)):
                        continue
                    if member.name in seen:
                        raise DataError(f"{name}: holds {member.name} twice; expected each picture once")
                    seen.add(member.name)
                    yield Stored(f"tar://{member.name}::{name}", (member.offset_data, member.size))
                file.seek(archive.offset)  # tarfile stops without a word where a header is cut short or damaged
                if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"it has no end, and no header at byte {archive.offset}")
        except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name}: expected an uncompressed tar archive that is whole ({error})") from error
    if not seen:
        raise DataError(f"{name}: expected a tar archive with images in it, found none")


CONTAINERS: dict[str, Callable[[str, str | None], Iterator[Picture]]] = {
    ".txt": _lines, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".tar": _members,
    ".tgz": _members, ".gz": _members,
}  # fmt: skip
"""Files that name or hold pictures, by their endings, and what gives these; compressed archives are refused there."""
