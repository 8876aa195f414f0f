"""A labelled set and a model that call their classes differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wgap.datasets.dataset import Dataset, composed
from wgap.errors import DataError
from wgap.plain import read_json

__all__ = ["class_ids", "with_label_map"]


def with_label_map(dataset: Dataset, path: Path | None) -> Dataset:
    """The set, its classes told in the model's words.

    Args:
        dataset: one split of a set.
        path: a JSON object with a key for each class of the set. Its value is the model's class, by name or by number
            (from 0, the order of the logits); a list, where the model has several for it; or null where it has none.
            None for no map.

    Raises:
        DataError: the file is missing or not of that form, names a class that the set does not have, or leaves one out.
    """
    if path is None:
        return dataset
    what = f"{path}: expected a JSON object of the set's classes, each with the model's: a name, a number, a list, null"
    try:
        value = read_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{what} ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{what}; got {type(value).__name__}")
    given = {composed(name): _several(model, f"{what}; {name!r} has") for name, model in value.items()}
    known = [composed(name) for name in dataset.classes]
    if len(given) < len(value):
        raise DataError(f"{what}; a class stands there twice, its accents composed and apart")
    for names, text in (
        ([name for name in given if name not in known], f"{dataset.root} has no class"),
        (
            [name for name in known if name not in given],
            f"expected every class of {dataset.root}, null where the model has none; missing",
        ),
    ):
        if names:
            raise DataError(f"{path}: {text}: {', '.join(map(repr, names[:5]))}{' ...' if len(names) > 5 else ''}")
    return replace(dataset, model_classes=tuple(given[name] for name in known))


def class_ids(classes: Sequence[str], dataset: Dataset) -> list[tuple[int, ...]]:
    """A model's class ids of each of a set's labels: by the set's label map, else by equal names.

    Without a map a model that knows none of the names gives none for any label; one that knows some of them only is
    taken for a mistake.

    Args:
        classes: names of the model's classes.
        dataset: the set.

    Raises:
        DataError: the map names a class that the model does not have, or names are equal in part.
    """
    ids = {composed(name): index for index, name in enumerate(classes)}
    some = f"the model's are {', '.join(list(ids)[:5])}{' ...' if len(ids) > 5 else ''}"
    if dataset.model_classes is not None:
        every = [model for models in dataset.model_classes for model in models]
        for model in every:
            if (model not in ids) if isinstance(model, str) else not 0 <= model < len(ids):
                raise DataError(f"the label map names {model!r}, which is no class of the {len(ids)}; {some}")
        return [tuple(ids[m] if isinstance(m, str) else m for m in models) for models in dataset.model_classes]
    unknown = [name for name in dataset.classes if composed(name) not in ids]
    if unknown and len(unknown) < len(dataset.classes):
        raise DataError(
            f"{dataset.root} has classes that the model does not know: {', '.join(unknown[:5])}"
            f"{' ...' if len(unknown) > 5 else ''}; {some}. Say with --label-map what the model calls them"
        )
    return [() if unknown else (ids[composed(name)],) for name in dataset.classes]


def _several(value: Any, what: str) -> tuple[str | int, ...]:
    models = [] if value is None else value if isinstance(value, list) else [value]
    for model in models:
        if isinstance(model, bool) or not isinstance(model, str | int):
            raise DataError(f"{what} {model!r}")
    return tuple(composed(model) if isinstance(model, str) else model for model in models)
