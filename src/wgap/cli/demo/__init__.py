"""``wgap demo``: the whole way on generated images, in under two minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Of the images and of the training.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Generate images, train, export, calibrate, evaluate; exit code 1 if parity or GT-known >= 0.85 is missed."""
    from wgap.cli.demo.run import REQUIRED, run_demo

    result = run_demo(out, seed=seed, force=force, say=lambda text: typer.echo(text, err=True))
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        scores = result.scores
        typer.echo(
            f"GT-known localization {scores['gt_known_loc']:.3f} (required {REQUIRED}), a centred box "
            f"{scores['centred_box']['gt_known_loc']:.3f}; Top-1 classification {scores['top1_cls']:.3f}, Top-1 "
            f"localization {scores['top1_loc']:.3f}; {sum(result.seconds.values()):.0f} s\n{out / 'report.md'}"
        )
    if not result.parity:
        typer.echo("error: the runtime does not agree with the PyTorch reference; see `wgap check`", err=True)
    if not result.localizes:
        typer.echo(f"error: GT-known localization is below {REQUIRED}", err=True)
    if not result.ok:
        raise typer.Exit(1)
