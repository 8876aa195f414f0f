"""What `postprocess` and `Classifier` accept, and how they refuse the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from wgap.errors import FeatureError, RuleError
from wgap.rule import Rule
from wgap.runtime.postprocess import Classifier, active_target, cpu_targets, postprocess

RNG = np.random.default_rng(0)
FEATURES = np.maximum(RNG.standard_normal((3, 8, 5, 6)), 0).astype(np.float32)
LOGITS = RNG.standard_normal((3, 4)).astype(np.float32)
WEIGHT = RNG.standard_normal((4, 8)).astype(np.float32)


def run(features: Any = FEATURES, logits: Any = LOGITS, weight: Any = WEIGHT, **options: Any) -> Any:
    return postprocess(logits, features, Classifier(weight), **({"size": (20, 30)} | options))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["features", "logits"])
@pytest.mark.parametrize("target", cpu_targets())
def test_a_value_that_is_not_finite_names_its_image(bad: float, where: str, target: str) -> None:
    arrays = {"features": FEATURES.copy(), "logits": LOGITS.copy()}
    arrays[where][1].flat[-1] = bad
    with pytest.raises(FeatureError, match=rf"image 1 of the batch: {where} hold NaN or infinity"):
        run(**arrays, target=target)


def test_every_single_feature_is_checked() -> None:
    """Even where its channel's weight is zero, and wherever it lies."""
    weight = np.zeros((4, 8), np.float32)
    for place in range(FEATURES[0].size):
        features = FEATURES[:1].copy()
        features.flat[place] = np.inf
        with pytest.raises(FeatureError, match="image 0"):
            run(features, LOGITS[:1], weight)


def test_all_zero_features_give_the_whole_map_and_say_so() -> None:
    [[record]] = run(np.zeros((1, 8, 5, 6), np.float32), LOGITS[:1], heatmaps=True, edge_means=True)
    assert (record.box, record.threshold, record.level, record.degenerate) == ((0, 0, 30, 20), 0.0, -1, True)
    assert record.edge_means is None
    assert not np.asarray(record.heatmap).any()


def test_classes_may_be_given_ranked_or_left_out() -> None:
    order = np.argsort(-LOGITS, axis=1)
    assert [[r.class_id for r in one] for one in run()] == order[:, :1].tolist()
    assert [[r.class_id for r in one] for one in run(top_k=4)] == order.tolist()
    for classes in ([3, 0, 1], np.array([3, 0, 1]), iter([3, 0, 1])):
        assert [[r.class_id for r in one] for one in run(classes=classes)] == [[3], [0], [1]]
    assert [one[0].class_id for one in run(classes=2)] == [2, 2, 2]


def test_fixed_threshold_is_reported_and_searches_no_level() -> None:
    [[record]] = run(FEATURES[:1], LOGITS[:1], rule=Rule.parse("fixed:0.35"), edge_means=True)
    assert (record.threshold, record.level, record.edge_means) == (0.35, -1, None)


def test_heatmap_is_a_view_that_outlives_the_call() -> None:
    first, second = (one[0].heatmap for one in run(FEATURES[:2], LOGITS[:2], heatmaps=True))
    assert isinstance(first, memoryview)
    assert (first.shape, first.format) == ((20, 30), "f")
    kept = np.asarray(first).copy()
    run(heatmaps=True)
    np.testing.assert_array_equal(np.asarray(first), kept)
    assert np.asarray(second).max() == 1.0
    assert run()[0][0].heatmap is None


def test_any_buffer_or_dlpack_array_is_read_in_place() -> None:
    expected = [one[0].box for one in run()]
    features, logits, weight = (memoryview(a) for a in (FEATURES.data, LOGITS.data, WEIGHT.data))
    assert [one[0].box for one in run(features, logits, weight)] == expected
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(a) for a in (FEATURES, LOGITS, WEIGHT)]
    assert [one[0].box for one in run(*tensors)] == expected


def test_the_classifier_is_a_copy() -> None:
    weight = WEIGHT.copy()
    classifier = Classifier(weight)
    expected = [one[0].box for one in postprocess(LOGITS, FEATURES, classifier, size=(20, 30))]
    weight[:] = np.nan
    assert [one[0].box for one in postprocess(LOGITS, FEATURES, classifier, size=(20, 30))] == expected
    assert (classifier.num_classes, classifier.channels) == (4, 8)


def test_an_empty_batch_gives_an_empty_list() -> None:
    assert run(FEATURES[:0], LOGITS[:0]) == []
    assert run(FEATURES[:0], LOGITS[:0], heatmaps=True) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": FEATURES.astype(np.float64)},
            r"features: expected float32\[N, C, h, w\], got float64\[3, 8, 5, 6\]",
        ),
        ({"features": FEATURES[0]}, r"expected float32\[N, C, h, w\], got float32\[8, 5, 6\]"),
        ({"features": FEATURES[:, :, ::2]}, "features must be C-contiguous"),
        ({"features": FEATURES.transpose(0, 1, 3, 2)}, "features must be C-contiguous"),
        ({"features": FEATURES[:, :0]}, "features: expected 8 channels for this classifier, got 0 x 5 x 6"),
        ({"features": FEATURES[:, :, :0]}, "features: expected at least one row and column, got 8 x 0 x 6"),
        ({"features": FEATURES[:2]}, r"features: expected those of 3 images, as the logits, got float32\[2, 8, 5, 6\]"),
        ({"logits": LOGITS[:, :3].copy()}, "logits: expected 4 classes for this classifier, got 3"),
        ({"weight": WEIGHT[:, :7].copy()}, "expected 7 channels for this classifier, got 8 x 5 x 6"),
        ({"weight": WEIGHT[0]}, r"classifier weight: expected float32\[K, C\], got float32\[8\]"),
        ({"weight": WEIGHT * np.nan}, "classifier weights hold NaN or infinity"),
        ({"weight": WEIGHT[:0]}, "at least one class and channel, got 0 x 8"),
    ],
)
def test_wrong_arrays_are_refused_with_what_was_expected_and_what_came(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        run(**change)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"top_k": 0}, r"top_k: expected 1\.\.4, got 0"),
        ({"top_k": 5}, r"top_k: expected 1\.\.4, got 5"),
        ({"classes": [0, 1]}, "one class id for each of 3 images, got 2"),
        ({"classes": [0, 1, 4]}, r"classes\[2\] is 4, expected 0\.\.3"),
        ({"classes": [0, -1, 2]}, r"classes\[1\] is -1, expected 0\.\.3"),
        ({"size": (0, 5)}, r"size: expected .* got \(0, 5\)"),
        ({"size": (1025, 1024)}, r"at most 2\^20 pixels, got \(1025, 1024\)"),
        ({"threads": 0}, r"threads: expected 1\.\.1024, got 0"),
        ({"target": "mmx"}, "instruction set 'mmx' is not one that this machine runs; the best is '"),
    ],
)
def test_wrong_options_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**option)


@pytest.mark.parametrize(
    ("rule", "map", "message"),
    [
        ("adaptive", "cam", "map: expected 'recombined', 'positive' or 'signed', got 'cam'"),
        ("otsu", "signed", "rule: expected 'adaptive', 'foreground', .* got 'otsu'"),
        ("fixed:", "signed", "rule: expected .* got 'fixed:'"),
        ("fixed:1.0", "signed", r"ETA in \[0, 0.999\], got 'fixed:1.0'"),
        ("fixed:nan", "signed", r"ETA in \[0, 0.999\], got 'fixed:nan'"),
        ("fixed:0.2x", "signed", "rule: expected .* got 'fixed:0.2x'"),
    ],
)
def test_wrong_rules_are_refused(rule: str, map: str, message: str) -> None:  # noqa: A002
    with pytest.raises(RuleError, match=message):
        Rule.parse(rule, map)


def test_calls_from_many_threads_do_not_disturb_each_other() -> None:
    expected = [one[0].box for one in run()]
    failures: list[object] = []

    def caller(threads: int) -> None:
        for _ in range(50):
            found = [one[0].box for one in run(threads=threads)]
            if found != expected:
                failures.append(found)

    callers = [threading.Thread(target=caller, args=(1 + i % 2,)) for i in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    script = (
        "import os, sys\n"
        "import numpy as np\n"
        "from wgap.runtime.postprocess import Classifier, postprocess\n"
        "ones = lambda *shape: np.ones(shape, np.float32)\n"
        "f, l, c = ones(4, 2, 3, 3), ones(4, 1), Classifier(ones(1, 2))\n"
        "run = lambda: [r[0].box for r in postprocess(l, f, c, size=(9, 9), threads=3)]\n"
        "expected = run()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if run() == expected else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


def test_target_comes_from_the_environment_or_is_the_best() -> None:
    script = "from wgap.runtime.postprocess import active_target; print(active_target())"
    for wanted in cpu_targets():
        environment = os.environ | {"WGAP_TARGET": wanted}
        found = subprocess.run(
            [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()
        assert found == wanted
    refused = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"WGAP_TARGET": "sse9"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert "instruction set 'sse9'" in refused.stderr
    if "WGAP_TARGET" not in os.environ:
        assert active_target() == cpu_targets()[-1]


def test_the_native_module_needs_no_numpy() -> None:
    script = (
        "import array, sys\n"
        "from wgap.runtime.postprocess import Classifier, postprocess\n"
        "floats = lambda values, *shape: memoryview(array.array('f', values)).cast('B').cast('f', shape)\n"
        "features, logits = floats([1, 0, 0, 0], 1, 1, 2, 2), floats([0], 1, 1)\n"
        "found = postprocess(logits, features, Classifier(floats([1], 1, 1)), size=(4, 4), heatmaps=True)\n"
        "box = found[0][0].box\n"
        "assert box == (0, 0, 3, 3), box\n"
        "assert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
