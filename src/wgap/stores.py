"""Pictures that are not files beside each other: named in lists and tables, in tar archives, in stores of fsspec's."""

from __future__ import annotations

import csv
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeAlias

from wgap.errors import DataError, ImageError, StoreError
from wgap.extras import require
from wgap.images import SUFFIXES, LeftOut, expand, is_hidden, tell_left_out

__all__ = ["CONTAINERS", "Picture", "Stored", "find_pictures", "require_stores"]


@dataclass(frozen=True)
class Stored(os.PathLike[str]):
    """A picture in a store or an archive, which is taken wherever a picture's path is.

    Attributes:
        name: its URL; of an archive's member ``tar://MEMBER::ARCHIVE``, as fsspec writes it.
        place: of an archive's member the offset of its first byte, how many it has, and the CRC-32 of the header before
            them, by which an archive that was packed anew is told.
    """

    name: str
    place: tuple[int, int, int] | None = None

    def __fspath__(self) -> str:
        return self.name

    @property
    def stem(self) -> str:
        """Its name without folders and ending."""
        return PurePosixPath(self.name.removeprefix("tar://").rpartition("::")[0] if self.place else self.name).stem

    @property
    def archive(self) -> str:
        """Of an archive's member: the archive."""
        return self.name.rpartition("::")[2]

    def read(self, size: int) -> bytes:
        """Its first ``size`` bytes.

        Raises:
            ImageError: it is not there.
            StoreError: the store cannot be reached, or does not let it be read; or its archive is another one.
        """
        try:
            if self.place is None:
                return _start(self.name, size)
            start, length, header = self.place
            start, end = start - tarfile.BLOCKSIZE, start + min(size, length)
            if _is_url(self.archive):
                data = _cat(self.archive, start, end)
            else:
                with Path(self.archive).open("rb") as file:
                    file.seek(start)
                    data = file.read(end - start)
        except FileNotFoundError as error:
            raise ImageError(f"{self.name}: no such file") from error
        except Exception as error:  # each store raises what its own library does
            raise StoreError(f"{self.name}: cannot be read ({type(error).__name__}: {error})") from error
        if len(data) > end - start:
            raise StoreError(f"{self.name}: its server gives whole files where a part is asked for; copy the archive")
        if len(data) < end - start or zlib.crc32(data[: tarfile.BLOCKSIZE]) != header:
            raise StoreError(f"{self.name}: the archive is not the one that was listed; list it anew")
        return data[tarfile.BLOCKSIZE :]


Picture: TypeAlias = "Path | Stored"
"""A picture by its name."""


def find_pictures(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    missing: Literal["raise", "keep"] = "raise", column: str | None = None,
) -> list[Picture]:  # fmt: skip
    """Expand inputs into pictures.

    Beside the files, folders and globs of :func:`wgap.images.find_images` these are taken:

    - a name ``tar://MEMBER::ARCHIVE``, as results have it;
    - a list ``.txt``, a picture a line, or a column of a ``.csv``, ``.tsv`` or ``.parquet``: paths, relative ones from
      the list's own folder, URLs, and tar archives;
    - an uncompressed ``.tar``: its pictures, in its order, other members left out (WebDataset's shards), and so are
      symbolic links and sparse files, which the logger ``wgap.images`` tells at INFO;
    - ``scheme://...``, a file, folder or glob in a store that fsspec reaches; also a list or an archive there.

    Of a glob's matches lists and archives are expanded where the pattern ends as they do. Order and repetition are as
    of :func:`~wgap.images.find_images`. Nothing is read but lists, tables, and an archive's headers.

    Args:
        inputs: one or several.
        missing: as of :func:`~wgap.images.find_images`; for pictures. A list or an archive must be there.
        column: of tables; None where they have one alone.

    Raises:
        DataError: as :func:`~wgap.images.find_images`; a list, table or archive is unreadable or names no picture, or
            has no such column; an archive is compressed, cut short, or has a member twice; a URL is of no store that is
            reached from here.
        MissingDependencyError: fsspec, or for Parquet pyarrow, is not installed.
    """
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    found: dict[str, Picture] = {}
    for entry in [os.fspath(entry) for entry in inputs]:
        if _is_member(entry):
            found.setdefault(_key(member := _member(entry)), member)
            continue
        expanded = _suffix(entry) in CONTAINERS  # a glob's matches only where it asks for such
        for picture in _store(entry) if _is_url(entry) else expand(entry, missing):
            inside = expanded and _suffix(picture) in CONTAINERS
            pictures = CONTAINERS[_suffix(picture)](os.fspath(picture), column) if inside else [picture]
            nothing = True
            for one in pictures:
                nothing = False
                if missing == "raise" and isinstance(one, Path) and not one.exists():
                    raise DataError(f"{one}: no such file")
                found.setdefault(_key(one), one)
            if nothing:
                raise DataError(f"{os.fspath(picture)}: expected pictures, it names none")
    every = list(found.values())
    require_stores(every)
    return every


def _key(picture: Picture) -> str:
    """What two inputs that reach the same picture have in common; two names of one file on the disk are two."""
    if isinstance(picture, Path):
        return os.path.abspath(picture)  # noqa: PTH100
    if picture.place is None or _is_url(picture.archive):
        return picture.name
    return picture.name.removesuffix(picture.archive) + os.path.abspath(picture.archive)  # noqa: PTH100


def _suffix(name: str | os.PathLike[str]) -> str:
    return PurePosixPath(name).suffix.lower()


def require_stores(pictures: Iterable[Picture]) -> None:
    """Refuse to begin with pictures in stores that nothing installed here reaches.

    Raises:
        DataError: a URL is of no store, or its library is not installed.
        MissingDependencyError: fsspec is not.
    """
    roots: dict[str, str] = {}
    for one in pictures:
        if isinstance(one, Stored) and _is_url(url := one.archive if one.place else one.name):
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
    return not any(map(is_hidden, PurePosixPath(path).parts)) and _suffix(path) in SUFFIXES


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
    if _is_member(name):
        yield _member(name)
    elif name.lower().endswith(".tar"):
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
    for line in _text(name):
        if text := line.strip("\r\n"):
            yield from _named(text, name)


def _column_of(name: str, columns: list[str], column: str | None) -> str:
    if column is None and len(columns) == 1:
        return columns[0]
    if column is None or column not in columns:
        asked = "say which column names the pictures (--column)" if column is None else f"there is no column {column}"
        raise DataError(f"{name}: {asked}; it has {', '.join(columns) or 'none'}")
    if columns.count(column) > 1:
        raise DataError(f"{name}: {columns.count(column)} columns are called {column}; expected one")
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
    places: dict[str, tuple[int, int, int]] = {}
    left_out: list[LeftOut] = []
    if "::" in name:
        raise DataError(f"{name}: expected an archive by one URL, not through another store")
    with _opened(name) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it keeps every one
                    if not _is_shown(member.name):
                        continue
                    if member.isreg() and not member.issparse() and member.size >= 0:
                        file.seek(member.offset_data - tarfile.BLOCKSIZE)
                        place = (member.offset_data, member.size, zlib.crc32(file.read(tarfile.BLOCKSIZE)))
                    elif member.islnk() and member.linkname in places:
                        place = places[member.linkname]
                    else:
                        left_out.append(LeftOut(Path(name, member.name), "a link, a sparse file or none"))
                        continue
                    if member.name in places:
                        raise DataError(f"{name}: holds {member.name} twice; expected each picture once")
                    places[member.name] = place
                    yield Stored(f"tar://{member.name}::{name}", place)
                file.seek(archive.offset)  # tarfile stops without a word where a header is cut short or damaged
                if (end := file.read(2 * _RECORD)).strip(tarfile.NUL) or len(end) < tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"it has no end, and no header at byte {archive.offset}, or goes on behind")
        except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name}: expected an uncompressed tar archive that is whole ({error})") from error
    tell_left_out(Path(name), left_out)


@lru_cache(4)
def _listed(archive: str) -> dict[str, Picture]:
    return {os.fspath(one): one for one in _members(archive)}


def _is_member(name: str) -> bool:
    return name.startswith("tar://") and "::" in name


def _member(name: str) -> Picture:
    """A picture by the name that results have."""
    archive = name.rpartition("::")[2]
    try:
        return _listed(archive)[name]
    except KeyError:
        raise DataError(f"{name}: there is no such picture in {archive}") from None


_RECORD = 20 * tarfile.BLOCKSIZE
"""Archives end on a multiple of so many bytes, in zeros."""


CONTAINERS: dict[str, Callable[[str, str | None], Iterator[Picture]]] = {
    ".txt": _lines, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".tar": _members,
    ".tgz": _members, ".gz": _members,
}  # fmt: skip
"""Files that name or hold pictures, by their endings, and what gives these; compressed archives are refused there."""
