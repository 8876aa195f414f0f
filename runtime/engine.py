"""Engines of a bundle: which there are, and whether one may be deserialised here.

::

    plan = preflight(bundle, "engines/model.int8.tensorrt_rtx-1.7.1.116.plan", Host.here("tensorrt_rtx"), batch=1)
    engine = runtime.deserialize_cuda_engine(plan)      # the very bytes that were checked

A plan is code for one library, one kind of GPU and one network; read by another it fails late, or not at all. The
checks need the manifest alone: neither TensorRT nor a GPU.
"""

from __future__ import annotations

import hashlib
import platform as machine
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wgap.bundle import Bundle, confined, open_regular
from wgap.errors import BundleError, EngineError, EngineMismatchError, GateError
from wgap.manifest import BundleFile, EngineRecord
from wgap.rule import Rule
from wgap.runtime.library import gpu, gpus, library_log, load_library

__all__ = [
    "DEFAULT_BATCH", "Host", "Mismatch", "about", "build_command", "built_outputs", "engine_file", "engines", "fits",
    "mismatches", "preflight", "stale",
]  # fmt: skip

DEFAULT_BATCH = (1, 8, 16)
"""Smallest, usual and largest batch of an engine's profile, where nothing else is asked for."""

PORTABLE = "portable"
"""TensorRT-RTX's default: compiled on the GPU it is loaded on."""

_PORTABLE_TO = ("8.0", "8.6", "8.9")


@dataclass(frozen=True)
class Host:
    """What is to run an engine.

    Attributes:
        flavor: ``tensorrt`` or ``tensorrt_rtx``.
        version: of that library.
        compute_capability: of the GPU, such as ``8.6``; None where there is none or it is unknown.
        platform: such as ``linux x86_64``.
        library: its Python module, for its own check of the plan; None leaves that out.
    """

    flavor: str
    version: str
    compute_capability: str | None = None
    platform: str = f"{sys.platform} {machine.machine()}"
    library: Any = None

    @staticmethod
    def here(flavor: str, device: int | str | None = None) -> Host:
        """This machine, this environment, and one of its GPUs, by ordinal or UUID; None for the first, if there is one.

        Raises:
            MissingDependencyError: see :func:`wgap.runtime.library.load_library`.
            BackendError: if a device is named and there is no such GPU.
        """
        library = load_library(flavor)
        chosen = gpu(device) if device is not None or gpus() else None
        return Host(flavor, str(library.__version__), chosen.compute_capability if chosen else None, library=library)


@dataclass(frozen=True)
class Mismatch:
    """One row of the table: what was compared, what would fit, what is there."""

    what: str
    expected: str
    found: str


def engines(bundle: Bundle) -> list[BundleFile]:
    """The bundle's engines, in the manifest's order."""
    return [entry for entry in bundle.manifest.files if entry.role == "engine"]


def stale(bundle: Bundle, entry: BundleFile) -> bool:
    """Whether the bundle's model of the engine's precision is no longer the file that the engine was built from."""
    return _model_sha256(bundle, entry.precision) != about(entry).onnx_sha256


def about(entry: BundleFile) -> EngineRecord:
    """What the manifest says of an engine.

    Raises:
        EngineError: if the entry is of another file.
    """
    if entry.engine is None:
        raise EngineError(f"{entry.path} is no engine but {entry.role}; `wgap inspect` lists the bundle's engines")
    return entry.engine


def built_outputs(bundle: Bundle, entry: BundleFile) -> tuple[str, ...]:
    """The outputs that an engine has: all of the model's, or those that ``wgap build --outputs`` kept."""
    kept = about(entry).options.get("outputs") or ()
    return tuple(tensor.name for tensor in bundle.manifest.model.outputs if not kept or tensor.name in kept)


def fits(architecture: str, compute_capability: str) -> bool:
    """Whether an engine for ``portable``, ``8.0+`` or a list such as ``8.6,8.9`` runs on that compute capability.

    Portable is what TensorRT-RTX documents: 8.0, 8.6, 8.9, 12.0 and later.
    """
    if architecture == PORTABLE:
        return compute_capability in _PORTABLE_TO or _numbers(compute_capability) >= (12, 0)
    if architecture.endswith("+"):
        return _numbers(compute_capability) >= _numbers(architecture[:-1])
    return compute_capability in architecture.split(",")


def engine_file(bundle: Bundle, host: Host, precision: str, rule: Rule | None = None) -> BundleFile:
    """The engine to use: of the host's flavor and that precision, the one with the fewest mismatches.

    One that has its weights goes before one that was stripped of them, then the one with the fewest outputs; it must
    have those that the rule reads (None: the bundle's own rule).

    Raises:
        EngineError: if there is none; the message has the command that builds one.
    """
    found = [e for e in engines(bundle) if (about(e).flavor, e.precision) == (host.flavor, precision)]
    if not found:
        have = ", ".join(f"{about(e).flavor} {e.precision}" for e in engines(bundle)) or "none"
        raise EngineError(
            f"{bundle.root} holds no {host.flavor} engine of precision {precision}; its engines: {have}. Build one: "
            f"{build_command(bundle, host, precision)}"
        )

    def unfit(entry: BundleFile) -> tuple[int, bool, int]:
        stripped = bool(about(entry).options.get("strip_weights"))
        return len(mismatches(bundle, entry, host, rule=rule)), stripped, len(built_outputs(bundle, entry))

    return min(found, key=unfit)


def mismatches(
    bundle: Bundle, entry: BundleFile, host: Host, batch: int | None = None, rule: Rule | None = None
) -> list[Mismatch]:
    """What the manifest says against the host; the plan itself is not read.

    Args:
        bundle: the bundle.
        entry: its engine.
        host: what is to run it.
        batch: images per call; None leaves the profile out.
        rule: whose outputs it must have; None for the bundle's own.
    """
    made = about(entry)
    rows = []
    if made.flavor != host.flavor:
        rows.append(Mismatch("flavor", host.flavor, made.flavor))
    elif not _same_version(made, host.version):
        rows.append(Mismatch("version", host.version, made.version))
    if host.compute_capability is not None and not fits(made.architecture, host.compute_capability):
        rows.append(Mismatch("GPU architecture", host.compute_capability, made.architecture))
    if made.platform != host.platform:
        rows.append(Mismatch("platform", host.platform, made.platform))
    if batch is not None and not made.profile.min <= batch <= made.profile.max:
        rows.append(Mismatch("batch", str(batch), f"{made.profile.min} to {made.profile.max}"))
    have, read = built_outputs(bundle, entry), (rule or bundle.manifest.rule).outputs
    if not set(read) <= set(have):
        rows.append(Mismatch(f"outputs, for the rule {rule or bundle.manifest.rule}", ", ".join(read), ", ".join(have)))
    if stale(bundle, entry):
        current = _model_sha256(bundle, entry.precision)
        rows.append(
            Mismatch(
                f"{entry.precision} model, sha256",
                f"{current[:12]}..." if current else "a model of that precision",
                f"{made.onnx_sha256[:12]}..." + ("" if current else ", not in the bundle"),
            )
        )
    return rows


def preflight(
    bundle: Bundle, path: Path | str, host: Host, batch: int | None = None, trust: bool = False, ungated: bool = False,
    rule: Rule | None = None,
) -> bytes:  # fmt: skip
    """Check a plan before any of its bytes is deserialised.

    Args:
        bundle: the bundle.
        path: the plan, relative to the bundle, or absolute.
        host: what is to run it.
        batch: images per call; None leaves the profile out.
        trust: take a plan that the manifest does not list; of the checks only the library's own remains.
        ungated: take an engine whose model's gate failed or never ran.
        rule: that the boxes will be made under, which the gate must have judged; None for the bundle's own.

    Returns:
        the plan, the very bytes that were checked.

    Raises:
        EngineMismatchError: with a table of everything that differs, and the command that builds a fitting engine.
        EngineError: if the plan is missing, or is not listed in the manifest.
        GateError: see :meth:`wgap.bundle.Bundle.model_file`.
    """
    where = bundle.root / path
    entry = next((e for e in bundle.manifest.files if (bundle.root / e.path).resolve() == where.resolve()), None)
    command = build_command(bundle, host, entry.precision if entry else "fp32", entry, batch, rule)
    if not trust and (entry is None or entry.role != "engine"):
        raise EngineError(
            f"{where} is not listed in the manifest as an engine, so that nothing says what it is. A plan is code: "
            f"pass trust=True only if you know who made it; else build one: {command}"
        )
    if not where.exists():
        raise EngineError(f"{where} is missing; copy the whole bundle or build it again: {command}")
    with open_regular(where if entry is None else confined(bundle.root, entry.path)) as stream:
        plan = stream.read()
    rows: list[Mismatch] = []
    if entry is not None and entry.role == "engine":
        rows = [*_content(entry, plan), *mismatches(bundle, entry, host, batch, rule)]
    if not rows:
        rows = _library_check(plan, host)
    if rows:
        raise EngineMismatchError(_table(where, rows, command))
    if entry is not None and entry.role == "engine":
        bundle.model_file(entry.precision, ungated, rule)
    return plan


def build_command(
    bundle: Bundle, host: Host, precision: str, entry: BundleFile | None = None, batch: int | None = None,
    rule: Rule | None = None,
) -> str:  # fmt: skip
    """The ``wgap build`` command that makes an engine fit for the host, the batch and the rule."""
    made = entry.engine if entry else None
    low, usual, high = (made.profile.min, made.profile.opt, made.profile.max) if made else DEFAULT_BATCH
    wanted = usual if batch is None else max(batch, 1)
    low, high = min(low, wanted), max(high, wanted)
    words = ["wgap", "build", str(bundle.root), "--flavor", host.flavor, "--precision", precision]
    words += ["--batch", f"{low},{usual},{high}"]
    restricted = made is not None and made.architecture != PORTABLE
    if host.flavor == "tensorrt_rtx" and host.compute_capability and restricted:
        words += ["--compute-capability", host.compute_capability]
    words += _options(made, host) if made else []
    if made and (kept := made.options.get("outputs")) and set((rule or bundle.manifest.rule).outputs) <= set(kept):
        words += ["--outputs", ",".join(kept)]
    try:
        bundle.model_file(precision)
    except GateError:
        words.append("--ungated")
    except BundleError:
        pass  # the build says what to do first
    return f"`{shlex.join(words)}`"


def _options(made: EngineRecord, host: Host) -> list[str]:
    """How the engine was built, as far as that goes for the host too."""
    options = made.options
    if made.flavor != host.flavor:
        return []
    switches = ("version_compatible", "strip_weights", "refit", "tf32")
    words = [f"--{name.replace('_', '-')}" for name in switches if options.get(name)]
    level = options.get("hardware_compat", "none")
    if level != "none" and (host.compute_capability is None or _numbers(host.compute_capability) >= (8, 0)):
        words += ["--hardware-compat", level]
    return words


def _table(where: Path, rows: list[Mismatch], command: str) -> str:
    lines = [("what", "expected", "found"), *((row.what, row.expected, row.found) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    listing = "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in lines)
    return f"{where} does not fit and was not loaded:\n{listing}\nBuild one that does, on this machine: {command}"


def _content(entry: BundleFile, plan: bytes) -> list[Mismatch]:
    if len(plan) != entry.size:
        return [Mismatch("bytes", str(entry.size), str(len(plan)))]
    found = hashlib.sha256(plan).hexdigest()
    return [] if found == entry.sha256 else [Mismatch("sha256", f"{entry.sha256[:12]}...", f"{found[:12]}...")]


def _library_check(plan: bytes, host: Host) -> list[Mismatch]:
    """What the library itself reads from the plan's header, where it has such a check (TensorRT-RTX)."""
    if host.library is None or not hasattr(host.library.Runtime, "get_engine_validity"):
        return []
    runtime = host.library.Runtime(library_log(host.library))
    validity, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    if validity != host.library.EngineValidity.INVALID:
        return []
    known = host.library.EngineInvalidityDiagnostics.__members__
    reasons = [name.lower().replace("_", " ") for name, member in known.items() if int(bits) & int(member)]
    if not reasons and host.compute_capability is None:
        return []  # without a GPU the library calls every whole plan invalid, without a reason
    return [Mismatch(f"{host.flavor}'s own check", "valid", ", ".join(reasons) or "invalid, no reason given")]


def _same_version(made: EngineRecord, running: str) -> bool:
    if made.version == running:
        return True
    if made.flavor != "tensorrt" or not made.options.get("version_compatible"):
        return False  # TensorRT-RTX promises nothing between releases
    return _numbers(made.version)[:1] == _numbers(running)[:1] and _numbers(made.version) <= _numbers(running)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _model_sha256(bundle: Bundle, precision: str) -> str | None:
    try:
        return bundle.model_file(precision, ungated=True).sha256
    except BundleError:
        return None
