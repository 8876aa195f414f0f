"""Default thread counts are those of the container, not of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wgap.runtime import cpus


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6), ({"cpu.max": "max 100000\n"}, 6), ({"cpu.max": "250000 100000\n"}, 3), ({"cpu.max": "5000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 6), ({"cpu.max": "nonsense"}, 6),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
    ],
)  # fmt: skip
def test_affinity_and_quota_count(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cpus, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert cpus.allowed_cpus() == expected


def test_a_session_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from wgap.runtime.networks.onnxruntime import open_session

    graph = Path(__file__).parents[1] / "house" / "schema1" / "bundle" / "model.onnx"
    seen = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, **k: (seen.append(a[1].intra_op_num_threads), real(*a, **k))[1]
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr("wgap.runtime.networks.onnxruntime.allowed_cpus", lambda: 1)
    open_session(graph, None)
    open_session(graph, None, threads=2)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    open_session(graph, None)
    assert seen == [1, 2, 0]
