"""The bundle: the one folder that every stage reads or extends.

::

    wgap.json                manifest: schema, model, preprocessing, rule, each file's role, precision, sha256
    model.onnx               input ``image`` uint8 [N, H, W, 3] RGB; outputs ``logits`` and ``features`` float32
    classifier.safetensors   ``weight`` float32 [K, C], ``bias`` float32 [K]: recombination needs them outside the graph
    model.int8.onnx          the same graph at a lower precision, entered by ``wgap calibrate`` with its gate's verdict
    rejected/                lower-precision files whose gate failed, kept aside
    golden/                  inputs with the PyTorch reference's features, map, level and box, for ``wgap selftest``
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from wgap.atomic import atomic_file
from wgap.errors import BundleError, GateError, HashMismatchError, ManifestError
from wgap.manifest import MANIFEST, OWN_VERDICT, BundleFile, Manifest
from wgap.onnx_wire import require_self_contained
from wgap.rule import Rule

__all__ = [
    "MANIFEST", "Bundle", "confined", "describe_file", "golden_case", "open_regular", "sha256_of", "write_manifest",
]  # fmt: skip

_LONGEST_MANIFEST = 64 << 20
"""Bytes: a hundred thousand calibration images take a third of it."""

_READINGS = 5
"""Of a bundle that is being written, before giving up."""


def sha256_of(path: Path) -> str:
    """Lower-case hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def confined(root: Path, path: str) -> Path:
    """The place of a file of the bundle.

    Raises:
        BundleError: if a link on the way leads out of the bundle.
    """
    where = root / path
    real = Path(os.path.realpath(where))
    if not real.is_relative_to(os.path.realpath(root)):
        raise BundleError(
            f"{where} leads out of the bundle, to {real}; nothing outside is read, written or removed. Put the file "
            "or the folder itself in the link's place"
        )
    return where


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A file to read, and nothing that would block or never end.

    Raises:
        BundleError: it is a folder, a pipe, a device or a socket, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; copy the whole bundle or export it again") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is no regular file; expected a file with content, as `wgap export` writes it")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def describe_file(root: Path, path: Path, role: str, precision: str = "", **records: Any) -> BundleFile:
    """The manifest entry of a file already written below ``root``; ``records`` are those of :class:`BundleFile`."""
    return BundleFile(
        path=path.relative_to(root).as_posix(), role=role, precision=precision, sha256=sha256_of(path),
        size=path.stat().st_size, **records,
    )  # fmt: skip


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write ``wgap.json`` whole or not at all."""
    with atomic_file(root / MANIFEST) as temporary:
        temporary.write_text(manifest.to_json(), encoding="utf-8")


class _ChangedError(BundleError):
    """A bundle that another process writes while it is read."""


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
        for _ in range(_READINGS):
            bundle = Bundle._read(Path(path))
            try:
                if verify:
                    bundle.verify()
            except _ChangedError as error:
                changed = error
            else:
                return bundle
        raise changed

    @staticmethod
    def _read(root: Path) -> Bundle:
        where = root / MANIFEST
        if not root.is_dir():
            raise BundleError(f"{root} is not a folder; expected a bundle made by `wgap export`")
        if not where.exists():
            raise ManifestError(f"{where} not found; expected a bundle made by `wgap export`")
        try:
            with open_regular(confined(root, MANIFEST)) as stream:
                data = stream.read(_LONGEST_MANIFEST + 1)
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ManifestError(f"{where} is not UTF-8 text; export the bundle again") from error
        except OSError as error:
            raise ManifestError(f"{where} cannot be read ({error.strerror}); expected the bundle's manifest") from error
        if len(data) > _LONGEST_MANIFEST:
            raise ManifestError(f"{where} has more than {_LONGEST_MANIFEST >> 20} MiB; is it a manifest?")
        return Bundle(root, Manifest.from_json(text, where))

    def _refused(self, error: BundleError) -> BundleError:
        """The error of a file that is not the manifest's, or of the writer that has replaced both since."""
        try:
            changed = Bundle._read(self.root).manifest != self.manifest
        except BundleError:
            changed = False
        if not changed:
            return error
        return _ChangedError(f"{self.root} was changed by another process while it was read; run it again")

    def verify(self) -> None:
        """Compare every listed file with its size and sha256.

        Raises:
            BundleError: if a file is missing, is no regular file, or lies outside the bundle.
            HashMismatchError: naming the first file that differs, with both values.
        """
        for entry in self.manifest.files:
            for _ in self._blocks(entry):
                pass

    def content(self, entry: BundleFile) -> bytes:
        """The bytes of a listed file, the very ones whose size and sha256 were compared.

        Raises:
            BundleError, HashMismatchError: see :meth:`verify`; or it is a graph some of whose values lie elsewhere.
        """
        content = b"".join(self._blocks(entry))
        if entry.role in ("onnx", "rejected"):
            require_self_contained(content, self.root / entry.path)
        return content

    def _blocks(self, entry: BundleFile) -> Iterator[bytes]:
        path, digest = confined(self.root, entry.path), hashlib.sha256()
        if not path.exists():
            raise self._refused(
                BundleError(f"{path} is listed in {MANIFEST} but missing; copy the whole bundle or export it again")
            )
        with open_regular(path) as stream:
            if (size := os.fstat(stream.fileno()).st_size) != entry.size:
                mismatch = f"{path} has {size} bytes, {MANIFEST} says {entry.size}: it was cut short or replaced"
                raise self._refused(HashMismatchError(f"{mismatch}; copy the bundle again or export it again"))
            left = entry.size
            while block := stream.read(min(left, 1 << 20)):
                digest.update(block)
                left -= len(block)
                yield block
        if digest.hexdigest() != entry.sha256:
            mismatch = f"{path} has sha256 {digest.hexdigest()[:12]}..., {MANIFEST} says {entry.sha256[:12]}..."
            raise self._refused(
                HashMismatchError(f"{mismatch}: it was changed after export; copy the bundle again or export it again")
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
        """Path of the file with that role and precision; raises as :meth:`file` and :func:`confined` do."""
        return confined(self.root, self.file(role, precision).path)

    def model_file(
        self, precision: str = "fp32", ungated: bool = False, rule: Rule | None = None, backend: str = "onnxruntime"
    ) -> BundleFile:
        """The network's file of that precision, if its gate says that it may be used.

        Args:
            precision: ``fp32``, or a lower one made by ``wgap calibrate``.
            ungated: take a lower-precision file even if its gate failed or never ran.
            rule: the rule that will run; None for the bundle's own.
            backend: that will run it, whose verdict counts (:meth:`wgap.manifest.BundleFile.verdict`).

        Raises:
            GateError: if the gate failed or never ran on this very file and under this very rule, or the file was made
                from another float32 model; the message says why and what to do.
            BundleError: if the bundle has no such file.
        """
        folder = shlex.quote(str(self.root))
        entries = [e for e in self.manifest.files if e.role in ("onnx", "rejected")]
        found = [e for role in ("onnx", "rejected") for e in entries if (e.role, e.precision) == (role, precision)]
        if not found:
            have = ", ".join(sorted({e.precision for e in entries}))
            how = f"; make it with `wgap calibrate {folder} --precision {precision} --images DIR --gate DIR`"
            raise BundleError(
                f"{self.root} holds no {precision} model; it has: {have}{how if precision != 'fp32' else ''}"
            )
        entry, rule = found[0], rule or self.manifest.rule
        if precision != "fp32" and self.stale(entry):
            raise GateError(
                f"{self.root / entry.path} is stale: it was made from another float32 model than the bundle's, which "
                f"`wgap foreground` or an export has replaced since; make it again with `wgap calibrate {folder} "
                f"--precision {precision} --images DIR --gate DIR`"
            )
        if precision == "fp32" or ungated:
            return entry
        gate, where = entry.verdict(backend), self.root / entry.path
        again = self.gate_command(precision, rule, backend)
        if gate is None:
            on = f" on {backend}" if backend in OWN_VERDICT else ""
            raise GateError(
                f"{where}: what {precision} costs in boxes was never measured{on}; run {again}, "
                "or pass ungated=True (--ungated) to run it all the same"
            )
        if (gate.candidate_sha256, gate.float32_sha256) != (entry.sha256, self.file("onnx", "fp32").sha256):
            raise GateError(f"{where}: its gate ran on other files than the bundle's; run {again}")
        if gate.rule != rule:
            raise GateError(
                f"{where}: its gate compared boxes under the rule {gate.rule} on the {gate.rule.map} map, and it would "
                f"now run under {rule} on the {rule.map} map; run {again}, or pass ungated=True (--ungated)"
            )
        if not gate.passed or entry.role == "rejected":
            reasons = "; ".join(gate.reasons) or "it was rejected"
            raise GateError(
                f"{where}: the gate refused this {precision} file: {reasons}. Calibrate it anew, "
                "or pass ungated=True (--ungated) to run it all the same"
            )
        return entry

    def gate_command(self, precision: str, rule: Rule | None = None, backend: str = "onnxruntime") -> str:
        """What judges the file of that precision under that rule, None for the bundle's own, for a message."""
        rule = rule or self.manifest.rule
        folder = shlex.quote(str(self.root))
        on = f" --backend {backend}" if backend in OWN_VERDICT else ""
        return f"`wgap gate {folder} --precision {precision}{on} --rule {rule} --map {rule.map} --images DIR`"

    def stale(self, entry: BundleFile) -> bool:
        """Whether a lower-precision file was made from another float32 model than the bundle's."""
        made = entry.calibration
        return made is not None and made.float32_sha256 != self.file("onnx", "fp32").sha256

    def classifier(self) -> tuple[memoryview[float], memoryview[float]]:
        """Weight float32 [K, C] and bias float32 [K], as read-only memoryviews.

        Raises:
            BundleError: if the file does not hold these tensors in the shapes that the manifest implies, or a bias is
            not finite.
        """
        shape = len(self.manifest.model.classes), self.manifest.model.feature_shape[0]
        return classifier_tensors(self.content(self.file("classifier")), self.path("classifier"), *shape)

    def golden(self) -> list[dict[str, Any]]:
        """The golden cases in order: tensor name to NumPy array; ``rule`` is what map and box were made under.

        Raises:
            BundleError: if a file is not a golden case.
        """
        entries = [entry for entry in self.manifest.files if entry.role == "golden"]
        return [golden_case(self.content(entry), self.root / entry.path) for entry in entries]


def classifier_tensors(
    content: bytes, path: Path, classes: int, channels: int
) -> tuple[memoryview[float], memoryview[float]]:
    """Weight and bias, from the bytes of their file; see :meth:`Bundle.classifier`."""
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(content))
    except SafetensorError as error:
        raise BundleError(f"{path} is not a safetensors file ({error}); export the bundle again") from error
    views: list[memoryview[float]] = []
    for name, shape in (("weight", [classes, channels]), ("bias", [classes])):
        tensor = tensors.get(name)
        if tensor is None or tensor["dtype"] != "F32" or list(tensor["shape"]) != shape:
            got = "nothing" if tensor is None else f"{tensor['dtype']} {list(tensor['shape'])}"
            raise BundleError(f"{path}: expected {name} F32 {shape}, got {got}; export the bundle again")
        views.append(memoryview(bytes(tensor["data"])).cast("f", shape))
    if odd := [value for value in views[1] if not math.isfinite(value)]:  # the kernel judges the weights
        raise BundleError(f"{path}: expected finite numbers in bias, got {odd[0]}; export the bundle again")
    return views[0], views[1]


def golden_case(content: bytes, path: Path) -> dict[str, Any]:
    """One golden case, from the bytes of its file; see :meth:`Bundle.golden`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        text = header.get("__metadata__", {}).get("rule")
        rule = Rule.from_json(json.loads(text)) if text else Rule()  # wgap 0.1 knew no other
        return {"rule": rule, **tensors}
    except (SafetensorError, ValueError) as error:
        raise BundleError(f"{path} is not a golden case ({error}); export the bundle again") from error
