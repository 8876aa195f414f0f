"""How a file enters a bundle that is already there: whole at every instant, and as it was on any error."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wgap.atomic import atomic_file, put_in_place
from wgap.bundle import MANIFEST, Bundle, describe_file, write_manifest
from wgap.errors import BundleError
from wgap.manifest import BundleFile

__all__ = ["NewFile", "enter_file", "enter_files", "require_writable", "writing"]

_ORDER = {"onnx": 0, "rejected": 0, "engine": 2}


def enter_file(
    bundle: Bundle, source: Path | bytes, path: str, role: str, precision: str,
    superseded: Callable[[BundleFile], bool], **records: Any,
) -> Bundle:  # fmt: skip
    """Put a file into the bundle and its entry into the manifest, in place of the entries it supersedes.

    File and new manifest are written under temporary names first; then the superseded entries leave the manifest, and
    two renames put the new ones in place.

    Args:
        bundle: which; its manifest is read again.
        source: the file to copy, in the bundle or not, or its content.
        path: where it goes, relative to the bundle.
        role: see :class:`wgap.manifest.BundleFile`.
        precision: likewise.
        superseded: whether an entry goes when this one comes; its file is removed.
        records: of the new entry, by their names in :class:`wgap.manifest.BundleFile`.

    Returns:
        the bundle, opened again.

    Raises:
        BundleError: if the bundle cannot be written; it is as it was then.
    """
    target = bundle.root / path
    incoming, listing = target.with_name(f".incoming-{target.name}"), bundle.root / f".incoming-{MANIFEST}"
    with writing(bundle):
        bundle = Bundle.open(bundle.root, verify=False)
        manifest = bundle.manifest
        replaced = [entry for entry in manifest.files if entry.path == path or superseded(entry)]
        kept = [entry for entry in manifest.files if entry not in replaced]
        content = source if isinstance(source, bytes) else source.read_bytes()
        same = target.is_file() and target.read_bytes() == content
        try:
            if not same:
                with atomic_file(incoming) as temporary:
                    temporary.write_bytes(content)
            described = describe_file(bundle.root, target if same else incoming, role, precision, **records)
            files = sorted([*kept, replace(described, path=path)], key=lambda entry: _ORDER.get(entry.role, 1))
            with atomic_file(listing) as temporary:
                temporary.write_text(replace(manifest, files=tuple(files)).to_json(), encoding="utf-8")
            if not same:
                if replaced:
                    write_manifest(bundle.root, replace(manifest, files=tuple(kept)))
                put_in_place(incoming, target)
            put_in_place(listing, bundle.root / MANIFEST)
            for entry in replaced:
                if entry.path != path:
                    (bundle.root / entry.path).unlink(missing_ok=True)
        finally:
            incoming.unlink(missing_ok=True)
            listing.unlink(missing_ok=True)
            for folder in {target.parent, *((bundle.root / entry.path).parent for entry in replaced)} - {bundle.root}:
                with suppress(OSError):  # not empty, or never made
                    folder.rmdir()
    return Bundle.open(bundle.root)


@dataclass(frozen=True)
class NewFile:
    """A file that is to enter a bundle.

    Attributes:
        content: its bytes.
        path: where it goes, relative to the bundle; where other content has that name, the first digits of its sha256
            are added.
        role: see :class:`wgap.manifest.BundleFile`.
        precision: likewise.
        records: likewise, by their names there.
    """

    content: bytes
    path: str
    role: str
    precision: str
    records: dict[str, Any] = field(default_factory=dict)


def enter_files(
    bundle: Bundle, files: Sequence[NewFile], superseded: Callable[[BundleFile], bool], **changes: Any
) -> Bundle:
    """Put several files into the bundle at once, in place of the entries they supersede.

    They are written under names of their own; one rename of the manifest then brings all of them in and the superseded
    ones out, whose files are removed last.

    Args:
        bundle: which; its manifest is read again.
        files: the new files.
        superseded: whether an entry goes.
        changes: of the manifest's other fields.

    Returns:
        the bundle, opened again.

    Raises:
        BundleError: if the bundle cannot be written; it is as it was then.
    """
    with writing(bundle):
        root, manifest = bundle.root, Bundle.open(bundle.root, verify=False).manifest
        kept = [entry for entry in manifest.files if not superseded(entry)]
        entered, written = [], []
        try:
            for new in files:
                target = root / new.path
                if target.exists() and (not target.is_file() or target.read_bytes() != new.content):
                    digest = hashlib.sha256(new.content).hexdigest()
                    target = target.with_name(f"{target.stem}-{digest[:8]}{target.suffix}")
                if not target.exists():
                    written.append(target)
                    with atomic_file(target) as temporary:
                        temporary.write_bytes(new.content)
                entered.append(describe_file(root, target, new.role, new.precision, **new.records))
            listed = sorted([*entered, *kept], key=lambda entry: _ORDER.get(entry.role, 1))
            write_manifest(root, replace(manifest, files=tuple(listed), **changes))
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        paths = {entry.path for entry in listed}
        for entry in manifest.files:
            if entry.path not in paths:
                (root / entry.path).unlink(missing_ok=True)
    return Bundle.open(bundle.root)


def require_writable(bundle: Bundle) -> None:
    """Find out before minutes of work whether the bundle can be extended.

    Raises:
        BundleError: if nothing can be written into its folder.
    """
    with writing(bundle), tempfile.TemporaryFile(dir=bundle.root) as probe:
        probe.write(b"\0" * 4096)
        probe.flush()
        os.fsync(probe.fileno())


@contextmanager
def writing(bundle: Bundle) -> Iterator[None]:
    """Turn the system's refusals to write into a :class:`BundleError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{bundle.root} cannot be written ({error.strerror}); free space or allow writing and run it again. "
            "The bundle is as it was"
        ) from error
