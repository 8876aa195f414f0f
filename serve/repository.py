"""A Triton model repository of a bundle: pictures in, boxes out, in one step.

::

    REPOSITORY/NAME/config.pbtxt     tensors, batching, queue, instances, and the options under `parameters`
    REPOSITORY/NAME/1/model.py       a few lines that import wgap.serve.triton
    REPOSITORY/NAME/1/bundle/        a copy of the bundle
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wgap.atomic import atomic_dir, require_new
from wgap.bundle import MANIFEST, Bundle
from wgap.errors import BackendError, DataError, EngineError, MissingDependencyError, OutputExistsError
from wgap.plain import from_plain, read_json, to_plain
from wgap.runtime.engine import about, engines
from wgap.runtime.localizer import Localizer, chosen_rule
from wgap.runtime.networks import BACKENDS
from wgap.serve.tensors import INPUTS, Tensor, outputs

__all__ = [
    "BUNDLE",
    "PARAMETER",
    "Options",
    "Queue",
    "config_text",
    "open_served",
    "options_of",
    "server_command",
    "write_repository",
]

BUNDLE = "bundle"
"""Folder of the bundle's copy, beside ``model.py``."""

PARAMETER = "wgap"
"""Under ``parameters`` of ``config.pbtxt``: :class:`Options` as JSON."""

_MARK = "# Written by `wgap serve`."
_MODEL = f"""{_MARK} Change its options there, or in config.pbtxt.
import sys

try:
    from wgap.serve.triton import TritonPythonModel
except ImportError as error:
    raise ImportError(
        f"the server's Python {{sys.version.split()[0]}} in {{sys.prefix}} cannot import wgap ({{error}}); install "
        "wgap and its backend there, or put the `python3` that has them first in the server's PATH"
    ) from error

__all__ = ["TritonPythonModel"]
"""
_ON_CPU = ("onnxruntime", "openvino")
_USUAL_BATCH = 8
_ROOM = 1 << 20  # bytes of a request beside its pictures


@dataclass(frozen=True)
class Options:
    """How a served model localizes; see :class:`wgap.runtime.localizer.Localizer`.

    Attributes:
        backend: its name; not ``auto``, for where the model's instances lie depends on it.
        precision: of the model file.
        ungated: whether that may be one that no gate has passed.
        untested: whether the model may be served although its selftest fails on the server's device.
        rule: its text; None for the bundle's own.
        map: of the rule; likewise.
        threads: of one instance, on the CPU.
        device: of OpenVINO.
        slots: on a GPU.
        memory_limit: of ONNX Runtime on a GPU.
        hint: of OpenVINO.
        streams: of OpenVINO.
        top_k: classes that each picture gives.
        max_boxes: boxes that a class may have.
        max_batch: pictures in a request, or of several in a forward pass; None for what the engine takes, or 8.
        max_bytes: of an encoded picture.
        max_pixels: of a picture.
        max_request: bytes of a request's pictures.
    """

    backend: str = "onnxruntime"
    precision: str = "fp32"
    ungated: bool = False
    untested: bool = False
    rule: str | None = None
    map: str | None = None
    threads: int | None = None
    device: str | None = None
    slots: int | None = None
    memory_limit: int | None = None
    hint: str | None = None
    streams: int | None = None
    top_k: int = 1
    max_boxes: int = 1
    max_batch: int | None = None
    max_bytes: int = 32 << 20
    max_pixels: int = 1 << 26
    max_request: int = 128 << 20


@dataclass(frozen=True)
class Queue:
    """How requests wait, and for what.

    Attributes:
        delay_us: how long a request waits for others that go into a batch with it.
        size: requests that may wait; further ones are refused at once.
        timeout_ms: a request that waited for so long is refused.
        instances: of the model, each a process; on GPUs so many on each.
        devices: ordinals of GPUs; empty for all that the server has.
    """

    delay_us: int = 1000
    size: int = 64
    timeout_ms: int = 5000
    instances: int = 1
    devices: Sequence[int] = ()


def write_repository(
    source: Path, repository: Path, name: str = "wgap", options: Options | None = None, queue: Queue | None = None,
    force: bool = False,
) -> Options:  # fmt: skip
    """Write the model into the repository, whole or not at all.

    Args:
        source: the bundle.
        repository: a folder; made where it is missing. Other models in it stay.
        name: of the model.
        options: None for their defaults.
        queue: likewise.
        force: replace an earlier one of that name, if nothing else lies in it.

    Returns:
        the options, with what the bundle and its engine decide.

    Raises:
        OutputExistsError: there is a model of that name and ``force`` is false, or it is not one of ours.
        DataError: the name or an option is not as above, or the path is one that Triton cannot start a model in.
        BackendError: there is no such backend.
        GateError: as a localizer of these options.
        EngineError: the bundle has no engine for the backend, or it takes smaller batches.
        BundleError: see :meth:`wgap.bundle.Bundle.open`.
        OSError: nothing can be written there.
    """
    queue = queue or Queue()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise DataError(f"a model's name: expected letters, digits, '_', '.' and '-', got {name!r}")
    if odd := re.search(r"[^A-Za-z0-9_.,:=@%+/-]", str(repository.absolute())):
        raise DataError(
            f"{repository}: Triton's Python backend hands the path of a model to a shell, unquoted; choose one without "
            f"{odd.group()!r}"
        )
    bundle, place = Bundle.open(source), repository / name
    options = _settled(bundle, options or Options(), queue)
    require_new(place, force, f"1/{BUNDLE}/{MANIFEST}", "model of `wgap serve`")
    if place.exists():
        _require_ours(place)
    with atomic_dir(place, overwrite=force) as folder:
        (folder / "config.pbtxt").write_text(config_text(name, bundle, options, queue), encoding="utf-8")
        (folder / "1").mkdir()
        (folder / "1" / "model.py").write_text(_MODEL, encoding="utf-8")
        copy = folder / "1" / BUNDLE
        for entry in bundle.manifest.files:
            (copy / entry.path).parent.mkdir(parents=True, exist_ok=True)
            (copy / entry.path).write_bytes(bundle.content(entry))
        (copy / MANIFEST).write_text(bundle.manifest.to_json(), encoding="utf-8")
    return options


def _settled(bundle: Bundle, options: Options, queue: Queue) -> Options:
    """The options with rule and batch, once all of them were judged without a GPU or a backend's library."""
    gpu = options.backend not in _ON_CPU
    if options.backend not in BACKENDS:
        raise BackendError(f"unknown backend {options.backend!r}; expected one of: {', '.join(sorted(BACKENDS))}")
    if options.backend == "auto":
        raise DataError("a server's backend depends on where it runs; name it: --backend onnxruntime, tensorrt, ...")
    if queue.devices and not gpu:
        raise DataError(f"--devices are GPUs, and the backend {options.backend} runs on the CPU; leave them out")
    if options.device is not None and gpu:
        raise DataError("--device: a server's instances are on every GPU, or those of --devices 0,1; leave it out")
    ranges = [
        ("top_k", options.top_k, 1, len(bundle.manifest.model.classes)),
        ("max_boxes", options.max_boxes, 1, 64),
        ("max_batch", 1 if options.max_batch is None else options.max_batch, 1, 4096),
        ("max_bytes", options.max_bytes, 1, 1 << 31),
        ("max_pixels", options.max_pixels, 1, 1 << 28),
        ("max_request", options.max_request, 1, (1 << 31) - (1 << 20)),
        ("queue delay", queue.delay_us, 0, 60_000_000),
        ("queue size", queue.size, 1, 1 << 20),
        ("queue timeout", queue.timeout_ms, 1, 86_400_000),
        ("instances", queue.instances, 1, 256),
    ]
    for what, value, low, high in ranges:
        if not low <= value <= high:
            raise DataError(f"{what}: expected a whole number in {low}..{high}, got {value}")
    if len(set(queue.devices)) < len(queue.devices):
        raise DataError(f"--devices: expected each GPU once, got {', '.join(map(str, queue.devices))}")
    rule = chosen_rule(bundle, options.rule, options.map)
    bundle.manifest.require_rule(rule)
    bundle.model_file(options.precision, options.ungated, rule, options.backend)
    batch = options.max_batch
    if options.backend in ("tensorrt", "tensorrt_rtx"):
        batch = _engine_batch(bundle, options)
    settled = replace(options, rule=str(rule), map=rule.map, max_batch=batch or _USUAL_BATCH)
    if not gpu:
        with suppress(MissingDependencyError):  # the server's Python may have what this one has not
            open_served(bundle, settled).close()  # what its backend refuses it refuses here
    return settled


def _engine_batch(bundle: Bundle, options: Options) -> int:
    """The batch asked for, or the largest of the engines' profiles."""
    wanted = (options.backend, options.precision)
    found = [e for e in engines(bundle) if (about(e).flavor, e.precision) == wanted]
    if not found:
        raise EngineError(
            f"{bundle.root} holds no {wanted[0]} engine of precision {wanted[1]}; build one with `wgap build`"
        )
    least = min(found, key=lambda entry: about(entry).profile.max)
    largest = about(least).profile.max
    if options.max_batch is not None and options.max_batch > largest:
        raise EngineError(
            f"{bundle.root / least.path} takes at most {largest} pictures at a time, and --max-batch is "
            f"{options.max_batch}; ask for {largest}, or build an engine for more with `wgap build`"
        )
    return options.max_batch or largest


def _require_ours(place: Path) -> None:
    """Refuse to replace a model that has something in it that was not written here."""
    model, bundle = place / "1" / "model.py", place / "1" / BUNDLE
    ours = {"config.pbtxt", "1/model.py", f"1/{BUNDLE}/{MANIFEST}"}
    ours |= {f"1/{BUNDLE}/{entry.path}" for entry in Bundle.open(bundle, verify=False).manifest.files}
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir()}
    foreign = sorted(name for name in there - ours if not name.startswith("1/__pycache__/"))
    if not foreign and model.is_file() and not model.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        foreign = ["1/model.py"]
    if foreign:
        raise OutputExistsError(f"{place}: `wgap serve` did not write {foreign[0]}; refusing to replace what is yours")


def config_text(name: str, bundle: Bundle, options: Options, queue: Queue) -> str:
    """``config.pbtxt``, by the names of Triton's ``ModelConfig``."""
    gpu = options.backend not in _ON_CPU
    kind = "KIND_GPU" if gpu else "KIND_CPU"
    gpus = f" gpus: [{', '.join(map(str, queue.devices))}]" if queue.devices else ""
    preferred = ""
    if options.backend in ("tensorrt", "tensorrt_rtx"):
        preferred = f"  preferred_batch_size: [{options.max_batch}]\n"
    inputs = ",\n".join(_declared(one, " optional: true" + _RAGGED.get(one.name, "")) for one in INPUTS)
    made = ",\n".join(_declared(one) for one in outputs(options.top_k, options.max_boxes))
    return f"""# Written by `wgap serve`.
name: "{name}"
backend: "python"
max_batch_size: {options.max_batch}
input [
{inputs}
]
output [
{made}
]
dynamic_batching {{
{preferred}  max_queue_delay_microseconds: {queue.delay_us}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {queue.timeout_ms * 1000}
    allow_timeout_override: true
    max_queue_size: {queue.size}
  }}
}}
instance_group [
  {{ count: {queue.instances} kind: {kind}{gpus} }}
]
parameters {{
  key: "{PARAMETER}"
  value: {{ string_value: {json.dumps(json.dumps(to_plain(options)))} }}
}}
"""


_RAGGED = {"PIXELS": " allow_ragged_batch: true"}


def _declared(tensor: Tensor, more: str = "") -> str:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return f'  {{ name: "{tensor.name}" data_type: TYPE_{kind} dims: {list(tensor.dims)}{more} }}'


def options_of(text: str) -> Options:
    """What :func:`config_text` put under ``parameters``.

    Raises:
        PlainError: it is something else.
    """
    return from_plain(Options, read_json(text))


def open_served(bundle: Bundle | Path, options: Options, device: int | str | None = None) -> Localizer:
    """The localizer of these options, on that GPU of a backend on GPUs."""
    given = asdict(options)
    for name in ("untested", "max_bytes", "max_pixels", "max_request"):
        del given[name]
    batch = given.pop("max_batch") or _USUAL_BATCH
    given["device"] = options.device if device is None else device
    return Localizer(bundle, batch_size=batch, **given)


def server_command(
    repository: Path, options: Options, queue: Queue, shared_memory: bool = False, server: str = "tritonserver"
) -> list[str]:
    """What serves the repository to this machine alone, within the limits, with every door shut but inference.

    Args:
        repository: as it was written.
        options: likewise.
        queue: likewise.
        shared_memory: let clients register shared memory; any of them can then read what others put there.
        server: the program; where it is here, it is asked whether it has a limit on the bytes of a body.
    """
    closed = ["model-repository", "trace", "logging", *([] if shared_memory else ["shared-memory"])]
    nobody = f"{','.join(closed)}:wgap-closed={secrets.token_hex(16)}"
    words = [server, f"--model-repository={repository.absolute()}", "--disable-auto-complete-config"]
    words += [f"--{part}-address=127.0.0.1" for part in ("http", "grpc", "metrics")]
    words += [f"--http-restricted-api={nobody}", f"--grpc-restricted-protocol={nobody}"]
    words += [f"--exit-timeout-secs={-(-queue.timeout_ms // 1000) + 30}"]
    if has_body_limit(server):
        words.append(f"--http-max-input-size={options.max_request + _ROOM}")
    return words


def has_body_limit(server: str = "tritonserver") -> bool:
    """Whether a server refuses bodies by their size: since 2.59 (25.06), which is assumed of one that is not here."""
    if shutil.which(server) is None:
        return True
    told = subprocess.run([server, "--help"], capture_output=True, text=True, check=False)
    return "--http-max-input-size" in told.stdout + told.stderr
