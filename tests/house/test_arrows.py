"""Who may import whom, as CONTRIBUTING.md draws it: every import of every file is held against the drawing.

Imports inside functions, under TYPE_CHECKING and by a module's name in a table count. Only the circle test looks at
what runs at import time alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRAWING = ROOT / "CONTRIBUTING.md"
pytestmark = pytest.mark.skipif(
    not DRAWING.exists(), reason="CONTRIBUTING.md is not beside the tests (installed wheel)"
)

FOLDERS = sorted(path.parent for path in ROOT.glob("*/__init__.py"))
ROOMS = ("cli", *(folder.name for folder in FOLDERS))
"""Everything else below ``wgap`` is the core."""

FRAMEWORKS = {"torch", "onnx", "onnxscript", "lightning", "lightning_fabric", "matplotlib"}
"""What the runtime does without."""

NATIVE = "wgap._native"

PUBLIC_NAMES = "wgap"
"""``wgap/__init__.py`` names the rooms that its public names come from, and loads them on first use."""


def files() -> Iterator[tuple[str, Path]]:
    """Module name and file of the whole product."""
    for home, package in ((ROOT / "src" / "wgap", "wgap"), *((folder, f"wgap.{folder.name}") for folder in FOLDERS)):
        for path in home.rglob("*.py"):
            parts = path.relative_to(home).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


MODULES = dict(files())
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    first = module.partition(".")[2].partition(".")[0]
    return first if first in ROOMS else "core"


def imported(node: ast.AST) -> set[str]:
    """Modules that one node imports: ``from a import b`` is ``a.b`` where that is a module of ours, else ``a``."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "absolute imports only"
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        ours = {name for name in inner if name in MODULES or name == NATIVE}
        return ours if ours == inner else ours | {str(node.module)}
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # "wgap.runtime.networks.tensorrt:open_bundle"
        return {name} if (name := node.value.partition(":")[0]) in MODULES and "." in name else set()
    return set()


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Import statements that run when the module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = (getattr(node, field, []) for field in ("body", "orelse", "finalbody"))
            handlers = (handler.body for handler in getattr(node, "handlers", []))
            for statements in (*inner, *handlers):
                yield from at_import(statements)


def arrows() -> dict[str, set[str]]:
    """The drawing's lines, such as ``train -> runtime, core``."""
    drawn = re.findall(r"^    (\w+) +-> (.+)$", DRAWING.read_text(encoding="utf-8"), flags=re.M)
    everything = {*ROOMS, "core"}
    return {room: everything if to == "everything" else {*re.split(r", *", to.strip()), room} for room, to in drawn}


def test_the_drawing_names_every_room_and_runs_one_way() -> None:
    drawn = arrows()
    assert set(drawn) == set(ROOMS), "CONTRIBUTING.md has one line for each room"
    assert set().union(*drawn.values()) <= {*ROOMS, "core"}
    TopologicalSorter({room: to - {room} for room, to in drawn.items()}).prepare()
    assert not any("cli" in to for room, to in drawn.items() if room != "cli")
    assert {room_of(name) for name in MODULES} == {*ROOMS, "core"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {PUBLIC_NAMES}))
def test_a_file_imports_only_where_an_arrow_leads(module: str) -> None:
    allowed = {**arrows(), "core": {"core"}}[room_of(module)]
    used = set().union(*(imported(node) for node in ast.walk(TREES[module])))
    wrong = sorted(name for name in used if name.partition(".")[0] == "wgap" and room_of(name) not in allowed)
    assert not wrong, f"{module} is in {room_of(module)}, which may use {sorted(allowed)}; it imports {wrong}"
    if room_of(module) == "runtime":
        assert not {name for name in used if name.partition(".")[0] in FRAMEWORKS}


def test_no_module_needs_itself_to_be_imported() -> None:
    graph: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        targets = set().union(*(imported(node) for node in at_import(tree.body)))
        # the packages around a target run first, apart from those that are being imported already
        around = {".".join(parts[:n]) for name in targets for parts in [name.split(".")] for n in range(1, len(parts))}
        own = {".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 2)}
        graph[module] = {name for name in targets | (around - own) if name in MODULES} - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imported in a circle: {' <- '.join(error.args[1])}")
