"""Engines are chosen and checked by both readers alike: the same plan, the same error, the same table."""

from __future__ import annotations

import ctypes as c
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from wgap.bundle import Bundle
from wgap.errors import WgapError
from wgap.rule import Rule
from wgap.runtime.engine import Host, engine_file, preflight

HOST = Host("tensorrt_rtx", "1.7.1.116", "8.6", "linux x86_64")
BUILT = {
    "flavor": "tensorrt_rtx", "version": "1.7.1.116", "architecture": "portable", "platform": "linux x86_64",
    "profile": {"min": 1, "opt": 8, "max": 16}, "options": {},
}  # fmt: skip
OLD = {"flavor": "tensorrt", "version": "10.14.1.48", "architecture": "8.6,8.9"}
TENSORRT = replace(HOST, flavor="tensorrt", version="10.14.1.48")


class _Host(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32), ("batch", c.c_int32), ("flavor", c.c_char_p), ("version", c.c_char_p),
        ("compute_capability", c.c_char_p), ("platform", c.c_char_p),
    ]  # fmt: skip


class _Rule(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32), ("kind", c.c_int32), ("map", c.c_int32), ("reserved", c.c_int32),
        ("parameters", c.c_double * 6),
    ]  # fmt: skip


@pytest.fixture
def own(scored_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored_bundle, tmp_path / "bundle"))


def with_engines(root: Path, *engines: dict[str, Any], **more: Any) -> Path:
    """A bundle with plans that are none, built as each of them says."""
    raw = json.loads((root / "wgap.json").read_text())
    (root / "engines").mkdir()
    for number, engine in enumerate(engines or ({},)):
        content = f"plan {number}".encode() * 50
        (root / "engines" / f"{number}.plan").write_bytes(content)
        record = {**BUILT, "onnx_sha256": raw["files"][0]["sha256"], **engine}
        raw["files"].append(
            {
                "path": f"engines/{number}.plan", "role": "engine", "precision": "fp32", "engine": record,
                "sha256": sha256(content).hexdigest(), "size": len(content), **more,
            }
        )  # fmt: skip
    (root / "wgap.json").write_text(json.dumps(raw))
    return root


def python(root: Path, host: Host, batch: int, rule: Rule | None) -> tuple[str, str, bytes]:
    """Path or error, its table, and the plan."""
    try:
        bundle = Bundle.open(root, verify=False)
        bundle.manifest.model.require_outputs(rule or bundle.manifest.rule)
        entry = engine_file(bundle, host, "fp32", rule)
        return entry.path, "", preflight(bundle, entry.path, host, batch or None, rule=rule)
    except WgapError as error:
        return type(error).__name__, str(error).partition("\nBuild one")[0].partition(" Build one:")[0], b""


def cpp(runtime: Any, example: Any, root: Path, host: Host, batch: int, rule: Rule | None) -> tuple[str, str, bytes]:
    bundle, plan, size, path, own_rule = c.c_void_p(), c.c_void_p(), c.c_uint64(), c.c_char_p(), None
    runtime.checked("wgap_bundle_open", str(root).encode(), 0, c.byref(bundle))
    if rule is not None:
        made = _Rule(c.sizeof(_Rule))
        runtime.library.wgap_rule_parse(str(rule).encode(), rule.map.encode(), c.byref(made), None)
        own_rule = c.byref(made)
    capability = host.compute_capability.encode() if host.compute_capability else None
    asked = _Host(
        c.sizeof(_Host), batch, host.flavor.encode(), host.version.encode(), capability, host.platform.encode()
    )
    try:
        runtime.checked(
            "wgap_bundle_engine", bundle, c.byref(asked), None, own_rule, 0, c.byref(plan), c.byref(size),
            c.byref(path),
        )  # fmt: skip
        assert plan.value is not None
        assert path.value is not None
        found = path.value.decode(), "", c.string_at(plan.value, size.value)
        runtime.library.wgap_free(plan)
        runtime.library.wgap_free(path)
        return found
    except example.RefusedError as error:
        return error.code, str(error).partition("\nBuild one")[0].partition(" Build one:")[0], b""
    finally:
        runtime.library.wgap_bundle_close(bundle)


CASES: dict[str, tuple[tuple[dict[str, Any], ...], Host, int, Rule | None, str]] = {
    "fits": (({},), HOST, 16, None, "engines/0.plan"),
    "any batch": (({},), HOST, 0, None, "engines/0.plan"),
    "a batch too large": (({},), HOST, 17, None, "EngineMismatchError"),
    "no GPU known": (({},), replace(HOST, compute_capability=None), 1, None, "engines/0.plan"),
    "portable to 7.5": (({},), replace(HOST, compute_capability="7.5"), 1, None, "EngineMismatchError"),
    "portable to 9.0": (({},), replace(HOST, compute_capability="9.0"), 1, None, "EngineMismatchError"),
    "portable to 12.1": (({},), replace(HOST, compute_capability="12.1"), 1, None, "engines/0.plan"),
    "8.0+ to 8.10": (({"architecture": "8.0+"},), replace(HOST, compute_capability="8.10"), 1, None, "engines/0.plan"),
    "8.9 to 8.6": (({"architecture": "8.9"},), HOST, 1, None, "EngineMismatchError"),
    "8.6 of two": (({"architecture": "8.9,8.6"},), HOST, 1, None, "engines/0.plan"),
    "another version": (({},), replace(HOST, version="1.7.1.117"), 1, None, "EngineMismatchError"),
    "another platform": (({},), replace(HOST, platform="linux aarch64"), 1, None, "EngineMismatchError"),
    "another model": (({"onnx_sha256": "1" * 64},), HOST, 1, None, "EngineMismatchError"),
    "all of it": (
        ({"onnx_sha256": "1" * 64, "architecture": "8.9", "version": "1.0", "platform": "windows"},), HOST, 99, None,
        "EngineMismatchError",
    ),
    "of another flavor": ((OLD,), HOST, 1, None, "EngineError"),
    "of another precision": (({},), HOST, 1, None, "engines/0.plan"),
    "TensorRT": ((OLD,), TENSORRT, 1, None, "engines/0.plan"),
    "a newer TensorRT": ((OLD,), replace(TENSORRT, version="10.15.0"), 1, None, "EngineMismatchError"),
    "a newer one, compatible": (
        ({**OLD, "options": {"version_compatible": True}},), replace(TENSORRT, version="10.15.0"), 1, None,
        "engines/0.plan",
    ),
    "an older one, compatible": (
        ({**OLD, "options": {"version_compatible": True}},), replace(TENSORRT, version="10.9.0"), 1, None,
        "EngineMismatchError",
    ),
    "the next major one": (
        ({**OLD, "options": {"version_compatible": True}},), replace(TENSORRT, version="11.0.0"), 1, None,
        "EngineMismatchError",
    ),
    "the one that fits": (({"architecture": "8.9"}, {}, {"version": "1.0"}), HOST, 1, None, "engines/1.plan"),
    "the one with weights": (({"options": {"strip_weights": True}}, {}), HOST, 1, None, "engines/1.plan"),
    "the one with fewest outputs": (
        ({}, {"options": {"outputs": ["logits", "foreground"]}}), HOST, 1, Rule("foreground"), "engines/1.plan",
    ),
    "the one with features": (
        ({"options": {"outputs": ["logits", "foreground"]}}, {}), HOST, 1, Rule(), "engines/1.plan",
    ),
    "none with features": (
        ({"options": {"outputs": ["logits", "foreground"]}},), HOST, 1, Rule(), "EngineMismatchError",
    ),
    "a fixed rule": (({},), HOST, 1, Rule("fixed", eta=0.25, map="signed"), "engines/0.plan"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_both_judge_alike(runtime: Any, example: Any, own: Path, name: str) -> None:
    engines, host, batch, rule, expected = CASES[name]
    with_engines(own, *engines)
    theirs, ours = python(own, host, batch, rule), cpp(runtime, example, own, host, batch, rule)
    assert theirs[0] == expected
    assert ours == theirs


def changed(root: Path) -> None:
    (root / "engines/0.plan").write_bytes((root / "engines/0.plan").read_bytes()[:-1] + b"x")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte changed": (changed, "EngineMismatchError"),
    "cut short": (lambda root: (root / "engines/0.plan").write_bytes(b"short"), "EngineMismatchError"),
    "gone": (lambda root: (root / "engines/0.plan").unlink(), "EngineError"),
    "a folder": (lambda root: ((root / "engines/0.plan").unlink(), (root / "engines/0.plan").mkdir()), "BundleError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plan_that_is_not_the_listed_one(runtime: Any, example: Any, own: Path, name: str) -> None:
    change, expected = BROKEN[name]
    change(with_engines(own))
    theirs, ours = python(own, HOST, 1, None), cpp(runtime, example, own, HOST, 1, None)
    assert theirs[0] == ours[0] == expected
    if expected == "EngineMismatchError":
        assert ours == theirs


def test_no_engine_at_all(runtime: Any, example: Any, own: Path) -> None:
    theirs, ours = python(own, HOST, 1, None), cpp(runtime, example, own, HOST, 1, None)
    assert ours == theirs
    assert theirs[0] == "EngineError"


@pytest.mark.parametrize(("kind", "map_"), [(0, 50), (0, -1), (9, 0), (-1, 0), (0, 3), (1, 1_000_000)])
def test_a_rule_that_is_none(runtime: Any, example: Any, own: Path, kind: int, map_: int) -> None:
    bundle, plan, size = c.c_void_p(), c.c_void_p(), c.c_uint64()
    runtime.checked("wgap_bundle_open", str(with_engines(own)).encode(), 0, c.byref(bundle))
    asked = _Host(c.sizeof(_Host), 1, b"tensorrt_rtx", b"1.7.1.116", b"8.6", b"linux x86_64")
    rule = _Rule(c.sizeof(_Rule), kind, map_)
    arguments = (None, c.byref(rule), 0, c.byref(plan), c.byref(size), None)
    with pytest.raises(example.RefusedError) as caught:
        runtime.checked("wgap_bundle_engine", bundle, c.byref(asked), *arguments)
    runtime.library.wgap_bundle_close(bundle)
    assert caught.value.code == "RuleError"
