"""Whatever is given as an image is that image's result or failure, and the others' results are there."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wgap import Localizer
from wgap.errors import ImageError
from wgap.images import decode, image_size
from wgap.runtime.localizer import Failure, Localization

OLD = Path(__file__).parents[1] / "house" / "schema1" / "bundle"
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def localizer() -> Localizer:
    return Localizer(OLD, batch_size=3)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return path


class Broken:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.error


def bad_inputs(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "pipe.png")
    with (folder / "sparse.jpg").open("wb") as stream:
        stream.truncate(1 << 40)
    (folder / "empty.png").touch()
    (folder / "heic.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    np.save(folder / "array.npy", np.zeros(3))
    return {
        "a NUL": "a\0b.png", "a pipe": folder / "pipe.png", "endless": "/dev/zero", "a terabyte": folder / "sparse.jpg",
        "a folder": folder, "no path": "", "nothing": None, "a number": 7, "empty": folder / "empty.png",
        "missing": folder / "nowhere.png", "a long name": "x" * 5000,
        "a path of bytes": os.fsencode(folder / "nowhere"),
        "an array that breaks": Broken(RuntimeError("Can't call numpy() on Tensor that requires grad")),
        "an object that breaks": Broken(AttributeError("utils")), "memory": Broken(MemoryError()),
        "text": io.StringIO("text"), "a closed file": (folder / "array.npy").open("rb"), "HEIC": folder / "heic.jpg",
        "floats": np.zeros((4, 4, 3)), "an odd shape": np.zeros((0, 4, 3), np.uint8), "objects": [1, 2],
    }  # fmt: skip


def test_one_bad_input_is_one_failure(localizer: Localizer, good: Path, tmp_path: Path) -> None:
    bad = bad_inputs(tmp_path)
    bad["a closed file"].close()
    images = [good, *(item for one in bad.values() for item in (one, good))]
    results = list(localizer(images, on_error="yield"))
    assert len(results) == len(images)
    for name, result in zip(bad, results[1::2], strict=True):
        assert isinstance(result, Failure), name
        assert isinstance(result.error, ImageError), name
        assert str(result.error), name
    assert all(isinstance(result, Localization) and result.boxes == results[0].boxes for result in results[::2])
    for one in bad.values():
        with pytest.raises(ImageError):
            list(localizer([one]))


def test_paths_come_in_many_kinds(localizer: Localizer, good: Path) -> None:
    """A path, bytes, an open file, one in memory, pixels, and arrays of paths."""
    data = good.read_bytes()
    with good.open("rb") as stream:
        kinds = [good, str(good), data, bytearray(data), memoryview(data), stream, io.BytesIO(data), decode(good)]
        found = list(localizer(kinds))
    assert len({result.boxes for result in found}) == 1
    for paths in (np.array([str(good)] * 2), np.array([good, good], object), (str(good) for _ in range(2))):
        assert [result.image for result in localizer(paths)] == [str(good)] * 2
    assert len(list(localizer(io.BytesIO(data)))) == 1
    assert image_size(io.BytesIO(data)) == (40, 50)


def test_what_cannot_be_taken_says_what_it_is(tmp_path: Path) -> None:
    bad = bad_inputs(tmp_path)
    for name, message in {
        "a NUL": r"'a\\x00b\.png': is no path", "a pipe": "got a pipe, a socket or a device", "endless": "got a pipe",
        "a terabyte": "at most 2048 MiB, got 1099511627776 bytes", "no path": "got an empty one", "HEIC": "HEIC, AVIF",
        "text": "binary mode", "a folder": "got a folder", "a long name": "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(ImageError, match=message):
            decode(bad[name])


def jpeg(**parameters: int) -> bytes:
    pixels = cv2.resize(np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8), (60, 40))
    done, data = cv2.imencode(
        ".jpg", pixels, [v for pair in parameters.items() for v in (getattr(cv2, pair[0]), pair[1])]
    )
    assert done
    return bytes(data)


def exif(orientation: int) -> bytes:
    tiff = b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + bytes(4)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


@pytest.mark.parametrize("orientations", [(), (1,), (6,), (1, 6), (6, 1), (8, 3), (5, 5)])
def test_size_and_pixels_agree_whatever_exif_says(orientations: tuple[int, ...]) -> None:
    plain = jpeg()
    data = plain[:2] + b"".join(map(exif, orientations)) + plain[2:]
    assert image_size(data) == decode(data).shape[:2]


def test_scans_without_end_are_not_decoded() -> None:
    data = jpeg(IMWRITE_JPEG_PROGRESSIVE=1)
    assert decode(data).shape == (40, 60, 3)
    at = data.rindex(b"\xff\xda")
    scan = data[at : data.rindex(b"\xff\xd9")]
    for times, fine in ((20, True), (101, False)):
        many = data[:at] + scan * times + b"\xff\xd9"
        if fine:
            image_size(many)
        else:
            with pytest.raises(ImageError, match="more than 100 scans"):
                decode(many)


def test_a_few_bytes_do_not_ask_for_gigabytes() -> None:
    side = 16_000
    header = b"BM" + bytes(12) + (40).to_bytes(4, "little") + side.to_bytes(4, "little") * 2 + bytes(24) + bytes(1000)
    webp = b"RIFF" + (26).to_bytes(4, "little") + b"WEBPVP8L" + (14).to_bytes(4, "little") + b"\x2f"
    webp += ((side - 1) | (side - 1) << 14).to_bytes(4, "little") + bytes(9)
    for data in (header, webp):
        with pytest.raises(ImageError, match="made to exhaust memory"):
            decode(data)
    blank = cv2.imencode(".png", np.zeros((4000, 4000), np.uint8))[1]  # 16 million pixels in 16 KB
    assert decode(bytes(blank)).shape == (4000, 4000, 3)


def test_a_tiff_of_floats_says_so(tmp_path: Path) -> None:
    for channels in (1, 3):
        shape = (4, 5) if channels == 1 else (4, 5, 3)
        cv2.imwrite(str(tmp_path / "f.tif"), np.zeros(shape, np.float32))
        with pytest.raises(ImageError, match="a TIFF of floating-point samples, which is not taken"):
            decode(tmp_path / "f.tif")


@pytest.mark.data
def test_files_that_once_ended_in_something_else(cub10: Path, localizer: Localizer, tmp_path: Path) -> None:
    for path in sorted((cub10.parents[1] / "cases" / "images").iterdir()):
        copy = shutil.copy(path, tmp_path)
        [result] = localizer([copy], on_error="yield")
        if isinstance(result, Localization):
            assert image_size(copy) == decode(copy).shape[:2]


@pytest.mark.parametrize("kind", ["image", "kernel", "resize"])
def test_damaged_inputs(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`make fuzz` goes on where this stops."""
    from tests.faults.fuzz import attacks

    outcomes, found = attacks(tmp_path)[kind](range(1500))
    capfd.readouterr()  # libjpeg tells every fault
    assert not found, found[:5]
    assert len(outcomes) == 2
    assert min(outcomes.values()) > 100
