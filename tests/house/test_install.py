"""What `import wgap` costs, where it comes from, and that the names it promises are there."""

from __future__ import annotations

import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from importlib import metadata

import pytest

import wgap
from wgap.extras import EXTRAS

HEAVY = {"torch", "onnx", "onnxruntime", "cv2", "tensorrt", "numpy", "matplotlib", "safetensors"}
MODULES = sorted(module.name for module in pkgutil.walk_packages(wgap.__path__, "wgap."))


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running a statement."""
    program = f"import sys, json\n{statement}\nprint(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    return set(json.loads(subprocess.check_output([sys.executable, "-c", program], text=True)))


@pytest.mark.parametrize(
    "statement", ["import wgap", "import wgap.cli", "import wgap.bundle, wgap.images, wgap.datasets"]
)
def test_importing_the_core_loads_nothing_heavy(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_importing_the_runtime_loads_no_framework() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "tensorrt", "cv2"}
    assert not loaded_by("import wgap; wgap.Localizer; import wgap.runtime.postprocess") & heavy


def test_every_room_is_installed() -> None:
    rooms = {
        "calibrate",
        "cli",
        "datasets",
        "evaluate",
        "evaluate.page",
        "export",
        "runtime",
        "runtime.cuda",
        "runtime.networks",
        "serve",
        "train",
    }
    assert {f"wgap.{room}" for room in rooms} <= set(MODULES)


def test_pages_are_installed_with_their_style_and_script() -> None:
    from wgap.evaluate.page.html import page_html

    page = page_html("a title", {"bundle": {}})
    assert all(part in page for part in ("<title>a title</title>", "--ground:", "begin();", '{"bundle":{}}'))


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS or importlib.util.find_spec(error.name):
            raise
        pytest.skip(f"{name} needs {error.name} of the extra {EXTRAS[error.name]}, which is not installed")


def test_every_public_name_exists() -> None:
    for name in wgap.__all__:
        assert getattr(wgap, name) is not None
    assert set(wgap.__all__) <= set(dir(wgap))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = wgap.nothing


def test_every_error_is_in_the_drawn_tree() -> None:
    from wgap import errors

    drawn = errors.__doc__ or ""
    for name in errors.__all__:
        assert f" {name} " in drawn or f"{name}\n" in drawn
        assert issubclass(getattr(errors, name), errors.WgapError)


def test_the_kernel_s_headers_are_where_the_compiler_for_gpus_looks() -> None:
    from wgap.runtime.cuda import compiler

    header = compiler._INCLUDE / "wgap" / "kernel" / "cuda_kernel.h"
    assert "wgap_localize_cuda" in header.read_text()


def test_the_suite_runs_against_the_installation_it_was_told_to() -> None:
    expected = os.environ.get("WGAP_EXPECT_PREFIX")
    home = wgap.__file__
    if expected is None:
        assert not home.startswith(sys.prefix), "the editable install should serve the tree, not a copy"
    else:
        assert home.startswith(expected)


def test_the_licences_of_what_is_linked_in_come_along() -> None:
    licences = {file.name: file.read_text() for file in metadata.files("wgap") or [] if file.parent.name == "licenses"}
    assert "Wenzel Jakob" in licences["nanobind-LICENSE"]
    assert "Goetghebuer-Planchon" in licences["robin_map-LICENSE"]
    assert "Apache License" in licences["LICENSE"]
