"""Whatever a person hands over as an image is decoded the same way everywhere, or refused by name."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from wgap.errors import DataError, ImageError
from wgap.images import MAX_PIXELS, decode, find_images, image_size, resize

KINDS = (
    "jpeg",
    "progressive jpeg",
    "jpeg with restarts",
    "png",
    "bmp",
    "lossless webp",
    "lossy webp",
    "tiff",
)
Encode = Callable[..., bytes]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def exif(orientation: int) -> bytes:
    """An EXIF segment with nothing but the orientation."""
    tiff = b"MM\x00*\x00\x00\x00\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes_to_rgb_bytes_from_bytes_and_from_a_path(
    kind: str, tmp_path: Path, files: dict[str, bytes], picture: np.ndarray
) -> None:
    image = decode(files[kind])
    assert image.dtype == np.uint8
    assert image.shape == (90, 70, 3)
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - picture).mean() < 4  # and not with red and blue exchanged: the disc is olive
    path = tmp_path / "misnamed.txt"
    path.write_bytes(files[kind])
    assert np.array_equal(decode(path), image)
    assert np.array_equal(decode(memoryview(files[kind])), image)
    assert image_size(path) == image_size(files[kind]) == (90, 70)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_anywhere_is_refused_silently(
    kind: str, capfd: pytest.CaptureFixture[str], files: dict[str, bytes]
) -> None:
    whole = files[kind]
    for length in [*range(1, 40), *range(40, len(whole) - 4, max(1, len(whole) // 50)), len(whole) - 3]:
        with pytest.raises(ImageError, match=r"cut\.|cut short|not an image"):
            decode(whole[:length], "cut.")
        if "jpeg" in kind:  # without a decoder: some versions of OpenCV fill the missing part with grey
            with pytest.raises(ImageError, match=r"cut short|not an image"):
                image_size(whole[:length])
    assert capfd.readouterr() == ("", ""), "the decoder printed something of its own"


def test_a_damaged_png_is_refused_silently(capfd: pytest.CaptureFixture[str], files: dict[str, bytes]) -> None:
    damaged = bytearray(files["png"])
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="does not match its checksum"):
        decode(bytes(damaged))
    assert capfd.readouterr() == ("", "")


def test_what_follows_the_end_of_a_jpeg_is_ignored(files: dict[str, bytes]) -> None:
    whole = files["jpeg"]
    assert np.array_equal(decode(whole + b"a trailer with \xff\xda in it"), decode(whole))


def test_a_thumbnail_does_not_make_a_cut_jpeg_look_whole(
    files: dict[str, bytes], encode: Encode, scene: Callable[[int, int], np.ndarray]
) -> None:
    thumbnail = encode(scene(8, 8), ".jpg")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = b"\xff\xd8" + segment + files["jpeg"][2:]
    assert image_size(whole) == (90, 70)
    with pytest.raises(ImageError, match="cut short"):
        decode(whole[:-200])


@pytest.mark.parametrize(("orientation", "size"), [(1, (90, 70)), (3, (90, 70)), (6, (70, 90)), (8, (70, 90))])
def test_the_cameras_orientation_is_applied(orientation: int, size: tuple[int, int], files: dict[str, bytes]) -> None:
    turned = b"\xff\xd8" + exif(orientation) + files["jpeg"][2:]
    assert decode(turned).shape[:2] == size
    assert image_size(turned) == size
    if orientation == 6:
        assert np.array_equal(decode(turned), np.rot90(decode(files["jpeg"]), -1))


def test_an_alpha_channel_is_ignored(picture: np.ndarray, encode: Encode) -> None:
    alpha = np.dstack([picture, np.arange(90 * 70, dtype=np.uint8).reshape(90, 70)])
    assert np.array_equal(decode(encode(alpha, ".png")), picture)


def test_sixteen_bits_become_the_high_eight(picture: np.ndarray, encode: Encode) -> None:
    deep = picture.astype(np.uint16) * 256 + 99
    assert np.array_equal(decode(encode(deep, ".png")), picture)


def test_grey_is_replicated(picture: np.ndarray, encode: Encode) -> None:
    grey = picture[..., 0].copy()
    for image in (grey, grey.astype(np.uint16) * 256):
        assert np.array_equal(decode(encode(image, ".png")), np.dstack([grey] * 3))
    assert decode(encode(grey, ".jpg")).shape == (90, 70, 3)


def test_one_pixel_is_an_image(encode: Encode) -> None:
    pixel = np.array([[[3, 200, 77]]], np.uint8)
    assert np.array_equal(decode(encode(pixel, ".png")), pixel)
    assert np.array_equal(resize(pixel, 5, 4), np.broadcast_to(pixel, (5, 4, 3)))


def test_a_hundred_megapixels_are_an_image(encode: Encode) -> None:
    huge = np.full((9000, 12000, 3), 200, np.uint8)
    huge[3000:6000, 2000:8000] = (10, 60, 90)
    encoded = encode(huge, ".jpg")
    assert image_size(encoded) == (9000, 12000)
    small = resize(decode(encoded), 224, 224)
    assert np.abs(small[100, 100].astype(int) - (10, 60, 90)).max() < 4


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    side = 60000
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=rf"60000 x 60000 pixels exceed the limit of {MAX_PIXELS}"):
        decode(bomb)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"just some text\n", "not an image: expected JPEG, PNG, BMP, WebP or TIFF")],
)
def test_what_is_no_image_is_named_with_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bird.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"bird.jpg: .*{reason}"):
        decode(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="expected an image file, got a folder"):
        decode(tmp_path)


def test_the_log_level_of_opencv_is_left_as_it_was(files: dict[str, bytes]) -> None:
    logging = cv2.utils.logging
    before = logging.getLogLevel()

    def many() -> None:
        for _ in range(20):
            decode(files["tiff"])
            with pytest.raises(ImageError):
                decode(files["tiff"][:-500])

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logging.getLogLevel() == before


def test_folders_are_searched_to_any_depth_and_sorted(pictures: Path) -> None:
    names = [path.relative_to(pictures).as_posix() for path in find_images(pictures)]
    assert names == ["a.jpg", "b.png", "below/a.jpeg"]


def test_inputs_keep_their_order_and_a_file_comes_once(pictures: Path) -> None:
    found = find_images([pictures / "b.png", f"{pictures}/*.jpg", pictures, pictures / "below" / ".." / "b.png"])
    assert [path.name for path in found] == ["b.png", "a.jpg", "a.jpeg"]
    assert [path.name for path in find_images(f"{pictures}/**/a.*")] == ["a.jpg", "a.jpeg"]


def test_an_empty_folder_and_an_unmatched_glob_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder with images in it, found none"):
        find_images(tmp_path)
    with pytest.raises(DataError, match=r"\*\.jpg: the pattern matches no file"):
        find_images(tmp_path / "*.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        find_images(tmp_path / "gone.jpg")
    assert find_images(tmp_path / "gone.jpg", missing="keep") == [tmp_path / "gone.jpg"]


def test_a_name_with_brackets_is_a_name_before_it_is_a_pattern(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = tmp_path / "bird[1].png"
    path.write_bytes(files["png"])
    assert find_images(path) == [path]
