"""The bundle: the one folder that every stage reads or extends.

::

    wgap.json                manifest: schema, model, preprocessing, postprocessing, each file's role, precision, sha256
    model.onnx               input ``image`` uint8 [N, H, W, 3] RGB; outputs ``logits`` and ``features`` float32
    classifier.safetensors   ``weight`` float32 [K, C], ``bias`` float32 [K]: recombination needs them outside the graph
    model.int8.onnx          the same graph at a lower precision, entered by ``wgap calibrate`` with its gate's verdict
    rejected/                lower-precision files whose gate failed, kept aside
    golden/                  inputs with the PyTorch reference's features, map, level and box, for ``wgap selftest``
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from wgap.atomic import atomic_file
from wgap.errors import BundleError, GateError, HashMismatchError, ManifestError
from wgap.preprocessing import Preprocessing

SCHEMA = 1
MANIFEST = "wgap.json"


@dataclass(frozen=True)
class ModelInfo:
    """The network inside the bundle.

    Attributes:
        backbone: architecture name, ``vgg16``.
        width: channel multiplier of the backbone (1.0 is VGG16).
        stride: input pixels per feature-map cell, 16 or 8.
        neck: ``none`` or ``conv1024``.
        pooling: ``wgap`` or ``gap``.
        classes: class names; the index is the class id.
        input_size: (H, W) of the network input in pixels.
        feature_shape: (C, h, w) of the feature maps.
    """

    backbone: str
    width: float
    stride: int
    neck: str
    pooling: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    feature_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Postprocessing:
    """Defaults of the runtime: which map (``recombined``, ``positive``, ``signed``) and which threshold rule."""

    map: str = "recombined"
    threshold: str = "adaptive"


@dataclass(frozen=True)
class BundleFile:
    """One file of the bundle.

    Attributes:
        path: relative to the bundle, with forward slashes.
        role: ``onnx``, ``rejected`` (an onnx file whose gate failed), ``classifier``, ``golden`` or ``engine``.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``; empty where it has no meaning.
        sha256: of the file's bytes, lower-case hexadecimal.
        size: bytes.
        provenance: what it was made from and with: hashes of its sources, tool versions; ``gate``, the verdict on a
            lower-precision file.
    """

    path: str
    role: str
    precision: str
    sha256: str
    size: int
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The content of ``wgap.json``."""

    model: ModelInfo
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    files: tuple[BundleFile, ...]
    wgap_version: str

    def to_json(self) -> str:
        """The manifest as it stands on disk, stable for equal content."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, where: Path) -> Manifest:
        """Parse and validate a manifest.

        Raises:
            ManifestError: if it is not JSON, has no schema or a newer one, or lacks a field; the message names it.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"{where} is not valid JSON ({error}); export the bundle again") from error
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if not isinstance(schema, int):
            raise ManifestError(f'{where} has no schema number; expected "schema": {SCHEMA}. Is this a wgap bundle?')
        if schema > SCHEMA:
            raise ManifestError(f"{where} has schema {schema}, this wgap reads up to {SCHEMA}; upgrade wgap")
        if schema < 1:
            raise ManifestError(f"{where} has schema {schema}, expected {SCHEMA}; export the bundle again")
        try:
            model = dict(raw["model"])
            for key in ("classes", "input_size", "feature_shape"):
                model[key] = tuple(model[key])
            steps = dict(raw["preprocessing"])
            steps["mean"], steps["std"] = tuple(steps["mean"]), tuple(steps["std"])
            manifest = Manifest(
                model=ModelInfo(**model),
                preprocessing=Preprocessing(**steps),
                postprocessing=Postprocessing(**raw["postprocessing"]),
                files=tuple(BundleFile(**entry) for entry in raw["files"]),
                wgap_version=str(raw["wgap_version"]),
            )
        except KeyError as error:
            raise ManifestError(f"{where} lacks {error.args[0]!r}; export the bundle again") from error
        except (TypeError, ValueError) as error:
            raise ManifestError(f"{where} does not follow schema {SCHEMA}: {error}; export the bundle again") from error
        if len(manifest.model.input_size) != 2 or len(manifest.model.feature_shape) != 3:
            raise ManifestError(f"{where}: expected input_size [H, W] and feature_shape [C, h, w]")
        for entry in manifest.files:
            pure = PurePosixPath(entry.path)
            if pure.is_absolute() or ".." in pure.parts:
                raise ManifestError(f"{where} names {entry.path!r}, which lies outside the bundle; refusing to read it")
        return manifest


def sha256_of(path: Path) -> str:
    """Lower-case hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_file(root: Path, path: Path, role: str, precision: str = "", **provenance: Any) -> BundleFile:
    """The manifest entry of a file already written below ``root``."""
    return BundleFile(
        path=path.relative_to(root).as_posix(),
        role=role,
        precision=precision,
        sha256=sha256_of(path),
        size=path.stat().st_size,
        provenance=provenance,
    )


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``wgap.json`` whole or not at all."""
    with atomic_file(root / MANIFEST) as temporary:
        temporary.write_text(manifest.to_json(), encoding="utf-8")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest.

    Attributes:
        root: the folder.
        manifest: parsed and validated ``wgap.json``.
    """

    root: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path | str, verify: bool = True) -> Bundle:
        """Open a bundle folder.

        Args:
            path: the folder that holds ``wgap.json``.
            verify: compare the sha256 of every listed file with the manifest (about 20 ms per 50 MB).

        Raises:
            BundleError: if the folder or a listed file is missing.
            ManifestError: see :meth:`Manifest.from_json`.
            HashMismatchError: if a file's bytes differ from what the manifest says.
        """
        root = Path(path)
        where = root / MANIFEST
        if not root.is_dir():
            raise BundleError(f"{root} is not a folder; expected a bundle made by `wgap export`")
        try:
            text = where.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise ManifestError(f"{where} not found; expected a bundle made by `wgap export`") from error
        except UnicodeDecodeError as error:
            raise ManifestError(f"{where} is not UTF-8 text; export the bundle again") from error
        bundle = Bundle(root, Manifest.from_json(text, where))
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Compare every listed file with its size and sha256.

        Raises:
            BundleError: if a file is missing.
            HashMismatchError: naming the first file that differs, with both values.
        """
        for entry in self.manifest.files:
            path = self.root / entry.path
            if not path.is_file():
                raise BundleError(
                    f"{path} is listed in {MANIFEST} but missing; copy the whole bundle or export it again"
                )
            size = path.stat().st_size
            if size != entry.size:
                raise HashMismatchError(
                    f"{path} has {size} bytes, {MANIFEST} says {entry.size}: it was cut short or replaced; "
                    "copy the bundle again or export it again"
                )
            found = sha256_of(path)
            if found != entry.sha256:
                raise HashMismatchError(
                    f"{path} has sha256 {found[:12]}..., {MANIFEST} says {entry.sha256[:12]}...: it was changed after "
                    "export; copy the bundle again or export it again"
                )

    def file(self, role: str, precision: str = "") -> BundleFile:
        """The manifest entry with that role and precision.

        Raises:
            BundleError: if there is none; the message lists what the bundle has.
        """
        for entry in self.manifest.files:
            if entry.role == role and (not precision or entry.precision == precision):
                return entry
        have = ", ".join(f"{e.role}{' ' + e.precision if e.precision else ''}" for e in self.manifest.files)
        wanted = f"{role} {precision}".strip()
        raise BundleError(f"{self.root} holds no {wanted}; it has: {have}")

    def path(self, role: str, precision: str = "") -> Path:
        """Path of the file with that role and precision; raises as :meth:`file` does."""
        return self.root / self.file(role, precision).path

    def model_file(self, precision: str = "fp32", ungated: bool = False) -> BundleFile:
        """The network's file of that precision, if its gate says that it may be used.

        Args:
            precision: ``fp32``, or a lower one made by ``wgap calibrate``.
            ungated: take a lower-precision file even if its gate failed or never ran.

        Raises:
            GateError: if the gate failed or never ran on this very file; the message says why and what to do.
            BundleError: if the bundle has no such file.
        """
        found = [
            e
            for role in ("onnx", "rejected")
            for e in self.manifest.files
            if (e.role, e.precision) == (role, precision)
        ]
        if not found:
            have = ", ".join(sorted({e.precision for e in self.manifest.files if e.role in ("onnx", "rejected")}))
            how = f"; make it with `wgap calibrate {self.root} --precision {precision} --images DIR --gate DIR`"
            raise BundleError(
                f"{self.root} holds no {precision} model; it has: {have}{how if precision != 'fp32' else ''}"
            )
        entry = found[0]
        if precision == "fp32" or ungated:
            return entry
        gate = entry.provenance.get("gate")
        again = f"`wgap gate {self.root} --precision {precision} --images DIR`"
        if gate is None:
            raise GateError(
                f"{self.root / entry.path}: what {precision} costs in boxes was never measured; run {again}, "
                "or pass ungated=True (--ungated) to run it all the same"
            )
        if (
            gate.get("candidate_sha256") != entry.sha256
            or gate.get("float32_sha256") != self.file("onnx", "fp32").sha256
        ):
            raise GateError(f"{self.root / entry.path}: its gate ran on other files than the bundle's; run {again}")
        if not gate.get("passed") or entry.role == "rejected":
            reasons = "; ".join(gate.get("reasons", [])) or "it was rejected"
            raise GateError(
                f"{self.root / entry.path}: the gate refused this {precision} file: {reasons}. Calibrate it anew, "
                "or pass ungated=True (--ungated) to run it all the same"
            )
        return entry

    def classifier(self) -> tuple[memoryview[float], memoryview[float]]:
        """Weight float32 [K, C] and bias float32 [K], as read-only memoryviews.

        Raises:
            BundleError: if the file does not hold these tensors in the shapes that the manifest implies.
        """
        from safetensors import SafetensorError, deserialize

        path = self.path("classifier")
        try:
            tensors = dict(deserialize(path.read_bytes()))
        except SafetensorError as error:
            raise BundleError(f"{path} is not a safetensors file ({error}); export the bundle again") from error
        classes, channels = len(self.manifest.model.classes), self.manifest.model.feature_shape[0]
        views: list[memoryview[float]] = []
        for name, shape in (("weight", [classes, channels]), ("bias", [classes])):
            tensor = tensors.get(name)
            if tensor is None or tensor["dtype"] != "F32" or list(tensor["shape"]) != shape:
                got = "nothing" if tensor is None else f"{tensor['dtype']} {list(tensor['shape'])}"
                raise BundleError(f"{path}: expected {name} F32 {shape}, got {got}; export the bundle again")
            views.append(memoryview(bytes(tensor["data"])).cast("f", shape))
        return views[0], views[1]

    def golden(self) -> list[dict[str, Any]]:
        """The golden cases in order: tensor name to numpy array (see ``wgap.runtime.selftest``)."""
        from safetensors.numpy import load_file

        return [load_file(self.root / entry.path) for entry in self.manifest.files if entry.role == "golden"]
