"""Images in: finding them, decoding them, resizing them. Training, evaluation and the runtime all read through here.

Formats: JPEG, PNG, BMP, WebP and TIFF, told by their first bytes and never by their names. A file that is cut short is
refused before anything decodes it, since some decoders fill the missing part with grey and say nothing.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from wgap.errors import DataError, ImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    RgbImage = NDArray[np.uint8]

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SCANS",
    "SUFFIXES",
    "LeftOut",
    "decode",
    "find_images",
    "image_size",
    "images_below",
    "read_file",
    "resize",
]

MAX_BYTES = 1 << 31
"""Files of more bytes are refused before they are read."""

MAX_PIXELS = 1 << 28
"""Images of more pixels (268 million, 0.8 GB decoded) are refused from their header, before memory is asked for."""

MAX_SCANS = 100
"""JPEGs of more scans are refused: each goes over the whole picture, cameras and encoders write at most a dozen."""

_WIDEST = 1_000_000
"""Pixels of a side: the decoders' own limit."""

_DENSEST = (1 << 24, 10_000)
"""Images of more pixels than the first and, per byte of the file, than the second are made to exhaust memory."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Endings (any case) that make a file inside a searched folder an image."""

_KINDS = "JPEG, PNG, BMP, WebP or TIFF"
_log = logging.getLogger("wgap.images")


Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""An image as it is stored."""


class LeftOut(NamedTuple):
    """Something in a searched folder that was not taken, and why."""

    path: Path
    reason: str


class _Header(NamedTuple):
    """What the first bytes tell: stored width and height, and whether the picture may be rotated by its metadata."""

    kind: str
    width: int
    height: int
    orientation: int | None  # EXIF 1..8; None where only the decoder knows
    animated: bool = False  # a PNG with frames behind its picture


class _CutShortError(Exception):
    """Raised by the header readers; becomes an ImageError that names the image."""


class _NotTakenError(Exception):
    """Likewise, of a file that is whole and of a kind that is not taken."""


def decode(source: Source, name: str | None = None, max_pixels: int = MAX_PIXELS) -> RgbImage:
    """Decode one image.

    Args:
        source: a path, the encoded bytes of the whole file, or a file opened in binary mode.
        name: what error messages call the image; by default its path, or ``<bytes>``.
        max_pixels: of images from elsewhere, a lower limit than ``MAX_PIXELS``.

    Returns:
        uint8[H, W, 3], RGB, C-contiguous. EXIF orientation is applied; 16 bits per channel become 8 (the high byte);
        an alpha channel is ignored; grey is replicated to three channels.

    Raises:
        ImageError: the file is missing, no regular file, unreadable, empty, cut short, corrupt, of more than
            ``MAX_BYTES`` bytes, ``max_pixels`` pixels or ``MAX_SCANS`` scans, or not an image of a supported kind.
    """
    data, name = _read(source, name)
    header = _checked_header(data, name, max_pixels)
    if header.animated:
        data = _still(data)
    import cv2
    import numpy as np

    try:
        with _opencv_log_off(cv2, header.kind):
            image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ImageError(f"{name}: the {header.kind} decoder refused it ({error}); is the file corrupt?") from error
    if image is None:
        raise ImageError(f"{name}: expected a whole {header.kind} image, but the file is cut short or corrupt")
    decoded: RgbImage = image
    return decoded


def image_size(source: Source) -> tuple[int, int]:
    """(height, width) in pixels as :func:`decode` returns the image, EXIF orientation applied.

    Reads the header alone for JPEG, BMP and most PNG files; kinds whose orientation only the decoder knows are decoded.

    Raises:
        ImageError: as :func:`decode`.
    """
    data, name = _read(source, None)
    header = _checked_header(data, name)
    if header.orientation is None:
        height, width = decode(data, name).shape[:2]
        return int(height), int(width)
    return (header.width, header.height) if header.orientation >= 5 else (header.height, header.width)


def resize(image: RgbImage, height: int, width: int, out: RgbImage | None = None) -> RgbImage:
    """Bilinear resize without antialiasing: half-pixel centres, edges clamped, as OpenCV's ``INTER_LINEAR`` samples.

    The one resize of the package, the same in training, evaluation, Python and C. Whole-number arithmetic throughout:
    the same bytes on every machine, within one grey level of OpenCV's.

    Args:
        image: uint8[h, w, C] with C in 1..4; rows must be contiguous, the row stride is free (crops need no copy).
        height: rows of the result.
        width: columns of the result.
        out: uint8[height, width, C] to write into, such as one image of a batch; None for a new NumPy array.

    Returns:
        ``out``, or the new array.

    Raises:
        wgap.errors.ImageError: ``image`` or ``out`` is not as above.
        ValueError: a size is below 1.
    """
    from wgap._native import resize as native_resize

    resized: RgbImage = native_resize(image, height, width, out)
    return resized


def find_images(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], missing: Literal["raise", "keep"] = "raise"
) -> list[Path]:
    """Expand files, folders and globs into image paths.

    A folder gives every file below it, recursively, whose name ends in one of ``SUFFIXES`` and does not start with a
    dot; links to folders are followed, and the logger ``wgap.images`` tells, at INFO, what was left out. A glob
    (``*``, ``?``, ``[...]``, ``**`` for any depth) gives every file it matches, whatever its ending. A file named
    outright is taken as it is. Inputs keep their order, each expansion is sorted by path, and a path that several
    inputs reach comes once, at its first place.

    Args:
        inputs: one or several paths or patterns.
        missing: ``keep`` leaves a path that does not exist in the list, for a caller that reports each bad image on its
            own; ``raise`` refuses it here.

    Raises:
        DataError: a folder without images, a glob that matches nothing, or (``missing="raise"``) a missing path.
    """
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    found: dict[Path, Path] = {}
    for entry in inputs:
        for path in expand(os.fspath(entry), missing):
            found.setdefault(Path(os.path.abspath(path)), path)  # noqa: PTH100  (two names of one file are two)
    return list(found.values())


def expand(entry: str, missing: Literal["raise", "keep"]) -> list[Path]:
    """One input of :func:`find_images`."""
    path = Path(entry)
    if path.is_dir():
        left_out: list[LeftOut] = []
        images = images_below(path, left_out)
        tell_left_out(path, left_out)
        if not images:
            endings = " ".join(sorted(SUFFIXES))
            raise DataError(f"{entry}: expected a folder with images in it, found none (looked for {endings})")
        return images
    if path.exists() or not glob.has_magic(entry):
        if missing == "raise" and not path.exists():
            raise DataError(f"{entry}: no such file or folder")
        return [path]
    matches = sorted(Path(p) for p in glob.glob(entry, recursive=True) if Path(p).is_file())  # noqa: PTH207  (absolute patterns)
    if not matches:
        raise DataError(f"{entry}: the pattern matches no file")
    return matches


def images_below(folder: Path, left_out: list[LeftOut] | None = None) -> list[Path]:
    """Image files of a folder and the folders below it, sorted by path.

    Links to folders are followed, but not back to a folder that they lie in. Names that begin with a dot and
    ``__MACOSX``, which unpacking leaves behind, are left out, and so is what has no image's ending; ``left_out``
    receives them.
    """
    left_out = [] if left_out is None else left_out
    found: list[Path] = []
    parents = {(about.st_dev, about.st_ino) for about in map(os.stat, Path(os.path.realpath(folder)).parents)}
    above: dict[str, set[tuple[int, int]]] = {}  # folder to those that it lies in, and itself
    for here, folders, files in os.walk(folder, followlinks=True):
        about = os.stat(here)  # noqa: PTH116  (a text)
        this, outer = (about.st_dev, about.st_ino), above.get(os.path.dirname(here), parents)  # noqa: PTH120
        if this in outer:
            folders.clear()
            left_out.append(LeftOut(Path(here), "a link back to a folder that it lies in"))
            continue
        above[here] = outer | {this}
        folders[:] = shown(Path(here), folders, left_out)
        for path in (Path(here, name) for name in shown(Path(here), files, left_out)):
            if path.suffix.lower() not in SUFFIXES:
                left_out.append(LeftOut(path, "without an image's ending"))
            elif not path.is_file():
                left_out.append(LeftOut(path, "not a file"))
            else:
                found.append(path)
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is not looked at."""
    return name.startswith(".") or name == "__MACOSX"


def shown(folder: Path, names: Iterable[str], left_out: list[LeftOut]) -> list[str]:
    """Those names in a folder that are looked at: not hidden, not what unpacking an archive leaves behind."""
    kept: list[str] = []
    for name in names:
        if is_hidden(name):
            left_out.append(LeftOut(folder / name, "hidden"))
        else:
            kept.append(name)
    return kept


def tell_left_out(root: Path, left_out: Sequence[LeftOut], level: int = logging.INFO) -> None:
    """One line of the logger ``wgap.images`` with what is in a folder and was not taken: counts and first names."""
    reasons = Counter(entry.reason for entry in left_out)
    firsts = {entry.reason: entry.path for entry in reversed(left_out)}
    told = [f"{count} {reason} ({os.path.relpath(firsts[reason], root)!r})" for reason, count in reasons.items()]
    if told:
        _log.log(level, "%s: left out: %s", root, ", ".join(told))


def _read(source: Source, name: str | None) -> tuple[Any, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        data: Any = source
        name = name or "<bytes>"
    elif isinstance(source, str | os.PathLike) and not hasattr(source, "read"):
        name = name or os.fspath(source)
        data = read_file(source, name)
    else:
        name = name or str(getattr(source, "name", "<file>"))
        try:
            data = source.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"{name}: cannot be read ({error})") from error
        if not isinstance(data, bytes):
            raise ImageError(f"{name}: expected a file opened in binary mode, it gave {type(data).__name__}")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: expected an image of at most {MAX_BYTES >> 20} MiB, got a larger file")
    if not len(data):
        raise ImageError(f"{name}: expected an image, got an empty file (0 bytes)")
    return data, name


def read_file(path: str | os.PathLike[str], name: str | None = None) -> bytes:
    """The bytes of a regular file; nothing else is read, for it may block or never end.

    Raises:
        ImageError: the path is empty, the file is missing, no regular file, larger than ``MAX_BYTES``,
            or cannot be read.
    """
    name = name or os.fspath(path)
    if not os.fspath(path):
        raise ImageError("expected the path of an image, got an empty one")
    try:
        with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as stream:
            about = os.fstat(stream.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ImageError(f"{name}: expected an image file, got a pipe, a socket or a device")
            if about.st_size > MAX_BYTES:
                raise ImageError(
                    f"{name}: expected an image of at most {MAX_BYTES >> 20} MiB, got {about.st_size} bytes"
                )
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: expected an image file, got a folder") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:  # a NUL, or a path of bytes
        raise ImageError(f"{name!a}: is no path ({error})") from error


def _checked_header(data: Any, name: str, max_pixels: int = MAX_PIXELS) -> _Header:
    try:
        header = _header(data)
    except (_CutShortError, struct.error, IndexError) as error:
        detail = str(error) if isinstance(error, _CutShortError) else "its header ends early"
        raise ImageError(f"{name}: the image is cut short or corrupt: {detail}") from None
    except _NotTakenError as error:
        raise ImageError(f"{name}: {error}") from None
    if header is None:
        start = bytes(data[:12])
        if start[4:8] == b"ftyp":
            raise ImageError(f"{name}: HEIC, AVIF and other pictures of that family are not taken; save it as a JPEG")
        raise ImageError(f"{name}: not an image: expected {_KINDS}, got a file that starts with {start!r}")
    if header.width * header.height > max_pixels:
        raise ImageError(
            f"{name}: {header.width} x {header.height} pixels exceed the limit of {max_pixels} pixels; "
            "make the image smaller first"
        )
    if max(header.width, header.height) > _WIDEST:
        raise ImageError(f"{name}: {header.width} x {header.height} pixels: no side may have more than {_WIDEST}")
    if header.width * header.height > max(_DENSEST[0], _DENSEST[1] * len(data)):
        raise ImageError(
            f"{name}: {header.width} x {header.height} pixels in {len(data)} bytes: made to exhaust memory, or a "
            "picture of nothing; it is not decoded"
        )
    return header


def _header(data: Any) -> _Header | None:
    start = bytes(data[:16])
    if start.startswith(b"\xff\xd8"):
        return _jpeg_header(data)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_header(data)
    if start.startswith(b"BM"):
        return _bmp_header(data)
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _webp_header(data)
    if start.startswith((b"II*\x00", b"MM\x00*")):
        width, height, float_samples = _tiff_tags(data)
        if float_samples:
            raise _NotTakenError("a TIFF of floating-point samples, which is not taken; save it with 8 or 16 bits")
        return _Header("TIFF", width, height, None)
    return None


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed byte, nor fill, nor a restart
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg_header(data: Any) -> _Header:
    """Walk the segments to the end-of-image marker; what follows it (a second picture, a trailer) is ignored."""
    position, width, height, scans = 2, 0, 0, 0
    orientations: list[int] = []
    while True:
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            raise _CutShortError("a JPEG without an end-of-image marker")
        marker = data[match.end() - 1]
        position = match.end()
        if marker == 0xD9:
            break
        if marker in (0x01, 0xD8):  # markers without a segment
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _JPEG_FRAMES and not width:
            height, width = struct.unpack_from(">HH", data, position + 3)
        elif marker == 0xE1 and bytes(data[position + 2 : position + 8]) == b"Exif\0\0":
            orientations.append(_exif_orientation(data[position + 8 : position + length]))
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise _NotTakenError(f"a JPEG of more than {MAX_SCANS} scans, made to take long; it is not decoded")
        position += length
    if not (width and height and scans):
        raise _CutShortError("a JPEG without a picture in it")
    # Which of several counts, only the decoder knows.
    return _Header("JPEG", width, height, None if len(orientations) > 1 else (orientations or [1])[0])


_EXIF_TEXTS = frozenset({0x10E, 0x10F, 0x110, 0x131, 0x132, 0x8298})
_EXIF_RATIONALS = {0x11A: 1, 0x11B: 1, 0x13E: 2, 0x13F: 6, 0x211: 3, 0x214: 6}


def _exif_orientation(exif: Any) -> int:
    """The first orientation, as OpenCV reads the entries: up to the first one that leads out of the metadata."""
    order = "<" if bytes(exif[:2]) == b"II" else ">"
    orientation = 0
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            (tag,) = struct.unpack_from(order + "H", exif, entry)
            if tag == 0x112:  # neither its type nor its count is asked for
                (value,) = struct.unpack_from(order + "H", exif, entry + 8)
                orientation = orientation or (value if 1 <= value <= 8 else 1)
            elif tag in _EXIF_TEXTS:
                (size,) = struct.unpack_from(order + "I", exif, entry + 4)
                place = struct.unpack_from(order + "I", exif, entry + 8)[0] if size > 4 else 8
                if place + size > len(exif):
                    break
            elif tag in _EXIF_RATIONALS:
                (place,) = struct.unpack_from(order + "I", exif, entry + 8)
                if place + 8 * _EXIF_RATIONALS[tag] > len(exif):
                    break
    except struct.error:
        pass  # decoders, too, leave off where they cannot read on
    return orientation or 1


def _tiff_tags(data: Any) -> tuple[int, int, bool]:
    """(width, height, samples are floats) of the first directory; 0, 0, False where a tag is absent."""
    order = "<" if bytes(data[:2]) == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    values = {0x100: 0, 0x101: 0, 0x153: 1}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, samples = struct.unpack_from(order + "HHI", data, entry)
        if tag in values:
            place = entry + 8
            if kind == 3 and samples > 2:  # one for each channel, elsewhere: the first stands for all
                (place,) = struct.unpack_from(order + "I", data, place)
            (values[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, place)
    return values[0x100], values[0x101], values[0x153] == 3


def _png_header(data: Any) -> _Header:
    """Walk the chunks and their checksums to IEND, so that the decoder never meets a damaged file."""
    size, orientation, animated = (0, 0), 1, False
    for kind, start, _ in _png_chunks(data):
        if kind == b"IHDR":
            size = struct.unpack_from(">II", data, start + 8)
        elif kind == b"eXIf":
            orientation = 0
        animated |= kind in _ANIMATION
    return _Header("PNG", *size, orientation or None, animated)


_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})


def _png_chunks(data: Any) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk, its checksum compared, to IEND."""
    position, kind = 8, b""
    view = memoryview(data)
    while kind != b"IEND":
        if position + 12 > len(view):
            raise _CutShortError("a PNG without its IEND chunk")
        length, kind = struct.unpack_from(">I4s", view, position)
        end = position + 12 + length
        if end > len(view):
            raise _CutShortError(f"PNG chunk {kind!r} of {length} bytes runs past the end of the file")
        (checksum,) = struct.unpack_from(">I", view, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != checksum:
            raise _CutShortError(f"PNG chunk {kind!r} does not match its checksum")
        yield kind, position, end
        position = end


def _still(data: Any) -> bytes:
    """An animated PNG without its frames: the picture that readers of still ones see, and no more to go wrong in."""
    kept = (bytes(data[start:end]) for kind, start, end in _png_chunks(data) if kind not in _ANIMATION)
    return bytes(data[:8]) + b"".join(kept)


def _bmp_header(data: Any) -> _Header:
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    return _Header("BMP", abs(width), abs(height), 1)


def _webp_header(data: Any) -> _Header:
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data):
        raise _CutShortError(f"a WebP of {length + 8} bytes has only {len(data)}")
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return _Header("WebP", 1 + low_w + (high_w << 16), 1 + low_h + (high_h << 16), None)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return _Header("WebP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), None)
    width, height = struct.unpack_from("<HH", data, 26)
    return _Header("WebP", width & 0x3FFF, height & 0x3FFF, None)


_log_lock = threading.Lock()
_log_state = {"inside": 0, "level": 0}


@contextmanager
def _opencv_log_off(cv2: Any, kind: str) -> Iterator[None]:
    """Keep OpenCV from printing about a file that we report ourselves. The level is global: the last out restores it.

    JPEG and PNG files have been checked to their end by now and need none of this.
    """
    if kind in ("JPEG", "PNG"):
        yield
        return
    logging = cv2.utils.logging
    with _log_lock:
        if not _log_state["inside"]:
            _log_state["level"] = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
        _log_state["inside"] += 1
    try:
        yield
    finally:
        with _log_lock:
            _log_state["inside"] -= 1
            if not _log_state["inside"]:
                logging.setLogLevel(_log_state["level"])
