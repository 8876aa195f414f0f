"""Tests in an environment without PyTorch, on a bundle exported by this one: python tests/apart.py PYTHON TESTS..."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from wheel import ROOT, exported


def main(python: str, *tests: str) -> int:
    """Return pytest's exit code."""
    with tempfile.TemporaryDirectory() as name:
        given = {**os.environ, "WGAP_TINY": str(exported(Path(name)))}
        return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, env=given, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
