"""``selftest`` passes on a sound bundle, and each stage fails when its golden value is another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from wgap import Localizer
from wgap.errors import BundleError
from wgap.runtime.network import CallableNetwork
from wgap.runtime.selftest import selftest

Rewrite = Callable[..., None]


def failing(root: Path) -> set[tuple[int, str]]:
    return {(check.case, check.stage) for check in selftest(Localizer(root)).checks if not check.ok}


def test_a_sound_bundle_passes_every_stage(tiny_bundle: Path) -> None:
    report = selftest(Localizer(tiny_bundle))
    assert report.ok
    cases = {check.case for check in report.checks}
    assert len(cases) >= 4
    stages = [{check.stage for check in report.checks if check.case == case} for case in sorted(cases)]
    whole = {"logits", "features", "kernel box", "kernel level", "kernel map", "end to end box", "end to end level"}
    assert whole <= stages[0]
    assert stages[-1] < stages[0], "the degenerate case has no image, so the kernel alone is tested"
    assert report.to_json()["ok"] is True


def test_a_lower_precision_is_held_to_its_rounding(tiny_bundle: Path) -> None:
    """The golden network is float32: INT8's features differ from it by more than a sum in another order does."""
    exact = Localizer(tiny_bundle).network

    def through(change: Callable[[np.ndarray], np.ndarray], precision: str) -> set[str]:
        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            outputs = exact.run(images)
            return {**outputs, "features": np.ascontiguousarray(change(outputs["features"]))}

        with Localizer(tiny_bundle, network=CallableNetwork(run, precision=precision)) as made:
            return {check.stage for check in selftest(made).checks if not check.ok}

    def corner(features: np.ndarray) -> np.ndarray:
        return np.where(np.indices(features.shape)[2:].sum(0) == 0, features, np.float32(0))

    def rounded(features: np.ndarray) -> np.ndarray:
        return features * np.float32(1.02)

    assert through(rounded, "int8") == set()
    assert "features" in through(rounded, "fp32")
    assert "features" in through(rounded, "a name of one's own"), "the strictest where the precision is not known"
    assert {"features", "end to end box, 1 - IoU"} <= through(corner, "int8")


@pytest.mark.parametrize(
    ("tensor", "change", "stages"),
    [
        ("level", lambda a: a + 1, {"kernel level", "end to end level"}),
        ("box", lambda a: np.add(a, (0, 0, 1, 0)), {"kernel box"}),
        ("box", lambda a: np.subtract(a, (2, 0, 0, 0)), {"kernel box", "end to end box"}),
        ("degenerate", lambda a: 1 - a, {"kernel degenerate"}),
        ("class_id", lambda a: a + 1, {"kernel class"}),
        ("threshold", lambda a: a + 0.05, {"kernel threshold"}),
        ("map", lambda a: a + 2e-6, {"kernel map"}),
        ("logits", lambda a: a * 1.001, {"logits"}),
    ],
    ids=["level", "box by one", "box by two", "degenerate", "class", "threshold", "map", "logits"],
)
def test_each_stage_notices_another_value(
    tiny_bundle: Path,
    tmp_path: Path,
    rewrite: Rewrite,
    tensor: str,
    change: Callable[[np.ndarray], np.ndarray],
    stages: set[str],
) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    golden = load_file(root / "golden" / "case-1.safetensors")
    golden[tensor] = change(golden[tensor]).astype(golden[tensor].dtype)
    rewrite(root, **{"case-1": save(golden)})
    assert failing(root) == {(1, stage) for stage in stages}


def test_other_weights_are_noticed(tiny_bundle: Path, tmp_path: Path, rewrite: Rewrite) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    classifier = load_file(root / "classifier.safetensors")
    classifier["weight"] = np.ascontiguousarray(classifier["weight"][:, ::-1])
    rewrite(root, classifier=save(classifier))
    assert (0, "kernel map") in failing(root)


def test_a_bundle_without_golden_cases_or_tensors_is_refused(
    glass_bundle: Path, tiny_bundle: Path, tmp_path: Path, rewrite: Rewrite
) -> None:
    with pytest.raises(BundleError, match="holds no golden cases"):
        selftest(Localizer(glass_bundle))
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    golden = load_file(root / "golden" / "case-0.safetensors")
    del golden["map"]
    rewrite(root, **{"case-0": save(golden)})
    with pytest.raises(BundleError, match="golden case 0 lacks the tensor 'map'"):
        selftest(Localizer(root))
