"""Energy, memory and clocks: read where the machine tells them, absent by name where it does not."""

from __future__ import annotations

import json
import mmap
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wgap.cli import app
from wgap.errors import BackendError
from wgap.evaluate import meters
from wgap.evaluate.latency import measure
from wgap.evaluate.meters import GpuMeter, PackageMeter, cpu_mhz, peak_rss_mib, rss_mib


def domain(root: Path, name: str, title: str, microjoules: int, most: int = 1000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, value in (("name", title), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder


def test_packages_are_added_and_their_counters_may_begin_anew(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 900)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 10)
    domain(tmp_path, "intel-rapl:0:0", "core", 5)
    domain(tmp_path, "intel-rapl:2", "psys", 5)
    meter = PackageMeter(tmp_path)
    before = meter.joules()
    (first / "energy_uj").write_text("40\n")  # 100 to the end, 40 after
    (second / "energy_uj").write_text("25\n")
    assert meter.joules() - before == pytest.approx(155e-6)
    assert meter.joules() - before == pytest.approx(155e-6)


def test_what_is_not_readable_is_absent_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="no counter of a processor's package under"):
        PackageMeter(tmp_path / "none")
    domain(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(BackendError, match="energy_uj: No such file"):
        PackageMeter(tmp_path)
    found, absent = meters.meters(None, tmp_path)
    assert found == {}
    assert list(absent) == ["energy of the processor"]
    assert cpu_mhz(tmp_path / "none") is None


def test_clock_and_memory(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\ncpu MHz\t\t: 2000.0\n\nprocessor: 1\ncpu MHz\t\t: 3000.5\n")
    assert cpu_mhz(tmp_path / "cpuinfo") == 2500.25
    before = rss_mib()
    held = mmap.mmap(-1, 64 << 20)  # from the system alone: an allocator may keep what was freed, or have some left
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    assert 60 < rss_mib() - before < 80
    assert peak_rss_mib() > rss_mib() - 1
    del held


class Counting:
    """A meter on which every call uses two joules."""

    def __init__(self) -> None:
        self.used = 0.0

    def joules(self) -> float:
        return self.used


def test_energy_is_that_of_the_timed_calls_by_image(tiny_bundle: Path) -> None:
    from wgap import Localizer
    from wgap.evaluate.latency import Run, Settings, encoded_image

    class Using(Run):
        def call(self) -> None:
            self.meters["cpu"].used += 2  # type: ignore[attr-defined]

    with Localizer(tiny_bundle) as localizer:
        encoded, _ = encoded_image(localizer.bundle, None)
        run = Using(localizer, Settings("b", "onnxruntime", "fp32", "adaptive", "recombined", 4), encoded)
        run.meters = {"cpu": Counting()}
        [cell] = measure([run], iterations=3, warmup=2)
    assert cell.joules_per_image == {"cpu": pytest.approx(0.5)}


NVML = r"""
#include <string.h>
typedef unsigned long long u64;
static u64 used = 1000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char* uuid, void** gpu) { return *gpu = &used, strcmp(uuid, "GPU-1") ? 6 : 0; }
int nvmlDeviceGetTotalEnergyConsumption(void* gpu, u64* mj) { return *mj = used += 250, gpu != &used; }
int nvmlDeviceGetClockInfo(void* gpu, int kind, unsigned* mhz) { return *mhz = kind == 1 ? 1980 : 0, gpu != &used; }
"""


def test_a_gpu_s_energy_and_clock_are_nvml_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to build a stand-in for NVML")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "nvml.c", "-o", library], check=True)
    real = meters.ctypes.CDLL
    monkeypatch.setattr(meters.ctypes, "CDLL", lambda name: real(str(library) if name == library.name else name))
    meter = GpuMeter("GPU-1")
    assert meter.mhz() == 1980
    assert -meter.joules() + meter.joules() == pytest.approx(0.25)
    with pytest.raises(BackendError, match="nvmlDeviceGetHandleByUUID failed with 6"):
        GpuMeter("GPU-2")


def test_bench_tells_memory_and_what_is_absent(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters, "meters", lambda gpu: ({}, {"energy of the processor": "none here"}))
    words = ["bench", str(tiny_bundle), "--batch", "1", "--iterations", "1", "--warmup", "0"]
    report = json.loads(CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False).stdout)
    assert report["absent"]["energy of the processor"] == "none here"
    assert report["machine"]["peak_rss_mib"] > 10
    [cell] = report["cells"]
    assert list(cell["memory_mib"]) == ["opened"]
    assert cell["joules_per_image"] == {}
    shown = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert "absent: energy of the processor: none here" in shown
    refused = CliRunner().invoke(app, [*words, "--no-transfers"])
    assert "onnxruntime takes images in host memory" in str(refused.exception)
