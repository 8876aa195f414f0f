"""What is compiled here and kept on disk: files named by what they were made of, each behind its content's hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from wgap.atomic import atomic_file
from wgap.errors import BackendError

__all__ = ["cache_folder", "read_cached", "require_own", "write_cached"]


def cache_folder() -> Path:
    """Where compiled code is kept: ``$WGAP_CACHE``, or ``wgap`` in the user's cache folder."""
    if given := os.environ.get("WGAP_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wgap"


def require_own(cache: Path, code: str) -> None:
    """Make the folder; refuse one from which somebody else's code would be run: its hashes fit what its writer wants.

    Args:
        cache: the folder.
        code: a clause that says what is kept there.

    Raises:
        BackendError: others may write into it.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = cache.stat()
    if about.st_uid not in (os.getuid(), 0) or about.st_mode & 0o002:
        raise BackendError(
            f"{cache}: {code}, and others may write it (mode {about.st_mode & 0o7777:o}, owner "
            f"{about.st_uid}); run chmod o-w on it, or name a folder of your own in WGAP_CACHE"
        )


def read_cached(path: Path) -> bytes | None:
    """What :func:`write_cached` wrote; None where there is none, or it is cut short or changed."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, content = whole[:32], whole[32:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_cached(path: Path, content: bytes) -> None:
    """Keep the content there, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
