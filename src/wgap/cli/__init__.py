"""The ``wgap`` command: one verb per stage. Each verb lives in a file of its own and does its work in a room."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from wgap import __version__
from wgap.cli.bench import bench
from wgap.cli.build import build
from wgap.cli.calibrate import calibrate, gate
from wgap.cli.check import check
from wgap.cli.demo import demo
from wgap.cli.evaluate import evaluate
from wgap.cli.export import export
from wgap.cli.foreground import foreground
from wgap.cli.inspect import inspect
from wgap.cli.localize import localize
from wgap.cli.selftest import selftest
from wgap.cli.sensitivity import sensitivity
from wgap.cli.train import train
from wgap.errors import WgapError

app = typer.Typer(
    name="wgap",
    help="Weakly supervised object localization: class labels in, classes and boxes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    demo, train, export, foreground, calibrate, gate, sensitivity, build, check, selftest, localize, evaluate, bench,
    inspect,
):  # fmt: skip
    app.command()(verb)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"wgap {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; errors raised on purpose become one line on stderr and exit code 1."""
    try:
        app()
    except WgapError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output left, as `wgap ... | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
