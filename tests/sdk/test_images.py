"""Files of odd kinds, decoded by both: the same bytes, or an ImageError from both."""

from __future__ import annotations

import ctypes as c
import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wgap.errors import ImageError
from wgap.images import decode, image_size

Image = pytest.importorskip("PIL.Image", reason="Pillow makes the files")
Array = NDArray[np.uint8]


class _Pixels(c.Structure):
    _fields_ = [
        ("struct_size", c.c_uint32), ("height", c.c_int32), ("width", c.c_int32), ("channels", c.c_int32),
        ("data", c.POINTER(c.c_uint8)), ("row_bytes", c.c_int64), ("bytes", c.c_uint64),
    ]  # fmt: skip


def decoded(runtime: Any, example: Any, content: bytes) -> Array | str:
    """What the library makes of it: pixels, or the error's class."""
    pixels = _Pixels(c.sizeof(_Pixels))
    try:
        runtime.checked("wgap_decode", content, c.c_uint64(len(content)), b"it", c.byref(pixels))
    except example.RefusedError as error:
        return str(error.code)
    made = np.ctypeslib.as_array(pixels.data, (pixels.height, pixels.width, 3)).copy()
    runtime.library.wgap_pixels_free(c.byref(pixels))
    return made


def expected(content: bytes) -> Array | str:
    try:
        return decode(content)
    except ImageError as error:
        return type(error).__name__


def same(a: Array | str, b: Array | str) -> bool:
    return (
        bool(np.array_equal(a, b))
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
        else a is b or (isinstance(a, str) and a == b)
    )


def scene(height: int, width: int, channels: int = 3, dtype: Any = np.uint8) -> NDArray[Any]:
    """Edges, gradients and noise."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / (3 + n)) * np.cos(y / (5 + n)) for n in range(channels)], axis=-1)
    values = (waves * 0.4 + 0.5 + rng.normal(0, 0.04, waves.shape)).clip(0, 1)
    values[height // 3 : height // 2, width // 4 : width // 2] = 1
    made = (values * np.iinfo(dtype).max).astype(dtype)
    return made[..., 0] if channels == 1 else made


def jpeg(picture: Array, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture, mode).save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def png(picture: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(stream, "PNG", **options)
    return stream.getvalue()


def exif(orientation: int, order: str, kind: int = 3, before: int = 0) -> bytes:
    """A TIFF structure of so many other tags and an orientation."""
    mark = b"II" if order == "<" else b"MM"
    entries = [struct.pack(order + "HHII", 0x100 + n, 4, 1, 7) for n in range(before)]
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    entries.append(struct.pack(order + "HHI", 0x112, kind, 1) + value)
    return mark + struct.pack(order + "HIH", 42, 8, len(entries)) + b"".join(entries) + struct.pack(order + "I", 0)


def with_segment(content: bytes, marker: int, body: bytes, at: int = 2) -> bytes:
    return content[:at] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + content[at:]


def with_exif(content: bytes, tiff: bytes) -> bytes:
    return with_segment(content, 0xE1, b"Exif\0\0" + tiff)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def before_idat(content: bytes, *chunks: bytes) -> bytes:
    at = content.index(b"IDAT") - 4
    return content[:at] + b"".join(chunks) + content[at:]


def random_exif(chance: random.Random) -> bytes:
    """Orientations among entries that lead in and out of the metadata."""
    order, count = chance.choice("<>"), chance.randrange(1, 6)
    total = 14 + 12 * count + chance.choice([0, 10, 48, 60])
    entries = b""
    for _ in range(count):
        tag = chance.choice(
            [0x112, 0x112, 0x10E, 0x10F, 0x11A, 0x128, 0x132, 0x13E, 0x13F, 0x211, 0x214, 0x8298, 0x8769]
        )
        if tag == 0x112:
            entries += struct.pack(order + "HHIHH", tag, chance.choice([3, 4, 2]), 1, chance.randrange(10), 0)
            continue
        size = chance.choice([0, 1, 4, 5, 8, 20, total, 2**31, 2**32 - 1])
        place = chance.choice([0, 8, 26, total - 8, total - 7, total - 20, total - 48, total, 2**31, 2**32 - 1])
        entries += struct.pack(order + "HHII", tag, chance.choice([2, 3, 5]), size, place % 2**32)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, count + chance.choice([0, 0, 1]))
    made = (head + entries).ljust(total, b"\1")
    return made[: chance.randrange(8, total)] if chance.random() < 0.15 else made


def files() -> Iterator[tuple[str, bytes]]:
    picture = scene(61, 83)
    plain = jpeg(picture)
    for order in "<>":
        for orientation in range(10):
            yield f"EXIF {orientation} {order}", with_exif(plain, exif(orientation, order))
        yield f"EXIF as a long {order}", with_exif(plain, exif(6, order, kind=4))
        yield f"EXIF after others {order}", with_exif(plain, exif(8, order, before=5))
        yield f"EXIF cut short {order}", with_exif(plain, exif(6, order, before=3)[:-20])
    yield "EXIF of another byte order", with_exif(plain, b"XX" + exif(6, ">")[2:])
    yield "EXIF of nothing", with_exif(plain, b"")
    yield "EXIF far away", with_exif(plain, b"II*\0\xff\xff\xff\x7f")
    yield "two EXIFs", with_exif(with_exif(plain, exif(6, "<")), exif(3, "<"))
    yield "XMP before EXIF", with_segment(with_exif(plain, exif(6, "<")), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    yield "XMP after EXIF", with_exif(with_segment(plain, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), exif(6, "<"))
    yield "XMP alone", with_segment(plain, 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    yield "a comment", with_segment(plain, 0xFE, b"\xff\xd9 no end")
    yield "a thumbnail", with_exif(plain, exif(1, "<") + jpeg(scene(16, 16)))
    yield "bytes behind the end", plain + b"trailer"
    yield "a second picture behind", plain + jpeg(scene(9, 9))
    yield "fill bytes", plain.replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1)
    for subsampling, name in ((0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")):
        for progressive in (False, True):
            for size in ((61, 83), (1, 1), (7, 8), (16, 17)):
                options = {"subsampling": subsampling, "progressive": progressive}
                yield f"{name} {progressive} {size}", jpeg(scene(*size), **options)
    for quality in (1, 30, 100):
        yield f"quality {quality}", jpeg(picture, quality=quality)
    sampling = {"411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411, "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440}
    for name, factor in sampling.items():
        _, made = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])
        yield f"4:{name[1]}:{name[2]}", made.tobytes()
    _, made = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])
    yield "restart markers", made.tobytes()
    yield "grey", jpeg(scene(40, 50, 1))
    yield "grey and progressive", jpeg(scene(40, 50, 1), progressive=True)
    yield "CMYK", jpeg(scene(40, 50, 4), "CMYK")
    yield "CMYK, turned", with_exif(jpeg(scene(40, 50, 4), "CMYK"), exif(6, "<"))
    yield "RGB within", jpeg(picture, keep_rgb=True)
    yield "a colour profile", jpeg(picture, icc_profile=b"no profile" * 20)
    for at in np.linspace(0, len(plain) - 1, 50).astype(int):
        yield f"a JPEG cut at {at}", plain[:at]
    chance = random.Random(3)
    for number in range(60):
        data = bytearray(jpeg(picture, progressive=number % 2 == 1))
        for _ in range(chance.choice([1, 3, 9])):
            data[chance.randrange(2, len(data) - 2)] = chance.randrange(256)
        yield f"a JPEG damaged {number}", bytes(data)
    shot = png(picture)
    for name, mode in (("grey", "L"), ("palette", "P"), ("grey and alpha", "LA"), ("alpha", "RGBA"), ("bits", "1")):
        yield f"PNG {name}", png(Image.fromarray(picture).convert(mode))
    for bits in (1, 2, 4):
        yield f"PNG palette of {bits} bits", png(Image.fromarray(picture).quantize(2**bits), bits=bits)
    yield "PNG palette and transparency", png(Image.fromarray(picture).quantize(16), transparency=3)
    yield "PNG grey of 16 bits", cv2.imencode(".png", scene(33, 44, 1, np.uint16))[1].tobytes()
    yield "PNG of 16 bits", cv2.imencode(".png", scene(33, 44, 3, np.uint16))[1].tobytes()
    yield "PNG of 16 bits and alpha", cv2.imencode(".png", scene(33, 44, 4, np.uint16))[1].tobytes()
    yield "PNG colour key", before_idat(shot, chunk(b"tRNS", struct.pack(">HHH", 255, 255, 255)))
    yield "PNG gamma", before_idat(shot, chunk(b"gAMA", struct.pack(">I", 100000)))
    yield "PNG sRGB and text", before_idat(shot, chunk(b"sRGB", b"\0"), chunk(b"tEXt", b"a\0b"))
    yield "PNG background", before_idat(png(Image.fromarray(picture).convert("RGBA")), chunk(b"bKGD", bytes(6)))
    for orientation in (1, 3, 6, 8, 9):
        yield f"PNG EXIF {orientation}", before_idat(shot, chunk(b"eXIf", exif(orientation, ">")))
    yield "PNG EXIF that is none", before_idat(shot, chunk(b"eXIf", b"no"))
    yield "PNG bytes behind the end", shot + b"trailer"
    for at in np.linspace(0, len(shot) - 1, 20).astype(int):
        yield f"a PNG cut at {at}", shot[:at]
    yield "a PNG of no width", shot[:16] + bytes(4) + shot[20:29] + struct.pack(">I", 0) + shot[33:]
    yield "a PNG whose sum is wrong", shot.replace(b"IDAT", b"IDAX", 1)
    huge = chunk(b"IHDR", struct.pack(">IIBBBBB", 70000, 70000, 8, 2, 0, 0, 0))
    yield "a PNG of 5 gigapixels", shot[:8] + huge + shot[33:]
    deep = chunk(b"IHDR", struct.pack(">IIBBBBB", 83, 61, 7, 2, 0, 0, 0))
    yield "a PNG of 7 bits", shot[:8] + deep + shot[33:]
    yield (
        "a PNG whose data is short",
        shot[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 83, 99, 8, 2, 0, 0, 0)) + shot[33:],
    )
    yield "nothing", b""
    yield "two bytes", b"\xff\xd8"
    for short in (b"a", b"RIFF", b"ab\xff", b"II*\0", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        yield f"no more than {short!r}", short
    for width, height in ((1_000_001, 1), (1, 1_000_001), (1_000_000, 1)):
        yield f"a PNG of {width} x {height}", png(np.zeros((height, width, 3), np.uint8))
    frames = [Image.fromarray(scene(33, 44)), Image.fromarray(255 - scene(33, 44))]
    yield "an animated PNG", png(frames[0], save_all=True, append_images=frames[1:])
    yield "frames that are not there", before_idat(shot, chunk(b"acTL", struct.pack(">II", 2, 0)))
    many = before_idat(shot, chunk(b"acTL", struct.pack(">II", 4097, 0)))
    at = many.index(b"IDAT") + 4
    (length,) = struct.unpack_from(">I", many, at - 8)
    damaged = chunk(b"IDAT", many[at : at + length // 2] + bytes(length - length // 2))
    yield "many frames, and damaged", many[: at - 8] + damaged + many[at + length + 4 :]
    for number in range(150):
        yield f"EXIF at random {number}", with_exif(plain, random_exif(random.Random(number)))
    yield "text", b"no image at all"
    yield "HEIC", b"\0\0\0\x18ftypheic" + bytes(20)


FILES = dict(files())


@pytest.mark.parametrize("name", FILES)
def test_both_make_the_same_of_it(runtime: Any, example: Any, name: str) -> None:
    made = expected(FILES[name])
    assert same(decoded(runtime, example, FILES[name]), made)
    if isinstance(made, np.ndarray):
        assert image_size(FILES[name]) == made.shape[:2]


def test_most_of_them_are_pictures() -> None:
    made = [isinstance(expected(content), np.ndarray) for content in FILES.values()]
    assert len(made) >= 200
    assert sum(made) >= 100


def test_other_kinds_are_refused_by_name(runtime: Any, example: Any) -> None:
    for kind, ending in (("BMP", ".bmp"), ("WebP", ".webp"), ("TIFF", ".tif")):
        content = cv2.imencode(ending, scene(20, 30))[1].tobytes()
        with pytest.raises(example.RefusedError, match=f"it: a {kind}, which the Python package reads") as caught:
            runtime.checked(
                "wgap_decode", content, c.c_uint64(len(content)), b"it", c.byref(_Pixels(c.sizeof(_Pixels)))
            )
        assert caught.value.code == "ImageError"


@pytest.mark.parametrize("odd", ["a folder", "a pipe", "nothing there", "an empty path", "no permission", "a device"])
def test_paths_that_are_no_file(runtime: Any, example: Any, tiny_bundle: Path, tmp_path: Path, odd: str) -> None:
    import json

    (tmp_path / "a folder").mkdir()
    os.mkfifo(tmp_path / "a pipe")
    path = {"an empty path": "", "a device": "/dev/zero"}.get(odd, str(tmp_path / odd))
    localizer = runtime.open(str(tiny_bundle))
    [line] = map(json.loads, runtime.localize(localizer, [path]))
    runtime.library.wgap_localizer_close(localizer)
    assert (line["image"], line["code"]) == (path, "ImageError")
    with pytest.raises(ImageError):
        decode(path)
