"""The page's two ways into Spark make the localizer's boxes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wgap import Localizer
from wgap.images import find_images

pyspark = pytest.importorskip("pyspark", reason="PySpark is not installed; `make test-spark` runs this")
from tests.ray.conftest import descendants, end, examples  # noqa: E402


@pytest.fixture
def spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A session on this machine alone, whose workers are of this environment."""
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    from pyspark.sql import SparkSession

    settings = {
        "spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false",
        "spark.driver.memory": "512m", "spark.sql.warehouse.dir": str(tmp_path), "spark.local.dir": str(tmp_path),
    }  # fmt: skip
    try:
        session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
        yield session
    finally:
        started = descendants(os.getpid())
        if (context := pyspark.SparkContext._active_spark_context) is not None:
            gateway = context._gateway
            context.stop()
            gateway.shutdown()
            gateway.proc.stdin.close()  # on which the Java process waits
        end(started)


def test_both_snippets_make_the_localizer_s_boxes(spark: Any, tiny_bundle: Path, photos: Path) -> None:
    paths = find_images(photos)
    results = {str(p): r.to_json() for p, r in zip(paths, Localizer(tiny_bundle)(paths, on_error="yield"), strict=True)}
    known: dict[str, Any] = {"spark": spark}
    batched, in_arrow = examples("Spark", bundle=tiny_bundle, photos=photos)
    exec(batched, known)
    rows = {row["path"].removeprefix("file:"): row for row in known["found"].collect()}
    assert rows.keys() == results.keys()
    for path, result in results.items():
        assert rows[path]["class_id"] == result.get("class_id", -1)
        assert rows[path]["score"] == result.get("score")
        assert rows[path]["box"] == result.get("box", [None] * 4)
    exec(in_arrow, known)
    rows = {row["path"].removeprefix("file:"): row for row in known["found"].collect()}
    assert rows.keys() == results.keys()
    for path, result in results.items():
        for name in ("class_name", "score", "boxes", "code"):
            assert rows[path][name] == result.get(name)
        assert (rows[path]["error"] is None) == ("error" not in result)
