"""``wgap calibrate`` and ``wgap gate``: lower precision, and what it costs in boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wgap.cli.options import BundleFolder, LabelMap, MaxBad, chosen, note, show_progress, warn, with_rule
from wgap.plain import to_plain

if TYPE_CHECKING:
    from wgap.calibrate.bundle import Calibrated

GATE_FAILED = 3
"""Exit code of a gate that refused a file."""

Gate = Annotated[
    str,
    typer.Option("--backend", help="What the gate runs on: onnxruntime, which engines go by too, or openvino."),
]

_SPLITS = "train, val, test or all; of a labelled set only."


@with_rule
def calibrate(
    ctx: typer.Context,
    bundle: BundleFolder,
    images: Annotated[
        Path | None, typer.Option(help="Calibration images: a folder, or a labelled set. bf16 needs none.")
    ] = None,
    precision: Annotated[str, typer.Option(help="int8, fp16 or bf16 (which OpenVINO and TensorRT run).")] = "int8",
    method: Annotated[
        str, typer.Option(help="How activation ranges are chosen: minmax, entropy or percentile.")
    ] = "minmax",
    count: Annotated[int, typer.Option(help="Calibration images to take, every class in turn.")] = 32,
    split: Annotated[str, typer.Option(help=_SPLITS)] = "train",
    gate_images: Annotated[
        Path | None, typer.Option("--gate", help="Images that judge the result: a folder, or a labelled set.")
    ] = None,
    gate_split: Annotated[str, typer.Option(help=_SPLITS)] = "test",
    gate_count: Annotated[int | None, typer.Option(help="At most so many gate images; default: all.")] = None,
    max_drop: Annotated[float, typer.Option(help="Largest loss of GT-known and Top-1 localization, a share.")] = 0.01,
    min_iou: Annotated[float, typer.Option(help="Smallest mean IoU of the boxes against float32's.")] = 0.98,
    min_agreement: Annotated[float, typer.Option(help="Smallest share of equal top-1 classes.")] = 0.98,
    keep_float: Annotated[
        list[str] | None, typer.Option(help="A convolution, by node name, that stays in float32; may be repeated.")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Keep the fewest convolutions in float32 that let the gate pass.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Folder for pictures and report.json.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Keep ranges and the log of --auto here, named by content, to go on later.")
    ] = None,
    backend: Gate = "onnxruntime",
    max_bad: MaxBad = 0,
    label_map: LabelMap = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --report if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest entry as JSON.")] = False,
) -> None:
    """Add a lower-precision model to BUNDLE, judged on --gate; exit code 3 if the gate refuses it."""
    from wgap.bundle import Bundle
    from wgap.calibrate.bundle import calibrate_bundle
    from wgap.calibrate.gate import Limits

    opened = Bundle.open(bundle)
    done = calibrate_bundle(
        opened, images, precision, method=method, count=count, split=split, keep_float=keep_float or (), auto=auto,
        gate=gate_images, gate_count=gate_count, gate_split=gate_split, limits=Limits(max_drop, min_iou, min_agreement),
        rule=chosen(opened, ctx.params), report=report, force=force, cache_dir=cache_dir, max_bad=max_bad,
        label_map=label_map, backend=backend, progress=show_progress(), note=note,
    )  # fmt: skip
    _finish(done, as_json)


@with_rule
def gate(
    ctx: typer.Context,
    bundle: BundleFolder,
    images: Annotated[Path, typer.Option(help="Images that judge: a folder, or a labelled set.")],
    precision: Annotated[str, typer.Option(help="Which of the bundle's models to judge.")] = "int8",
    split: Annotated[str, typer.Option(help=_SPLITS)] = "test",
    count: Annotated[int | None, typer.Option(help="At most so many images; default: all.")] = None,
    max_drop: Annotated[float, typer.Option(help="Largest loss of GT-known and Top-1 localization, a share.")] = 0.01,
    min_iou: Annotated[float, typer.Option(help="Smallest mean IoU of the boxes against float32's.")] = 0.98,
    min_agreement: Annotated[float, typer.Option(help="Smallest share of equal top-1 classes.")] = 0.98,
    backend: Gate = "onnxruntime",
    max_bad: MaxBad = 0,
    label_map: LabelMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest entry as JSON.")] = False,
) -> None:
    """Judge a lower-precision model of BUNDLE anew and enter the verdict; exit code 3 if it is refused."""
    from wgap.bundle import Bundle
    from wgap.calibrate.bundle import gate_bundle
    from wgap.calibrate.gate import Limits

    opened = Bundle.open(bundle)
    done = gate_bundle(
        opened, images, precision, count=count, split=split, limits=Limits(max_drop, min_iou, min_agreement),
        rule=chosen(opened, ctx.params), max_bad=max_bad, label_map=label_map, backend=backend,
        progress=show_progress(),
    )  # fmt: skip
    _finish(done, as_json)


def _finish(done: Calibrated, as_json: bool) -> None:
    """Say what was entered; exit code 3 where the gate refused it."""
    for warning in done.verdict.figures["warnings"] if done.verdict else ():
        warn(warning)
    if as_json:
        typer.echo(json.dumps({"bundle": str(done.bundle.root), "usable": done.usable, **to_plain(done.entry)}))
    else:
        _print(done)
    if done.verdict is not None and not done.usable:
        raise typer.Exit(GATE_FAILED)


def _print(done: Calibrated) -> None:
    from rich.console import Console
    from rich.table import Table

    entry, judged = done.entry, done.verdict
    typer.echo(f"{done.bundle.root / entry.path}: {entry.size / 1e6:.1f} MB")
    made = entry.calibration
    if made and made.quantisation:
        attested = made.quantisation["attestation"]
        typer.echo(
            f"{attested['runtime']} runs {attested['ran_int8']} convolutions in INT8, {attested['ran_float']} in float"
        )
    if made and made.headroom:
        row = made.headroom[0]
        typer.echo(
            f"largest activation {row['largest']:.0f} ({row['tensor']}): float16 holds {row['factor']:.1f} times that"
        )
    if judged is None:
        typer.echo("not judged: no --gate; the runtime refuses this file until `wgap gate` has passed it")
        return
    figures, limits = judged.figures, judged.limits
    table = Table("measure", "float32", entry.precision, "limit", title=f"gate on {figures['images']} images")
    table.add_row("top-1 agreement", "", f"{figures['top1_agreement']:.3f}", f">= {limits.min_agreement:g}")
    table.add_row("mean box IoU", "", f"{figures['box_iou']['mean']:.4f}", f">= {limits.min_iou:g}")
    table.add_row("box IoU, 5th percentile", "", f"{figures['box_iou']['p5']:.3f}", "")
    table.add_row("boxes with IoU < 0.9", "", f"{figures['box_iou']['share_below_0.9']:.3f}", "")
    table.add_row("level flips", "", str(figures["level_flips"]), "")
    for name, title in (("gt_known", "GT-known"), ("top1_loc", "Top-1 loc")):
        if row := figures[name]:
            low, high = row["interval"]
            measured = f"{row['candidate']:.3f} ({row['change']:+.3f}, 95 % {low:+.3f} to {high:+.3f})"
            table.add_row(title, f"{row['float32']:.3f}", measured, f">= -{limits.max_drop:g}")
    Console().print(table)
    kept = f", kept aside in {entry.path}" if entry.role == "rejected" else ""
    on = f" on {judged.record.backend}" if judged.record else ""
    typer.echo(f"passed{on}" if judged.passed else f"refused{on}{kept}: {'; '.join(judged.reasons)}")
