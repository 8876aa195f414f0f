"""Install the wheel of `make wheel` in an environment of its own, and run the suite against it, away from the tree.

The new environment borrows third-party packages from the one that runs this script; the package itself comes from the
wheel alone, which `tests/house/test_install.py` asserts through WGAP_EXPECT_PREFIX. That it holds the C++ runtime is
asserted through WGAP_EXPECT_RUNTIME.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("house", "kernel/test_parity.py", "runtime", "serve", "datasets")


def run_away(work: Path, python: Path, suites: Sequence[str], **environment: str) -> int:
    """The suites from a copy of the tests in ``work``, against what is installed for ``python``: pytest's exit code."""
    data = os.environ.get("WGAP_DATA", str(ROOT.parent / "shared"))
    site = str(next((python.parents[1] / "lib").glob("python*/site-packages")))
    workers = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")
    command = [python, "-m", "pytest", "-q", *workers, *(f"tests/{suite}" for suite in suites)]
    given = {**os.environ, "WGAP_EXPECT_PREFIX": site, "WGAP_DATA": data, **environment}
    return subprocess.run(command, cwd=work, env=given, check=False).returncode


def copy_tests(work: Path) -> None:
    """The tests and their settings, for :func:`run_away`."""
    shutil.copytree(ROOT / "tests", work / "tests")
    shutil.copy(ROOT / "pyproject.toml", work)


def exported(folder: Path) -> Path:
    """The bundle that tests share, made by ``tests/conftest.py`` here."""
    made = folder / "made"
    script = "import shutil\ndef test(tiny_bundle): shutil.copytree(tiny_bundle, {!r})\n"
    (folder / "test_export.py").write_text(script.format(str(made)))
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", folder / "test_export.py", "--rootdir", ROOT]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return made


def main() -> int:
    """Return pytest's exit code."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (wheel,) = (ROOT / "dist").glob(f"wgap-{version('wgap')}-cp{sys.version_info[0]}{sys.version_info[1]}-*.whl")
        venv.create(work / "venv", with_pip=False)
        python = work / "venv" / "bin" / "python"
        site = next((work / "venv" / "lib").glob("python*/site-packages"))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
        subprocess.run(pip, check=True)
        # A plain path line: packages there are importable, but its own .pth files (the editable install) are not read.
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        # As if installed: the C++ modules look for the engines in the folder of their own wheel.
        for engine in ("onnxruntime", "openvino"):
            (site / engine).symlink_to(Path(sysconfig.get_path("purelib")) / engine)
        copy_tests(work)
        return run_away(work, python, SUITES, WGAP_EXPECT_RUNTIME="1")


if __name__ == "__main__":
    sys.exit(main())
