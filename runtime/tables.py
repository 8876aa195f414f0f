"""Results as columns: what a Parquet table of shards, a Ray Dataset and a Spark frame hold of each picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from wgap.extras import require

if TYPE_CHECKING:
    import pyarrow as pa

    from wgap.runtime.localization import Failure, Localization

__all__ = ["schema", "table_of"]


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
