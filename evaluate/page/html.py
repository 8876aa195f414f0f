"""One page: a template, its style and its script, and the data as JSON, in a file that may not ask for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

from wgap.atomic import atomic_file, require_place
from wgap.errors import OutputExistsError

__all__ = ["page_html", "require_new_page", "write_page"]

_HERE = Path(__file__).parent
_SCRIPTS = ("elements.js", "cut.js", "charts.js", "bundle.js", "figures.js", "gallery.js")
_BEGINS = '<!doctype html>\n<html lang="en" data-page="wgap">'
"""What tells a page of ours from other files."""


def require_new_page(out: Path, force: bool) -> None:
    """Find out before the work whether a page can be written.

    Raises:
        OutputExistsError: ``out`` exists, and ``force`` is false or it is no such page.
        OSError: see :func:`wgap.atomic.require_place`.
    """
    require_place(out.absolute().parent)
    if not out.exists():
        return
    if not force:
        raise OutputExistsError(f"{out} already exists; choose another place or pass --force to replace it")
    if not out.is_file() or not out.read_bytes().startswith(_BEGINS.encode()):
        raise OutputExistsError(f"{out} exists and is not a page that wgap wrote; refusing to replace it")


def write_page(out: Path, text: str) -> int:
    """Write a page, whole or not at all; returns its bytes."""
    content = text.encode("ascii")
    with atomic_file(out) as temporary:
        temporary.write_bytes(content)
    return len(content)


def page_html(title: str, data: dict[str, Any]) -> str:
    """The page of some data, in ASCII.

    Its Content-Security-Policy forbids every request, and every script and style but its own two. Texts of the data
    stand in JSON alone, which the script shows as text.

    Args:
        title: of the window.
        data: ``bundle`` (:func:`wgap.evaluate.page.bundle.bundle_data`) and, of a report, ``report``.
    """
    style = (_HERE / "page.css").read_text(encoding="ascii")
    script = "".join((_HERE / name).read_text(encoding="ascii") for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "begins": _BEGINS,
        "policy": policy,
        "title": html.escape(title).encode("ascii", "xmlcharrefreplace").decode(),
        "style": style,
        "script": script,
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    pieces = (_HERE / "page.html").read_text(encoding="ascii").split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
