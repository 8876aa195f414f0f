"""What every layout becomes: classes, labelled paths, and boxes that stay closed until asked for."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from wgap.errors import DataError
from wgap.geometry import Box
from wgap.images import LeftOut

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        path: the image file; not opened until somebody decodes it, nor looked for unless its name has accents.
        label: index into :attr:`Dataset.classes`.
    """

    path: Path
    label: int


@dataclass(frozen=True)
class Masks:
    """One image's true masks: image files, white where they are set.

    Attributes:
        objects: of each object of the image's class.
        ignored: of what is to count neither as object nor as ground; None where everything counts.
    """

    objects: tuple[Path, ...]
    ignored: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """One split of a labelled image set.

    Attributes:
        root: the set's folder.
        layout: the layout it was read as.
        split: the split it is.
        classes: class names; a label indexes them. The same list in every split of a set.
        samples: the images, in the order of the set's own lists (sorted by path where there is no list).
        read_boxes: opens the box file.
        left_out: what the searched folders hold and the split does not, and why; layouts that list their images have
            none.
        read_masks: opens the list of masks; None where the layout has none.
        model_classes: by class, what a model calls it, by name or number, of a label map; None without one.
    """

    root: Path
    layout: str
    split: str
    classes: list[str]
    samples: list[Sample]
    read_boxes: Callable[[Sequence[Sample]], list[list[Box]]] = field(repr=False, compare=False)
    left_out: list[LeftOut] = field(default_factory=list, repr=False, compare=False)
    read_masks: Callable[[Sequence[Sample], Path | None], list[Masks]] | None = field(
        default=None, repr=False, compare=False
    )
    model_classes: tuple[tuple[str | int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def boxes(self) -> list[list[Box]]:
        """Ground-truth boxes, one non-empty list per sample: half-open, original pixels.

        The box file is opened by this call and by nothing else: training must not come here.

        Raises:
            DataError: if the set has no boxes, a box is malformed or empty, or an image of the split has none.
        """
        return self.read_boxes(self.samples)

    def masks(self, folder: Path | None = None) -> list[Masks]:
        """Ground-truth masks, one for each sample; like the boxes, nothing else opens their list.

        Args:
            folder: what the list's paths are relative to; None for the folder ``masks`` of the set, or that of its
                images.

        Raises:
            DataError: if the layout has no masks, their list is malformed, an image has none or a file is missing.
        """
        if self.read_masks is None:
            raise DataError(
                f"{self.root}: the {self.layout} layout has boxes and no masks; masks are listed in the "
                "localization.txt of the wsolevaluation layout, as for OpenImages"
            )
        return self.read_masks(self.samples, folder)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and stripped texts of a UTF-8 list; blank lines are skipped.

    Raises:
        DataError: if the file is missing or not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: expected this list, found nothing") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a UTF-8 text file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def bad_line(path: Path, number: int | None, expected: str, got: str) -> DataError:
    """The error of one line of a list; no number where the file is not made of lines."""
    return DataError(f"{path}{'' if number is None else f':{number}'}: expected {expected}, got {got!r}")


def box_from_text(path: Path, number: int | None, values: Sequence[str]) -> Box:
    """Corners (x0, y0, x1, y1) from their texts; refuses what is not a finite, non-empty box."""
    try:
        x0, y0, x1, y1 = (float(value) for value in values)
    except ValueError:
        raise bad_line(path, number, "four numbers x0 y0 x1 y1", ",".join(values)) from None
    if not (0 <= x0 < x1 < float("inf") and 0 <= y0 < y1 < float("inf")):
        raise bad_line(path, number, "a box with 0 <= x0 < x1 and 0 <= y0 < y1", ",".join(values))
    return x0, y0, x1, y1


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes the accents of file names apart from their letters."""
    return unicodedata.normalize("NFC", name)


def listed(folder: Path, name: str) -> Path:
    """The file that a list names, with the accents of each folder and file composed or apart as the disk has them."""
    if name.isascii():
        return folder / name
    path = folder
    for part in Path(name).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        path = next((path / form for form in forms if (path / form).exists()), path / part)
    return path


def per_sample(samples: Sequence[Sample], boxes: dict[Path, list[T]], source: Path, what: str = "box") -> list[list[T]]:
    """Each sample's boxes, or masks; an image without any is an error, since it could not be scored."""
    alike = {composed(str(path)): found for path, found in boxes.items()}
    found = [boxes.get(sample.path, alike.get(composed(str(sample.path)))) for sample in samples]
    missing = [sample.path for sample, known in zip(samples, found, strict=True) if known is None]
    if missing:
        raise DataError(f"{source}: no {what} for {missing[0]} ({len(missing)} of {len(samples)} images have none)")
    return [known for known in found if known is not None]


def indexed(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Name to position; refuses a name that is there twice."""
    index = {name: i for i, name in enumerate(names)}
    if len(index) != len(names):
        twice = next(name for i, name in enumerate(names) if index[name] != i)
        raise DataError(f"{path}: expected each class once, got {twice!r} twice")
    return index
