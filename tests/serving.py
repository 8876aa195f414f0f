"""Make an environment with a real tritonserver beside the tree's, and run tests/serve there: python tests/serving.py.

The server comes in the wheel of pytriton, of which only the program and its Python backend are used. It was built for
NumPy 1, so the environment has a NumPy of its own; all else is the tree's environment, borrowed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".venv-serve"
CLIENT, SERVER = ("tritonclient[grpc,http]==2.73.0", "numpy==1.26.4"), "nvidia-pytriton==0.7.0"


def made() -> Path:
    """The environment's Python; the environment is made where it is missing, half made or of other versions."""
    python, stamp = PLACE / "bin" / "python", PLACE / "made"
    wanted = f"{sys.version}\n{CLIENT}\n{SERVER}\n{sysconfig.get_path('purelib')}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", PLACE], check=True)
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, *CLIENT], check=True)
    subprocess.run([*pip, "--no-deps", SERVER], check=True)
    site = next((PLACE / "lib").glob("python*/site-packages"))
    server, version = site / "pytriton" / "tritonserver", f"{sys.version_info[0]}.{sys.version_info[1]}"
    name = "triton_python_backend_stub"
    shutil.copy2(server / "python_backend_stubs" / version / name, server / "backends" / "python" / name)
    (site / "tree.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    stamp.write_text(wanted)
    return python


def main(arguments: list[str]) -> int:
    """Return pytest's exit code."""
    workers = ("-n", "auto", "--maxprocesses", "2", "--dist", "loadfile")
    command = [made(), "-m", "pytest", "-q", "--durations=5", *workers, *(arguments or ["tests/serve"])]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "WGAP_REQUIRE_TRITON": "1"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
