"""Ray: pictures in Datasets, and runs in shards whose work Ray shares out.

Importing this needs neither Ray nor pyarrow; :class:`TableLocalizer` needs pyarrow alone.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wgap.atomic import remove_residue
from wgap.errors import DataError
from wgap.extras import require
from wgap.plain import to_plain
from wgap.runtime.localizer import Localizer
from wgap.runtime.shards import Shards, settings_of
from wgap.runtime.tables import FORMATS, schema, table_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ShardMaker", "TableLocalizer", "make_shards", "read_shards"]

_ON_CPU = ("onnxruntime", "openvino")
_MOST_BLOCKS = 10_000
"""Of the Datasets over shards: what Ray's driver keeps track of."""


class TableLocalizer:
    """A localizer of tables, for ``ray.data.Dataset.map_batches``; the localizer is made where it runs.

    ::

        found = ray.data.read_binary_files("photos/", include_paths=True).map_batches(
            TableLocalizer, fn_constructor_args=("/bundles/birds",), fn_constructor_kwargs={"drop": True},
            batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=2),
        )

    It can be pickled, by its arguments. In an actor of Ray a backend on the CPU has as many ``threads`` as the actor
    has CPUs, where nothing else is asked for; one on GPUs runs on the GPU that Ray gave to the actor.

    Args:
        bundle: a bundle folder, by a path that all machines know.
        column: of the pictures: the bytes of image files (``read_binary_files``), RGB pixels uint8[H, W, 3]
            (``read_images``), or paths, which are opened.
        class_: localize this class (name or id) in place of the top-1.
        drop: leave the column of the pictures out of what is returned.
        prefix: of the names of the columns that are added, where the table has such columns already.
        **options: as of :class:`wgap.Localizer`.

    Raises:
        DataError: the backend is on GPUs and Ray gave the actor none; or an option is out of range.
        MissingDependencyError: pyarrow is not installed.
        WgapError: whatever else :class:`wgap.Localizer` refuses.
    """

    def __init__(
        self, bundle: str | os.PathLike[str], column: str = "bytes", *, class_: int | str | None = None,
        drop: bool = False, prefix: str = "", **options: Any,
    ) -> None:  # fmt: skip
        require("a table of pictures", "pyarrow")
        bundle = os.path.abspath(bundle)  # noqa: PTH100  (as it is written, links and all)
        self._arguments = ((bundle, column), {"class_": class_, "drop": drop, "prefix": prefix, **options})
        self.localizer = Localizer(bundle, **_options_here(options))
        self.column, self.class_, self.drop, self.prefix = column, class_, drop, prefix

    def __reduce__(self) -> tuple[Any, ...]:
        positional, named = self._arguments
        return partial(type(self), *positional, **named), ()

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with the columns of :func:`wgap.runtime.tables.schema` behind its own, row by row.

        ``image`` is not among them: the table's own columns say which picture a row is of. Of a picture that cannot be
        localized (damaged, null, of another dtype) ``error`` and ``code`` are filled, and nothing else.

        Raises:
            DataError: the column is not there or of a type that holds no pictures; or a column that would be added is
                there already.
            BackendError: the forward pass failed.
        """
        import pyarrow as pa

        if not isinstance(table, pa.Table):
            raise DataError(f'expected a pyarrow.Table, got {type(table).__name__}; pass batch_format="pyarrow"')
        if self.column not in table.column_names:
            raise DataError(f"no column {self.column!r} in the table; it has {', '.join(table.column_names) or 'none'}")
        kept = table.drop_columns([self.column]) if self.drop else table
        added = [name for name in schema().names if name != "image"]
        if taken := [self.prefix + name for name in added if self.prefix + name in kept.column_names]:
            raise DataError(
                f"the table has {', '.join(taken)} already; give the added columns a prefix= that keeps them apart"
            )
        found = table_of(self.localizer(_pictures(table, self.column), self.class_, on_error="yield"))
        for name in added:
            kept = kept.append_column(
                self.prefix + name, _without_numbers(found[name]) if name == "error" else found[name]
            )
        return kept


class ShardMaker:
    """Makes shards of a run (docs/shards.md) by their numbers, for ``map_batches``; see :func:`make_shards`.

    Args:
        folder: of the run, on a file system that all machines see.
        bundle: a bundle folder, by a path that all machines know.
        class_: as in :func:`wgap.runtime.shards.settings_of`.
        **options: as of :class:`wgap.Localizer`.

    Raises:
        DataError: there is no run, or its boxes depend on something else than these options; or as of
            :class:`TableLocalizer`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], bundle: str | os.PathLike[str], class_: int | str | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        self.localizer, self.class_ = Localizer(bundle, **_options_here(options)), class_
        self.run = Shards(Path(folder), settings=settings_of(self.localizer, class_))
        remove_residue(self.run.folder)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The sidecars of the shards in the column ``id``, a row each, and whether the shard was ``made`` just now."""
        import pyarrow as pa

        rows = []
        for shard in table["id"].to_pylist():
            known = self.run.done(shard)
            sidecar = known or self.run.make(shard, self.localizer, self.class_)
            rows.append({**to_plain(sidecar), "made": known is None})
        return pa.Table.from_pylist(rows)


def make_shards(
    folder: str | os.PathLike[str], bundle: str | os.PathLike[str], *, actors: int, class_: int | str | None = None,
    num_cpus: float | None = None, num_gpus: float | None = None, **options: Any,
) -> Any:  # fmt: skip
    """A Dataset of the sidecars of a run, which makes the shards that are not done as it is read.

    What an actor that dies was at is made by another; what is done is not made again, in this or in any later Dataset.

    Args:
        folder: of a run that is begun: ``Shards(folder, images, settings_of(localizer))``.
        bundle: see :class:`ShardMaker`.
        actors: how many work side by side.
        class_: see :class:`ShardMaker`.
        num_cpus: of an actor; None is Ray's default, 1.
        num_gpus: of an actor; None for none.
        **options: see :class:`ShardMaker`.

    Raises:
        MissingDependencyError: Ray or pyarrow is not installed.
        DataError: there is no run.
    """
    require("make_shards", "ray", "pyarrow")
    import ray.data

    folder, bundle = os.path.abspath(folder), os.path.abspath(bundle)  # noqa: PTH100
    shards = Shards(Path(folder)).plan.shards
    return ray.data.range(shards, override_num_blocks=min(shards, _MOST_BLOCKS) or 1).map_batches(
        ShardMaker, fn_constructor_args=(folder, bundle), fn_constructor_kwargs={"class_": class_, **options},
        batch_size=1, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=actors), num_cpus=num_cpus,
        num_gpus=num_gpus,
    )  # fmt: skip


def read_shards(folder: str | os.PathLike[str]) -> Any:
    """The rows of a run that is complete, as a Dataset of the columns of :func:`wgap.runtime.tables.schema`.

    Each table is compared with its sidecar as it is read. As everywhere in Ray, rows come in no certain order unless
    ``DataContext.execution_options.preserve_order`` is set.

    Raises:
        MissingDependencyError: Ray or pyarrow is not installed.
        DataError: there is no run, or one of its shards is not done.
    """
    require("read_shards", "ray", "pyarrow")
    import ray.data

    run = Shards(Path(folder).absolute())
    tables = []
    for shard in range(run.plan.shards):
        known = run.done(shard)
        if known is None:
            raise DataError(f"{run.table(shard)} is not done; make_shards makes what is missing")
        tables.append({"path": str(run.table(shard)), "sha256": known.sha256})
    blocks = min(len(tables), _MOST_BLOCKS) or 1
    return ray.data.from_items(tables, override_num_blocks=blocks).map_batches(
        _rows, batch_size=1, batch_format="pyarrow", fn_kwargs={"tables": run.plan.tables}
    )


def _rows(named: pa.Table, tables: str) -> pa.Table:
    """The rows of finished tables of a kind, which are named by path and SHA-256."""
    import pyarrow as pa

    read = []
    for row in named.to_pylist():
        content = Path(row["path"]).read_bytes()
        if hashlib.sha256(content).hexdigest() != row["sha256"]:
            raise DataError(
                f"{row['path']} is not the table that its sidecar tells of; remove the sidecar to make it anew"
            )
        read.append(FORMATS[tables]().read(content))
    return pa.concat_tables(read)


def _pictures(table: pa.Table, column: str) -> Iterator[Any]:
    """Each row's picture, as a localizer takes one; None of a null."""
    import pyarrow as pa

    values, kind = table[column], table.schema.field(column).type
    tensors = isinstance(kind, pa.BaseExtensionType)  # Ray's, of equal and of different shapes, and Arrow's own
    is_ = pa.types
    if not (
        tensors
        or any(
            test(kind) for test in (is_.is_binary, is_.is_large_binary, is_.is_string, is_.is_large_string, is_.is_null)
        )
    ):
        raise DataError(
            f"column {column!r}: expected the bytes of image files, pixels uint8[H, W, 3] or paths, got {kind}"
        )
    for value in values:
        yield value.to_numpy() if value.is_valid and hasattr(value, "to_numpy") else value.as_py()


def _without_numbers(errors: pa.ChunkedArray) -> pa.Array:
    """Errors without what they begin with, the number of a row in a batch that Ray cut: the row says which it is."""
    import pyarrow as pa

    said = errors.to_pylist()
    return pa.array([error and error.removeprefix(f"image {row}: ") for row, error in enumerate(said)], pa.string())


def _options_here(options: dict[str, Any]) -> dict[str, Any]:
    """A localizer's options in an actor of Ray: on the CPUs and the GPU that it was given."""
    if "ray.runtime_context" not in sys.modules:
        return options
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return options
    given, backend = ray.get_runtime_context().get_assigned_resources(), options.get("backend", "onnxruntime")
    if backend in _ON_CPU:
        own = {} if options.get("device") else {"threads": max(1, int(given.get("CPU", 1)))}
        return {**own, **options}
    if backend != "auto" and not given.get("GPU"):
        raise DataError(
            f"the backend {backend} runs on a GPU, and Ray gave this actor none; ask for it with num_gpus=1"
        )
    return options
