"""A gate's verdict holds for the rule whose boxes it compared, and for no other, from every way in."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.calibrate.test_cli import LENIENT, wgap

from wgap import Localizer
from wgap.bundle import Bundle
from wgap.errors import GateError
from wgap.rule import Rule
from wgap.runtime import cpus
from wgap.runtime.cpus import int8_sums
from wgap.runtime.networks import NetworkOptions, open_network

JUDGED, OTHER = Rule(), Rule.parse("fixed:0.9", "signed")
BOTH = (
    r"its gate compared boxes under the rule adaptive on the recombined map, and it would now run under fixed:0\.9 on "
    r"the signed map; run `wgap gate (.*) --precision int8 --rule fixed:0\.9 --map signed --images DIR`"
)


@pytest.fixture(scope="module")
def calibrated(tiny_bundle: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quick bundle with an INT8 model that a lenient gate passed under the paper's rule."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("judged") / "tiny"))
    done = wgap("calibrate", root, "--images", shapes, "--count", "16", "--gate", shapes, *LENIENT)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def own(calibrated: Path, copied: Callable[[Path], Path]) -> Path:
    return copied(calibrated)


@pytest.fixture
def edited(own: Path) -> Path:
    """The same, whose manifest now has another rule."""
    manifest = json.loads((own / "wgap.json").read_text())
    manifest["rule"] = OTHER.to_json()
    (own / "wgap.json").write_text(json.dumps(manifest))
    return own


def test_python_refuses_another_rule_and_names_both(own: Path) -> None:
    bundle = Bundle.open(own)
    assert bundle.model_file("int8", rule=JUDGED) == bundle.model_file("int8")
    ways: list[Callable[[], object]] = [
        lambda: bundle.model_file("int8", rule=OTHER),
        lambda: Localizer(own, precision="int8", map="signed", rule="fixed:0.9"),
        lambda: Localizer(own, precision="int8", rule=OTHER),
        lambda: open_network("onnxruntime", bundle, NetworkOptions("int8", rule=OTHER)),
    ]
    for way in ways:
        with pytest.raises(GateError, match=BOTH):
            way()
    for halves in ({"map": "signed"}, {"rule": "fixed:0.9"}):  # either of the two suffices
        with pytest.raises(GateError, match="its gate compared boxes under the rule adaptive on the recombined map"):
            Localizer(own, precision="int8", **halves)  # type: ignore[arg-type]
    assert Localizer(own, precision="int8").network.precision == "int8"
    assert Localizer(own, precision="int8", rule="adaptive", map="recombined").rule == JUDGED
    assert Localizer(own, rule=OTHER).rule == OTHER  # float32 needs no verdict
    assert Localizer(own, precision="int8", rule=OTHER, ungated=True).rule == OTHER
    assert open_network("onnxruntime", bundle, NetworkOptions("int8", ungated=True, rule=OTHER)).precision == "int8"


def test_a_manifest_whose_rule_was_edited_is_refused_too(edited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(edited)
    for way in (
        lambda: bundle.model_file("int8"),
        lambda: Localizer(edited, precision="int8"),
        lambda: open_network("onnxruntime", bundle, NetworkOptions("int8")),
    ):
        with pytest.raises(GateError, match=BOTH):
            way()
    assert Localizer(edited, precision="int8", rule=JUDGED).rule == JUDGED  # the rule that was judged still may
    monkeypatch.setenv("COLUMNS", "200")
    assert "passed under adaptive recombined" in wgap("inspect", edited).stdout


def test_a_verdict_of_exact_sums_does_not_hold_where_sums_saturate(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = "wgap.runtime.networks.onnxruntime.int8_sums"
    entry = next(e for e in Bundle.open(own).manifest.files if e.precision == "int8")
    assert entry.gate is not None
    assert entry.gate.int8_sums == int8_sums()
    for judged, here, opens in (
        ("exact", "exact", True), ("exact", "saturating", False), ("saturating", "saturating", True),
        ("saturating", "exact", True), (None, "exact", True), (None, "saturating", False),
    ):  # fmt: skip
        manifest = json.loads((own / "wgap.json").read_text())
        gate = next(e for e in manifest["files"] if e.get("precision") == "int8")["gate"]
        gate.pop("int8_sums", None)
        gate.update({"int8_sums": judged} if judged else {})
        (own / "wgap.json").write_text(json.dumps(manifest))
        monkeypatch.setattr(where, lambda here=here: here)
        if opens:
            Localizer(own, precision="int8")
        else:
            with pytest.raises(
                GateError, match=r"no VNNI.*`wgap gate .* --precision int8 --rule adaptive --map recombined"
            ):
                Localizer(own, precision="int8")
        Localizer(own, precision="int8", ungated=True)


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        ("avx2 avx512f avx512_vnni", "x86_64", "exact"), ("avx2 avx_vnni", "x86_64", "exact"),
        ("avx2 avx512f", "x86_64", "saturating"), ("asimd", "aarch64", "exact"),
    ],
)  # fmt: skip
def test_how_a_processor_sums(
    flags: str, machine: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(cpus, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpus.platform, "machine", lambda: machine)
    assert cpus.int8_sums() == expected


@pytest.mark.parametrize("verb", ["localize", "evaluate", "bench", "check", "selftest"])
def test_every_verb_refuses_it_and_runs_it_when_told(verb: str, own: Path, edited: Path, shapes: Path) -> None:
    if verb == "check":
        pytest.importorskip("torch")
    rest = {
        "localize": [shapes / "test" / "disc", "--json"],
        "evaluate": [shapes, "--json"],
        "bench": ["--batch", "1", "--iterations", "1", "--warmup", "0", "--json"],
        "check": ["--json"],
        "selftest": ["--json"],
    }
    call = (verb, edited, *rest[verb], "--precision", "int8")
    done = wgap(*call)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: " in done.stderr
    assert "under the rule adaptive on the recombined map, and it would now run under fixed:0.9 on the signed" in (
        done.stderr
    )
    assert "--ungated" in done.stderr
    told = [wgap(*call, "--ungated")]
    if verb != "selftest":  # it has no rule but the bundle's
        told.append(wgap(*call, "--rule", "adaptive", "--map", "recombined"))
    for ran in told:
        assert "error: " not in ran.stderr
        assert json.loads(ran.stdout.splitlines()[0])
        assert ran.returncode == 0 or verb in ("check", "selftest")  # a random network's INT8 is not float32


def test_the_command_in_the_message_works_and_moves_the_verdict(edited: Path, shapes: Path, tmp_path: Path) -> None:
    spaced = Path(shutil.move(edited, tmp_path / "a bundle"))
    with pytest.raises(GateError, match=BOTH) as caught:
        Localizer(spaced, precision="int8")
    command = str(caught.value).split("`")[1]
    words = [str(shapes) if word == "DIR" else word for word in shlex.split(command)]
    assert words[:3] == ["wgap", "gate", str(spaced)]
    done = wgap(*words[1:], *LENIENT, "--json")
    assert (done.returncode, json.loads(done.stdout)["usable"]) == (0, True), done.stderr
    assert json.loads(done.stdout)["gate"]["rule"] == {"kind": "fixed", "map": "signed", "eta": 0.9}
    assert Localizer(spaced, precision="int8").rule == OTHER
    with pytest.raises(GateError, match=r"under the rule fixed:0\.9 on the signed map, .* adaptive on the recombined"):
        Localizer(spaced, precision="int8", rule=JUDGED)


def test_calibrate_judges_under_the_rule_that_it_is_given(
    tiny_bundle: Path, copied: Callable[[Path], Path], shapes: Path
) -> None:
    own = copied(tiny_bundle)
    rule = ("--rule", "fixed:0.3", "--map", "positive")
    done = wgap("calibrate", own, "--images", shapes, "--count", "16", "--gate", shapes, *LENIENT, *rule, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gate"]["rule"] == {"kind": "fixed", "map": "positive", "eta": 0.3}
    with pytest.raises(GateError, match=r"fixed:0\.3 on the positive map, .* adaptive on the recombined map"):
        Localizer(own, precision="int8")
    assert Localizer(own, precision="int8", rule="fixed:0.3", map="positive").network.precision == "int8"


def test_other_boxes_are_compared_under_another_rule(own: Path, shapes: Path) -> None:
    """Not only the name in the record changes."""
    ious = []
    for rule in (("adaptive", "recombined"), ("fixed:0.9", "recombined")):
        done = wgap("gate", own, "--images", shapes, *LENIENT, "--rule", rule[0], "--map", rule[1], "--json")
        assert done.returncode == 0, done.stderr
        ious.append(json.loads(done.stdout)["gate"]["figures"]["box_iou"])
    assert ious[0] != ious[1]


def test_engines_are_bound_alike(own: Path, edited: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    from wgap.export.engine import engine_from_bundle
    from wgap.runtime.engine import Host, preflight

    host = Host("tensorrt_rtx", trt.__version__, "8.6", "linux x86_64")
    refused = wgap("build", edited, "--precision", "int8")
    assert refused.returncode == 1
    assert "under the rule adaptive on the recombined map, and it would now run under fixed:0.9" in refused.stderr
    judged = wgap("build", edited, "--precision", "int8", "--rule", "adaptive", "--map", "recombined")
    assert judged.returncode == 0, judged.stderr
    bundle, entry = engine_from_bundle(Bundle.open(edited), "tensorrt_rtx", "int8", ungated=True)
    with pytest.raises(GateError, match=BOTH):
        preflight(bundle, entry.path, host)
    assert preflight(bundle, entry.path, host, ungated=True)
    assert preflight(bundle, entry.path, host, rule=JUDGED)
    with pytest.raises(GateError, match=BOTH):
        preflight(bundle, entry.path, host, rule=OTHER)


def test_a_file_that_was_refused_says_so_under_its_rule_and_may_be_judged_under_another(
    own: Path, shapes: Path
) -> None:
    strict = ("--min-iou", "1", "--min-agreement", "1", "--max-drop", "0")
    assert wgap("gate", own, "--images", shapes, *strict, "--rule", "fixed:0.7").returncode == 3
    with pytest.raises(GateError, match="the gate refused this int8 file: mean box IoU"):
        Localizer(own, precision="int8", rule="fixed:0.7")
    with pytest.raises(
        GateError, match=r"under the rule fixed:0\.7 on the recombined map, .* fixed:0\.9 on the signed"
    ):
        Localizer(own, precision="int8", rule=OTHER)
    assert wgap("gate", own, "--images", shapes, *LENIENT, "--rule", "fixed:0.9", "--map", "signed").returncode == 0
    assert Localizer(own, precision="int8", rule=OTHER).network.precision == "int8"


def test_a_wrong_rule_is_one_line(own: Path, shapes: Path) -> None:
    for verb, rest in (("gate", ["--images", shapes]), ("localize", [shapes / "test"]), ("evaluate", [shapes])):
        done = wgap(verb, own, *rest, "--rule", "fixed:two")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "error: rule: expected 'adaptive', 'foreground', 'foreground+colour' or 'fixed:ETA' with ETA in "
            "[0, 0.999], got 'fixed:two'\n"
        )
