"""What the verbs that extend a bundle do when their work is done, ready to be done at the same time."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.conftest import scored

from wgap.bundle import Bundle
from wgap.calibrate.candidate import GateRun, calibrate, enter, prepare
from wgap.calibrate.images import ImageSet
from wgap.errors import WgapError
from wgap.extend import NewFile, enter_file, enter_files, one_writer
from wgap.manifest import EngineRecord, Profile
from wgap.rule import Rule

Writer = Callable[[Path], Bundle]


def writers(bundle: Path, images: ImageSet, judges: ImageSet, folder: Path) -> dict[str, Writer]:
    """Name to what a verb does to a copy of ``bundle``, from work that was done before."""
    opened = Bundle.open(bundle)
    candidates = {}
    with prepare(opened, images) as source:
        for precision in ("int8", "fp16"):
            candidates[precision] = calibrate(source, precision, folder / f"{precision}.onnx")
    verdict = GateRun(opened, judges).judge(candidates["int8"].path, "int8", images.listing())
    made = {number: Bundle.open(scored(bundle, folder / f"scored-{number}", seed=number)) for number in (5, 6)}

    def engine(number: int) -> Writer:
        plan = np.random.default_rng(number).bytes(4000)
        record = EngineRecord("tensorrt_rtx", "1.7", "portable", "linux", Profile(1, 2, 4), "0" * 64)

        def write(root: Path) -> Bundle:
            now = Bundle.open(root)
            return enter_file(
                now, plan, f"engines/model.fp32.{number % 2}.plan", "engine", "fp32", lambda _: False,
                [opened.file("onnx", "fp32").sha256], engine=record,
            )  # fmt: skip

        return write

    def foreground(number: int) -> Writer:
        source = made[number].manifest
        files = [
            NewFile((made[number].root / e.path).read_bytes(), e.path, e.role, e.precision)
            for e in source.files if e.role in ("onnx", "foreground", "golden")
        ]  # fmt: skip

        def write(root: Path) -> Bundle:
            now = Bundle.open(root)
            return enter_files(
                now, files, lambda e: (e.role, e.precision) == ("onnx", "fp32") or e.role in ("foreground", "golden"),
                [opened.file("onnx", "fp32").sha256], model=source.model, rule=Rule("foreground"),
            )  # fmt: skip

        return write

    def export(root: Path) -> Bundle:
        from wgap.atomic import atomic_dir

        with atomic_dir(root, True, one_writer) as temporary:
            shutil.copytree(bundle, temporary, dirs_exist_ok=True)
        return Bundle.open(root)

    return {
        "calibrate int8": lambda root: enter(Bundle.open(root), candidates["int8"], None),
        "calibrate int8, judged": lambda root: enter(Bundle.open(root), candidates["int8"], verdict),
        "calibrate fp16": lambda root: enter(Bundle.open(root), candidates["fp16"], None),
        "build 0": engine(0),
        "build 0 again": engine(2),
        "build 1": engine(1),
        "foreground": foreground(5),
        "foreground again": foreground(6),
        "export --force": export,
    }


def together(root: Path, *work: Writer) -> list[Bundle | WgapError]:
    """What each of them ended with, all begun at once."""
    ready = threading.Barrier(len(work))
    ends: list[Bundle | WgapError] = [WgapError("never ended")] * len(work)

    def run(number: int) -> None:
        ready.wait()
        try:
            ends[number] = work[number](root)
        except WgapError as error:
            ends[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends
