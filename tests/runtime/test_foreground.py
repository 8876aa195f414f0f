"""The foreground rules behind a localizer: what is fetched, several boxes, and refusals by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from wgap import Localizer
from wgap.bundle import Bundle, write_manifest
from wgap.cli import app
from wgap.errors import BundleError, DataError, FeatureError
from wgap.rule import Rule
from wgap.runtime.locator import open_locator
from wgap.runtime.network import CallableNetwork, Outputs
from wgap.train.reference import box_from_scores


def scores() -> np.ndarray:
    """float32[1, 1, 16, 16]: two blots on the ground, the lighter one of a third of the heavier one's weight."""
    s = np.full((1, 1, 16, 16), -1, np.float32)
    s[0, 0, 2:5, 2:8] = 2
    s[0, 0, 10:12, 10:13] = 2
    return s


def blots(images: np.ndarray) -> dict[str, np.ndarray]:
    logits = np.tile(np.array([[3, 1, 0]], np.float32), (len(images), 1))
    return {"logits": logits, "foreground": np.repeat(scores(), len(images), 0)}


class Watched(CallableNetwork):
    """Remembers which outputs it was asked for."""

    asked: tuple[str, ...] | None = None

    def forward(
        self, images: Any, stream: int | None = None, outputs: Sequence[str] | None = None
    ) -> AbstractContextManager[Outputs]:
        self.asked = None if outputs is None else tuple(outputs)
        return super().forward(images, stream, outputs)


@pytest.fixture
def bundle(glass_bundle: Path, tmp_path: Path) -> Bundle:
    """``glass_bundle`` with a manifest that promises a score map; its graph has none."""
    root = tmp_path / "glass"
    shutil.copytree(glass_bundle, root)
    opened = Bundle.open(root)
    manifest = opened.manifest
    fields = {**vars(manifest), "model": manifest.model.with_foreground((16, 16)), "rule": Rule("foreground")}
    write_manifest(root, type(manifest)(**fields))
    return Bundle.open(root)


def picture() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    return np.stack([x * 4, y * 4, np.where((x > 20) & (y > 20), 200, 10)], -1).astype(np.uint8)


@pytest.mark.parametrize("rule", ["foreground", "foreground+colour"])
def test_the_box_is_the_reference_s_and_features_are_not_fetched(bundle: Bundle, rule: str) -> None:
    network = Watched(blots, bundle.manifest.model)
    with Localizer(bundle, network=network, rule=rule) as localizer:
        found = localizer.one(picture(), heatmap=True)
    shown = torch.from_numpy(picture()) if rule == "foreground+colour" else None
    expected = box_from_scores(torch.from_numpy(scores()[0, 0]), (64, 64), shown)
    assert network.asked == ("logits", "foreground")
    assert found.boxes == (expected.box,)
    assert found.heatmap is not None
    assert np.array_equal(found.heatmap, expected.map.numpy())
    assert (found.class_name, found.threshold, found.level, found.degenerate) == ("red", 0.0, -1, False)


def test_with_a_map_the_class_decides_between_components(bundle: Bundle) -> None:
    features = np.zeros((1, 3, 8, 8), np.float32)
    features[0, 1, 5, 5] = 1  # green is in the lighter blot
    features[0, 0, 1, 2] = 1  # and red in the heavier one

    def function(images: np.ndarray) -> dict[str, np.ndarray]:
        return {**blots(images), "features": features}

    with Localizer(bundle, network=function, map="recombined") as localizer:
        red, green = (localizer.one(picture(), name) for name in ("red", "green"))
        assert localizer.rule == Rule("foreground", "recombined")
    with Localizer(bundle, network=function) as localizer:
        heaviest = localizer.one(picture(), "green")
    assert red.box == heaviest.box
    assert green.box != red.box
    assert green.box[0] > 32


def test_several_boxes_are_in_the_record_the_json_and_the_picture(bundle: Bundle) -> None:
    with Localizer(bundle, network=blots, max_boxes=3) as localizer:
        found = localizer.one(cv2.resize(picture(), (128, 128)))
    assert len(found.boxes) == 2, "there are two components, of which the lighter is heavy enough"
    assert found.box == found.boxes[0]
    written = found.to_json()
    assert written["box"] == list(found.boxes[0])
    assert written["boxes"] == [list(box) for box in found.boxes]
    assert found.boxes == box_from_scores_boxes(3)
    drawn = found.draw(np.zeros((384, 384, 3), np.uint8), heatmap=False)
    inside = [drawn[round(y0) + 1, round((x0 + x1) / 2)].tolist() for x0, y0, x1, y1 in found.boxes[1:]]
    assert inside == [[255, 106, 0]]
    with Localizer(bundle, network=blots, rule="fixed:0.1", max_boxes=3) as localizer, pytest.raises(BundleError):
        localizer.one(picture())  # this network gives no features


def box_from_scores_boxes(most: int) -> tuple[tuple[float, ...], ...]:
    """The reference's boxes on pictures of twice the map's size."""
    found = box_from_scores(torch.from_numpy(scores()[0, 0]), (64, 64), most=most).boxes
    return tuple(tuple(2.0 * v for v in box) for box in found)


def test_one_more_number_is_pickled(tiny_bundle: Path) -> None:
    again = pickle.loads(pickle.dumps(Localizer(tiny_bundle, max_boxes=4)))
    assert again.max_boxes == 4


@pytest.mark.parametrize("count", [0, 65, 1.5, None])
def test_a_number_of_boxes_out_of_range_is_refused(tiny_bundle: Path, count: Any) -> None:
    with pytest.raises(DataError, match=r"max_boxes must be a whole number in 1\.\.64"):
        Localizer(tiny_bundle, max_boxes=count)


@pytest.mark.parametrize("verb", ["localize", "bench", "check", "selftest"])
def test_a_bundle_without_scores_is_refused_by_name(
    glass_bundle: Path, pictures: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [str(pictures)] if verb == "localize" else []
    with pytest.raises(BundleError, match=r"reads the output foreground, which this bundle has not.*wgap foreground"):
        app([verb, str(glass_bundle), *inputs, "--rule", "foreground"], standalone_mode=False)
    with pytest.raises(BundleError, match="reads the output foreground"):
        open_locator(Bundle.open(glass_bundle), Rule("foreground+colour"))


def test_a_graph_without_what_the_manifest_promises_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"promises foreground float32\['N', 1, 16, 16\], got no such tensor"):
        Localizer(bundle)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: np.where(s > 0, np.nan, s), FeatureError, "scores hold NaN or infinity"),
        (lambda s: np.where(s > 0, np.inf, s), FeatureError, "scores hold NaN or infinity"),
        (lambda s: s[:, :, :8], BundleError, r"got float32\['N', 1, 8, 16\]"),
        (lambda s: s.astype(np.float64), BundleError, "got float64"),
        (lambda _: None, BundleError, "foreground.*got no such tensor"),
    ],
)
def test_scores_that_do_not_fit_are_named(bundle: Bundle, change: Any, error: type[Exception], message: str) -> None:
    def function(images: np.ndarray) -> dict[str, np.ndarray]:
        made = blots(images)
        changed = change(made.pop("foreground"))
        return made if changed is None else {**made, "foreground": changed}

    with Localizer(bundle, network=function) as localizer, pytest.raises(error, match=message):
        localizer.one(picture())


def test_a_manifest_that_contradicts_itself_is_refused(bundle: Bundle) -> None:
    where = bundle.root / "wgap.json"
    given = json.loads(where.read_text())
    for change, message in (
        (lambda m: m["model"]["outputs"].pop(), "the signature has no tensor 'foreground'"),
        (lambda m: m["model"]["outputs"][-1]["shape"].__setitem__(1, 2), "expected one channel"),
        (lambda m: m["rule"].__setitem__("map", "cam"), "map: expected 'recombined', 'positive', 'signed' or 'none'"),
    ):
        changed = json.loads(json.dumps(given))
        change(changed)
        where.write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=message):
            Bundle.open(bundle.root)
