"""A page in headless Chromium with the network blocked; WGAP_REQUIRE_BROWSER=1 turns its absence into a failure."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_PATIENCE = "--virtual-time-budget=20000"
"""Milliseconds of the page's own clock, which runs as fast as it can."""

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
  parent.postMessage(out.textContent, "*");
  console.log("told:" + btoa(out.textContent));
})();
"""
_NARROW = """<!doctype html><body style="margin:0">
<iframe src="page.html" width="%d" height="%d" style="border:0"></iframe>
<script>
window.addEventListener("message", (event) => {
  const out = document.createElement("pre");
  [out.id, out.textContent] = ["told", event.data];
  document.body.append(out);
});
</script>"""
"""A page within a page: Chromium's own window has at least 500 pixels."""


def require_browser() -> None:
    """Skip a test, or fail it, where there is no browser."""
    if PROGRAM is None:
        reason = "Chromium not found: apt-get install chromium"
        if os.environ.get("WGAP_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def ask(
    page: Path, script: str, size: tuple[int, int] = (1200, 900), real_time: bool = False, online: bool = False
) -> dict[str, Any]:
    """What a script finds in a page: ``result``, and the page's ``errors``, ``violations`` of its policy, ``requests``.

    The script is the body of an asynchronous function with ``press(key)`` and ``wait(ms)``; it is put into a copy of
    the page, whose policy is widened by its hash alone.

    Args:
        page: the file.
        script: returns what JSON can hold.
        size: of the window.
        real_time: let clocks tell the time.
        online: block no name and no address; the policy alone is between the page and the network.
    """
    more = [] if online else ["--host-resolver-rules=MAP * ~NOTFOUND"]
    told: dict[str, Any] = json.loads(_run(page, script, size, more if real_time else [*more, _PATIENCE]))
    return told


def screenshot(page: Path, out: Path, size: tuple[int, int], script: str = "") -> None:
    """A picture of a page after a script."""
    _run(page, script, size, ["--host-resolver-rules=MAP * ~NOTFOUND", _PATIENCE], out)


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
        if picture is None and size[0] < 500:
            copy = copy.with_name("narrow.html")
            copy.write_text(_NARROW % size)
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--hide-scrollbars", f"--user-data-dir={name}/profile", f"--window-size={size[0]},{size[1]}",
        ]  # fmt: skip
        if _PATIENCE not in more:
            return _spoken(
                [str(PROGRAM), *flags, *more, "--enable-logging=stderr", "--remote-debugging-port=0", copy.as_uri()]
            )
        how = ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
        command = [str(PROGRAM), *flags, *more, *how, copy.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if picture is not None:
        assert picture.is_file(), done.stderr
        return ""
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
    assert told is not None, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return html.unescape(told[1])


def _spoken(command: list[str]) -> str:
    """What a page writes to the console of a browser that stays open until it has."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as browser:
        try:
            assert browser.stderr is not None
            seen = []
            for line in browser.stderr:
                if told := re.search(r'"told:([A-Za-z0-9+/=]+)"', line):
                    return base64.b64decode(told[1]).decode("latin-1")
                seen.append(line)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
    raise AssertionError("".join(seen[-20:]))
