"""From a bundle's ONNX file to an engine in the bundle, with TensorRT 10, TensorRT 11 or TensorRT-RTX.

Networks are strongly typed, so that the ONNX file alone decides what is computed in which precision.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from wgap import __version__
from wgap.atomic import atomic_file
from wgap.bundle import Bundle
from wgap.errors import DataError, EngineError
from wgap.export.attest import attest_network, convolution_nodes, inspect_plan
from wgap.extend import enter_file, require_writable
from wgap.manifest import BundleFile, EngineRecord, Profile, require_signature
from wgap.rule import Rule
from wgap.runtime.cuda.driver import Context
from wgap.runtime.engine import DEFAULT_BATCH, PORTABLE, Host, fits
from wgap.runtime.library import Gpu, dtype_name, gpu, gpus, library_log, load_library

__all__ = ["HARDWARE_COMPAT", "BuildOptions", "Phases", "engine_from_bundle"]

HARDWARE_COMPAT = ("none", "ampere_plus", "same_compute_capability")


class Phases(Protocol):
    """Hears how far the build is, from any thread: TensorRT's ``IProgressMonitor``."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, within its parent or on its own."""

    def step(self, phase: str, step: int) -> None:
        """A step is done; the first is 0."""

    def finish(self, phase: str) -> None:
        """The phase is over, whether or not all of its steps were taken."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        batch: smallest, usual and largest batch: the profile of ``image``.
        timing_cache: file that keeps tactic timings between builds; tensorrt only.
        hardware_compat: ``none``, ``ampere_plus`` or ``same_compute_capability``; tensorrt only.
        compute_capabilities: such as ``("8.6", "8.9")``, empty for what the library does by itself; tensorrt_rtx only.
        version_compatible: loadable by later versions of the same major number; tensorrt only.
        strip_weights: leave the weights out; whoever loads the plan refits it from the ONNX file.
        refit: weights may be replaced in the loaded engine.
        tf32: let float32 products be rounded to 10 bits of mantissa; off, although it is the library's default.
        outputs: of the engine, such as ``("logits", "foreground")``, whose rules read no features; empty for all of the
            model's.
    """

    batch: tuple[int, int, int] = DEFAULT_BATCH
    timing_cache: Path | None = None
    hardware_compat: str = "none"
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    tf32: bool = False
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            raise DataError(f"expected a batch 1 <= MIN <= OPT <= MAX, got {low},{usual},{high}")
        if self.hardware_compat not in HARDWARE_COMPAT:
            raise DataError(
                f"unknown hardware compatibility {self.hardware_compat!r}; expected one of {', '.join(HARDWARE_COMPAT)}"
            )


def engine_from_bundle(
    bundle: Bundle,
    flavor: str = "tensorrt_rtx",
    precision: str = "fp32",
    options: BuildOptions | None = None,
    ungated: bool = False,
    phases: Phases | None = None,
    device: int | str | None = None,
    rule: Rule | None = None,
) -> tuple[Bundle, BundleFile]:
    """Build an engine from the bundle's ONNX file of that precision and enter it under ``engines/``.

    An engine of the same flavor, version, precision and architecture is replaced; one without weights counts apart.

    Args:
        bundle: the bundle.
        flavor: ``tensorrt`` or ``tensorrt_rtx``.
        precision: ``fp32``, or a lower one made by ``wgap calibrate``.
        options: see :class:`BuildOptions`.
        ungated: take a lower-precision file even if its gate failed or never ran.
        phases: hears how far it is.
        device: the GPU to build on, by ordinal or UUID; None for the first, if there is one.
        rule: that a lower-precision file's gate must have judged; None for the bundle's own.

    Returns:
        the bundle, opened again, and the engine's entry.

    Raises:
        BundleError: if the bundle has no such file or cannot be written; it is as it was then.
        GateError: see :meth:`wgap.bundle.Bundle.model_file`.
        DataError: if the flavor is unknown or lacks an option.
        BackendError: if a device is named and there is no such GPU.
        MissingDependencyError: if the flavor's library or onnx is not installed, or for a named device cuda-core.
        EngineError: if the file does not parse or the engine does not build.
        CheckFailedError: if a convolution would compute in another precision than the manifest says.
    """
    options = options or BuildOptions()
    source = bundle.model_file(precision, ungated, rule)
    library = load_library(flavor)
    _require_options(library, options)
    _require_outputs(bundle, options.outputs)
    require_writable(bundle)
    here = gpu(device) if device is not None or gpus() else None
    log = library_log(library)
    if flavor == "tensorrt" and here is None:
        raise EngineError(
            f"TensorRT {library.__version__} builds on the GPU that the engine is for, by timing kernels; the driver "
            "shows none. Build there, or take --flavor tensorrt_rtx, which needs no GPU to build"
        )
    architecture = _architecture(flavor, options, here)
    graph = bundle.content(source)
    with _current(here if device is not None else None):
        builder = _builder(library, log)
        network, parser = _network(library, builder, log, graph, bundle.root / source.path)
        require_signature(bundle.manifest.model, _tensors(network), source.path)
        for tensor in [network.get_output(index) for index in range(network.num_outputs)]:
            if options.outputs and tensor.name not in options.outputs:
                network.unmark_output(tensor)
        attestation = attest_network(library, network, convolution_nodes(graph), source)
        plan = _plan(library, log, builder, network, bundle.manifest.model.input_size, options, phases, here)
        del parser, network, builder  # the parser owns the weights that the network reads
        attestation["engine_inspector"] = _inspected(library, log, plan, architecture, here)
    path = f"engines/model.{precision}.{flavor}-{library.__version__}{_suffix(architecture, options)}.plan"
    built = EngineRecord(
        flavor=flavor, version=str(library.__version__), architecture=architecture, platform=Host(flavor, "").platform,
        profile=Profile(*options.batch), onnx_sha256=source.sha256, options=_options_json(options),
        gpu=here.name if here else None, driver=here.driver if here else None, cuda=here.cuda if here else None,
        calibration_sha256=source.calibration.images_sha256 if source.calibration else None, attestation=attestation,
        tools={"wgap": __version__, "python": platform.python_version()},
    )  # fmt: skip
    bundle = enter_file(bundle, plan, path, "engine", precision, lambda _: False, [source.sha256], engine=built)
    return bundle, next(entry for entry in bundle.manifest.files if entry.path == path)


@contextmanager
def _current(chosen: Gpu | None) -> Iterator[None]:
    """That GPU as the one that the library builds on; None leaves that to the library."""
    if chosen is None:
        yield
        return
    context = Context(chosen.ordinal, primary=True)
    try:
        with context:
            yield
    finally:
        context.close()


def _require_options(library: Any, options: BuildOptions) -> None:
    """Refuse an option that the flavor lacks, rather than build something else than was asked for."""
    flavor = library.__name__
    rtx = flavor == "tensorrt_rtx"
    lacking = {
        "--timing-cache": (rtx and options.timing_cache, "it times nothing when it builds"),
        "--hardware-compat": (
            rtx and options.hardware_compat != "none",
            "its engines are portable; restrict them with --compute-capability",
        ),
        "--version-compatible": (rtx and options.version_compatible, "its engines fit one release; build for each"),
        "--compute-capability": (
            not rtx and options.compute_capabilities,
            "it builds for the GPU it runs on; widen that with --hardware-compat",
        ),
    }
    for option, (asked, instead) in lacking.items():
        if asked:
            raise DataError(f"the flavor {flavor} has no {option}: {instead}")
    for capability in options.compute_capabilities:
        if not hasattr(library.ComputeCapability, _member(capability)):
            have = [name for name in library.ComputeCapability.__members__ if name.startswith("SM")]
            raise DataError(
                f"{flavor} {library.__version__} does not know compute capability {capability}; expected some of "
                f"{', '.join(f'{name[2:-1]}.{name[-1]}' for name in have)}"
            )


def _require_outputs(bundle: Bundle, wanted: tuple[str, ...]) -> None:
    """Refuse outputs that the model has not, or that no rule can do with."""
    have = [tensor.name for tensor in bundle.manifest.model.outputs]
    if wanted and not ({"logits"} < set(wanted) <= set(have)):
        raise DataError(
            f"--outputs: expected logits and some more of {', '.join(have[1:])}, got {', '.join(wanted)}"
            + ("" if "foreground" in have else "; `wgap foreground` adds the output foreground")
        )


def _builder(library: Any, log: Any) -> Any:
    try:
        return library.Builder(log)
    except TypeError as error:  # how the bindings report a null pointer
        raise EngineError(
            f"{library.__name__} {library.__version__} gave no builder: {_said(log)}. Is the NVIDIA driver installed, "
            "new enough for it, and a GPU visible (nvidia-smi)?"
        ) from error


def _network(library: Any, builder: Any, log: Any, content: bytes, graph: Path) -> tuple[Any, Any]:
    """The parsed network and the parser, which owns the weights."""
    strongly = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))  # TensorRT 11 knows no other kind
    parser = library.OnnxParser(network, log)
    if not parser.parse(content):
        problems = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(
            f"node {p.node_name()!r}, operator {p.node_operator()}: {p.desc()}" if p.node_operator() else p.desc()
            for p in problems
        )
        raise EngineError(
            f"{library.__name__} {library.__version__} does not take {graph}: {reasons or _said(log)}. If the file is "
            "damaged, copy the bundle again or export it again"
        )
    return network, parser


def _tensors(network: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name to dtype and shape of a parsed network's inputs and outputs."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    return {tensor.name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for tensor in tensors}


def _plan(
    library: Any, log: Any, builder: Any, network: Any, size: tuple[int, int], options: BuildOptions,
    phases: Phases | None, gpu: Gpu | None,
) -> bytes:  # fmt: skip
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((batch, *size, 3) for batch in options.batch))
    config.add_optimization_profile(profile)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # else the engine inspector has names alone
    flags = {
        "TF32": options.tf32,
        "VERSION_COMPATIBLE": options.version_compatible,
        "STRIP_PLAN": options.strip_weights,
        "REFIT": options.refit,
    }
    for name, wanted in flags.items():
        flag = getattr(library.BuilderFlag, name, None)
        if flag is None and wanted:
            raise DataError(f"{library.__name__} {library.__version__} has no builder flag {name}")
        if flag is not None:
            (config.set_flag if wanted else config.clear_flag)(flag)
    if options.hardware_compat != "none":
        config.hardware_compatibility_level = getattr(
            library.HardwareCompatibilityLevel, options.hardware_compat.upper()
        )
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(library.ComputeCapability, _member(capability)), index)
    cache = _timing_cache(config, options.timing_cache) if options.timing_cache else None
    monitor = _monitor(library, phases)
    config.progress_monitor = monitor
    built = builder.build_serialized_network(network, config)
    if monitor.interrupted or log.interrupted:
        raise KeyboardInterrupt
    if built is None:
        raise EngineError(
            f"{library.__name__} {library.__version__} built no engine: {_said(log)}.{_instead(options, gpu)}"
        )
    if cache is not None and options.timing_cache:
        try:
            with atomic_file(options.timing_cache) as temporary:
                temporary.write_bytes(bytes(cache.serialize()))
        except OSError as error:
            raise EngineError(
                f"{options.timing_cache} cannot be written ({error.strerror}); name another. The bundle is as it was"
            ) from error
    return bytes(built)


def _instead(options: BuildOptions, gpu: Gpu | None) -> str:
    if gpu is None and (options.refit or options.strip_weights):
        return " Engines to be refitted are compiled on a GPU and the driver shows none: build there, or without"
    if "7.5" in options.compute_capabilities:
        return " Compute capability 7.5 cannot run the classifier, float32 in every precision: leave it out"
    return ""


def _timing_cache(config: Any, path: Path) -> Any:
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise DataError(
            f"{path} is no timing cache of this TensorRT and this GPU; expected one that `wgap build` wrote here. "
            "Delete it or name another"
        )
    return cache


def _monitor(library: Any, phases: Phases | None) -> Any:
    """TensorRT's progress for ``phases``. No exception may pass through its frames: Ctrl-C asks it to stop."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.interrupted = False

        def tell(self, event: str, *arguments: Any) -> None:
            try:
                if phases:
                    getattr(phases, event)(*arguments)
            except KeyboardInterrupt:
                self.interrupted = True

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.tell("start", phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            self.tell("step", phase, step)
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            self.tell("finish", phase)

    return Monitor()


def _architecture(flavor: str, options: BuildOptions, gpu: Gpu | None) -> str:
    """``portable``, ``8.0+``, or compute capabilities with commas between them."""
    if options.compute_capabilities:
        return ",".join(options.compute_capabilities)
    if flavor == "tensorrt_rtx":
        return PORTABLE
    if options.hardware_compat == "ampere_plus":
        return "8.0+"
    return gpu.compute_capability if gpu else "unknown"


def _suffix(architecture: str, options: BuildOptions) -> str:
    parts = [] if architecture == PORTABLE else architecture.split(",")
    names = [f"-sm{part.replace('.', '').replace('+', 'plus')}" for part in parts]
    names += [f"-{'-'.join(sorted(options.outputs))}"] if options.outputs else []
    return "".join([*names, *(["-stripped"] if options.strip_weights else [])])


def _inspected(library: Any, log: Any, plan: bytes, architecture: str, gpu: Gpu | None) -> Any:
    if gpu is None:
        return "not run, no GPU"
    if not fits(architecture, gpu.compute_capability):
        return f"not run, the GPU here has compute capability {gpu.compute_capability}"
    found = inspect_plan(library, log, plan)
    if found is None:
        raise EngineError(
            f"{library.__name__} {library.__version__} built a plan that it does not load on {gpu.name}: {_said(log)}"
        )
    return found


def _options_json(options: BuildOptions) -> dict[str, Any]:
    """What was asked for; not the name of a file, which is somebody's machine, and not the profile, told by itself."""
    plain = asdict(replace(options, timing_cache=None))
    del plain["batch"], plain["timing_cache"]
    lists = {name: list(plain[name]) for name in ("compute_capabilities", "outputs")}
    return {**plain, **lists, "strongly_typed": True}


def _member(capability: str) -> str:
    return f"SM{capability.replace('.', '')}"


def _said(log: Any) -> str:
    return "; ".join(dict.fromkeys(log.errors)) or "it did not say why"
