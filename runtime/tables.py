"""Results as columns: what a Parquet table of shards, a Ray Dataset and a Spark frame hold of each picture.

And results in tables on the disk, as JSON lines or Parquet.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from wgap.extras import require

if TYPE_CHECKING:
    import pyarrow as pa

    from wgap.runtime.localization import Failure, Localization

__all__ = ["FORMATS", "JsonLines", "Parquet", "schema", "table_of"]


def schema() -> pa.Schema:
    """The columns of a result, named as in its JSON line; all may be null.

    ``image`` string; ``class_id`` int32, ``class_name`` string, ``score`` float64 in [0, 1]; ``box`` list<float64>, the
    first of ``boxes`` list<list<float64>>, (x0, y0, x1, y1) in pixels of the original, half-open; ``threshold``
    float64, ``degenerate`` bool; ``others`` list<struct> of the columns from ``class_id`` on, where ``top_k`` > 1; and
    of a picture that could not be localized ``error`` and ``code`` string alone.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    require("a table", "pyarrow")
    import pyarrow as pa

    box = pa.list_(pa.float64())
    own = [
        ("class_id", pa.int32()), ("class_name", pa.string()), ("score", pa.float64()), ("box", box),
        ("boxes", pa.list_(box)), ("threshold", pa.float64()), ("degenerate", pa.bool_()),
    ]  # fmt: skip
    return pa.schema(
        [
            ("image", pa.string()),
            *own,
            ("others", pa.list_(pa.struct(own))),
            ("error", pa.string()),
            ("code", pa.string()),
        ]
    )


def table_of(results: Iterable[Localization | Failure]) -> pa.Table:
    """Results as a table of :func:`schema`, a row for each, in order.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    columns = schema()
    import pyarrow as pa

    return pa.Table.from_pylist([result.to_json() for result in results], schema=columns)


class JsonLines:
    """Tables of a JSON line for each result, as ``wgap localize --json`` prints it."""

    label = "JSON lines"

    def write(self, path: Path, results: Iterable[Localization | Failure]) -> None:
        """Write results, in order, as they come."""
        with path.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(result.to_json()) + "\n" for result in results)

    def images(self, path: Path) -> list[str] | None:
        """What each row calls its picture; None of what is no such table."""
        try:
            return [json.loads(line)["image"] for line in path.read_text(encoding="utf-8").splitlines()]
        except (ValueError, KeyError, TypeError):
            return None

    def read(self, content: bytes) -> pa.Table:
        """The table of a file's bytes, by :func:`schema`."""
        import pyarrow as pa
        from pyarrow import json as lines

        known = lines.ParseOptions(explicit_schema=schema(), unexpected_field_behavior="error")
        whole = lines.ReadOptions(block_size=max(1, len(content)))  # no line lies across two blocks
        return lines.read_json(pa.BufferReader(content), whole, known)

    def merge(self, out: Path, tables: Iterable[Path]) -> None:
        """Write tables, in order, as one."""
        with out.open("wb") as whole:
            for table in tables:
                with table.open("rb") as part:
                    shutil.copyfileobj(part, whole)


class Parquet:
    """Tables of :func:`schema` in Parquet.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """

    def __init__(self) -> None:
        require("a Parquet table", "pyarrow")
        self.label = f"Parquet of pyarrow {version('pyarrow')}"  # which its bytes depend on

    def write(self, path: Path, results: Iterable[Localization | Failure]) -> None:
        """Write results, in order, once all of them are there."""
        from pyarrow import parquet

        parquet.write_table(table_of(results), path)

    def images(self, path: Path) -> list[str] | None:
        """What each row calls its picture; None of what is no such table."""
        from pyarrow import ArrowException, parquet

        try:
            named: list[str] = parquet.read_table(path, columns=["image"])["image"].to_pylist()
        except (ArrowException, KeyError, OSError):
            return None
        return named

    def read(self, content: bytes) -> pa.Table:
        """The table of a file's bytes, by :func:`schema`."""
        import pyarrow as pa
        from pyarrow import parquet

        return parquet.read_table(pa.BufferReader(content))

    def merge(self, out: Path, tables: Iterable[Path]) -> None:
        """Write tables, in order, as one, whose row groups they are."""
        from pyarrow import parquet

        with parquet.ParquetWriter(out, schema()) as whole:
            for table in tables:
                whole.write_table(parquet.read_table(table))


FORMATS: dict[str, type[JsonLines | Parquet]] = {"jsonl": JsonLines, "parquet": Parquet}
"""Kinds of tables by name, which is their ending, too."""
