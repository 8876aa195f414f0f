"""What a check of a server tells apart: other sums, which another machine may have, from other results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.conftest import scene

from wgap import Localizer
from wgap.errors import FeatureError, ImageError, ServerError
from wgap.runtime.localization import Failure, Localization
from wgap.serve.check import _difference, _equal
from wgap.serve.client import Client

pytest.importorskip("onnxruntime")
PICTURE = scene(128, 192)
"""Of twice and three times the network's size: a pixel of the map is 3 of its own."""


@pytest.fixture(scope="module")
def localizer(tiny_bundle: Path) -> Localizer:
    return Localizer(tiny_bundle, top_k=2)


def moved(result: Localization, by: float) -> Localization:
    x0, y0, x1, y1 = result.box
    return replace(result, boxes=((x0 + by, y0, x1, y1),))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda result: moved(result, 3), None),
        (lambda result: replace(result, score=result.score + 5e-5), None),
        (lambda result: replace(result, threshold=0.5, level=10), None),
        (lambda result: moved(result, 3.5), "expected boxes"),
        (lambda result: replace(result, boxes=result.boxes * 2), "expected boxes"),
        (lambda result: replace(result, score=result.score + 2e-4), "expected score"),
        (lambda result: replace(result, score=float("nan")), "expected score"),
        (lambda result: replace(result, class_id=3), "expected class"),
        (lambda result: replace(result, class_name="other"), r"the server gave \d 'other'"),
        (lambda result: replace(result, others=(moved(result.others[0], 9),)), "expected boxes"),
        (lambda result: replace(result, others=()), "expected 2 classes, the server gave 1"),
        (lambda _: Failure(None, ImageError("no")), r"expected a box, the server gave ImageError \(no\)"),
    ],
)
def test_one_pixel_of_the_map_and_rounding_may_differ_and_nothing_more(
    localizer: Localizer, change: Callable[[Localization], Localization | Failure], words: str | None
) -> None:
    own = localizer.one(PICTURE)
    got = change(own)
    assert not _equal(own, got)
    told = _difference(localizer, PICTURE, own, got)
    if words is None:
        assert told is None
    else:
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(told)


def test_failures_are_the_same_if_their_kind_is() -> None:
    one, other = Failure("a", ImageError("here")), Failure(None, ImageError("there"))
    assert _equal(one, other)
    assert not _equal(one, Failure(None, FeatureError("there")))


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://h:1", "http://h", "http://h:99999", "http://h:1/v2", "http://:8"]
)
def test_an_address_is_one(url: str) -> None:
    with pytest.raises(ServerError, match=r"expected http://HOST:PORT or grpc://HOST:PORT"):
        Client(url)
