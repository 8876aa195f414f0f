"""The suite under other versions: python tests/versions.py lowest|newest [EXTRAS].

``lowest`` takes the lowest Python here that the package declares, with exactly the declared minimums; ``newest`` the
newest one, with whatever the index has. Without PyTorch unless EXTRAS names ``train``: tests that need it skip, and
the others get a bundle that the Python which runs this exported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from wheel import ROOT, copy_tests, exported, run_away

if sys.version_info < (3, 11):
    sys.exit("this script reads pyproject.toml, for which it needs Python 3.11 itself")
import tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTS = ("pytest", "pytest-xdist", "hypothesis")
SUITES = ("house", "kernel/test_parity.py", "runtime", "datasets", "calibrate", "faults")


def pythons() -> dict[int, Path]:
    """Minor version to the interpreter, of those here that run and that the package declares."""
    lowest = int(PROJECT["requires-python"].removeprefix(">=3."))
    known = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for minor in range(lowest, lowest + 20):
        name = f"python3.{minor}"
        candidates = [*known.glob(f"3.{minor}.*/bin/{name}"), *filter(None, [shutil.which(name)])]
        for path in map(Path, candidates):
            if subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0:
                found.setdefault(minor, path)
    return found


def minimums(extras: list[str]) -> list[str]:
    """For each declared ``name>=X.Y`` that release itself, not a later patch of it."""
    declared = [Requirement(text) for name in extras for text in PROJECT["optional-dependencies"][name]]
    declared += [Requirement(text) for text in PROJECT["dependencies"]]
    declared += [r for r in map(Requirement, PROJECT["optional-dependencies"]["dev"]) if r.name in TESTS]
    rows = []
    for requirement in declared:
        [least] = [s.version for s in requirement.specifier if s.operator == ">="]
        major, minor, patch = [*map(int, least.split(".")), 0, 0][:3]
        rows.append(f"{requirement.name}>={least},<{major}.{minor}.{patch + 1}")
    return sorted(rows)


def main(which: str, extras: list[str]) -> int:
    """Return pytest's exit code; 0 where no Python but this one is here, and it says so."""
    found = pythons()
    if not found:
        print(f"no Python {PROJECT['requires-python']} with venv was found; nothing was tested")  # noqa: T201
        return 0
    minor = min(found) if which == "lowest" else max(found)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        python = work / "venv" / "bin" / "python"
        subprocess.run([found[minor], "-m", "venv", work / "venv"], check=True)
        (work / "constraints.txt").write_text("\n".join(minimums(extras)) if which == "lowest" else "")
        wanted = [f"{ROOT}[{','.join(extras)}]", *TESTS]
        subprocess.run(
            [python, "-m", "pip", "install", "-q", *wanted, "--config-settings", f"build-dir={work / 'build'}"],
            check=True, env={**os.environ, "PIP_CONSTRAINT": str(work / "constraints.txt")},
        )  # fmt: skip
        copy_tests(work)
        print(f"{which}: Python 3.{minor}", flush=True)  # noqa: T201
        subprocess.run([python, "-m", "pip", "list"], check=True)
        given, suites = {}, SUITES + (("train", "export") if "train" in extras else ())
        if "train" not in extras:
            given["WGAP_TINY"] = str(exported(work))
            wants = [path for path in (work / "tests").rglob("test_*.py") if "\nimport torch\n" in path.read_text()]
            print(f"left out, they need PyTorch: {' '.join(str(p.relative_to(work)) for p in wants)}", flush=True)  # noqa: T201
            for path in wants:
                path.unlink()
        return run_away(work, python, [suite for suite in suites if (work / "tests" / suite).exists()], **given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], (sys.argv[2] if len(sys.argv) > 2 else "cpu,calibrate").split(",")))
