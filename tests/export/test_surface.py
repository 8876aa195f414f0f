"""What the sources use of TensorRT, against TensorRT's own Python modules: no GPU, no engine, no library behind them.

The uses are read from the sources, and followed from one object to the next by the signatures that the modules give.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wgap.export.engine import HARDWARE_COMPAT

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("src/wgap", "runtime", "export", "calibrate", "evaluate", "train")
SOURCES = (
    "runtime/library.py", "runtime/engine.py", "runtime/networks/tensorrt.py", "export/engine.py", "export/attest.py",
)  # fmt: skip
BINDINGS = {"10": "tensorrt-cu13-bindings==10.14.1.48.post1", "11": "tensorrt-cu13-bindings==11.4.0.106"}

MODULE = "module"
TYPES = {  # of our parameters and attributes, which ast cannot know
    "library": MODULE, "host.library": MODULE, "self._library": MODULE, "builder": "Builder",
    "config": "IBuilderConfig", "network": "INetworkDefinition", "engine": "ICudaEngine", "self._engine": "ICudaEngine",
    "layer": "ILayer", "dtype": "DataType",
}  # fmt: skip
GIVEN_BY = {  # our functions
    "load_library": MODULE, "_builder": "Builder", "_network": ("INetworkDefinition", "OnnxParser"),
    "_timing_cache": "ITimingCache", "self._context": "IExecutionContext", "makers.get": "ILayer",
}  # fmt: skip
NAMES = {"nvonnxparser::IParserError": "ParserError"}  # a signature's name of a class, where it is not the module's
RTX_ALONE = {
    "ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability",
    "ComputeCapability.__members__", "EngineValidity", "EngineValidity.INVALID", "EngineInvalidityDiagnostics",
    "EngineInvalidityDiagnostics.__members__", "Runtime.engine_header_size",
}  # fmt: skip

DUMP = """
import importlib, json, sys

def members(owner):
    found = {}
    for name in dir(owner):
        there = getattr(owner, name)
        text = there.fget if isinstance(there, property) else there
        found[name] = getattr(text, "__doc__", None) or ""
        if isinstance(there, type) and there is not owner and name != "__class__":
            classes[there.__qualname__] = members(there)
    return found

classes = {}
module = importlib.import_module(sys.argv[1])
print(json.dumps({"": members(module), **classes}))
"""


@dataclass(frozen=True)
class Signature:
    """One way to call a function: its parameters without self, how many must be given, the class it returns."""

    parameters: tuple[str, ...]
    required: int
    returns: str


def signatures(text: str) -> list[Signature]:
    """Those in a docstring of pybind11; none where it has none."""
    found = []
    for line in re.findall(r"^(?:\d+\. )?\w*(\(.*\) -> .*)$", text, flags=re.M):
        inner, returns = line[1:].rsplit(") -> ", 1)
        inner = re.sub(r"<[^<>]*>|\[[^\[\]]*\]", "", re.sub(r"\[[^\[\]]*\]", "", inner))
        listed = [part for part in inner.split(", ") if part not in ("", "*", "/")]
        listed = listed[listed[:1] != [] and listed[0].split(":")[0] in ("self", "arg0") :]
        names, required = tuple(part.split(":")[0] for part in listed), sum(" = " not in part for part in listed)
        found.append(Signature(names, required, NAMES.get(returns, returns.split(".")[-1])))
    return found


@dataclass
class Surface:
    """The classes of a module, nested ones by their whole name, with what each has; "" is the module itself."""

    classes: dict[str, dict[str, str]]

    def returned(self, owner: str, name: str) -> str | None:
        """The class of an attribute, or of what a method gives; None where it is none of the module's."""
        if owner == MODULE:
            return f"class {name}" if name in self.classes else None
        if owner.startswith("class "):
            inner = f"{owner[6:]}.{name}"
            return f"class {inner}" if inner in self.classes else None
        for signature in signatures(self.classes.get(owner, {}).get(name, "")):
            if signature.returns in self.classes:
                return signature.returns
        return None


@dataclass(frozen=True)
class Use:
    """One attribute that the sources read; a call where ``given`` is not None: arguments by position, then by name."""

    where: str
    owner: str
    name: str
    given: tuple[int, tuple[str, ...]] | None = None
    optional: bool = False

    @property
    def what(self) -> str:
        return self.name if self.owner == MODULE else f"{self.owner.removeprefix('class ')}.{self.name}"


@dataclass
class Reader(ast.NodeVisitor):
    """Follows one source's objects of the library, function by function."""

    surface: Surface
    path: str
    uses: list[Use] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)  # where, the attribute's name
    scope: dict[str, Any] = field(default_factory=dict)
    imported: set[str] = field(default_factory=set)  # whole modules

    def visit_Import(self, node: ast.Import) -> None:
        self.imported |= {name.asname or name.name for name in node.names}

    def type_of(self, node: ast.expr) -> Any:
        """``module``, a class of the library, ``class X`` for the class itself, a list or tuple; None: unknown."""
        if (text := ast.unparse(node)) in self.scope:
            return self.scope[text]
        if "." in text and text in TYPES:
            return TYPES[text]
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            return self.surface.returned(owner, node.attr) if isinstance(owner, str) else None
        if isinstance(node, ast.Subscript):
            held = self.type_of(node.value)
            return held if isinstance(node.slice, ast.Slice) else held[0] if isinstance(held, list) else None
        if isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in GIVEN_BY:
                return GIVEN_BY[called]
            made = self.type_of(node.func)
            return made[6:] if isinstance(made, str) and made.startswith("class ") else made
        if isinstance(node, ast.IfExp):
            return self.type_of(node.body) or self.type_of(node.orelse)
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            with self.loops(node):
                return [self.type_of(node.elt)]
        return None

    @contextmanager
    def loops(self, node: Any) -> Iterator[None]:
        """Within a comprehension."""
        outer = dict(self.scope)
        for loop in node.generators:
            self.bind(loop.target, self.element(loop.iter))
        yield
        self.scope = outer

    def element(self, node: ast.expr) -> Any:
        held = self.type_of(node)
        return held[0] if isinstance(held, list) else None

    def bind(self, target: ast.expr, made: Any) -> None:
        if isinstance(target, ast.Tuple):
            for index, part in enumerate(target.elts):
                self.bind(part, made[index] if isinstance(made, tuple) else None)
        elif made is not None:
            self.scope[ast.unparse(target)] = made

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.scope)
        for one in node.args.args:
            if one.arg in TYPES and one.annotation is not None and ast.unparse(one.annotation) == "Any":
                self.scope[one.arg] = TYPES[one.arg]
        self.generic_visit(node)
        self.scope = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A class of ours under one of theirs: what it overrides must be there, and what its methods call."""
        called = {n.func.attr for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        for base in node.bases:
            if (made := self.type_of(base)) is None:
                continue
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("__") and part.name not in called:
                    self.use(part, made, part.name, (len(part.args.args) - 1, ()))
        outer = dict(self.scope)
        self.generic_visit(node)
        self.scope = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, self.type_of(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, self.element(node.iter))
        self.generic_visit(node)

    def _comprehend(self, node: Any) -> None:
        with self.loops(node):
            self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehend

    def visit_Call(self, node: ast.Call) -> None:
        named = ast.unparse(node.func)
        if named in ("getattr", "hasattr") and (owner := self.type_of(node.args[0])) and isinstance(owner, str):
            optional = named == "hasattr" or len(node.args) == 3
            if isinstance(name := node.args[1], ast.Constant):
                self.use(node, owner, str(name.value), optional=optional)
        given = tuple(keyword.arg or "**" for keyword in node.keywords)
        count = -1 if any(isinstance(a, ast.Starred) for a in node.args) else len(node.args)
        made = self.type_of(node.func)
        if isinstance(made, str) and made.startswith("class "):
            self.use(node, made, "__init__", (count, given))
        if isinstance(node.func, ast.Attribute) and isinstance(owner := self.type_of(node.func.value), str):
            minus = node.func.attr == "__init__" and owner.startswith("class ")  # called with self
            self.use(node, owner, node.func.attr, (count - minus, given))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self.type_of(node.value)
        if isinstance(owner, str):
            self.use(node, owner, node.attr)
        elif ast.unparse(node.value) not in self.imported:
            self.unknown.append((f"{self.path}:{node.lineno}", node.attr))
        self.generic_visit(node)

    def use(self, node: Any, owner: str, name: str, given: Any = None, optional: bool = False) -> None:
        self.uses.append(Use(f"{self.path}:{node.lineno}", owner, name, given, optional))


def read(surface: Surface) -> Iterator[Reader]:
    for path in SOURCES:
        reader = Reader(surface, path)
        reader.visit(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        yield reader


def refused(why: str) -> None:
    (pytest.fail if os.environ.get("WGAP_REQUIRE_SDK") == "1" else pytest.skip)(why)


def dumped(module: str, **environment: str) -> Surface:
    done = subprocess.run(
        [sys.executable, "-c", DUMP, module], env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return Surface(json.loads(done.stdout))


def over_stubs(package: str, folder: Path) -> Surface:
    """The module of a wheel that comes without its libraries, over libraries that have the names it wants, no more."""
    asked = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode or not all(map(shutil.which, ("gcc", "nm", "readelf"))):
        refused(f"{package} cannot be fetched and stood on libraries here (pip, gcc, nm): {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    [extension] = folder.glob("tensorrt_bindings/*.so")

    def output(*command: str | Path) -> str:
        return subprocess.run([*command], capture_output=True, text=True, check=True).stdout

    here = ctypes.CDLL(None)
    undefined = re.findall(r"^\s+U (\w+)$", output("nm", "-D", "--undefined-only", extension), flags=re.M)
    wanted = [name for name in undefined if not hasattr(here, name)]
    assert "createInferRuntime_INTERNAL" in wanted
    (folder / "stub.c").write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in wanted))
    for name in re.findall(r"NEEDED.*\[(libnv\S+)\]", output("readelf", "-d", extension)):
        output("gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", folder / "stub.c", "-o", folder / name)
    return dumped("tensorrt_bindings", LD_LIBRARY_PATH=str(folder), PYTHONPATH=str(folder))


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Surface]:
    """By TensorRT's major version, and ``rtx``."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        refused("tensorrt_rtx is not installed: pip install 'wgap[rtx]'")
    made = {major: over_stubs(package, tmp_path_factory.mktemp("bindings")) for major, package in BINDINGS.items()}
    return {**made, "rtx": dumped("tensorrt_rtx")}


@pytest.fixture(scope="module")
def uses(surfaces: dict[str, Surface]) -> list[Use]:
    """Followed by RTX's signatures: its module has all of TensorRT's that we use, and some of its own."""
    return [use for reader in read(surfaces["rtx"]) for use in reader.uses]


@pytest.mark.parametrize("which", ["10", "11", "rtx"])
def test_all_that_the_sources_use_is_there(surfaces: dict[str, Surface], uses: list[Use], which: str) -> None:
    classes = surfaces[which].classes
    absent = {}
    for use in uses:
        owner = "" if use.owner == MODULE else use.owner.removeprefix("class ")
        if not use.optional and use.name not in classes.get(owner, {}):
            absent[use.what] = use.where
    for guarded in [use.what for use in uses if use.optional]:  # asked for first, so that the rest runs where it is
        absent.pop(guarded, None)
    expected = set() if which == "rtx" else RTX_ALONE
    assert set(absent) == expected, absent


@pytest.mark.parametrize("which", ["10", "11", "rtx"])
def test_calls_fit_their_signatures(surfaces: dict[str, Surface], uses: list[Use], which: str) -> None:
    classes, judged, wrong = surfaces[which].classes, 0, []
    for use in uses:
        known = signatures(classes.get(use.owner.removeprefix("class "), {}).get(use.name, ""))
        if use.given is None or not known:
            continue
        count, names = use.given
        judged += 1
        if not any(
            set(names) <= set(one.parameters)
            and (count < 0 or one.required <= count + len(names) <= len(one.parameters))
            for one in known
        ):
            wrong.append((use.where, use.what, use.given, known))
    assert wrong == []
    assert judged >= 40


def test_what_may_be_absent_is_in_one_of_them(surfaces: dict[str, Surface], uses: list[Use]) -> None:
    have = [surface.classes for surface in surfaces.values()]
    names = {(use.owner.removeprefix("class "), use.name) for use in uses if use.optional}
    assert names >= {("Runtime", "get_engine_validity"), ("ICudaEngine", "device_memory_size")}
    assert [name for owner, name in names if not any(name in classes.get(owner, {}) for classes in have)] == []


def test_names_that_are_put_together_are_there(surfaces: dict[str, Surface]) -> None:
    text = (ROOT / "export/engine.py").read_text(encoding="utf-8")
    [flags] = [
        node.value for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "flags" and isinstance(node.value, ast.Dict)
    ]  # fmt: skip
    wanted = {"BuilderFlag": {key.value for key in flags.keys if isinstance(key, ast.Constant)}}
    wanted["HardwareCompatibilityLevel"] = {level.upper() for level in HARDWARE_COMPAT}
    for which in ("10", "11"):
        for owner, names in wanted.items():
            assert names <= set(surfaces[which].classes[owner]), which
    assert {"SM75", "SM80", "SM86", "SM89", "SM120"} <= set(surfaces["rtx"].classes["ComputeCapability"])


def test_no_object_of_the_library_is_out_of_sight(surfaces: dict[str, Surface]) -> None:
    """A name of the library's, on something whose type is not known: add it to the tables above."""
    theirs = {name for surface in surfaces.values() for owner in surface.classes.values() for name in owner}
    plain = {name for kind in (str, bytes, dict, list, set, type, Path, Exception, np.ndarray) for name in dir(kind)}
    ours = {*plain}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                ours.add(ast.unparse(node).split(".")[-1])
    hidden = [one for reader in read(surfaces["rtx"]) for one in reader.unknown if one[1] in theirs - ours]
    assert hidden == [], hidden


def test_every_source_that_holds_the_library_is_read() -> None:
    holds = re.compile(r"\bload_library\(|\blibrary: Any\b|\blibrary_log\(|\bhost\.library\b")
    found = {
        str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
        if holds.search(path.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert found == set(SOURCES)
