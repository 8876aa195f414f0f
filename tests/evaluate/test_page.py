"""``wgap report`` and ``wgap inspect --html``: what the pages say, that they ask for nothing, and what they refuse."""

from __future__ import annotations

import base64
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.browser import ask, require_browser
from tests.conftest import scored
from typer.testing import CliRunner, Result

from wgap import Localizer
from wgap.bundle import Bundle, describe_file, write_manifest
from wgap.cli import app
from wgap.datasets import open_dataset
from wgap.errors import BundleError, DataError, GateError, OutputExistsError
from wgap.evaluate.metrics import ImageScore
from wgap.evaluate.page.observe import KINDS, Found, Grid, Row, Shown, _kind
from wgap.geometry import iou
from wgap.manifest import CalibrationRecord
from wgap.onnx_wire import graph_nodes
from wgap.rule import Rule

NASTY = ('<img src=x onerror="told.errors.push(1)">', "</script><script>told.errors.push(2)</script>", "a & {{data}}")
"""Class names that would run, or end what they stand in, if they were taken for HTML."""

RULES = (Rule("foreground+colour"), Rule(), Rule("foreground"))


def wgap(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.fixture(scope="module")
def bundle(scored_bundle: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with scores, classes with markup in their names, and another head's graph as its ``int8``."""
    folder = tmp_path_factory.mktemp("page")
    root = shutil.copytree(scored_bundle, folder / "bundle <b>")
    shutil.copy(scored(tiny_bundle, folder / "other", seed=6) / "model.onnx", root / "model.int8.onnx")
    manifest = Bundle.open(root, verify=False).manifest
    made = CalibrationRecord(manifest.files[0].sha256, "0" * 64, (), (), (), {})
    entry = describe_file(root, root / "model.int8.onnx", "onnx", "int8", calibration=made)
    assert manifest.files[0].precision == "fp32"
    model = replace(manifest.model, classes=NASTY)
    write_manifest(root, replace(manifest, model=model, files=(*manifest.files, entry)))
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen images of three classes in the public lists, one or two true boxes each."""
    root = tmp_path_factory.mktemp("set") / "boxed"
    rng = np.random.default_rng(3)
    ids = [f"test/{n}<i>&.png" for n in range(15)]
    boxes = []
    for n, name in enumerate(ids):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (20, 25, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), cv2.resize(picture, (400, 320) if n % 2 else (280, 440)))
        boxes += [f"{name},{12 * n},{8 * n},{80 + 12 * n},{200 + 4 * n}", *([f"{name},8,12,120,160"] if n % 3 else [])]
    listing = root / "metadata" / "test"
    listing.mkdir(parents=True)
    (listing / "image_ids.txt").write_text("\n".join(ids) + "\n")
    (listing / "class_labels.txt").write_text("".join(f"{name},{n % 3}\n" for n, name in enumerate(ids)))
    (listing / "localization.txt").write_text("\n".join(boxes) + "\n")
    (root / "classes.txt").write_text("\n".join(NASTY) + "\n")
    return root


@pytest.fixture(scope="module")
def page(bundle: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "report.html"
    done = wgap("report", bundle, images, "--out", out, "--iterations", 1, "--batch-size", 4)
    assert done.exit_code == 0, done.output
    return out


def test_figures_and_boxes_are_those_of_evaluate_and_localize(bundle: Path, images: Path, page: Path) -> None:
    report, networks = data_of(page)["report"], report_localizers(bundle)
    dataset = open_dataset(images, "test")
    assert [Rule.parse(one["text"], one["map"]) for one in report["rules"]] == list(RULES)
    assert report["networks"] == ["fp32", "int8"]
    assert len(report["pictures"]) == report["images"] == len(dataset)
    for n, localizer in enumerate(networks):
        for r, rule in enumerate(RULES):
            more = ["--precision", "int8", "--ungated"] if n else []
            printed = wgap("evaluate", bundle, images, "--rule", rule, "--map", rule.map, "--json", *more)
            evaluated, own = json.loads(printed.stdout), report["figures"][n][r]
            for key in ("top1_cls", "gt_known_loc", "top1_loc", "mean_iou", "degenerate"):
                assert own[key] == evaluated[key], (n, rule, key)
            assert own["kinds"][0] / 15 == pytest.approx(evaluated["top1_loc"])
            assert own["kinds"][KINDS.index("wrong_class")] / 15 == pytest.approx(1 - evaluated["top1_cls"])
            assert sum(own["kinds"]) == sum(own["ious"]) == 15
            asked = Localizer(localizer.bundle, network=localizer.network, rule=rule)
            for sample, picture in zip(dataset.samples, report["pictures"], strict=True):
                found = asked.one(sample.path, sample.label)
                assert picture["found"][n][r]["box"] == pytest.approx(found.box, abs=0.051)
    agreement = [picture["agreement"] for picture in report["pictures"]]
    assert min(map(min, agreement)) < 0.9, "else nothing is compared"
    pairs = [zip(*picture["found"], strict=True) for picture in report["pictures"]]
    wanted = [[iou(a["box"], b["box"]) for a, b in pair] for pair in pairs]
    np.testing.assert_allclose(agreement, wanted, atol=0.01)
    np.testing.assert_allclose(np.mean(agreement, axis=0), [one["mean"] for one in report["comparison"]], atol=1e-4)


def report_localizers(bundle: Path) -> list[Localizer]:
    return [Localizer(bundle), Localizer(bundle, precision="int8", ungated=True)]


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((0, 0, 60, 20), "m_ins"), ((5, 5, 12, 12), "part"), ((0, 0, 30, 60), "more"), ((15, 15, 50, 50), "other"),
    ],
)  # fmt: skip
def test_kinds_of_error(box: tuple[float, ...], kind: str) -> None:
    truths = [(0.0, 0.0, 20.0, 20.0), (40.0, 0.0, 60.0, 20.0)]
    assert KINDS[1 + _kind(box, truths, (64, 64))] == kind  # type: ignore[arg-type]


def test_every_network_is_timed(page: Path) -> None:
    told = data_of(page)["report"]
    assert [run["precision"] for run in told["latency"]["runs"]] == told["networks"] == ["fp32", "int8"]
    for run in told["latency"]["runs"]:
        assert list(run["stages"]) == ["decode", "resize", "forward", "postprocess", "total"]
        assert all(times["samples"] == told["latency"]["iterations"] == 1 for times in run["stages"].values())


def test_the_maps_are_the_kernel_s_in_fewer_cells(bundle: Path, images: Path, page: Path) -> None:
    report, [localizer, _] = data_of(page)["report"], report_localizers(bundle)
    paper = Localizer(bundle, network=localizer.network, rule=Rule())
    rows, columns = report["grid"]
    for sample, picture in zip(open_dataset(images, "test").samples, report["pictures"], strict=True):
        heatmap = np.array(paper.one(sample.path, sample.label, heatmap=True).heatmap)
        stored = cells(picture, 0, rows, columns)
        wanted = cv2.resize(heatmap, (columns, rows), interpolation=cv2.INTER_AREA)
        assert np.abs(stored - wanted).max() < 0.003


def cells(picture: dict[str, Any], which: int, rows: int, columns: int) -> np.ndarray:
    """A stored map in its own units."""
    one = picture["maps"][which]
    values = np.frombuffer(base64.b64decode(one["cells"]), np.uint8).reshape(rows, columns)
    return one["low"] + values / 255.0 * (one["high"] - one["low"])


def cut(picture: dict[str, Any], rule: Rule, threshold: float, rows: int, columns: int) -> list[float]:
    """The slider's box by OpenCV, in pixels of the picture."""
    one = picture["maps"][1 if rule.on_scores else 0]
    values = np.frombuffer(base64.b64decode(one["cells"]), np.uint8).reshape(rows, columns).astype(float)
    bound = 255 * (threshold if rule.on_scores else (threshold - one["low"]) / (one["high"] - one["low"]))
    count, labels, stats, _ = cv2.connectedComponentsWithStats((values > bound).astype(np.uint8), connectivity=8)
    if count == 1:
        return [0, 0, picture["width"], picture["height"]]
    weights = [
        values[labels == k].sum() - bound * stats[k, 4] if rule.on_scores else stats[k, 4] for k in range(1, count)
    ]
    x, y, w, h, _ = stats[1 + int(np.argmax(weights))]
    across, down = picture["width"] / columns, picture["height"] / rows
    return [x * across, y * down, (x + w) * across, (y + h) * down]


SLIDE = """
const slider = document.getElementById("cut");
const boxes = () => Object.fromEntries([...document.querySelectorAll(".card")].map((card) => {
  const rect = card.querySelector("rect.own"), of = (name) => +rect.getAttribute(name);
  return [card.title, [of("x"), of("y"), of("x") + of("width"), of("y") + of("height")]];
}));
const slide = (to) => { slider.value = to; slider.dispatchEvent(new Event("input")); return boxes(); };
const live = () => document.querySelector(".live").textContent;
"""


def test_the_slider_cuts_the_stored_maps_and_moves_the_boxes(page: Path) -> None:
    require_browser()
    report, steps = data_of(page)["report"], [0.05, 0.3, 0.55, 0.97, 1]
    told = ask(
        page,
        SLIDE
        + f"""
        const found = [];
        for (let rule = 0; rule < 3; ++rule) {{
          const own = boxes();
          found.push([own, {steps}.map(slide), live(), (press("0"), boxes())]);
          press("r");
        }}
        return found;
        """,
    )
    assert (told["errors"], told["violations"], told["requests"]) == ([], [], [])
    seen = set()
    for r, (own, moved, live, back) in enumerate(told["result"]):
        assert back == own
        assert "Approximate" in live
        for picture in report["pictures"]:
            name = picture["name"]
            assert own[name] == pytest.approx(picture["found"][0][r]["box"], abs=0.16)
            for boxes, step in zip(moved, steps, strict=True):
                assert boxes[name] == pytest.approx(cut(picture, RULES[r], step, *report["grid"]), abs=0.16)
                seen.add(tuple(boxes[name]))
    assert len(seen) > 25, "else the boxes hardly move"


def test_filters_rules_keys_and_one_picture(page: Path) -> None:
    require_browser()
    report = data_of(page)["report"]
    told = ask(
        page,
        SLIDE
        + """
        const [label, kind, order] = document.querySelectorAll("select");
        const choose = (select, value) => { select.value = value; select.dispatchEvent(new Event("change")); };
        const titles = () => [...document.querySelectorAll(".card")].map((card) => card.title);
        const found = {labels: [], kinds: []};
        for (let n = 0; n < 3; ++n) { choose(label, n); found.labels.push(titles()); }
        choose(label, "");
        for (let n = 0; n < 6; ++n) { choose(kind, n); found.kinds.push(titles()); }
        choose(kind, "");
        choose(order, "apart");
        found.apart = titles();
        const before = +slider.value;
        press("]"); press("]"); press("[");
        found.steps = +slider.value - before;
        press("0");
        const painted = () => getComputedStyle(document.querySelector(".card canvas")).display;
        found.map = [painted(), (press("m"), painted())];
        found.theme = [document.documentElement.dataset.theme, (press("d"), document.documentElement.dataset.theme)];
        document.querySelectorAll(".card")[2].click();
        const shown = () => document.querySelector("dialog[open] .note").textContent.replaceAll("\\u200b", "");
        found.opened = [shown(), (press("ArrowRight"), shown()), (press("ArrowLeft"), press("ArrowLeft"), shown())];
        document.querySelector("dialog").close();
        await wait(5000);
        found.sweep = document.querySelector(".sweep polyline").getAttribute("points").split(" ").length;
        found.names = document.querySelector("#classes tbody").textContent.replaceAll("\\u200b", "");
        found.foreign = [...document.images].filter((image) => !image.src.startsWith("data:image/jpeg;")).length;
        found.scripts = document.scripts.length;
        return found;
        """,
    )
    assert (told["errors"], told["violations"], told["requests"]) == ([], [], [])
    found, pictures = told["result"], report["pictures"]
    for n, titles in enumerate(found["labels"]):
        assert sorted(titles) == sorted(p["name"] for p in pictures if p["label"] == n)
    for n, titles in enumerate(found["kinds"]):
        assert sorted(titles) == sorted(p["name"] for p in pictures if p["found"][0][0]["kind"] == n)
    assert sum(map(bool, found["kinds"])) >= 2, "else nothing is filtered"
    assert found["apart"] == [p["name"] for p in sorted(pictures, key=lambda p: p["agreement"][0])]
    assert found["steps"] == pytest.approx(0.01)
    assert found["map"] == ["none", "block"]
    assert found["theme"] == [None, "dark"]
    assert [text.split(", ")[0] for text in found["opened"]] == [found["apart"][n] for n in (2, 3, 1)]
    assert found["sweep"] == 51
    for name in NASTY:
        assert name in found["names"], "a class's name is its text"
    assert (found["foreign"], found["scripts"]) == (0, 4), "the page's two and the test's two"


@pytest.mark.parametrize("width", [390, 1300])
def test_nothing_is_wider_than_the_window(width: int, page: Path) -> None:
    require_browser()
    told = ask(page, "return [innerWidth, document.documentElement.scrollWidth]", (width, 800))
    assert told["result"] == [width, width]


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_the_page_asks_for_nothing_and_its_policy_lets_nothing_out(
    page: Path, listener: tuple[str, list[str]], tmp_path: Path
) -> None:
    text, [url, asked] = page.read_text(), listener
    assert set(re.findall(r"[a-z]+://[^\"'`\s<>]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"<(?:script|link|img|iframe|object|embed|style)[^>]*>", text)) == {
        "<style>", "<script>", '<script type="application/json" id="data">', '<link rel="icon" href="data:,">',
    }  # fmt: skip
    assert text.isascii()
    require_browser()
    script = f"""
    const image = new Image();
    image.src = "{url}/image";
    const style = document.createElement("link");
    [style.rel, style.href] = ["stylesheet", "{url}/style"];
    const script = document.createElement("script");
    script.src = "{url}/script";
    document.head.append(style, script);
    await fetch("{url}/fetch").catch(() => 0);
    navigator.sendBeacon("{url}/beacon");
    await wait(500);
    """
    told = ask(page, script, online=True)
    assert asked == []
    assert {"img-src", "style-src-elem", "script-src-elem", "connect-src"} <= set(told["violations"])
    open_ = tmp_path / "open.html"
    open_.write_text(re.sub('default-src .*?"', "script-src 'unsafe-inline' *\"", text, count=1))
    ask(open_, script, online=True)
    assert {"/image", "/style", "/script", "/fetch"} <= set(asked), "else the policy is not what held them back"


def test_a_bundle_alone(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle.html"
    done = wgap("inspect", bundle, "--html", out)
    assert done.exit_code == 0, done.output
    data = data_of(out)
    assert set(data) == {"bundle"}
    files = {entry["path"]: entry for entry in data["bundle"]["files"]}
    assert set(files) == {entry.path for entry in Bundle.open(bundle).manifest.files}
    assert wgap("inspect", bundle, "--html", out).exit_code == 1
    assert wgap("inspect", bundle, "--html", out, "--force").exit_code == 0
    require_browser()
    told = ask(
        out,
        """return [document.querySelector("main").textContent, document.querySelectorAll(".graph g").length,
        document.querySelector("h1").textContent]""",
    )
    assert (told["errors"], told["violations"]) == ([], [])
    text, nodes, title = told["result"]
    assert "never judged" in text
    assert NASTY[0] in text
    assert title == "wgap bundle: bundle <b>"
    assert nodes == 1 + len(data["bundle"]["graph"])


def test_the_graph_is_what_onnx_reads(scored_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = scored_bundle / "model.onnx"
    graph = onnx.load(str(path)).graph
    constants = {one.name: tuple(one.dims) for one in graph.initializer}
    found = graph_nodes(path.read_bytes(), path)
    assert [(n.operator, n.name, n.outputs) for n in found] == [
        (n.op_type, n.name, tuple(n.output)) for n in graph.node
    ]
    assert [n.inputs for n in found] == [tuple(i for i in n.input if i and i not in constants) for n in graph.node]
    weights = {n.name: n.weight for n in found if n.operator == "Conv"}
    assert weights == {n.name: constants[n.input[1]] for n in graph.node if n.op_type == "Conv"}
    with pytest.raises(BundleError, match="is not an ONNX file"):
        graph_nodes(path.read_bytes()[:-3], path)


@pytest.mark.parametrize(("count", "limit"), [(5, 9), (9, 9), (60, 9), (60, 1)])
def test_what_is_shown_is_the_worst_and_others(count: int, limit: int) -> None:
    shown = Shown(limit)
    ious = np.random.default_rng(count).permutation(count) / count
    grid = Grid(np.zeros((1, 1), np.uint8), 0.0, 0.0)
    for n, value in enumerate(ious):
        found = Found((0, 0, 1, 1), ImageScore(True, value, value, 1, False), 0)
        shown.add(Row(Path(str(n)), 0, (1, 1), [], (0,), (1.0,), ((found,),), (None,)), (grid,))
    kept = [int(row.path.name) for row, _ in shown.rows()]
    assert len(kept) == min(count, limit)
    assert kept == sorted(set(kept))
    worst = np.argsort(ious)[: (limit + 1) // 2]
    assert set(worst.tolist()) <= set(kept)


def test_the_budget_is_kept_by_smaller_pictures(bundle: Path, images: Path, page: Path, tmp_path: Path) -> None:
    out, common = tmp_path / "small.html", ("--iterations", 0, "--against", "none")
    assert wgap("report", bundle, images, "--out", out, *common, "--pictures", 6).exit_code == 0
    large = out.stat().st_size
    less = (large - 12_000) / 1e6
    done = wgap("report", bundle, images, "--out", out, *common, "--pictures", 6, "--budget", less, "--force", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["bytes"] == out.stat().st_size <= less * 1e6
    assert (told["shown"], told["images"], told["latency"], told["networks"]) == (6, 15, None, ["fp32"])
    done = wgap("report", bundle, images, "--out", out, *common, "--budget", 0.05, "--force")
    assert isinstance(done.exception, DataError)
    assert "do not fit" in str(done.exception)
    assert out.stat().st_size == told["bytes"], "what was there is still there"


def test_bad_input_is_told(bundle: Path, tiny_bundle: Path, images: Path, page: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other.html", tmp_path / "report.html"
    other.write_text("<!doctype html>")
    damaged = shutil.copytree(images, tmp_path / "damaged")
    for path in (damaged / "images" / "test").iterdir():
        path.write_bytes(b"no image")
    cases: list[tuple[tuple[object, ...], type[Exception], str]] = [
        ((bundle, images, "--out", page), OutputExistsError, "already exists"),
        ((bundle, images, "--out", other, "--force"), OutputExistsError, "not a page that wgap wrote"),
        ((bundle, images, "--out", tmp_path, "--force"), OutputExistsError, "not a page that wgap wrote"),
        ((bundle, images, "--out", out, "--against", "fp16"), BundleError, "holds no fp16 model; it has: fp32, int8"),
        ((bundle, images, "--out", out, "--against", "fp32"), DataError, "another precision"),
        ((bundle, images, "--out", out, "--pictures", 0), DataError, "at least one picture"),
        ((bundle, damaged, "--out", out), DataError, "11 unreadable images, at most 10 allowed"),
        ((bundle, damaged, "--out", out, "--max-bad", 15), DataError, "no image of split 'test' could be read"),
        ((tiny_bundle, images, "--out", out), DataError, "expected one class of the model's for"),
    ]
    for arguments, error, text in cases:
        done = wgap("report", *arguments)
        assert isinstance(done.exception, error), (arguments, done.output)
        assert text in str(done.exception)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".html"] == ["other.html"]


def test_an_unreadable_image_is_named_in_the_page(bundle: Path, images: Path, tmp_path: Path) -> None:
    damaged, out = shutil.copytree(images, tmp_path / "damaged"), tmp_path / "report.html"
    (damaged / "images" / "test" / "4<i>&.png").write_bytes(b"no image")
    done = wgap("report", bundle, damaged, "--out", out, "--iterations", 0, "--rule", "fixed:0.3", "--map", "signed")
    assert done.exit_code == 0, done.output
    assert "skipped" in done.stderr
    report = data_of(out)["report"]
    assert (report["images"], len(report["skipped"])) == (14, 1)
    assert [one["text"] for one in report["rules"]] == ["fixed:0.3", "adaptive", "foreground", "foreground+colour"]
    require_browser()
    told = ask(out, """return document.querySelector("#provenance").textContent""")
    assert told["errors"] == []
    assert "4<i>&.png" in told["result"]


def test_a_bundle_without_scores_or_another_precision(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    plain, out = shutil.copytree(images, tmp_path / "plain"), tmp_path / "report.html"
    (plain / "classes.txt").write_text("disc\nring\ncross\n")
    done = wgap("report", tiny_bundle, plain, "--out", out, "--iterations", 0)
    assert done.exit_code == 0, done.output
    report = data_of(out)["report"]
    assert ([one["text"] for one in report["rules"]], report["networks"]) == (["adaptive"], ["fp32"])
    assert [len(picture["maps"]) for picture in report["pictures"]] == [1] * 15
    require_browser()
    told = ask(
        out,
        SLIDE
        + """press("r"); press("i"); press("m"); const moved = slide(0.5); press("0");
        document.querySelector(".card").click();
        return [moved, document.querySelectorAll("dialog tbody tr").length];""",
    )
    assert (told["errors"], told["violations"], told["result"][1]) == ([], [], 1)
    for picture in report["pictures"]:
        assert told["result"][0][picture["name"]] == pytest.approx(cut(picture, Rule(), 0.5, *report["grid"]), abs=0.16)


def test_a_stale_int8_is_left_out_by_default_and_said(bundle: Path, images: Path, tmp_path: Path) -> None:
    root, out = shutil.copytree(bundle, tmp_path / "stale"), tmp_path / "report.html"
    manifest = Bundle.open(root).manifest
    old = CalibrationRecord("1" * 64, "0" * 64, (), (), (), {})
    files = tuple(replace(one, calibration=old) if one.precision == "int8" else one for one in manifest.files)
    write_manifest(root, replace(manifest, files=files))
    done = wgap("report", root, images, "--out", out, "--iterations", 0)
    assert done.exit_code == 0, done.output
    assert "int8 is not compared: " in done.stderr
    assert data_of(out)["report"]["networks"] == ["fp32"]
    done = wgap("report", root, images, "--out", out, "--force", "--against", "int8")
    assert isinstance(done.exception, GateError)
