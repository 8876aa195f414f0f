"""A localizer over a network or a locator of one's own, and the one place where sessions are made."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wgap import Localizer
from wgap._native import BoxRecord
from wgap.bundle import Bundle
from wgap.errors import BackendError, BundleError, DataError, FeatureError, GateError
from wgap.rule import Rule
from wgap.runtime.locator import Locator, Request, open_locator
from wgap.runtime.network import CallableNetwork, Network, Outputs

ROOT = Path(__file__).resolve().parents[2]


def glass(images: np.ndarray) -> dict[str, np.ndarray]:
    """What ``glass_bundle``'s graph computes, in NumPy."""
    cells = images.reshape(len(images), 8, 8, 8, 8, 3).mean((2, 4), dtype=np.float64)
    features = np.ascontiguousarray((255 - cells).transpose(0, 3, 1, 2).astype(np.float32))
    return {"logits": features.mean((2, 3)), "features": features}


@pytest.fixture
def blots() -> np.ndarray:
    """Three pictures uint8[3, 64, 64, 3]: a dark blot in red, in green, in blue, each elsewhere."""
    pictures = np.full((3, 64, 64, 3), 255, np.uint8)
    for channel, (x, y) in enumerate(((8, 16), (24, 8), (32, 40))):
        pictures[channel, y : y + 16, x : x + 24, channel] = 0
    return pictures


BOXES = [(8, 16, 32, 32), (24, 8, 48, 24), (32, 40, 56, 56)]


def test_a_function_takes_the_place_of_the_backend(glass_bundle: Path, blots: np.ndarray) -> None:
    seen: list[tuple[int, ...]] = []

    def function(images: np.ndarray) -> dict[str, np.ndarray]:
        assert (images.dtype, images.flags["C_CONTIGUOUS"]) == (np.uint8, True)
        seen.append(images.shape)
        return glass(images)

    with Localizer(glass_bundle, network=function, rule="fixed:0.5", batch_size=2) as localizer:
        found = list(localizer(blots))
        assert localizer.network.name == "callable"
        outputs = localizer.network.run(blots)
    assert seen == [(2, 64, 64, 3), (1, 64, 64, 3), (3, 64, 64, 3)]
    assert [result.class_name for result in found] == ["red", "green", "blue"]
    assert [result.box for result in found] == BOXES
    assert np.array_equal(outputs["features"], glass(blots)["features"])


def test_it_is_needed_neither_onnxruntime_nor_the_graph(glass_bundle: Path) -> None:
    program = f"""
import sys
sys.modules["onnxruntime"] = None  # importing it now raises
import numpy as np
from wgap import Localizer
function = lambda images: {{"logits": np.ones((1, 3), np.float32), "features": np.ones((1, 3, 8, 8), np.float32)}}
print(Localizer({str(glass_bundle)!r}, network=function).one(np.zeros((64, 64, 3), np.uint8)).class_name)
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "red\n"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda o: {"features": o["features"]}, BundleError, r"logits float32\['N', 3\], got no such tensor"),
        (lambda o: {"logits": o["logits"]}, BundleError, r"features float32\['N', 3, 8, 8\], got no such tensor"),
        (
            lambda o: {**o, "logits": o["logits"].astype(np.float64)},
            BundleError,
            r"logits float32\['N', 3\], got float64\['N', 3\]",
        ),
        (
            lambda o: {**o, "features": o["features"].transpose(0, 2, 3, 1)},
            BundleError,
            r"features float32\['N', 3, 8, 8\], got float32\['N', 8, 8, 3\]",
        ),
        (lambda o: {**o, "logits": o["logits"][:, :2]}, BundleError, r"got float32\['N', 2\]"),
        (lambda o: {**o, "features": o["features"][:1]}, BackendError, "features has 1 rows for 3 images"),
        (lambda o: {**o, "logits": np.repeat(o["logits"], 2, 0)}, BackendError, "logits has 6 rows for 3 images"),
        (lambda o: {**o, "logits": o["logits"].tolist()}, BackendError, "logits is a list"),
        (lambda o: {**o, "logits": None}, BackendError, "logits is a NoneType"),
        (lambda o: (o["logits"], o["features"]), BackendError, "expected a mapping .* got a tuple"),
        (lambda _o: None, BackendError, "expected a mapping .* got a NoneType"),
    ],
)
def test_what_a_function_must_not_give_is_refused_by_name(
    glass_bundle: Path,
    blots: np.ndarray,
    change: Callable[[Any], Any],
    error: type[Exception],
    message: str,
) -> None:
    localizer = Localizer(glass_bundle, network=lambda images: change(glass(images)), batch_size=3)
    with pytest.raises(error, match=f"callable.*{message}") as refused:
        list(localizer(blots))
    assert "export" not in str(refused.value), "it is the function that is wrong, not the bundle"
    with pytest.raises(DataError, match="expected a Network or a function of images, got int"):
        Localizer(glass_bundle, network=3)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        localizer.network.run(blots, localizer.rule.outputs)


def test_errors_of_the_function_pass_through_and_nan_fails_alone(glass_bundle: Path, blots: np.ndarray) -> None:
    def broken(images: np.ndarray) -> dict[str, np.ndarray]:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Localizer(glass_bundle, network=broken).one(blots[0])

    def spoilt(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = glass(images)
        outputs["features"][1, 0, 0, 0] = np.nan
        return outputs

    found = list(Localizer(glass_bundle, network=spoilt, batch_size=3)(blots, on_error="yield"))
    assert [type(result).__name__ for result in found] == ["Localization", "Failure", "Localization"]
    assert isinstance(found[1].error, FeatureError)  # type: ignore[union-attr]


class Halved(Network):
    """A network of one's own: two images at most, on the CPU."""

    name, precision, version, largest = "halved", "fp32", "1", 2

    def __init__(self) -> None:
        self.closed = 0

    @contextmanager
    def forward(self, images: Any, stream: int | None = None, outputs: Any = None) -> Iterator[Outputs]:
        assert len(images) <= 2
        yield glass(images)

    def close(self) -> None:
        self.closed += 1


class Counting(Locator):
    """A locator of one's own, which asks the CPU's."""

    def __init__(self, inner: Locator) -> None:
        self.inner, self.size, self.rule = inner, inner.size, inner.rule
        self.requests: list[Request | None] = []

    def locate(self, outputs: Outputs, request: Request | None = None) -> list[list[BoxRecord]]:
        self.requests.append(request)
        return self.inner.locate(outputs, request)

    def with_rule(self, rule: Rule) -> Counting:
        return Counting(self.inner.with_rule(rule))


def test_network_and_locator_of_ones_own(glass_bundle: Path, blots: np.ndarray) -> None:
    network = Halved()
    locator = Counting(open_locator(Bundle.open(glass_bundle), Rule.parse("fixed:0.5")))
    with Localizer(glass_bundle, network=network, locator=locator, batch_size=3) as localizer:
        assert (localizer.network, localizer.locator) == (network, locator)
        assert localizer.rule == Rule.parse("fixed:0.5")  # the one that runs
        found = list(localizer(blots, classes=[2, 1, 0]))
    assert [result.class_name for result in found] == ["blue", "green", "red"]
    assert found[1].box == BOXES[1]
    assert [request.classes for request in locator.requests if request] == [[2, 1], [0]]  # the network's two at a time
    assert network.closed == 1


def test_a_locator_of_another_rule_than_the_one_asked_for_is_refused(glass_bundle: Path) -> None:
    locator = open_locator(Bundle.open(glass_bundle), Rule.parse("fixed:0.5"))
    with pytest.raises(DataError, match=r"the locator's rule is fixed:0\.5 on the recombined map, .* adaptive on the"):
        Localizer(glass_bundle, locator=locator, rule="adaptive")
    assert Localizer(glass_bundle, locator=locator, rule="fixed:0.5").rule == locator.rule


def test_a_localizer_over_ones_own_cannot_be_pickled(glass_bundle: Path) -> None:
    for given in ({"network": glass}, {"locator": open_locator(Bundle.open(glass_bundle))}):
        with pytest.raises(TypeError, match="cannot be pickled; make it where it runs"):
            pickle.dumps(Localizer(glass_bundle, **given))  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(Localizer(glass_bundle, rule="fixed:0.5"))).rule == Rule.parse("fixed:0.5")


def test_without_a_model_a_function_is_left_to_the_kernel(blots: np.ndarray) -> None:
    with CallableNetwork(glass, name="mine", precision="int8", version="7").forward(blots) as outputs:
        assert outputs["features"].shape == (3, 3, 8, 8)
    with (
        pytest.raises(DataError, match="mine takes images in host memory"),
        CallableNetwork(glass, name="mine").forward(blots, stream=1),
    ):
        pass


def test_the_old_name_of_the_rule_works_and_warns(glass_bundle: Path, blots: np.ndarray) -> None:
    with pytest.warns(DeprecationWarning, match="threshold= is now rule="):
        old = Localizer(glass_bundle, threshold="fixed:0.5")
    assert old.rule == Rule.parse("fixed:0.5")
    assert old.one(blots[0]).box == Localizer(glass_bundle, rule="fixed:0.5").one(blots[0]).box == BOXES[0]
    with pytest.raises(DataError, match="threshold= is the old name of rule="):
        Localizer(glass_bundle, threshold="fixed:0.5", rule="adaptive")


@pytest.mark.parametrize("option", [{"backend": "tensorrt"}, {"precision": "int8"}, {"ungated": True}], ids=str)
def test_options_of_the_bundle_s_own_network_are_refused_beside_another(
    glass_bundle: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=f"{next(iter(option))}=.* leave them out with network="):
        Localizer(glass_bundle, network=glass, **option)


@pytest.mark.skipif(not (ROOT / "runtime").is_dir(), reason="needs the sources (installed wheel)")
def test_sessions_are_made_in_one_place() -> None:
    """Threads, providers, the silent log and the check of inputs and outputs are decided once."""
    rooms = ("src", "runtime", "train", "export", "calibrate", "evaluate", "examples")
    found = [
        path.relative_to(ROOT).as_posix()
        for room in rooms
        for path in sorted((ROOT / room).rglob("*.py"))
        if "InferenceSession(" in path.read_text(encoding="utf-8")
    ]
    assert found == ["runtime/networks/onnxruntime.py"]


def test_a_locator_brings_its_rule_to_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lower-precision file that was judged under one rule does not run under that of a locator."""
    root = ROOT / "tests" / "house" / "schema1" / "bundle"  # its INT8 model was judged under fixed:0.6 on positive
    monkeypatch.setattr("wgap.runtime.networks.onnxruntime.int8_sums", lambda: "exact")  # as where it was judged
    assert Localizer(root, precision="int8").network.precision == "int8"
    locator = open_locator(Bundle.open(root), Rule.parse("adaptive", "signed"))
    with pytest.raises(GateError, match="it would now run under adaptive on the signed map"):
        Localizer(root, precision="int8", locator=locator)
    assert Localizer(root, precision="int8", locator=locator, ungated=True).rule == locator.rule
