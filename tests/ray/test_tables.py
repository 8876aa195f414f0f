"""Tables in, tables with boxes out: what an actor of Ray and a worker of Spark do, without either."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wgap import Localizer
from wgap.errors import BundleError, DataError
from wgap.serve.ray import TableLocalizer

pa = pytest.importorskip("pyarrow")
from wgap.runtime.tables import schema, table_of  # noqa: E402

ADDED = [name for name in schema().names if name != "image"]
FILLED = ["class_id", "class_name", "score", "box", "boxes", "threshold", "degenerate"]


def pixels(photos: Path) -> list[Any]:
    return [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in sorted(photos.iterdir())]


def test_bytes_and_paths_give_the_localizer_s_own_results(tiny_bundle: Path, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    table = pa.table({"path": list(map(str, paths)), "bytes": [path.read_bytes() for path in paths]})
    expected = table_of(Localizer(tiny_bundle, threads=1, top_k=2)(paths, on_error="yield")).drop_columns(["image"])
    by_bytes = TableLocalizer(tiny_bundle, threads=1, top_k=2)(table)
    assert by_bytes.column_names == ["path", "bytes", *ADDED]
    assert by_bytes.select(table.column_names) == table
    assert by_bytes.select(ADDED[:-2]) == expected.select(ADDED[:-2])
    assert by_bytes["code"] == expected["code"]
    by_path = TableLocalizer(tiny_bundle, "path", drop=True, threads=1, top_k=2)(table)
    assert by_path.column_names == ["bytes", *ADDED]
    assert by_path.select(ADDED) == expected, "errors too, which name the path"


def test_a_bad_picture_is_a_row_that_says_so_whatever_batch_it_came_in(tiny_bundle: Path, photos: Path) -> None:
    good = (photos / "000.png").read_bytes()
    rows = [good, None, b"", b"/etc/passwd", good[:100], str(photos / "001.png").encode(), good]
    localize = TableLocalizer(tiny_bundle, threads=1, batch_size=3)
    whole = localize(pa.table({"bytes": pa.array(rows, pa.binary())}))
    codes = [None, *["ImageError"] * 5, None]
    assert whole["code"].to_pylist() == codes
    for row, code in zip(whole.to_pylist(), codes, strict=True):
        assert [row[name] is None for name in FILLED] == [code is not None] * len(FILLED)
        assert (row["error"] is None) == (code is None)
        assert "image " not in (row["error"] or "")[:6], "no number of a row in a batch"
    one = [localize(whole.select(["bytes"]).slice(n, 1)) for n in range(len(rows))]
    assert pa.concat_tables(one) == whole
    nothing = localize(pa.table({"bytes": pa.nulls(2)}))
    assert nothing["code"].to_pylist() == ["ImageError"] * 2
    assert localize(whole.select(["bytes"]).slice(0, 0)).num_rows == 0


def test_arrow_s_own_tensors_are_pictures(tiny_bundle: Path, photos: Path) -> None:
    same = np.stack([image for image in pixels(photos) if image is not None and image.shape[0] == 40])
    table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(same)})
    found = TableLocalizer(tiny_bundle, "image", threads=1)(table)
    assert found["box"].to_pylist() == [list(r.box) for r in Localizer(tiny_bundle, threads=1)(same)]
    floats = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(same[:2].astype(np.float32))})
    errors = TableLocalizer(tiny_bundle, "image", threads=1)(floats)["error"].to_pylist()
    assert all("uint8[H, W, 3], got float32[40, 50, 3]" in error for error in errors)


def test_what_is_no_picture_is_refused_by_name(tiny_bundle: Path) -> None:
    localize = TableLocalizer(tiny_bundle, threads=1)
    table = pa.table({"bytes": pa.array([], pa.binary()), "score": pa.array([], pa.float64()), "error": pa.array([])})
    for given, said in (
        (pa.table({"content": [b""], "path": ["a"]}), "no column 'bytes' in the table; it has content, path"),
        (pa.table({"bytes": [1, 2]}), "column 'bytes': expected the bytes of image files, .* got int64"),
        (pa.table({"bytes": [[1], [2]]}), "got list<"),
        (table, "the table has score, error already; give the added columns a prefix="),
        ({"bytes": np.zeros(1)}, 'expected a pyarrow.Table, got dict; pass batch_format="pyarrow"'),
    ):
        with pytest.raises(DataError, match=said):
            localize(given)
    apart = TableLocalizer(tiny_bundle, threads=1, prefix="wgap_")(table)
    assert apart.column_names == [*table.column_names, *(f"wgap_{name}" for name in ADDED)]
    with pytest.raises(DataError, match="no class 'zebra'"):
        TableLocalizer(tiny_bundle, threads=1, class_="zebra")(pa.table({"bytes": [b""]}))
    with pytest.raises(BundleError, match="nowhere"):
        TableLocalizer("nowhere")


def test_it_is_pickled_by_its_arguments(tiny_bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    content = pa.table({"photo": [(photos / "000.png").read_bytes()]})
    one = TableLocalizer(tiny_bundle.name, "photo", class_="ring", prefix="p_", drop=True, threads=1, rule="fixed:0.3")
    sent = pickle.dumps(one)
    assert len(sent) < 1000
    monkeypatch.chdir("/")
    there = pickle.loads(sent)
    assert there(content) == one(content)
    assert str(there.localizer.rule) == "fixed:0.3"
    assert there(content)["p_class_name"].to_pylist() == ["ring"]


def test_it_is_imported_without_ray_and_pyarrow() -> None:
    program = """
import sys
sys.modules["ray"] = sys.modules["pyarrow"] = None
import wgap.serve.ray
assert not {"onnxruntime", "torch", "cv2"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("name", "extra"), [("pyarrow", "shards"), ("ray", "ray")])
def test_what_is_not_installed_is_named(name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from wgap.errors import MissingDependencyError
    from wgap.serve.ray import make_shards, read_shards

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n in (name, "ray") else real(n, *rest))
    said = f"{name}.* not installed: pip install 'wgap\\[.*{extra}.*\\]'"
    with pytest.raises(MissingDependencyError, match=said):
        make_shards(tmp_path, "b", actors=1)
    with pytest.raises(MissingDependencyError, match=said):
        read_shards(tmp_path)
    if name == "pyarrow":
        with pytest.raises(MissingDependencyError, match=said):
            TableLocalizer("bundle")
