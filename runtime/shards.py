"""Many pictures in shards: tables that are whole or absent, so that a run goes on where it ended, on any machine.

A folder holds ``plan.json``, what makes the boxes; ``images-HASH.jsonl``, the list of pictures; ``shard-00000.jsonl``
and so on, a line for each picture; and beside each table ``shard-00000.json``, its sidecar. A shard is done once its
sidecar is there. Workers share nothing but the folder: a table is a function of the plan, so that two which make the
same one make the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wgap import __version__
from wgap.atomic import atomic_file, remove_residue, require_place
from wgap.bundle import sha256_of
from wgap.errors import DataError, StoreError
from wgap.plain import PlainError, from_plain, read_json, to_plain
from wgap.runtime.localizer import Failure, Stages
from wgap.runtime.tables import FORMATS
from wgap.stores import Picture, Stored, require_stores

if TYPE_CHECKING:
    from wgap.runtime.localizer import Localization, Localizer

__all__ = ["LEASE", "SHARD_SIZE", "Plan", "Shards", "Sidecar", "settings_of"]

SHARD_SIZE = 4096
"""Pictures in a shard, where nothing else is asked for."""

LEASE = 120.0
"""Seconds after which a claim that its worker did not renew is another's to take."""

_PLAN, _CLAIMS, _VERSION = "plan.json", "claims", 1
_MADE_OF = ("onnx", "rejected", "classifier", "foreground")


@dataclass(frozen=True)
class Plan:
    """What a run is: two with the same plan make the same tables.

    Attributes:
        version: of this format.
        images: how many pictures.
        list_sha256: of their list, a JSON text a line.
        shard_size: pictures in a shard; the last one may have fewer.
        settings: what else the boxes depend on, by the words that a message names it with.
        tables: ``jsonl`` or ``parquet``.
    """

    version: int
    images: int
    list_sha256: str
    shard_size: int
    settings: dict[str, str]
    tables: Literal["jsonl", "parquet"]

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.images // self.shard_size)


@dataclass(frozen=True)
class Sidecar:
    """What is known of a finished table.

    Attributes:
        plan: SHA-256 of ``plan.json``.
        shard: its number.
        rows: lines of the table.
        failed: of these, pictures that could not be localized.
        bytes: of the table.
        sha256: of the table.
        worker: who made it; for people.
        seconds: that it took.
        stages: seconds of :class:`wgap.runtime.localizer.Stages`.
    """

    plan: str
    shard: int
    rows: int
    failed: int
    bytes: int
    sha256: str
    worker: str
    seconds: float
    stages: dict[str, float]


def settings_of(localizer: Localizer, class_: str | int | None = None) -> dict[str, str]:
    """What a localizer's boxes depend on, by name.

    Args:
        localizer: any.
        class_: that is localized in place of the top-1 class.
    """
    network, rule, manifest = localizer.network, localizer.rule, localizer.bundle.manifest
    made_of = [e.sha256 for e in manifest.files if e.role in _MADE_OF and e.precision in ("fp32", network.precision)]
    return {
        "bundle": hashlib.sha256(repr((manifest.model, manifest.preprocessing, made_of)).encode()).hexdigest()[:16],
        "network": f"{network.name} {network.version}, {network.precision}",
        "rule": f"{rule} on the {rule.map} map",
        "classes": f"{localizer.top_k} a picture" if class_ is None else localizer.class_name(class_),
        "boxes": f"{localizer.max_boxes} a class",
        "batch size": f"{localizer.batch_size}",
        "wgap": __version__,
    }


def speeds(sidecars: Sequence[Sidecar]) -> dict[str, float]:
    """Images per second of the worker that made these shards, or on average of several.

    Returns:
        ``total``; ``prepare`` of one thread; ``network``; and ``waiting``, the part of the time in which the network
        had no images. Empty where there are no shards.
    """
    rows, spent = sum(one.rows for one in sidecars), sum(one.seconds for one in sidecars)
    took = {name: sum(one.stages[name] for one in sidecars) for name in ("prepare", "wait", "network")}
    if not rows:
        return {}
    rates = {"total": spent, "prepare": took["prepare"], "network": took["network"]}
    least = 1e-3  # which sidecars round to
    return {**{name: rows / max(s, least) for name, s in rates.items()}, "waiting": took["wait"] / max(spent, least)}


class Shards:
    """A run's folder.

    Args:
        folder: of an earlier run, or one to make.
        images: the list, as :func:`wgap.stores.find_pictures` gives it, of absolute paths, since workers have working
            directories of their own; None of a run that is there.
        settings: see :func:`settings_of`; likewise. Of a run that is there both must be the same.
        shard_size: pictures in a shard; None: as the run has it, else ``SHARD_SIZE``.
        tables: ``jsonl`` or ``parquet`` (see :func:`wgap.runtime.tables.schema`); None: as the run has it, else
            ``jsonl``.

    Raises:
        DataError: there is no run, it is of another plan, or it is damaged; a path is relative, or of characters that
            Parquet cannot hold.
        MissingDependencyError: pyarrow, for Parquet, is not installed.
        OSError: the folder cannot be made or written.
    """

    def __init__(
        self, folder: Path, images: Sequence[Picture] | None = None, settings: dict[str, str] | None = None,
        shard_size: int | None = None, tables: Literal["jsonl", "parquet"] | None = None,
    ) -> None:  # fmt: skip
        self.folder, path = folder, folder / _PLAN
        if (shard_size is not None and shard_size < 1) or tables not in (None, *FORMATS):
            raise DataError(
                f"expected shards of 1 picture or more, and {' or '.join(FORMATS)}; got {shard_size}, {tables}"
            )
        if images is not None and not path.exists():
            require_place(folder)
            self._begin(
                images, _with_tables(settings or {}, tables or "jsonl"), shard_size or SHARD_SIZE, tables or "jsonl"
            )
        try:
            content = path.read_bytes()
            self.plan = from_plain(Plan, read_json(content.decode()))
        except FileNotFoundError:
            raise DataError(f"{folder}: expected the {_PLAN} of a run with --shards, found none") from None
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: expected the plan of a run with --shards ({error})") from error
        plan = self.plan
        if plan.version != _VERSION or plan.shard_size < 1 or plan.images < 0:
            raise DataError(
                f"{path}: expected a plan of version {_VERSION} with whole shards, got version {plan.version}, "
                f"{plan.images} pictures, {plan.shard_size} in a shard"
            )
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._format = FORMATS[self.plan.tables]()
        self._token = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        if settings is not None:
            self._require(images, _with_tables(settings, tables or self.plan.tables), shard_size)

    def _begin(
        self, images: Sequence[Picture], settings: dict[str, str], shard_size: int, tables: Literal["jsonl", "parquet"]
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if strange := sorted(entry.name for entry in self.folder.glob("shard-*")):
            raise DataError(f"{self.folder} holds {strange[0]} but no {_PLAN}; choose another folder")
        for image in images:
            name = os.fspath(image)
            place = Path(image.archive) if isinstance(image, Stored) else image
            if "://" not in name.rpartition("::")[2] and not place.is_absolute():
                raise DataError(f"{name}: expected absolute paths in a run's list")
            if tables == "parquet" and not _is_text(name):
                raise DataError(f"{name!a}: Parquet holds texts of whole characters alone; take --format jsonl")
        digest = _digest(_lines(images))
        with atomic_file(_list_path(self.folder, digest)) as temporary, temporary.open("wb") as file:
            file.writelines(_lines(images))
        plan = Plan(_VERSION, len(images), digest, shard_size, settings, tables)
        temporary = self.folder / f".plan.{secrets.token_hex(6)}"  # no other worker takes it for what a killed one left
        temporary.write_text(json.dumps(to_plain(plan), indent=1) + "\n", encoding="utf-8")
        with suppress(FileExistsError):  # of several workers that begin at once one plan counts
            (self.folder / _PLAN).hardlink_to(temporary)
        temporary.unlink()

    def _require(self, images: Sequence[Picture] | None, settings: dict[str, str], shard_size: int | None) -> None:
        """Refuse another list or other settings than the run's."""
        plan, differs = self.plan, ""
        for name in [*plan.settings, *(settings.keys() - plan.settings.keys())]:
            if not differs and plan.settings.get(name) != settings.get(name):
                differs = f"its {name} is {plan.settings.get(name)}, not {settings.get(name)}"
        if not differs and shard_size not in (None, plan.shard_size):
            differs = f"its shards are of {plan.shard_size} pictures, not {shard_size}"
        if not differs and images is not None and len(images) != plan.images:
            differs = f"its list has {plan.images} pictures, not {len(images)}"
        if not differs and images is not None and _digest(_lines(images)) != plan.list_sha256:
            for number, (was, now) in enumerate(zip(self._listed(), _lines(images), strict=True)):
                if was != now:
                    differs = f"picture {number} of its list is {_said(was)}, not {_said(now)}"
                    break
        if differs:
            raise DataError(f"{self.folder} is of another run: {differs}; take another folder")

    def _listed(self) -> Iterator[bytes]:
        """The lines of the run's list, which is compared with its hash at their end."""
        path, digest = _list_path(self.folder, self.plan.list_sha256), hashlib.sha256()
        try:
            with path.open("rb") as file:
                for line in file:
                    digest.update(line)
                    yield line
        except OSError as error:
            raise DataError(f"{path}: expected the run's list of pictures ({error.strerror})") from error
        if digest.hexdigest() != self.plan.list_sha256:
            raise DataError(f"{path} was changed after the run began; begin another one in another folder")

    @cached_property
    def _starts(self) -> array[int]:
        """Where in the list each shard begins, and its end: a list of any length takes 8 bytes a shard."""
        starts, at, count = array("q", [0]), 0, 0
        for line in self._listed():
            at, count = at + len(line), count + 1
            if count % self.plan.shard_size == 0 or count == self.plan.images:
                starts.append(at)
        if count != self.plan.images:
            raise DataError(f"{self.folder / _PLAN}: says {self.plan.images} pictures, which its list has not")
        return starts

    def part(self, shard: int) -> list[Picture]:
        """The pictures of a shard.

        Raises:
            DataError: the list is missing or was changed; or there is no such shard.
        """
        if not 0 <= shard < self.plan.shards:
            raise DataError(f"{self.folder}: expected a shard of 0..{self.plan.shards - 1}, got {shard}")
        start, end = self._starts[shard : shard + 2]
        with _list_path(self.folder, self.plan.list_sha256).open("rb") as file:
            file.seek(start)
            return [_picture(line) for line in file.read(end - start).splitlines()]

    def table(self, shard: int) -> Path:
        """A shard's table, there or not."""
        return self.folder / f"shard-{shard:05d}.{self.plan.tables}"

    def sidecar(self, shard: int) -> Sidecar | None:
        """What is known of a shard; None while it is not done.

        Raises:
            DataError: the sidecar is damaged, or of another run.
        """
        path = self.table(shard).with_suffix(".json")
        try:
            found = from_plain(Sidecar, read_json(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (PlainError, ValueError, OSError) as error:
            raise DataError(
                f"{path}: expected a shard's sidecar ({error}); remove it to make the shard anew"
            ) from error
        if (found.plan, found.shard) != (self.sha256, shard):
            raise DataError(f"{path} is of another run, or of another shard; remove it to make the shard anew")
        return found

    def done(self, shard: int) -> Sidecar | None:
        """The sidecar of a shard that is done: it is there, and the table beside it as long as it says."""
        found, table = self.sidecar(shard), self.table(shard)
        return found if found is not None and table.is_file() and table.stat().st_size == found.bytes else None

    def sidecars(self) -> list[Sidecar]:
        """Those of the shards that are done, in order."""
        return [found for shard in range(self.plan.shards) if (found := self.done(shard)) is not None]

    def work(
        self, localizer: Localizer, class_: int | str | None = None, worker: tuple[int, int] | None = None,
        lease: float = LEASE, finished: Callable[[Sidecar], Any] = lambda _: None,
    ) -> int:  # fmt: skip
        """Make the shards that are not done.

        Args:
            localizer: of the plan's settings.
            class_: as in :func:`settings_of`.
            worker: (i, n): every n-th shard from the i-th on, counted from 1, is this one's, and no other's. None:
                whichever no other worker has claimed, until all are done; the shards of one that died are taken over.
            lease: seconds after which a claim of this worker that was not renewed is void, by the clock of the folder's
                file system.
            finished: told of each shard that was made.

        Returns:
            how many shards were made.
        """
        remove_residue(self.folder)
        made = 0
        own = range(self.plan.shards) if worker is None else range(worker[0] - 1, self.plan.shards, worker[1])
        waiting = [shard for shard in own if not self.done(shard)]
        while waiting:
            left, before = [], made
            for shard in waiting:
                if self.done(shard):
                    continue
                claim = None if worker is not None else self._claimed(shard, lease)
                if worker is None and claim is None:
                    left.append(shard)
                    continue
                try:
                    finished(self.make(shard, localizer, class_, claim=claim, lease=lease))
                    made += 1
                finally:
                    if claim is not None:
                        claim.unlink(missing_ok=True)
            waiting = left
            if waiting and made == before:
                time.sleep(min(lease / 4, 5.0))
        return made

    def verify(self) -> list[str]:
        """What is wrong with a run that should be complete, a line each; empty where nothing is."""
        _ = self._starts  # a plan that its list does not fit is no run
        return [problem for shard in range(self.plan.shards) for problem in self._problems(shard)]

    def merge(self, out: Path) -> int:
        """Write all tables, in order, as one file; whole or not at all.

        Returns:
            its rows.

        Raises:
            DataError: a shard is missing or damaged; the first ones are named.
        """
        if problems := self.verify():
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise DataError(f"{self.folder} cannot be merged: {'; '.join(problems[:3])}{more}")
        if out.suffix[1:] in FORMATS and out.suffix[1:] != self.plan.tables:
            raise DataError(
                f"{out}: the run's tables are {self.plan.tables}; choose a name that does not say otherwise"
            )
        with atomic_file(out) as temporary:
            self._format.merge(temporary, map(self.table, range(self.plan.shards)))
        return self.plan.images

    def make(
        self, shard: int, localizer: Localizer, class_: int | str | None = None, *, claim: Path | None = None,
        lease: float = LEASE,
    ) -> Sidecar:  # fmt: skip
        """Make one shard, whether it is done or not, for a scheduler that shares out the work by itself.

        Args:
            shard: its number, from 0 on.
            localizer: of the plan's settings.
            class_: as in :func:`settings_of`.
            claim: a file that is touched as long as the work goes on, each sixth of ``lease`` seconds.
            lease: see ``claim``.

        Raises:
            DataError: the localizer's settings are not the plan's, or there is no such shard.
            StoreError: a picture's store cannot be reached; the shard is not done then.
            OSError: the table cannot be written; likewise.
        """
        self._require(None, _with_tables(settings_of(localizer, class_), self.plan.tables), None)
        began = renewed = time.monotonic()
        images, failed, stages = self.part(shard), 0, Stages()
        require_stores(images)

        def results() -> Iterator[Localization | Failure]:
            nonlocal failed, renewed
            for result in localizer(images, class_, on_error="yield", stages=stages):
                if isinstance(result, Failure):
                    if isinstance(result.error, StoreError):  # which is no fault of the picture
                        raise StoreError(f"{result.error}; shard {shard} is left, and the same command goes on with it")
                    failed += 1
                yield result
                if claim is not None and time.monotonic() - renewed > lease / 6:
                    renewed = time.monotonic()
                    with suppress(OSError):  # another has taken it: both make the same table
                        os.utime(claim)

        with _named(self.table(shard)) as table, atomic_file(table) as temporary:
            self._format.write(temporary, results())
            size, digest = temporary.stat().st_size, sha256_of(temporary)
        took = {name: round(getattr(stages, name), 3) for name in ("prepare", "wait", "network")}
        sidecar = Sidecar(
            self.sha256, shard, len(images), failed, size, digest, self._token, round(time.monotonic() - began, 3), took
        )
        with _named(self.table(shard).with_suffix(".json")) as beside, atomic_file(beside) as temporary:
            temporary.write_text(json.dumps(to_plain(sidecar), indent=1) + "\n", encoding="utf-8")
        return sidecar

    def _claimed(self, shard: int, lease: float) -> Path | None:
        """This worker's claim on a shard; None where another has one that is not void."""
        folder = self.folder / _CLAIMS
        folder.mkdir(exist_ok=True)
        claim = folder / f"shard-{shard:05d}"
        for _ in range(2):
            with suppress(FileExistsError):
                with _named(claim), claim.open("x", encoding="utf-8") as file:
                    try:
                        file.write(f"{self._token} {lease}")
                        file.flush()
                    except OSError:
                        claim.unlink()
                        raise
                return claim
            with suppress(FileNotFoundError):
                probe = folder / f".clock-{secrets.token_hex(6)}"
                probe.touch()
                now = probe.stat().st_mtime  # the file system's clock, not this machine's
                probe.unlink()
                if now - claim.stat().st_mtime <= _lease_of(claim, lease):
                    return None
                void = folder / f".void-{secrets.token_hex(6)}"
                claim.rename(void)  # of two that find it void one does this
                void.unlink()
        return None

    def _problems(self, shard: int) -> Iterator[str]:
        table, images = self.table(shard), self.part(shard)
        try:
            known = self.sidecar(shard)
        except DataError as error:
            yield str(error)
            return
        if known is None or not table.is_file():
            yield f"{table.name} is not done"
        elif sha256_of(table) != known.sha256:
            yield f"{table} is not the table that its sidecar tells of; remove the sidecar to make it anew"
        else:
            named = self._format.images(table)
            if named != list(map(os.fspath, images)) or known.rows != len(images):
                yield f"{table} has other pictures than the plan; remove its sidecar to make it anew"


@contextmanager
def _named(path: Path) -> Iterator[Path]:
    """Errors of the system that name no file, as those of writing do, name this one."""
    try:
        yield path
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lease_of(claim: Path, default: float) -> float:
    """The seconds that a claim's own worker asked for; of one that it is just writing ``default``."""
    try:
        return float(claim.read_text(encoding="utf-8").split()[3])
    except (ValueError, IndexError):
        return default


def _with_tables(settings: dict[str, str], tables: str) -> dict[str, str]:
    return {**settings, "kind of tables": FORMATS[tables]().label}


def _list_path(folder: Path, digest: str) -> Path:
    return folder / f"images-{digest[:16]}.jsonl"


def _lines(images: Iterable[Picture]) -> Iterator[bytes]:
    """A JSON text for each picture: its name, or of an archive's member a list of its name, offset and size."""
    for image in images:
        name, place = os.fspath(image), image.place if isinstance(image, Stored) else None
        yield (json.dumps(name if place is None else [name, *place]) + "\n").encode()


def _digest(lines: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def _picture(line: bytes) -> Picture:
    value = json.loads(line)
    if isinstance(value, list):
        return Stored(value[0], (value[1], value[2], value[3]))
    return Stored(value) if "://" in value else Path(value)


def _said(line: bytes) -> str:
    """A line of the list as a message names it."""
    picture = _picture(line)
    place = picture.place if isinstance(picture, Stored) else None
    return os.fspath(picture) + ("" if place is None else f" ({place[1]} bytes at {place[0]})")
