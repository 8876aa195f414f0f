"""The native resize: whole-number bilinear, within a grey level of OpenCV's, the same on every machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wgap.errors import ImageError
from wgap.images import resize
from wgap.runtime.postprocess import cpu_targets


def exact(source: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The definition: weights in 2048ths, rounded to nearest; one rounding of the weighted sum."""

    def taps(size_in: int, size_out: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        centre = np.maximum((2 * np.arange(size_out, dtype=np.int64) + 1) * size_in - size_out, 0)
        lower, rest = np.divmod(centre, 2 * size_out)
        weight = (rest * 4096 + 2 * size_out) // (4 * size_out)
        weight[lower >= size_in - 1] = 0
        return np.minimum(lower, size_in - 1), np.minimum(lower + 1, size_in - 1), weight

    y0, y1, wy = taps(source.shape[0], height)
    x0, x1, wx = taps(source.shape[1], width)
    wide = source.astype(np.int64)
    wide = wide[:, x0] * (2048 - wx)[None, :, None] + wide[:, x1] * wx[None, :, None]
    both = wide[y0] * (2048 - wy)[:, None, None] + wide[y1] * wy[:, None, None]
    return ((both + (1 << 21)) >> 22).astype(np.uint8)


sizes = st.integers(1, 90)


@settings(max_examples=100, deadline=None)
@given(h=sizes, w=sizes, height=sizes, width=sizes, channels=st.integers(1, 4), seed=st.integers(0, 1000))
def test_resize_is_its_definition_and_within_a_grey_level_of_opencv(
    h: int, w: int, height: int, width: int, channels: int, seed: int
) -> None:
    cv2 = pytest.importorskip("cv2")
    source = np.random.default_rng(seed).integers(0, 256, (h, w, channels), dtype=np.uint8)
    found = resize(source, height, width)
    np.testing.assert_array_equal(found, exact(source, height, width))
    theirs = cv2.resize(source, (width, height), interpolation=cv2.INTER_LINEAR).reshape(found.shape)
    assert np.abs(found.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("shape", [(375, 500), (1, 1), (2, 4000), (224, 224), (9000, 12000)])
def test_photographs_of_any_size(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    source = np.repeat(rng.integers(0, 256, (shape[0], 1, 3), dtype=np.uint8), shape[1], axis=1)
    found = resize(source, 224, 224)
    assert found.shape == (224, 224, 3)
    np.testing.assert_array_equal(found[:, :1], exact(source[:, :1], 224, 1))
    assert (found == found[:, :1]).all()


def test_writes_into_an_image_of_a_batch_and_reads_crops_in_place() -> None:
    rng = np.random.default_rng(2)
    source = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    batch = np.zeros((3, 10, 12, 3), np.uint8)
    assert resize(source, 10, 12, batch[1]) is not None
    np.testing.assert_array_equal(batch[1], resize(source, 10, 12))
    assert not batch[[0, 2]].any()
    crop = source[5:31, 7:45]
    np.testing.assert_array_equal(resize(crop, 10, 12), resize(crop.copy(), 10, 12))
    wide = np.zeros((10, 20, 3), np.uint8)
    resize(source, 10, 12, wide[:, 4:16])
    np.testing.assert_array_equal(wide[:, 4:16], batch[1])
    assert not wide[:, :4].any()
    assert not wide[:, 16:].any()
    flipped = source[::-1]
    np.testing.assert_array_equal(resize(flipped, 10, 12), resize(flipped.copy(), 10, 12))


def test_every_target_gives_the_same_bytes() -> None:
    script = (
        "import hashlib, sys, numpy as np\n"
        "from wgap.images import resize\n"
        "source = np.random.default_rng(3).integers(0, 256, (97, 131, 3), dtype=np.uint8)\n"
        "found = [resize(source, h, w).tobytes() for h, w in [(224, 224), (5, 7), (97, 131)]]\n"
        "print(hashlib.sha256(b''.join(found)).hexdigest())"
    )
    source = np.random.default_rng(3).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    expected = hashlib.sha256(b"".join(exact(source, h, w).tobytes() for h, w in [(224, 224), (5, 7), (97, 131)]))
    for target in cpu_targets():
        environment = os.environ | {"WGAP_TARGET": target}
        found = subprocess.run(
            [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
        )
        assert found.stdout.strip() == expected.hexdigest(), target


def test_rows_may_run_upwards_or_be_padded() -> None:
    source = np.random.default_rng(4).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    for view in (source[::-1], source[:, 2:7], source[::-2, :5], source[3:4]):
        np.testing.assert_array_equal(resize(view, 5, 11), resize(view.copy(), 5, 11))
        out = np.zeros((12, 13, 3), np.uint8)
        resize(view, 5, 11, out[10::-2, :11][:5])
        np.testing.assert_array_equal(out[10::-2, :11][:5], resize(view.copy(), 5, 11))
        assert not out[:, 11:].any()


def test_wrong_images_are_refused() -> None:
    good = np.zeros((4, 5, 3), np.uint8)
    for bad, message in (
        (good[0], r"image: expected uint8\[H, W, C\] in CPU memory, got uint8\[5, 3\]"),
        (good.astype(np.float32), r"image: expected uint8\[H, W, C\] in CPU memory, got float32\[4, 5, 3\]"),
        (np.zeros((4, 5, 5), np.uint8), "at least 1x1 pixels of 1 to 4 channels, got 4x5 of 5"),
        (np.zeros((4, 5, 0), np.uint8), "got 4x5 of 0"),
        (good[:0], "got 0x5 of 3"),
        (good[:, ::2], "image: rows must be contiguous"),
    ):
        with pytest.raises(ImageError, match=message):
            resize(bad, 2, 2)
    for out, message in (
        (np.zeros((2, 3, 3), np.uint8), r"out: expected uint8\[2, 2, 3\], got uint8\[2, 3, 3\]"),
        (np.zeros((2, 2, 1), np.uint8), r"out: expected uint8\[2, 2, 3\], got uint8\[2, 2, 1\]"),
        (np.zeros((2, 2, 3), np.float32), r"out: expected uint8\[H, W, C\] in CPU memory, got float32\[2, 2, 3\]"),
    ):
        with pytest.raises(ImageError, match=message):
            resize(good, 2, 2, out)
    frozen = np.zeros((2, 2, 3), np.uint8)
    frozen.flags.writeable = False
    with pytest.raises(ImageError, match="writable"):
        resize(good, 2, 2, frozen)
    for height, width in ((0, 2), (2, 0), (-1, 2)):
        with pytest.raises(ValueError, match="at least 1x1"):
            resize(good, height, width)
