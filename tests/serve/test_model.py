"""What a served model makes of requests, without a server."""

from __future__ import annotations

import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.conftest import encode, scene

from wgap import Localizer
from wgap.bundle import MANIFEST, Bundle, describe_file, write_manifest
from wgap.errors import BackendError, CheckFailedError, DataError, ServerError
from wgap.runtime.localization import Failure
from wgap.serve.model import Model
from wgap.serve.repository import Options
from wgap.serve.tensors import outputs, results_of, tensors_of

pytest.importorskip("onnxruntime")
OPTIONS = Options(top_k=2, max_boxes=3, max_batch=4, max_bytes=50_000, max_pixels=60_000, max_request=400_000)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    model = Model(tiny_bundle, OPTIONS)
    yield model
    model.close()


@pytest.fixture(scope="module")
def local(tiny_bundle: Path) -> Localizer:
    return Localizer(tiny_bundle, top_k=2, max_boxes=3)


def image(*files: bytes) -> dict[str, np.ndarray]:
    array = np.empty((len(files), 1), object)
    array[:, 0] = files
    return {"IMAGE": array}


def pixels(*pictures: np.ndarray) -> dict[str, np.ndarray]:
    return {"PIXELS": np.stack(pictures)}


def test_each_request_gets_its_own_pictures_back_and_a_bad_one_fails_alone(model: Model, local: Localizer) -> None:
    good, other = encode(scene(90, 70), ".jpg"), scene(120, 110)
    requests = [image(good, b"no image", good), pixels(other), {}, pixels(other, other), image(b"")]
    first, second, third, fourth, fifth = model.answer(requests)
    own, theirs = local.one(good), local.one(other)
    got = results_of(first, [None] * 3)
    assert (got[0], got[2]) == (own, own)
    assert len(own.others) == 1
    assert isinstance(got[1], Failure)
    assert results_of(second, [None]) == [theirs]
    assert isinstance(third, DataError)
    assert results_of(fourth, [None] * 2) == [theirs, theirs]
    [empty] = results_of(fifth, [None])
    assert isinstance(empty, Failure)
    assert "0 bytes" in str(empty.error)


def test_results_are_the_same_objects_after_a_journey_as_tensors(model: Model, local: Localizer) -> None:
    results = list(local([scene(90, 70), scene(64, 64), np.zeros((5, 5, 3), np.uint8), b"x"], on_error="yield"))
    tensors = tensors_of(results, 2, 3)
    assert [(one.name, one.dtype, (4, *one.dims)) for one in outputs(2, 3)] == [
        (name, array.dtype, array.shape) for name, array in tensors.items()
    ]
    *found, failed = results_of(tensors, [None] * 4)
    assert found == results[:3]
    assert (type(failed.error), str(failed.error)) == (type(results[3].error), str(results[3].error))
    with pytest.raises(ServerError, match="expected results of 3 pictures, got 4"):
        results_of(tensors, [None] * 3)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "expected one input, IMAGE or PIXELS, got none"),
        (image(b"x") | pixels(scene(8, 8)), "got IMAGE and PIXELS"),
        ({"OTHER": np.zeros(1)}, "got OTHER"),
        (
            {"PIXELS": np.full((1, 8, 8, 3), np.nan, np.float32)},
            r"PIXELS: expected UINT8 .* got float32 \[1, 8, 8, 3\]",
        ),
        ({"PIXELS": np.zeros((1, 8, 8, 4), np.uint8)}, r"got uint8 \[1, 8, 8, 4\]"),
        ({"PIXELS": np.zeros((8, 8, 3), np.uint8)}, r"got uint8 \[8, 8, 3\]"),
        ({"PIXELS": np.zeros((0, 8, 8, 3), np.uint8)}, r"got uint8 \[0, 8, 8, 3\]"),
        (pixels(*[scene(200, 200)] * 4), "480000 bytes exceed the limit of 400000 bytes a request"),
    ],
)
def test_a_request_that_is_none_is_refused_by_what_came(
    model: Model, request_: dict[str, np.ndarray], words: str
) -> None:
    [answer] = model.answer([request_])
    assert isinstance(answer, DataError)
    with pytest.raises(DataError, match=words):
        raise answer


def bomb(width: int, height: int) -> bytes:
    """A whole PNG file of a header, nothing more, and its end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (image(bomb(60_001, 1)), "60001 x 1 pixels exceed the limit of 60000 pixels"),
        (image(b"\xff\xd8" + b"x" * 49_999), "IMAGE: 50001 bytes exceed the limit of 50000 bytes"),
        (pixels(scene(201, 300)), "300 x 201 pixels exceed the limit of 60000 pixels"),
        (pixels(np.zeros((0, 8, 3), np.uint8)), r"expected .* got uint8\[0, 8, 3\]"),
        (image(b"/etc/passwd"), "not an image: expected JPEG"),
        (image(b"file:///etc/passwd"), "not an image: expected JPEG"),
        (image(os.fsencode(__file__)), "not an image: expected JPEG"),
    ],
)
def test_a_picture_beyond_a_limit_or_no_picture_is_an_error_about_its_content(
    model: Model, given: dict[str, np.ndarray], words: str
) -> None:
    [answer] = model.answer([given])
    [result] = results_of(answer, [None])
    with pytest.raises(Exception, match=words) as raised:
        raise result.error
    assert type(raised.value).__name__ == "ImageError"
    assert not str(raised.value).startswith("image 0")


def test_a_network_that_fails_is_told_without_the_servers_paths_and_the_log_has_them(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model(tiny_bundle, OPTIONS)

    def fail(*_: object) -> None:
        raise BackendError(f"{tiny_bundle}/model.onnx: out of memory")

    model.localizer.network.locate = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR, "wgap.serve"):
        answers = model.answer([image(encode(scene(9, 9), ".png")), {}])
    assert [type(answer) for answer in answers] == [ServerError, DataError]
    assert "the server could not run its network" in str(answers[0])
    assert str(tiny_bundle) not in str(answers[0])
    assert str(tiny_bundle) in caplog.text
    assert model.counts == {"ServerError": 1}


def test_pictures_and_seconds_are_counted(tiny_bundle: Path) -> None:
    model = Model(tiny_bundle, OPTIONS)
    model.answer([image(encode(scene(90, 70), ".jpg"), b"x"), pixels(scene(30, 30))])
    assert model.counts == {"ok": 2, "ImageError": 1}
    assert all(seconds > 0 for seconds in model.seconds.values())


def test_a_bundle_whose_golden_cases_come_out_otherwise_is_not_served_unless_asked(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Model(edited(tiny_bundle, tmp_path / "same", 0), OPTIONS).close()
    with pytest.raises(CheckFailedError, match=r"checks of the selftest failed on onnxruntime .*kernel box: expected"):
        Model(edited(tiny_bundle, tmp_path / "other", 3), OPTIONS)
    assert not caplog.text
    Model(tmp_path / "other", replace(OPTIONS, untested=True)).close()
    assert "checks of the selftest failed" in caplog.text


def edited(source: Path, root: Path, moved: int) -> Path:
    """A copy of a bundle whose first golden box is so many pixels further right, with the hashes that belong to it."""
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, root)
    bundle = Bundle.open(root)
    entry = bundle.file("golden")
    path = root / entry.path
    with safe_open(path, "numpy") as opened:
        about = opened.metadata()
    tensors = load_file(path)
    save_file({**tensors, "box": tensors["box"] + np.array([moved, 0, moved, 0], tensors["box"].dtype)}, path, about)
    new = describe_file(root, path, "golden", entry.precision)
    files = tuple(new if one == entry else one for one in bundle.manifest.files)
    write_manifest(root, replace(bundle.manifest, files=files))
    assert (root / MANIFEST).exists()
    return root
