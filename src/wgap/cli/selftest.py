"""``wgap selftest``: the bundle's golden cases on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from wgap.cli.options import BundleFolder, open_localizer, warn, with_network, with_rule


@with_network
@with_rule
def selftest(
    ctx: typer.Context,
    bundle: BundleFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run BUNDLE's golden cases here, without PyTorch; exit code 1 if a stage differs beyond its limit."""
    from wgap.runtime.selftest import selftest as run

    with open_localizer(ctx.params) as localizer:
        report = run(localizer)
    for warning in report.warnings:
        warn(warning)
    if as_json:
        typer.echo(json.dumps({"bundle": str(bundle), **report.to_json()}))
    else:
        from rich.console import Console
        from rich.table import Table

        title = f"{bundle} on {report.backend} {report.backend_version}"
        table = Table("case", "stage", "difference", "limit", "", title=title)
        for check in report.checks:
            verdict, style = ("ok", "") if check.ok else (f"FAILED {check.note}".rstrip(), "bold red")
            row = (str(check.case), check.stage, f"{check.measured:.3g}", f"{check.limit:g}", verdict)
            table.add_row(*row, style=style)
        Console().print(table)
        passed = sum(check.ok for check in report.checks)
        typer.echo(f"{passed} of {len(report.checks)} checks passed")
    if not report.ok:
        raise typer.Exit(1)
