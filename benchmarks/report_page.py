"""How large a page of ``wgap report`` is, how soon it is there, and how soon a box follows the slider.

    python -m benchmarks.report_page report.html

A fresh headless Chromium opens it each time, the network blocked, and then again, as a browser does that runs already.
*Script* is when the page's script has ended, from the beginning of the navigation; *frame* is when the first frame
after that is done. *Moved* is from the slider's event until every box has its new place and layout is done, *drawn*
until the first frame after it is done; medians over 50 places of the slider and each rule, then over the runs. *Close*
is the mean IoU of the boxes that the page cuts at each rule's own threshold with the kernel's.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from tests.browser import ask, require_browser

MEASURE = """
const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
const found = {script: performance.now(), moved: [], drawn: []};
await frame();
found.frame = performance.now();
if (!location.hash) {
  location.hash = `${found.script}/${found.frame}`;
  location.reload();
  await new Promise(() => 0);
}
found.first = location.hash.slice(1).split("/").map(Number);
await wait(1500);
const slider = document.getElementById("cut"), median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
for (let rule = 0; rule < document.querySelectorAll(".switch button").length; ++rule) {
  for (let n = 0; n < 50; ++n) {
    const start = performance.now();
    slider.value = ((37 * n) % 50) / 50;
    slider.dispatchEvent(new Event("input"));
    document.body.getBoundingClientRect();
    found.moved.push(performance.now() - start);
    if (n % 10) continue;
    await frame();
    found.drawn.push(performance.now() - start);
  }
  press("r");
}
const close = (one, n) => {
  const ious = REPORT.pictures.map((picture) => {
    const known = picture.found[0][n], [a, b] = [known.box, cutBox(picture, one, ownCut(picture, one, known))];
    const side = (i) => Math.max(0, Math.min(a[i + 2], b[i + 2]) - Math.max(a[i], b[i]));
    const area = (c) => (c[2] - c[0]) * (c[3] - c[1]), shared = side(0) * side(1);
    return shared / (area(a) + area(b) - shared);
  });
  return [one.text, ious.reduce((sum, iou) => sum + iou) / ious.length];
};
found.close = REPORT.rules.map(close);
for (const key of ["moved", "drawn"]) found[key] = [median(found[key]), Math.max(...found[key])];
return found;
"""


def main() -> None:
    """Print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    require_browser()
    told = [ask(given.page, MEASURE, real_time=True) for _ in range(given.runs)]
    runs = [one["result"] for one in told]
    print(f"size {given.page.stat().st_size / 1e6:.2f} MB")
    for n, name in enumerate(("script", "frame")):
        for when, times in (("fresh", [run["first"][n] for run in runs]), ("again", [run[name] for run in runs])):
            print(f"opening {when}, {name}: {statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f})")
    for name in ("moved", "drawn"):
        medians, most = zip(*(run[name] for run in runs), strict=True)
        print(f"slider, {name}: {statistics.median(medians):.1f} ms, at most {max(most):.1f}")
    print("close: " + ", ".join(f"{rule} {mean:.3f}" for rule, mean in runs[0]["close"]))
    print(f"requests {sum(len(one['requests']) for one in told)}, errors {sum(len(one['errors']) for one in told)}")


if __name__ == "__main__":
    main()
