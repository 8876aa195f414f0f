"""What was found, for programs and for people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from wgap.atomic import atomic_file


def write(found: dict[str, Any], out: Path) -> None:
    """Both files, after every part: a run that is cut has left what it had."""
    device = re.sub(r"[^a-z0-9]+", "-", str(found["environment"].get("device", "none")).lower()).strip("-")
    for suffix, text in (("json", json.dumps(found, indent=1, default=str)), ("md", table(found))):
        with atomic_file(out / f"gpu-{device}.{suffix}") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """What was found, for people."""
    about = found["environment"]
    lines = [f"# {about.get('device', 'no GPU')}", ""]
    if about["state"] == "ran":
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
        lines += [f"Driver {about['driver']}, CUDA {about['cuda']}, Python {about['python']}; {versions}.", ""]
    lines += ["| part | state | |", "|---|---|---|"]
    for name, part in found.items():
        told = part.get("reason") or part.get("summary") or ""
        lines.append(f"| {name} | {part['state']} | {' '.join(str(told).split())[:300]} |")
    for name in ("kernel", "network", "end_to_end", "cpp"):
        if rows := found.get(name, {}).get("rows"):
            keys = list(rows[0])
            lines += ["", f"## {name}, {found[name]['unit']}", "", f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
            for row in rows:
                cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
                lines.append(f"| {' | '.join(cells)} |")
        if absent := found.get(name, {}).get("absent"):
            lines += ["", *(f"- {peer}: {' '.join(reason.split())}" for peer, reason in absent.items())]
    if share := found.get("profile", {}).get("share"):
        lines += ["", "## Where the kernel's time goes", "", "| stage | share |", "|---|---|"]
        lines += [f"| {stage} | {value:.3f} |" for stage, value in share.items()]
    return "\n".join(lines)
