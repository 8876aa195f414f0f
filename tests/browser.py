"""A page in headless Chromium with the network blocked; WGAP_REQUIRE_BROWSER=1 turns its absence into a failure."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_WATCH = """
window.told = {violations: [], errors: []};
document.addEventListener("securitypolicyviolation", (event) => told.violations.push(event.violatedDirective));
window.addEventListener("error", (event) => told.errors.push(String(event.message)));
"""
_ASK = """
(async () => {
  const press = (key) => (document.activeElement ?? document.body).dispatchEvent(
    new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  try {
    told.result = await (async () => { %s })();
  } catch (error) {
    told.errors.push(String(error.stack));
  }
  told.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  const out = document.createElement("pre");
  out.id = "told";
  out.textContent = JSON.stringify(told);
  document.body.append(out);
})();
"""


def require_browser() -> None:
    """Skip a test, or fail it, where there is no browser."""
    if PROGRAM is None:
        reason = "Chromium not found: apt-get install chromium"
        if os.environ.get("WGAP_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def ask(page: Path, script: str, size: tuple[int, int] = (1200, 900), real_time: bool = False) -> dict[str, Any]:
    """What a script finds in a page: ``result``, and the page's ``errors``, ``violations`` of its policy, ``requests``.

    The script is the body of an asynchronous function with ``press(key)`` and ``wait(ms)``; it is put into a copy of
    the page, whose policy is widened by its hash alone.

    Args:
        page: the file.
        script: returns what JSON can hold.
        size: of the window.
        real_time: let clocks tell the time; the script may then wait for nothing.
    """
    return json.loads(_run(page, script, size, [] if real_time else ["--virtual-time-budget=20000"]))


def screenshot(page: Path, out: Path, size: tuple[int, int], script: str = "") -> None:
    """A picture of a page after a script."""
    _run(page, script, size, ["--virtual-time-budget=20000"], out)


def _run(page: Path, script: str, size: tuple[int, int], more: list[str], picture: Path | None = None) -> str:
    scripts = [_WATCH, _ASK % script]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    text = page.read_text()
    allowed = text.replace("script-src '", "script-src " + "".join(f"'sha256-{one}' " for one in digests) + "'", 1)
    assert allowed != text, "the page has no policy"
    watching = allowed.replace("<title>", f"<script>{scripts[0]}</script><title>", 1)
    before, after = watching.rsplit("</body>", 1)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "page.html"
        copy.write_text(f"{before}<script>{scripts[1]}</script></body>{after}")
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={name}/profile",
            f"--window-size={size[0]},{size[1]}",
        ]  # fmt: skip
        how = ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
        command = [str(PROGRAM), *flags, *more, *how, copy.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if picture is not None:
        assert picture.is_file(), done.stderr
        return ""
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert told is not None, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return html.unescape(told[1])
