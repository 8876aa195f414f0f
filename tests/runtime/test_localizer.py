"""Images in any form, one record each, in order, with boxes in their own pixels."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wgap import Localization, Localizer
from wgap.errors import DataError, FeatureError, ImageError
from wgap.images import decode
from wgap.rule import Rule
from wgap.runtime.localizer import Failure, Stages

WHITE = np.full((64, 64, 3), 255, np.uint8)
BLACK = np.zeros((64, 64, 3), np.uint8)


def blot(channel: int = 0, rows: tuple[int, int] = (16, 40), columns: tuple[int, int] = (24, 48)) -> np.ndarray:
    """White, with a rectangle that is dark in one channel: the object of that class for the hand-made network."""
    image = WHITE.copy()
    image[slice(*rows), slice(*columns), channel] = 0
    return image


IMAGES = [blot(0), blot(1), blot(2)]


@pytest.fixture(scope="module")
def glass(glass_bundle: Path) -> Localizer:
    return Localizer(glass_bundle)


def test_a_blot_is_found_where_it_is(glass: Localizer) -> None:
    found = glass.one(blot(1))
    assert (found.class_id, found.class_name) == (1, "green")
    x0, y0, x1, y1 = found.box
    assert 20 <= x0 <= 24 < 48 <= x1 <= 52
    assert 12 <= y0 <= 16 < 40 <= y1 <= 44
    assert found.threshold == found.level / 20
    assert not found.degenerate
    assert found.score == pytest.approx(1.0, abs=1e-6)


def test_boxes_come_in_pixels_of_the_original(glass: Localizer) -> None:
    small = glass.one(blot())
    large = glass.one(np.repeat(np.repeat(blot(), 3, axis=0), 5, axis=1))
    assert large.box == tuple(v * s for v, s in zip(small.box, (5, 3, 5, 3), strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_form_of_the_same_images_gives_the_same_records(
    tiny_bundle: Path, pictures: Path, batch_size: int
) -> None:
    localizer = Localizer(tiny_bundle, batch_size=batch_size)
    paths = [pictures / "a.jpg", pictures / "b.png", pictures / "below" / "a.jpeg"]
    expected = [localizer.one(path) for path in paths]
    assert [r.image for r in expected] == [str(p) for p in paths]
    nameless = [Localization(**{**vars(r), "image": None}) for r in expected]
    arrays = [decode(path) for path in paths]
    assert same(localizer(paths), expected)
    assert same(localizer(map(str, paths)), expected)
    assert same(localizer([path.read_bytes() for path in paths]), nameless)
    assert same(localizer(arrays), nameless)
    assert same(localizer(array[..., ::-1][..., ::-1] for array in arrays), nameless)  # a generator of views
    assert same(localizer(paths[0]), expected[:1])
    assert same(localizer(memoryview(arrays[2])), nameless[2:])
    stack = np.stack([arrays[2]] * 3)
    assert same(localizer(stack), [nameless[2]] * 3)
    assert list(localizer([])) == []


def same(results: Iterator[Localization], expected: list[Localization]) -> bool:
    """Equal but for the last bits of the score, which batches may add up in another order."""
    found = list(results)
    scores = [r.score for r in found] == pytest.approx([r.score for r in expected], rel=1e-5)
    without = [{**vars(r), "score": 0} for r in found] == [{**vars(r), "score": 0} for r in expected]
    return bool(scores and without)


def test_a_generator_is_consumed_one_batch_at_a_time(glass_bundle: Path) -> None:
    taken = []

    def images() -> Iterator[np.ndarray]:
        for number in range(7):
            taken.append(number)
            yield blot(number % 3)

    results = Localizer(glass_bundle, batch_size=3)(images())
    assert taken == []
    assert next(results).class_id == 0
    assert taken == [0, 1, 2]
    assert [r.class_id for r in results] == [1, 2, 0, 1, 2, 0]


def test_a_given_class_is_localized_whatever_the_network_thinks(glass: Localizer) -> None:
    both = np.minimum(blot(0, (0, 16), (0, 32)), blot(2, (40, 64), (40, 64)))
    red, blue = glass.one(both, "red"), glass.one(both, 2)
    assert (red.class_id, blue.class_id) == (0, 2)
    assert red.box[2] < blue.box[0]
    assert [r.class_id for r in glass([both, both], ["blue", 0])] == [2, 0]
    assert [r.class_id for r in glass([both, both], classes="blue")] == [2, 2]
    assert [r.class_id for r in glass([both, both], np.array([2, 0]))] == [2, 0]
    assert glass.one(both, np.int64(2)).class_id == 2  # type: ignore[arg-type]
    for wrong in ("purple", 3, -1, 0.5):
        with pytest.raises(DataError, match=r"no class .*red, green, blue.* 0\.\.2"):
            glass.one(both, wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="one class per image, got 1"):
        list(glass([both, both], classes=[0]))


def test_top_k_gives_the_other_classes_in_order(glass_bundle: Path) -> None:
    image = np.minimum(blot(2), blot(0, (0, 16), (0, 8)))
    best = Localizer(glass_bundle, top_k=3).one(image)
    assert [best.class_id, *(o.class_id for o in best.others)] == [2, 0, 1]
    assert best.score > best.others[0].score > best.others[1].score
    assert best.others[0].box == Localizer(glass_bundle).one(image, 0).box
    assert len(best.to_json()["others"]) == 2
    assert Localizer(glass_bundle, top_k=3).one(image, "red").others == ()


def test_the_heat_map_comes_only_when_asked_for(glass: Localizer) -> None:
    assert glass.one(blot()).heatmap is None
    heatmap = glass.one(blot(), heatmap=True).heatmap
    assert heatmap is not None
    assert heatmap.shape == (64, 64)
    assert heatmap.dtype == np.float32
    assert heatmap.max() == 1
    assert heatmap[28, 36] == 1
    assert heatmap[0, 0] == 0


def test_a_flat_map_gives_the_whole_image_and_says_so(glass: Localizer) -> None:
    found = glass.one(np.full((30, 50, 3), 255, np.uint8), heatmap=True)
    assert found.degenerate
    assert (found.box, found.threshold, found.level) == ((0, 0, 50, 30), 0, -1)
    assert found.heatmap is not None
    assert not found.heatmap.any()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_features_that_are_not_numbers_are_an_error_of_that_image_alone(glass_bundle: Path, batch_size: int) -> None:
    localizer = Localizer(glass_bundle, batch_size=batch_size)
    with pytest.raises(FeatureError, match="image 0: "):
        localizer.one(BLACK)
    results = list(localizer([blot(0), BLACK, blot(2), WHITE], on_error="yield"))
    assert isinstance(results[1], Failure)
    assert isinstance(results[1].error, FeatureError)
    assert str(results[1].error).startswith("image 1: logits hold NaN")
    assert [r.class_id for r in results if isinstance(r, Localization)] == [0, 2, 0]


def test_one_wrong_value_in_the_features_is_enough(glass: Localizer) -> None:
    outputs = glass.network.run(np.stack([blot(), blot()]))
    for value in (np.nan, np.inf):
        outputs["features"][1, 1, 2, 3] = value
        [[good], [bad]] = glass.locator.locate(outputs)
        assert good.error is None
        assert str(bad.error).startswith("features hold NaN or infinity")


class Raising:
    """An image whose own code fails."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("not today")


@pytest.mark.parametrize(
    "image", [b"\xff\xd8\xff cut short", Raising(), "missing.png"], ids=["cut", "raises", "missing"]
)
def test_a_kept_failure_keeps_neither_network_nor_picture(glass_bundle: Path, image: Any) -> None:
    localizer = Localizer(glass_bundle)
    [failure] = localizer([image], on_error="yield")
    alive = weakref.ref(localizer)
    del localizer
    assert alive() is None
    assert isinstance(failure, Failure)
    error: BaseException | None = failure.error
    while error is not None:
        assert error.__traceback__ is None
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_bad_image_raises_in_its_turn_or_yields_in_its_place(
    glass_bundle: Path, pictures: Path, batch_size: int
) -> None:
    localizer = Localizer(glass_bundle, batch_size=batch_size)
    images = [pictures / "a.jpg", pictures / "gone.jpg", pictures / "b.png"]
    results = localizer(images)
    assert next(results).image == str(images[0])
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        next(results)
    first, failure, last = localizer(images, on_error="yield")
    assert isinstance(failure, Failure)
    assert failure.to_json() == {
        "image": str(images[1]), "error": f"{images[1]}: no such file", "code": "ImageError",
    }  # fmt: skip
    assert [r.image for r in (first, last)] == [str(images[0]), str(images[2])]


@pytest.mark.parametrize(
    "array",
    [BLACK[..., 0], BLACK.astype(np.float32), BLACK.transpose(2, 0, 1), BLACK[:0], np.dstack([BLACK, BLACK])],
    ids=["grey", "float", "channels first", "no pixels", "six channels"],
)
def test_an_array_that_is_no_rgb_image_is_refused(glass: Localizer, array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"image 0: expected .* uint8\[H, W, 3\]"):
        glass.one(array)
    with pytest.raises(ImageError, match="image 1: "):
        list(glass([BLACK + 1, array]))


def test_something_else_is_refused(glass: Localizer) -> None:
    with pytest.raises(ImageError, match="expected a path, an image, a batch"):
        glass(3)  # type: ignore[call-overload]
    with pytest.raises(ImageError, match="got NoneType"):
        glass.one(None)  # type: ignore[arg-type]


def test_the_manifest_sets_the_rule_and_the_caller_overrides(
    glass_bundle: Path, tmp_path: Path, rewrite: Callable[..., None]
) -> None:
    root = shutil.copytree(glass_bundle, tmp_path / "bundle")

    def update(manifest: dict[str, Any]) -> None:
        manifest["rule"] = {"kind": "fixed", "map": "signed", "eta": 0.5}

    rewrite(root, update)
    localizer = Localizer(root)
    assert localizer.rule == Rule("fixed", "signed", 0.5)
    found = localizer.one(blot())
    assert (found.threshold, found.level) == (0.5, -1)
    assert found.box == (24, 16, 48, 40)  # half the height of a linear ramp is the middle of a cell's edge
    assert Localizer(root, map="recombined", rule="adaptive").one(blot()) == Localizer(glass_bundle).one(blot())
    assert Localizer(root, rule=Rule()).one(blot()) == Localizer(glass_bundle).one(blot())
    assert Localizer(root, map="positive").rule == Rule("fixed", "positive", 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 4},
        {"batch_size": 0},
        {"threads": 0},
        {"device": 0},
        {"slots": 2},
        {"memory_limit": 1 << 30},
        {"batch_size": 1.5},
        {"threads": 2.0},
        {"top_k": "2"},
        {"map": "cam"},
        {"rule": "fixed:1"},
        {"rule": "0.2"},
        {"rule": "fixed:nan"},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_on_construction(glass_bundle: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(DataError, match=name):
        Localizer(glass_bundle, **options)


def test_four_threads_get_what_one_gets(tiny_bundle: Path, pictures: Path) -> None:
    localizer = Localizer(tiny_bundle, top_k=2)
    images = [decode(p) for p in (pictures / "a.jpg", pictures / "b.png", pictures / "below" / "a.jpeg")] * 10
    serial = [localizer.one(image, heatmap=True) for image in images]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda image: localizer.one(image, heatmap=True), images))
        streams = list(pool.map(lambda _: list(localizer(images)), range(4)))
    assert parallel == serial
    for one, other in zip(parallel, serial, strict=True):
        assert one.heatmap is not None
        assert other.heatmap is not None
        assert np.array_equal(one.heatmap, other.heatmap)
    assert all(stream == serial for stream in streams)


def localized(localizer: Localizer, image: np.ndarray) -> Localization:
    """In a process of its own."""
    return localizer.one(image)


@pytest.mark.parametrize("start", ["spawn", "fork", "forkserver"])
def test_a_localizer_goes_to_another_process(glass_bundle: Path, start: str) -> None:
    localizer = Localizer(glass_bundle, rule="fixed:0.4", map="signed", top_k=2, batch_size=3, threads=2)
    expected = [localizer.one(blot(n)) for n in range(3)]
    with multiprocessing.get_context(start).Pool(2) as pool:
        found = pool.starmap_async(localized, [(localizer, blot(n)) for n in range(3)]).get(timeout=100)
    assert found == expected


def test_a_localizer_is_pickled_as_its_bundle_and_options(glass_bundle: Path, tmp_path: Path) -> None:
    localizer = Localizer(glass_bundle, rule="fixed:0.4", map="signed", top_k=2, batch_size=3, threads=2)
    again = pickle.loads(pickle.dumps(localizer))
    assert (again.rule, again.top_k, again.batch_size, again.threads) == (Rule("fixed", "signed", 0.4), 2, 3, 2)
    assert len(pickle.dumps(localizer)) < 2000
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(glass_bundle.parent)
        sent = pickle.dumps(Localizer(glass_bundle.name))
    assert pickle.loads(sent).one(blot(1)).class_id == 1, "it arrives where another folder is the current one"
    own = Localizer(glass_bundle, network=localizer.network)
    with pytest.raises(TypeError, match="of one's own cannot be pickled"):
        pickle.dumps(own)


def test_a_localizer_with_threads_survives_a_fork(tiny_bundle: Path) -> None:
    program = f"""
import os, signal, sys
import numpy as np
from wgap import Localizer
localizer = Localizer({str(tiny_bundle)!r}, threads=2)
shapes = {{name: (6, *localizer.bundle.manifest.model.signature()[name].extents) for name in ("logits", "features")}}
outputs = {{name: np.ones(shape, np.float32) for name, shape in shapes.items()}}
run = lambda: [r[0].box for r in localizer.locator.locate(outputs)]
expected = run()
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if run() == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or (run() != expected))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("prepare", [1, 4])
def test_prepared_ahead_results_are_the_same_and_in_order(prepare: int, batch_size: int, glass_bundle: Path) -> None:
    """Bounded: no more images are asked for than it may be ahead."""
    asked = done = 0
    most = 0

    def each() -> Iterator[Any]:
        nonlocal asked, most
        for number in range(40):
            asked += 1
            most = max(most, asked - done)
            yield b"no image" if number == 7 else IMAGES[number % 3]

    plain = list(Localizer(glass_bundle, threads=1, batch_size=batch_size)(each(), on_error="yield"))
    asked, most, stages = 0, 0, Stages()
    results = []
    ahead = Localizer(glass_bundle, threads=1, batch_size=batch_size, prepare=prepare)
    for result in ahead(each(), on_error="yield", stages=stages):
        results.append(result)
        done += 1
    assert [r.to_json() for r in results] == [r.to_json() for r in plain]
    assert isinstance(results[7], Failure)
    assert most <= prepare + 3 * batch_size
    assert min(stages.prepare, stages.network) > 0
    assert stages.wait >= 0
    assert not [t for t in threading.enumerate() if t.name.startswith("wgap-prepare")]


def test_prepared_ahead_errors_come_in_their_place_and_threads_end(glass_bundle: Path) -> None:
    localizer = Localizer(glass_bundle, threads=1, prepare=3)

    def breaks() -> Iterator[Any]:
        yield from IMAGES[:2]
        raise KeyError("the list broke")

    seen: list[Localization] = []
    with pytest.raises(KeyError, match="the list broke"):
        seen.extend(localizer(breaks()))
    assert len(seen) == 2, "what came before it is there"
    seen = []
    with pytest.raises(ImageError, match="image 1"):
        seen.extend(localizer([blot(0), b"no image", blot(1)]))
    assert len(seen) == 1
    with pytest.raises(DataError, match="classes"):
        list(localizer(IMAGES[:2], classes=[0]))
    left = localizer(IMAGES * 10)
    next(left)
    left.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("wgap-prepare")]
    with pytest.raises(DataError, match="prepare"):
        Localizer(glass_bundle, prepare=-1)
    assert pickle.loads(pickle.dumps(localizer)).prepare == 3


def test_a_localizer_is_closed_by_with(glass: Localizer) -> None:
    class Watched(type(glass.network)):  # type: ignore[misc]
        closed = 0

        def close(self) -> None:
            self.closed += 1

    network = Watched(glass.network.session, "fp32")  # type: ignore[attr-defined]
    with Localizer(glass.bundle, network=network) as localizer:
        assert localizer.one(blot(1)).class_id == 1
        assert localizer.memory() == {}
    assert network.closed == 1


def test_a_record_is_these_keys_and_plain_numbers(glass: Localizer, pictures: Path) -> None:
    record = glass.one(pictures / "a.jpg").to_json()
    assert list(record) == ["image", "class_id", "class_name", "score", "box", "boxes", "threshold", "degenerate"]
    assert json.loads(json.dumps(record)) == record
    assert all(isinstance(v, float) for box in (record["box"], *record["boxes"]) for v in box)


def test_real_photographs_localize(cub10_bundle: Path, cub10: Path) -> None:
    paths = sorted((cub10 / "images").glob("*/*.jpg"))[::100]
    results = list(Localizer(cub10_bundle, batch_size=2)(paths))
    assert len(results) == len(paths)
    right = 0
    for path, result in zip(paths, results, strict=True):
        height, width = decode(path).shape[:2]
        x0, y0, x1, y1 = result.box
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        right += result.class_name == path.parent.name
    assert right >= len(paths) - 1
