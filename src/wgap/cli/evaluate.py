"""``wgap evaluate``: how often the class, and the box, is right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wgap.cli.options import (
    BundleFolder,
    LabelMap,
    MaxBoxes,
    note,
    open_localizer,
    show_progress,
    with_network,
    with_rule,
)
from wgap.errors import DataError

if TYPE_CHECKING:
    from wgap.evaluate.protocol import Evaluation


@with_network
@with_rule
def evaluate(
    ctx: typer.Context,
    bundle: BundleFolder,
    data: Annotated[Path, typer.Argument(help="Labelled image set with boxes; docs/datasets.md shows the layouts.")],
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    layout: Annotated[str, typer.Option(help="auto, cub, ilsvrc, wsolevaluation or folder.")] = "auto",
    label_map: LabelMap = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also every map with fixed and adaptive thresholds; foreground rules.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures, report.json and per_image.jsonl.")] = None,
    plot: Annotated[
        list[str] | None, typer.Option(help="Plot the choice of threshold for: worst, random, or an image's path.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="The public wsolevaluation code's maxboxacc, maxboxaccv2 or pxap instead.")
    ] = None,
    threshold_step: Annotated[float, typer.Option(help="Of --protocol: between thresholds.")] = 0.01,
    tune: Annotated[
        str | None, typer.Option(help="Of --protocol: split to choose thresholds on; default: the scored one itself.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Of pxap: folder of the mask files; default: masks/ of DATA, or its images'.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Of --protocol: go on with the run of --out.")] = False,
    max_boxes: MaxBoxes = 1,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 8,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to skip before giving up.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Score BUNDLE on DATA: Top-1 classification, GT-known and Top-1 localization (IoU >= 0.5), or a --protocol."""
    from wgap.atomic import require_new
    from wgap.datasets import open_dataset, with_label_map
    from wgap.evaluate.protocol import ablation_rules, evaluate_localizer
    from wgap.evaluate.report import write_report
    from wgap.extras import require

    if protocol is not None:
        paths = {"data": data, "out": out, "masks": masks, "label_map": label_map}
        _public({**ctx.params, **paths})  # which are texts there in some versions of typer
        return
    if tune or masks or resume or threshold_step != 0.01:
        raise DataError("--threshold-step, --tune, --masks and --resume are of --protocol; name one")
    if plot and out is None:
        raise DataError("--plot writes pictures: say where with --out DIR")
    if out is not None:
        require("--out", "matplotlib")
        require_new(out, force)
    bar = show_progress(transient=False)
    localizer = open_localizer(ctx.params)
    report = evaluate_localizer(
        localizer, with_label_map(open_dataset(data, split=split, layout=layout), label_map),
        ablation_rules(localizer.bundle) if ablation else (),
        batch_size=batch_size, max_bad=max_bad, progress=lambda batches: bar(batches, "evaluating"),
    )  # fmt: skip
    for path, reason in report.skipped:
        note(f"skipped {path}: {reason}")
    if nameless := sum(image.label is None for image in report.images):
        note(
            f"{nameless} of {len(report.images)} images are of classes that the model does not have: their GT-known "
            "box is that of its top-1 class, and they count for no figure of classes"
            + ("" if label_map else ". --label-map FILE says what the model calls them")
        )
    if out is not None:
        write_report(out, report, localizer, plot or ("random",), force)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        _print(report)


def _public(options: Mapping[str, Any]) -> None:
    """A protocol of the field."""
    from wgap.atomic import require_new
    from wgap.datasets import open_dataset, with_label_map
    from wgap.evaluate.public_protocol import Protocol, evaluate_protocol, remove_state
    from wgap.evaluate.report import write_protocol_report

    if options["ablation"] or options["plot"] or options["max_boxes"] != 1:
        raise DataError("--ablation, --plot and --max-boxes are not of --protocol; leave them out")
    protocol = Protocol.parse(options["protocol"], options["threshold_step"], options["masks"])
    out, state = options["out"], None
    if out is None and options["resume"]:
        raise DataError("--resume goes on from what a run counted beside --out: say where with --out DIR")
    if out is not None:
        require_new(out, options["force"])
        state = out.absolute().with_name(f"{out.absolute().name}.state")
    data, layout, tune = options["data"], options["layout"], options["tune"]
    split = with_label_map(open_dataset(data, options["split"], layout), options["label_map"])
    tuning = None if tune is None else with_label_map(open_dataset(data, tune, layout), options["label_map"])
    bar = show_progress(transient=False)
    report = evaluate_protocol(
        open_localizer(options), split, protocol, tuning, batch_size=options["batch_size"], max_bad=options["max_bad"],
        state=state, resume=options["resume"], force=options["force"],
        progress=lambda batches: bar(batches, "evaluating"),
    )  # fmt: skip
    for path, reason in report.skipped:
        note(f"skipped {path}: {reason}")
    figures = report.to_json()
    if empty := [row["class"] for row in figures["per_class"] if row["images"] == 0]:
        more = ", ..." if len(empty) > 5 else ""
        note(f"no image of {len(empty)} of {len(figures['per_class'])} classes: {', '.join(empty[:5])}{more}")
    if state is not None:
        write_protocol_report(out, figures, options["force"])
        remove_state(state)
    if options["as_json"]:
        typer.echo(json.dumps(figures))
    else:
        _print_public(figures)


def _print_public(data: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, intervals = Console(), data["confidence_95"]
    table = Table("figure", "share", "95 % interval", "threshold", title=f"{data['images']} images, {data['map']} map")

    def row(name: str, share: float, interval: list[float], threshold: float | None = None) -> None:
        cut = "" if threshold is None else f"{threshold:g}"
        table.add_row(name, f"{share:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}", cut)

    if data["protocol"] == "pxap":
        row("PxAP", data["pxap"], intervals["pxap"])
        console.print(table)
    else:
        v2, cuts = data["max_box_acc_v2"], data["thresholds"]
        row("MaxBoxAcc", data["max_box_acc"], intervals["max_box_acc"], cuts["max_box_acc"])
        for key in v2:
            name = "MaxBoxAccV2" + ("" if key == "mean" else f" at IoU 0.{key}")
            row(name, v2[key], intervals["max_box_acc_v2"][key], cuts["max_box_acc_v2"].get(key))
        for k in (1, 5):
            for name, what in (("cls", "classification"), ("loc", "localization")):
                row(f"Top-{k} {what}", data[f"top{k}_{name}"], intervals[f"top{k}_{name}"])
        console.print(table)
        own = ", the images that are scored, as these protocols define it" if data["uses_ground_truth"] else ""
        console.print(f"thresholds tuned on the true boxes of split {data['tuned_on']}{own}", soft_wrap=True)
        console.print(", ".join(f"{kind} {share:.4f}" for kind, share in data["errors"].items()), soft_wrap=True)
    figure = "pxap" if data["protocol"] == "pxap" else "max_box_acc"
    rows = sorted((one for one in data["per_class"] if one[figure] is not None), key=lambda one: float(one[figure]))
    classes = Table("class", "images", figure, title=f"the {min(20, len(rows))} lowest of {len(rows)} classes")
    for one in rows[:20]:
        classes.add_row(escape(one["class"]), str(one["images"]), f"{one[figure]:.4f}")
    console.print(classes)


def _print(report: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    data = report.to_json()
    console = Console()
    table = Table(
        "map", "threshold", "top1_cls", "gt_known_loc", "top1_loc", "mean_iou", title=f"{data['images']} images"
    )
    for row in [data, *data.get("ablation", [])]:
        figures = (
            "-" if row[key] is None else f"{row[key]:.3f}"
            for key in ("top1_cls", "gt_known_loc", "top1_loc", "mean_iou")
        )
        table.add_row(row["map"], row["threshold"], *figures)
    for key, name in (("centred_box", "centred box"), ("oracle", "oracle (uses the true box)")):
        known, mean = (f"{data[key][figure]:.3f}" for figure in ("gt_known_loc", "mean_iou"))
        table.add_row("", name, "", known, "", mean, style="dim")
    for bound in data.get("upper_bounds", []):
        if best := bound.get("best_fixed"):
            name = f"best fixed, {best['eta']:.2f} (tuned on the true boxes)"
            table.add_row(bound["map"], name, "", f"{best['gt_known_loc']:.3f}", "", "", style="dim")
        oracle = f"{bound['oracle']['gt_known_loc']:.3f}"
        table.add_row(bound["map"], "oracle (uses the true box)", "", oracle, "", "", style="dim")
    console.print(table)
    if several := data["any_of_n"]:
        console.print(
            f"any of {report.max_boxes} boxes right, which is not GT-known: {several['loc']:.3f}; "
            f"{several['boxes']:.2f} boxes an image, precision {several['precision']:.3f}, "
            f"recall {several['recall']:.3f}", soft_wrap=True,
        )  # fmt: skip
    if data["levels"]:
        chosen = ", ".join(f"{eta}: {count}" for eta, count in data["levels"].items())
        console.print(f"chosen thresholds: {chosen}", soft_wrap=True)
