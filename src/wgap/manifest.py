"""``wgap.json``, typed: the network and its signature, the rule, and every file with what it was made from.

Written as schema 2. Schema 1 is read too, upgraded in memory (:mod:`wgap.schema1`).
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from wgap.errors import BundleError, ManifestError
from wgap.plain import PlainError, from_plain, read_json, require_distinct, to_plain
from wgap.preprocessing import Preprocessing
from wgap.rule import Rule

__all__ = [
    "HEAD", "MANIFEST", "OWN_VERDICT", "SCHEMA", "Architecture", "BundleFile", "CalibrationRecord", "EngineRecord",
    "ForegroundRecord", "GateRecord", "ImageHashes", "ImportRecord", "Manifest", "ModelInfo", "Profile", "Tensor",
    "TrainingRecord", "require_signature",
]  # fmt: skip

MANIFEST = "wgap.json"

SCHEMA = 2

HEAD = "foreground/"
"""What the names of a foreground head's nodes and constants begin with: they are no part of the network's own."""

OWN_VERDICT = ("openvino",)
"""Backends that a verdict of ONNX Runtime says nothing about, since they round INT8 and bfloat16 otherwise."""

_LARGEST = 65535
"""Of the extents of a tensor."""

_MOST_FILES = 1000

_SHA256 = re.compile("[0-9a-f]{64}")

_LONGEST = 240
"""Bytes of a file's path: every file system takes a name of so many, and of a few more for a temporary one."""


@dataclass(frozen=True)
class Architecture:
    """What the network is called, and its parameters: for information, and for rebuilding it in PyTorch."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tensor:
    """One input or output of the graph.

    Attributes:
        name: in the graph.
        dtype: ``uint8`` or ``float32``.
        shape: extents; the first is ``N``, the batch, which is free.
        layout: a letter for each axis, such as ``NCHW``.
    """

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int | str, ...]
    layout: str

    @property
    def extents(self) -> tuple[int, ...]:
        """The shape after the batch."""
        return tuple(int(n) for n in self.shape[1:])

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class ModelInfo:
    """The network inside the bundle.

    Attributes:
        architecture: name and parameters.
        classes: class names; the index is the class id.
        inputs: ``image`` uint8 [N, H, W, 3] RGB.
        outputs: ``logits`` float32 [N, K], ``features`` float32 [N, C, h, w] and, once ``wgap foreground`` added it,
            ``foreground`` float32 [N, 1, h', w'], above 0 on the object.
    """

    architecture: Architecture
    classes: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @staticmethod
    def of(
        architecture: Architecture,
        classes: Sequence[str],
        input_size: tuple[int, int],
        feature_shape: tuple[int, int, int],
    ) -> ModelInfo:
        """A classifier with one image input, logits and features, from its sizes: (H, W) and (C, h, w)."""
        return ModelInfo(
            architecture,
            tuple(classes),
            (Tensor("image", "uint8", ("N", *input_size, 3), "NHWC"),),
            (
                Tensor("logits", "float32", ("N", len(classes)), "NK"),
                Tensor("features", "float32", ("N", *feature_shape), "NCHW"),
            ),
        )

    def signature(self) -> dict[str, Tensor]:
        """Every input and output of the graph by name, inputs first."""
        return {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}

    def with_foreground(self, size: tuple[int, int]) -> ModelInfo:
        """The same network with a score map of that size (h', w'), in place of an earlier one."""
        kept = tuple(tensor for tensor in self.outputs if tensor.name != "foreground")
        return replace(self, outputs=(*kept, Tensor("foreground", "float32", ("N", 1, *size), "NCHW")))

    def require_outputs(self, rule: Rule) -> None:
        """Refuse a rule that reads an output which this network has not.

        Raises:
            BundleError: naming it, and the verb that adds it.
        """
        if rule.on_scores and "foreground" not in self.signature():
            raise BundleError(
                f"the rule {rule} reads the output foreground, which this bundle has not; add it with "
                "`wgap foreground BUNDLE --images DATA`, or take --rule adaptive or fixed:ETA"
            )

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) of the network input in pixels."""
        height, width, _ = self.signature()["image"].extents
        return height, width

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the feature maps."""
        channels, height, width = self.signature()["features"].extents
        return channels, height, width


def require_signature(
    model: ModelInfo,
    found: Mapping[str, tuple[str, Sequence[Any]]],
    where: str,
    advice: str = "export the bundle again",
    outputs: Collection[str] | None = None,
) -> None:
    """Compare the inputs and outputs of a graph, a session or an engine with the manifest's.

    Args:
        model: what the manifest promises.
        found: name to dtype (``uint8``, ``float32``, ...) and shape; an extent that is no number above 0 is free.
        where: what messages call it.
        advice: what messages end with.
        outputs: that are needed; None for all that the manifest promises.

    Raises:
        BundleError: a tensor is missing, of another type or shape, or its batch is not free.
    """
    inputs = {tensor.name for tensor in model.inputs}
    for name, promised in model.signature().items():
        if outputs is not None and name not in outputs and name not in inputs:
            continue
        dtype, shape = found.get(name, ("no such tensor", ()))
        extents = ["N" if not isinstance(n, int) or n <= 0 else n for n in shape]
        if (dtype, extents) != (promised.dtype, list(promised.shape)):
            raise BundleError(
                f"{where}: the manifest promises {name} {promised}, got {dtype}{extents if shape else ''}; {advice}"
            )


@dataclass(frozen=True)
class ImageHashes:
    """One calibration image: its file name, the sha256 of its bytes, and of its pixels at the input size."""

    name: str
    sha256: str
    pixels_sha256: str


@dataclass(frozen=True)
class TrainingRecord:
    """What a file was exported from.

    Attributes:
        checkpoint_sha256: of the checkpoint.
        tools: name to version.
        opset: of the graph; None for other files.
    """

    checkpoint_sha256: str
    tools: dict[str, str]
    opset: int | None = None


@dataclass(frozen=True)
class ImportRecord:
    """What a graph was imported from, and the proof that it is linear in its pooled features.

    Attributes:
        source_sha256: of the model's file.
        external_sha256: of the files in which its values lay.
        logits: tensor of the source.
        features: tensor of the source.
        nodes: of the source: ``classifier`` and, where it was found, ``pooling``.
        pooling: ``gap`` or ``wgap``.
        features_min: the smallest feature that was measured; below 0, few rules have a meaning.
        figures: ``linearity`` and ``parity``, relative to the largest logit, and the number of ``pictures`` on which
            all was measured.
        opset: of the graph.
        tools: name to version.
    """

    source_sha256: str
    external_sha256: tuple[str, ...]
    logits: str
    features: str
    nodes: dict[str, str]
    pooling: Literal["gap", "wgap"]
    features_min: float
    figures: dict[str, Any]
    opset: int
    tools: dict[str, str]

    def require_rule(self, rule: Rule) -> None:
        """Refuse a rule that needs features of 0 or more, where there are others.

        Raises:
            BundleError: with the smallest one, and what to take.
        """
        if self.features_min < 0 and (rule.kind == "adaptive" or rule.map in ("recombined", "positive")):
            raise BundleError(
                f"the rule {rule} on the {rule.map} map needs features of 0 or more, this network's go down to "
                f"{self.features_min:.3g}; take the rule fixed:ETA on the signed map, or foreground after "
                "`wgap foreground`"
            )


@dataclass(frozen=True)
class CalibrationRecord:
    """How a lower-precision file was made.

    Attributes:
        float32_sha256: of the file it was made from.
        images_sha256: of the calibration set, by content.
        images: the calibration set.
        warnings: what was noticed about it.
        keep_float: nodes that stay in float32.
        tools: name to version.
        quantisation: of INT8: method, format, scales, attestation and, with ``--auto``, the search.
        headroom: of FP16: how far activations stay from its limit, the tightest first.
    """

    float32_sha256: str
    images_sha256: str
    images: tuple[ImageHashes, ...]
    warnings: tuple[str, ...]
    keep_float: tuple[str, ...]
    tools: dict[str, str]
    quantisation: dict[str, Any] | None = None
    headroom: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class GateRecord:
    """The verdict on a lower-precision file.

    Attributes:
        passed: whether the runtime may open it.
        reasons: why it failed.
        rule: the rule whose boxes were compared; the verdict holds for no other.
        candidate_sha256: of the file that was judged.
        float32_sha256: of the file it was compared with.
        backend: what ran both.
        limits: what it may cost.
        figures: what it cost.
        int8_sums: how the judging processor summed products of eight bits (:func:`wgap.runtime.cpus.int8_sums`); None
            where no such products were.
    """

    passed: bool
    reasons: tuple[str, ...]
    rule: Rule
    candidate_sha256: str
    float32_sha256: str
    backend: str
    limits: dict[str, float]
    figures: dict[str, Any]
    int8_sums: Literal["exact", "saturating"] | None = None


@dataclass(frozen=True)
class ForegroundRecord:
    """How a foreground head was fitted.

    Attributes:
        images_sha256: of the pictures, by content.
        images: the pictures.
        warnings: what was noticed about them, and about the graph.
        labels: where the labels were from whose maps began the fit.
        coarse: the tensor that A scores.
        fine: the tensor that B scores; None without one.
        finer: the tensor that C scores; likewise.
        separation: how far object and ground lie apart, ``coarse``, ``fine`` and ``finer``, in standard deviations, and
            ``grabcut_agreement``, the share of cells where A's sign is GrabCut's.
        constants: of the fit.
        tools: name to version.
    """

    images_sha256: str
    images: tuple[ImageHashes, ...]
    warnings: tuple[str, ...]
    labels: str
    coarse: str
    separation: dict[str, Any]
    constants: dict[str, Any]
    tools: dict[str, str]
    fine: str | None = None
    finer: str | None = None


@dataclass(frozen=True)
class Profile:
    """Smallest, usual and largest batch of an engine."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class EngineRecord:
    """What an engine was built with, and for.

    Attributes:
        flavor: ``tensorrt`` or ``tensorrt_rtx``.
        version: of that library.
        architecture: ``portable``, ``8.0+``, or compute capabilities such as ``8.6,8.9``.
        platform: such as ``linux x86_64``.
        profile: batches.
        onnx_sha256: of the file it was built from.
        options: how it was built.
        gpu: the GPU it was built on; None without one.
        driver: its driver's version.
        cuda: the CUDA version that the driver serves.
        calibration_sha256: of the calibration set of the file it was built from.
        attestation: convolutions by precision, layers by type.
        tools: name to version.
    """

    flavor: str
    version: str
    architecture: str
    platform: str
    profile: Profile
    onnx_sha256: str
    options: dict[str, Any] = field(default_factory=dict)
    gpu: str | None = None
    driver: str | None = None
    cuda: str | None = None
    calibration_sha256: str | None = None
    attestation: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BundleFile:
    """One file of the bundle.

    Attributes:
        path: relative to the bundle, with forward slashes.
        role: ``onnx``, ``rejected`` (an onnx file whose gate failed), ``classifier``, ``foreground``, ``golden`` or
            ``engine``.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``; empty where it has no meaning.
        sha256: of the file's bytes, lower-case hexadecimal.
        size: bytes.
        training: of what was exported from a checkpoint.
        calibration: of a lower-precision file.
        gate: the verdict on a lower-precision file, once it was judged: that of ONNX Runtime, which engines go by too.
        gates: the verdicts of backends that compute otherwise, by name: ``openvino``; see :meth:`verdict`.
        engine: of an engine.
        foreground: of a foreground head.
        import_: ``import`` in the manifest: of a graph that ``wgap import`` wrote.
    """

    path: str
    role: str
    precision: str
    sha256: str
    size: int
    training: TrainingRecord | None = None
    calibration: CalibrationRecord | None = None
    gate: GateRecord | None = None
    engine: EngineRecord | None = None
    foreground: ForegroundRecord | None = None
    gates: dict[str, GateRecord] | None = None
    import_: ImportRecord | None = None

    def verdict(self, backend: str) -> GateRecord | None:
        """The verdict that a backend goes by; None where there is none."""
        return (self.gates or {}).get(backend) if backend in OWN_VERDICT else self.gate


@dataclass(frozen=True)
class Manifest:
    """The content of ``wgap.json``."""

    model: ModelInfo
    preprocessing: Preprocessing
    rule: Rule
    files: tuple[BundleFile, ...]
    wgap_version: str

    def require_rule(self, rule: Rule) -> None:
        """Refuse a rule that the bundle's network cannot serve.

        Raises:
            BundleError: see :meth:`ModelInfo.require_outputs` and :meth:`ImportRecord.require_rule`.
        """
        self.model.require_outputs(rule)
        for entry in self.files:
            if entry.import_ is not None:
                entry.import_.require_rule(rule)

    def to_json(self) -> str:
        """The manifest as it stands on disk, stable for equal content."""
        content = {name: to_plain(value) for name, value in vars(self).items()}
        return json.dumps({"schema": SCHEMA, **content}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, where: Path) -> Manifest:
        """Parse and validate a manifest.

        Raises:
            ManifestError: if it is not JSON, has no schema or a newer one, or a field is missing or wrong; the message
                names it.
        """
        try:
            raw = read_json(text)
        except PlainError as error:
            raise ManifestError(f"{where} is no manifest: {error}; export the bundle again") from error
        except ValueError as error:
            raise ManifestError(f"{where} is not valid JSON ({error}); export the bundle again") from error
        schema = raw.pop("schema", None) if isinstance(raw, dict) else None
        if type(schema) is not int:
            raise ManifestError(f'{where} has no schema number; expected "schema": {SCHEMA}. Is this a wgap bundle?')
        if schema > SCHEMA:
            raise ManifestError(f"{where} has schema {schema}, this wgap reads up to {SCHEMA}; upgrade wgap")
        if schema < 1:
            raise ManifestError(f"{where} has schema {schema}, expected {SCHEMA}; export the bundle again")
        try:
            if schema == 1:
                from wgap.schema1 import upgraded

                manifest = upgraded(raw)
            else:
                manifest = from_plain(Manifest, raw)
            _check(manifest)
        except PlainError as error:
            raise ManifestError(f"{where} does not follow schema {schema}: {error}; export the bundle again") from error
        return manifest


def _check(manifest: Manifest) -> None:
    """What types do not say."""
    model = manifest.model
    require_distinct("model.classes", model.classes)
    require_distinct("model", [tensor.name for tensor in (*model.inputs, *model.outputs)])
    if len(manifest.files) > _MOST_FILES:
        raise PlainError(f"files: expected at most {_MOST_FILES}, got {len(manifest.files)}")
    require_distinct("files", [str(PurePosixPath(entry.path)) for entry in manifest.files])
    require_distinct(
        "files", [f"{e.role} {e.precision}".strip() for e in manifest.files if e.role not in ("golden", "engine")]
    )
    signature = model.signature()
    expected = {"image": ("NHWC", 3), "logits": ("NK", len(model.classes)), "features": ("NCHW", None)}
    if "foreground" in signature or manifest.rule.on_scores:
        expected["foreground"] = ("NCHW", None)
    for name, (layout, last) in expected.items():
        tensor = signature.get(name)
        if tensor is None:
            raise PlainError(f"model: the signature has no tensor {name!r}; it has: {', '.join(signature)}")
        whole = all(isinstance(n, int) and 0 < n <= _LARGEST for n in tensor.shape[1:])
        if tensor.layout != layout or len(tensor.shape) != len(layout) or tensor.shape[0] != "N" or not whole:
            raise PlainError(
                f"model: {name} is {tensor} in layout {tensor.layout}; expected N first, then extents of "
                f"1..{_LARGEST}, in layout {layout}"
            )
        if tensor.dtype != ("uint8" if name == "image" else "float32"):
            raise PlainError(f"model: {name} is {tensor}; expected {'uint8' if name == 'image' else 'float32'}")
        if last is not None and tensor.shape[-1] != last:
            raise PlainError(f"model: {name} is {tensor}, but the last extent must be {last}")
        if name == "foreground" and tensor.shape[1] != 1:
            raise PlainError(f"model: foreground is {tensor}; expected one channel")
    for number, entry in enumerate(manifest.files):
        pure = PurePosixPath(entry.path)
        if pure.is_absolute() or ".." in pure.parts:
            raise PlainError(f"files[{number}].path: {entry.path!r} lies outside the bundle; refusing to read it")
        plain = entry.path.isascii() and entry.path.isprintable()
        if pure.parts in ((), (MANIFEST,)) or not plain or len(entry.path) > _LONGEST:
            raise PlainError(
                f"files[{number}].path: expected the path of a file, of printable ASCII characters and "
                f"at most {_LONGEST} bytes, got {reprlib.repr(entry.path)}"
            )
        if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
            raise PlainError(
                f"files[{number}]: expected a sha256 of 64 hexadecimal digits and a size of 0 or more, got "
                f"{reprlib.repr(entry.sha256)} and {reprlib.repr(entry.size)}"
            )
        if entry.role == "engine" and entry.engine is None:
            raise PlainError(f"files[{number}].engine: missing")
        if entry.engine and not 1 <= entry.engine.profile.min <= entry.engine.profile.opt <= entry.engine.profile.max:
            raise PlainError(f"files[{number}].engine.profile: expected 1 <= min <= opt <= max")
