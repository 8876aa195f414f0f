"""What `wgap serve` writes: whole or not at all, within the bundle's and the engine's limits, over nothing of yours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wgap.bundle import Bundle, describe_file, write_manifest
from wgap.errors import (
    BundleError,
    DataError,
    EngineError,
    GateError,
    HashMismatchError,
    OutputExistsError,
    RuleError,
    WgapError,
)
from wgap.manifest import EngineRecord, Profile
from wgap.rule import Rule
from wgap.serve.repository import (
    PARAMETER,
    Options,
    Queue,
    config_text,
    options_of,
    server_command,
    write_repository,
)


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_model_is_a_config_a_few_lines_and_a_copy_of_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "repository"
    options = write_repository(tiny_bundle, out)
    assert (options.rule, options.map, options.max_batch) == ("adaptive", "recombined", 8)
    assert [path.name for path in out.iterdir()] == ["wgap"]
    listed = [f"1/bundle/{entry.path}" for entry in Bundle.open(tiny_bundle).manifest.files]
    assert below(out / "wgap") == sorted(["config.pbtxt", "1/model.py", "1/bundle/wgap.json", *listed])
    assert Bundle.open(out / "wgap" / "1" / "bundle").manifest == Bundle.open(tiny_bundle).manifest
    write_repository(tiny_bundle, out, "other")
    assert sorted(path.name for path in out.iterdir()) == ["other", "wgap"]


def test_the_config_is_tritons(tiny_bundle: Path) -> None:
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient: make test-serve")
    from google.protobuf import text_format

    options = replace(Options(), rule="adaptive", map="recombined", max_batch=16, backend="tensorrt", top_k=2)
    queue = Queue(delay_us=300, size=9, timeout_ms=70, instances=2, devices=(0, 3))
    text = config_text('n"', Bundle.open(tiny_bundle), options, queue).replace('"n""', '"n"')
    config = text_format.Parse(text, messages.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("n", "python", 16)
    [group] = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 2, [0, 3])
    batching = config.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.max_queue_delay_microseconds) == ([16], 300)
    policy = batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (9, 70_000)
    assert policy.timeout_action == policy.REJECT
    assert [(one.name, one.optional, one.allow_ragged_batch) for one in config.input] == [
        ("IMAGE", True, False),
        ("PIXELS", True, True),
    ]
    assert {one.name: list(one.dims) for one in config.output}["BOXES"] == [2, 1, 4]
    assert options_of(config.parameters[PARAMETER].string_value) == options


def test_an_earlier_model_is_replaced_if_told_and_nothing_else(tiny_bundle: Path, tmp_path: Path) -> None:
    write_repository(tiny_bundle, tmp_path)
    before = (tmp_path / "wgap" / "config.pbtxt").read_text()
    with pytest.raises(OutputExistsError, match="pass --force"):
        write_repository(tiny_bundle, tmp_path, options=Options(max_batch=3))
    write_repository(tiny_bundle, tmp_path, options=Options(max_batch=3), force=True)
    assert "max_batch_size: 3\n" in (tmp_path / "wgap" / "config.pbtxt").read_text() != before


@pytest.mark.parametrize(
    "yours", ["notes.txt", "1/weights.bin", "2/model.py", "1/model.py", "1/bundle/mine.txt", "1/bundle/wgap.json"]
)
def test_what_is_yours_is_not_replaced(tiny_bundle: Path, tmp_path: Path, yours: str) -> None:
    write_repository(tiny_bundle, tmp_path)
    path = tmp_path / "wgap" / yours
    if path.name == "wgap.json":
        path.unlink()  # no model of ours then
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    before = {name: (tmp_path / "wgap" / name).read_bytes() for name in below(tmp_path / "wgap")}
    with pytest.raises(OutputExistsError, match="refusing to replace"):
        write_repository(tiny_bundle, tmp_path, force=True)
    assert before == {name: (tmp_path / "wgap" / name).read_bytes() for name in below(tmp_path / "wgap")}


def test_a_write_that_fails_leaves_nothing(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"other")
    with pytest.raises(HashMismatchError):
        write_repository(broken, tmp_path / "out")
    content = Bundle.content

    def full(self: Bundle, entry: Any) -> bytes:
        if entry.role == "golden":
            raise OSError(28, "No space left on device")
        return content(self, entry)

    monkeypatch.setattr(Bundle, "content", full)
    with pytest.raises(OSError, match="No space left"):
        write_repository(tiny_bundle, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("options", "queue", "error", "words"),
    [
        (Options(backend="auto"), Queue(), DataError, "name it: --backend onnxruntime"),
        (Options(backend="onnxruntime", max_batch=0), Queue(), DataError, None),
        (Options(max_batch=5000), Queue(), DataError, r"max_batch: expected a whole number in 1..4096, got 5000"),
        (Options(top_k=4), Queue(), DataError, r"top_k: expected a whole number in 1..3, got 4"),
        (Options(max_request=0), Queue(), DataError, "max_request"),
        (Options(), Queue(size=0), DataError, "queue size"),
        (Options(), Queue(timeout_ms=0), DataError, "queue timeout"),
        (Options(), Queue(devices=(0,)), DataError, "runs on the CPU"),
        (Options(backend="tensorrt"), Queue(devices=(1, 0, 1)), DataError, "each GPU once, got 1, 0, 1"),
        (Options(threads=0), Queue(), DataError, "threads"),
        (Options(slots=3), Queue(), DataError, "slots"),
        (Options(backend="tensorrt", device="1"), Queue(), DataError, "--devices 0,1"),
        (Options(backend="unknown"), Queue(), WgapError, "unknown backend 'unknown'"),
        (Options(precision="int8"), Queue(), BundleError, "holds no int8 model"),
        (Options(rule="foreground"), Queue(), BundleError, "foreground"),
        (Options(rule="nothing"), Queue(), RuleError, "nothing"),
        (Options(backend="tensorrt"), Queue(), EngineError, "holds no tensorrt engine of precision fp32"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(
    tiny_bundle: Path, tmp_path: Path, options: Options, queue: Queue, error: type[Exception], words: str | None
) -> None:
    with pytest.raises(error, match=words):
        write_repository(tiny_bundle, tmp_path / "out", options=options, queue=queue)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", 'a"'])
def test_a_name_is_one_of_a_folder(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="a model's name"):
        write_repository(tiny_bundle, tmp_path / "out", name)


@pytest.mark.parametrize("folder", ["a b", "a;b", "$(id)", "a'b", "ä"])
def test_a_path_that_a_shell_would_read_otherwise_is_refused(tiny_bundle: Path, tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match="hands the path of a model to a shell, unquoted; choose one without"):
        write_repository(tiny_bundle, tmp_path / folder)
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_gate_has_judged_is_refused_unless_asked(tiny_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    bundle = Bundle.open(root)
    shutil.copy(root / "model.onnx", root / "model.int8.onnx")
    entry = describe_file(root, root / "model.int8.onnx", "onnx", "int8")
    write_manifest(root, replace(bundle.manifest, files=(*bundle.manifest.files, entry)))
    with pytest.raises(GateError, match="never measured"):
        write_repository(root, tmp_path / "out", options=Options(precision="int8"))
    assert write_repository(root, tmp_path / "out", options=Options(precision="int8", ungated=True)).ungated


def test_the_largest_batch_is_that_of_the_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    bundle, entries = Bundle.open(root), []
    for most in (16, 12):
        path = root / f"{most}.plan"
        path.write_bytes(b"plan")
        record = EngineRecord(
            "tensorrt", "10.9", "8.6", "linux x86_64", Profile(1, 8, most), bundle.file("onnx", "fp32").sha256
        )
        entries.append(describe_file(root, path, "engine", "fp32", engine=record))
    write_manifest(root, replace(bundle.manifest, files=(*bundle.manifest.files, *entries)))
    asked = Options(backend="tensorrt")
    assert write_repository(root, tmp_path / "out", options=asked).max_batch == 12
    with pytest.raises(EngineError, match=r"12.plan takes at most 12 pictures at a time, and --max-batch is 13"):
        write_repository(root, tmp_path / "more", options=replace(asked, max_batch=13))


def test_the_command_shuts_every_door_but_inference(tmp_path: Path) -> None:
    def command(*given: Any) -> dict[str, str]:
        words = server_command(tmp_path / "a", Options(max_request=5 << 20), Queue(timeout_ms=2500), *given)
        assert words[0] == (given[1] if len(given) > 1 else "tritonserver")
        return dict(word.removeprefix("--").partition("=")[::2] for word in words[1:])

    flags = command(False, str(tmp_path / "not here"))
    assert flags["model-repository"] == str(tmp_path / "a")
    assert {flags[f"{part}-address"] for part in ("http", "grpc", "metrics")} == {"127.0.0.1"}
    assert flags["exit-timeout-secs"] == "33"
    assert flags["http-max-input-size"] == str(6 << 20)
    for flag in ("http-restricted-api", "grpc-restricted-protocol"):
        apis, _, key = flags[flag].partition(":")
        assert apis == "model-repository,trace,logging,shared-memory"
        assert key != command()[flag].partition(":")[2]
        assert "shared-memory" not in command(True)[flag]


def wgap(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from wgap.cli import main; main()", "serve", *map(str, arguments)]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def test_the_verb_writes_and_prints_how_to_serve(tiny_bundle: Path, tmp_path: Path) -> None:
    done = wgap(
        tiny_bundle,
        "--out",
        tmp_path,
        "--name",
        "birds",
        "--top-k",
        2,
        "--rule",
        "fixed:0.2",
        "--queue-size",
        7,
        "--json",
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["model"], told["folder"]) == ("birds", str(tmp_path / "birds"))
    text = (tmp_path / "birds" / "config.pbtxt").read_text()
    assert "max_queue_size: 7\n" in text
    stored = json.loads(json.loads(text.split("string_value: ")[1].split(" }\n")[0]))
    assert (stored["rule"], stored["map"], stored["top_k"]) == ("fixed:0.2", Rule.parse("fixed:0.2").map, 2)
    again = wgap(tiny_bundle, "--out", tmp_path, "--name", "birds")
    assert again.returncode == 1
    assert again.stderr.startswith(f"error: {tmp_path / 'birds'} already exists")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "say what to do"),
        (["--out", "o", "--check", "http://127.0.0.1:1"], "say what to do"),
        (["--out", "o", "--devices", "0,x"], "--devices: expected ordinals"),
        (["--check", "ftp://here", "a.jpg"], "a.jpg: no such file"),
    ],
)
def test_the_verb_refuses_in_one_line(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = wgap(tiny_bundle, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()
