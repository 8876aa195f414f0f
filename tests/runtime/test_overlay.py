"""Pictures: the frame lies on the box, the label on the picture, and a file appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wgap import Localization
from wgap.errors import ImageError
from wgap.images import decode
from wgap.runtime.overlay import PREDICTED, READABLE_SIDE, TRUE, overlay, save_picture

Scene = Callable[[int, int], np.ndarray]


def found(
    box: tuple[float, float, float, float], name: str = "bird", heatmap: np.ndarray | None = None
) -> Localization:
    return Localization(0, name, 0.934, (box,), 0.1, 2, False, heatmap)


def test_the_frame_is_the_half_open_box_and_the_rest_is_untouched(scene: Scene) -> None:
    image = scene(500, 400)
    before = image.copy()
    drawn = found((100, 150, 300, 450)).draw(image)
    assert drawn.shape == image.shape
    assert np.array_equal(image, before)
    for y, x in ((150, 100), (150, 299), (449, 100), (449, 299), (300, 100), (300, 299)):
        assert tuple(drawn[y, x]) == PREDICTED
    assert np.array_equal(drawn[153:447, 103:297], image[153:447, 103:297])  # two pixels of frame, one of shadow
    assert not drawn[152, 103:297].any()
    assert not drawn[447, 103:297].any()
    assert np.array_equal(drawn[450:], image[450:])
    assert np.array_equal(drawn[:, :100], image[:, :100])


def test_truth_is_drawn_in_green(scene: Scene) -> None:
    drawn = overlay(scene(400, 400), found((10, 100, 50, 140)), truth=[(200, 200, 300, 320)])
    assert tuple(drawn[200, 250]) == TRUE
    assert tuple(drawn[319, 250]) == TRUE


def test_small_images_are_enlarged_by_a_whole_factor_and_the_box_with_them(scene: Scene) -> None:
    image = scene(30, 40)
    drawn = overlay(image, found((8, 10, 30, 29)))
    assert drawn.shape == (240, READABLE_SIDE, 3)
    assert tuple(drawn[231, 100]) == PREDICTED
    assert np.array_equal(drawn[120:200:8, 90:200:8], image[15:25, 11:25])


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (2000, 3), (1500, 1200)])
def test_any_size_and_any_name_can_be_drawn(size: tuple[int, int], scene: Scene) -> None:
    height, width = size
    drawn = overlay(scene(height, width), found((0, 0, width, height), "a name that is far too long " * 5 + "ü"))
    assert drawn.dtype == np.uint8
    assert max(drawn.shape[:2]) >= READABLE_SIDE
    assert (drawn == PREDICTED).all(axis=-1).any()


def test_the_heat_map_is_blended_where_it_is_high(scene: Scene) -> None:
    heatmap = np.zeros((64, 64), np.float32)
    heatmap[:, 32:] = 1
    image = scene(400, 400)
    result = found((300, 300, 380, 380), heatmap=heatmap)
    drawn = overlay(image, result)
    assert np.array_equal(drawn[:, :150], image[:, :150])
    assert np.abs(drawn[:200, 250:].astype(int) - image[:200, 250:]).mean() > 20
    assert np.array_equal(overlay(image, result, heatmap=False)[:200], image[:200])


def test_what_is_no_rgb_image_is_refused() -> None:
    with pytest.raises(ImageError, match=r"expected an RGB image uint8\[H, W, 3\], got float32\[4, 4, 3\]"):
        overlay(np.zeros((4, 4, 3), np.float32), found((0, 0, 1, 1)))  # type: ignore[arg-type]


def test_a_picture_is_written_whole_or_not_at_all(scene: Scene, tmp_path: Path) -> None:
    picture = scene(50, 60)
    save_picture(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(decode(tmp_path / "new" / "a.png"), picture)
    for name in ("a.nothing", "a"):
        with pytest.raises(ImageError, match=r"use \.jpg or \.png"):
            save_picture(tmp_path / name, picture)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
