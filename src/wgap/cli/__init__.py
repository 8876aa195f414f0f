"""The ``wgap`` command: one verb per stage. Each verb lives in a file of its own and does its work in a room."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

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
from wgap.cli.import_ import import_
from wgap.cli.inspect import inspect
from wgap.cli.localize import localize
from wgap.cli.options import say
from wgap.cli.report import report
from wgap.cli.selftest import selftest
from wgap.cli.sensitivity import sensitivity
from wgap.cli.serve import serve
from wgap.cli.shards import shards
from wgap.cli.train import train
from wgap.errors import WgapError
from wgap.extras import EXTRAS, missing

app = typer.Typer(
    name="wgap",
    help="Weakly supervised object localization: class labels in, classes and boxes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    demo, train, export, import_, foreground, calibrate, gate, sensitivity, build, check, selftest, localize, evaluate,
    report, bench, serve, inspect,
):  # fmt: skip
    app.command(verb.__name__.removesuffix("_"))(verb)
app.add_typer(shards, name="shards")


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
    """Run the command line; errors raised on purpose and the system's become one line on stderr and exit code 1."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, and then so do we
            signal.signal(number, _end)
    try:
        try:
            Path.cwd()  # where it was removed, libraries that load later fail in ways of their own
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where what is wrong with it can still be said
    except WgapError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (name := (error.name or "").partition(".")[0]) not in EXTRAS:
            raise
        _fail(str(missing("this", name)))
    except BrokenPipeError:  # the reader of our output left, as `wgap ... | head` does
        _drop_output()
        sys.exit(1)
    except OSError as error:
        _drop_output()
        where = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        _fail(f"{where or 'output or working directory'}: {error.strerror or error}")


def _end(number: int, _frame: object) -> None:
    """End as an interrupt does, so that what is half-written is removed."""
    sys.exit(128 + number)


def _fail(text: str) -> NoReturn:
    say(f"error: {text}", err=True)
    sys.exit(1)


def _drop_output() -> None:
    """Nothing more is written to standard output, not by the interpreter as it ends either."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
