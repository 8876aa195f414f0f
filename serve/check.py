"""A running server against the bundle it should serve: the same tensors, options and boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wgap.bundle import Bundle
from wgap.errors import BundleError, ServerError
from wgap.images import image_size
from wgap.plain import PlainError
from wgap.runtime.localization import Failure, Localization
from wgap.runtime.localizer import chosen_rule
from wgap.runtime.selftest import BOX_TOLERANCE, feature_tolerance
from wgap.serve.client import Client, Picture
from wgap.serve.repository import PARAMETER, Options, open_served, options_of
from wgap.serve.tensors import INPUTS, outputs

if TYPE_CHECKING:
    from wgap.runtime.localizer import Localizer

__all__ = ["ServerReport", "check_server"]


@dataclass(frozen=True)
class ServerReport:
    """What ``wgap serve --check`` found.

    Attributes:
        url: of the server.
        pictures: that were compared, golden ones each as pixels and encoded.
        identical: of these, results that were equal in every bit.
        problems: what differs beyond what another machine's sums may.
    """

    url: str
    pictures: int
    identical: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when nothing differs."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for JSON."""
        return {"ok": self.ok, **asdict(self)}


def check_server(
    url: str, bundle: Path, options: Options | None = None, pictures: Sequence[Path] | None = None, *,
    name: str = "wgap", timeout: float = 30.0,
) -> ServerReport:  # fmt: skip
    """Compare a model's tensors and options, then its results on pictures, with those of a localizer here.

    Args:
        url: see :class:`wgap.serve.client.Client`.
        bundle: that the server should have.
        options: likewise.
        pictures: to compare on; None for the bundle's golden images, as pixels and as PNG files.
        name: of the model.
        timeout: seconds that an answer may take.

    Raises:
        ServerError: there is no server, or no such model is ready.
        BundleError: no pictures are given, and the bundle has no golden ones.
        WgapError: see :class:`wgap.runtime.localizer.Localizer`.
    """
    options = options or Options()
    with Client(url, name, timeout) as client:
        client.require_ready()
        if problems := [*_options(client, bundle, options)] or [*_tensors(client, options)]:
            return ServerReport(url, 0, 0, tuple(problems))
        with open_served(bundle, options) as localizer:
            return _boxes(client, localizer, [*(pictures or _golden(localizer.bundle))])


def _tensors(client: Client, options: Options) -> Iterator[str]:
    """What the model's inputs and outputs are otherwise than they should be."""
    expected = {"inputs": INPUTS, "outputs": outputs(options.top_k, options.max_boxes)}
    for part, tensors in expected.items():
        found = client.metadata[part]
        for one in tensors:
            wanted = (one.datatype, (-1, *one.dims))
            if found.get(one.name) != wanted:
                got = "{} {}".format(*found[one.name]) if one.name in found else "none"
                yield f"{part[:-1]} {one.name}: expected {wanted[0]} {wanted[1]}, the server has {got}"
        if more := sorted(found.keys() - {one.name for one in tensors}):
            yield f"{part[:-1]} {more[0]}: the server has it, and no model of `wgap serve` does"


def _options(client: Client, root: Path, options: Options) -> Iterator[str]:
    """Which options that boxes depend on are others on the server; its backend may be another."""
    try:
        text = client.config["parameters"][PARAMETER]["string_value"]
        there = options_of(text)
    except (KeyError, TypeError, PlainError) as error:
        raise ServerError(f"{client.url}: the model {client.model!r} was not written by `wgap serve`") from error
    rule = chosen_rule(Bundle.open(root, verify=False), options.rule, options.map)
    here = replace(options, rule=str(rule), map=rule.map)
    for name in ("precision", "rule", "map", "top_k", "max_boxes"):
        if getattr(here, name) != getattr(there, name):
            option = name.replace("_", "-")
            yield f"--{option}: {getattr(here, name)} here, {getattr(there, name)} on the server"


def _golden(bundle: Bundle) -> Iterator[Picture]:
    """The golden images, as pixels and as files."""
    import cv2

    images = [case["image"] for case in bundle.golden() if "image" in case]
    if not images:
        raise BundleError(f"{bundle.root} holds no golden images; name some to compare on")
    yield from images
    yield from (cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in images)


def _boxes(client: Client, localizer: Localizer, pictures: Sequence[Picture]) -> ServerReport:
    """Results of both on each picture."""
    here = list(localizer(pictures, on_error="yield"))
    there = list(client(pictures))
    identical, problems = 0, []
    for number, (picture, own, got) in enumerate(zip(pictures, here, there, strict=True)):
        if _equal(own, got):
            identical += 1
        elif why := _difference(localizer, picture, own, got):
            problems.append(f"{picture if isinstance(picture, Path) else f'golden picture {number}'}: {why}")
    if all(isinstance(own, Failure) for own in here):
        problems.append(f"none of the pictures could be localized here, the first: {here[0].error}")  # type: ignore[union-attr]
    return ServerReport(client.url, len(pictures), identical, tuple(problems))


def _equal(own: Localization | Failure, got: Localization | Failure) -> bool:
    """In every bit; of failures, their kind: the words name a path here, and none there."""
    if isinstance(own, Failure) or isinstance(got, Failure):
        return isinstance(own, Failure) and isinstance(got, Failure) and type(own.error) is type(got.error)
    return own == got


def _difference(
    localizer: Localizer, picture: Picture, own: Localization | Failure, got: Localization | Failure
) -> str | None:
    """What differs by more than other sums explain: one pixel of the map, or the network's rounding."""
    if isinstance(own, Failure) or isinstance(got, Failure):
        told = [f"{type(r.error).__name__} ({r.error})" if isinstance(r, Failure) else "a box" for r in (own, got)]
        return f"expected {told[0]}, the server gave {told[1]}"
    size = picture.shape[:2] if isinstance(picture, np.ndarray) else image_size(picture)
    model = localizer.bundle.manifest.model
    pixel = max(s / m for s, m in zip(size, model.input_size, strict=True)) * BOX_TOLERANCE
    tolerance = feature_tolerance(localizer.network.precision)
    if len(own.others) != len(got.others):
        return f"expected {1 + len(own.others)} classes, the server gave {1 + len(got.others)}"
    for a, b in zip((own, *own.others), (got, *got.others), strict=True):
        if (a.class_id, a.class_name) != (b.class_id, b.class_name):
            told = [f"{one.class_id} {one.class_name!r}" for one in (a, b)]
            return f"expected class {told[0]}, the server gave {told[1]}"
        if not abs(a.score - b.score) <= tolerance:
            return f"{a.class_name}: expected score {a.score:.6g}, the server gave {b.score:.6g}"
        apart = np.abs(np.subtract(a.boxes, b.boxes)).max() if len(a.boxes) == len(b.boxes) else np.inf
        if not apart <= pixel:
            return f"{a.class_name}: expected boxes {a.boxes}, the server gave {b.boxes}"
    return None
