# SPDX-License-Identifier: Apache-2.0
"""The page of a training run: its record in, HTML out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, cast

from ghostnets.records import TrainRecord, from_json, read_json
from ghostnets.report import figures, tables
from ghostnets.report.tables import Cell
from ghostnets.report.templating import filled

RECORD, REQUEST, RECIPE = "train.json", "request.json", "recipe.yaml"

FLAGS = {
    "data": "--data", "data_dir": "--data-dir", "val_data": "--val-data", "weights": "--weights", "hold_out": "--hold-out",
    "train_samples": "--train-samples", "num_classes": "--num-classes", "in_chans": "--in-chans", "seed": "--seed",
}  # fmt: skip
"""Field of the request -> the flag that sets it; those with several figures apart."""


def render(directory: Path) -> str:
    """The page of the run in this folder. Raises UserError where a record cannot be read."""
    record = from_json(TrainRecord, read_json(directory / RECORD))
    request = directory / REQUEST
    asked: Any = read_json(request) if request.exists() else None
    return filled(
        "training.html.j2",
        title=f"{record.model} · training",
        record=record,
        command=command(cast("dict[str, Any]", asked), directory.name) if isinstance(asked, dict) else None,
        verdict=verdict(record),
        cards=_cards(record),
        curve=_curve(record),
        caption=f"{record.epochs:g} epochs, {record.images_per_second:.0f} images/s.",
        rows=[_class(row) for row in record.quality.classes],
        environment=tables.environment_rows(record.environment),
    )


def command(asked: dict[str, Any], folder: str) -> str:
    """The words that run it again, the recipe from the file beside the page."""
    words = ["ghostnets", "train", str(asked.get("model", "MODEL")), "--recipe", f"{folder}/{RECIPE}"]
    for field, flag in FLAGS.items():
        value = asked.get(field)
        if value is not None and (value != 0 or field == "seed"):
            words += [flag, str(value)]
    for field, flag in (("mean", "--mean"), ("std", "--std"), ("input_size", "--input-size")):
        if asked.get(field):
            words += [flag, ",".join(f"{figure:g}" for figure in asked[field])]
    for name, value in (asked.get("model_kwargs") or {}).items():
        words += ["--model-kwargs", f"{name}={value}"]
    if asked.get("flip") is False:
        words.append("--no-flip")
    return shlex.join([*words, "--out", f"{folder}-again"])


def verdict(record: TrainRecord) -> str:
    """What has come of it, in a sentence."""
    spent = tables.duration(record.seconds)
    where = "held-out training images" if record.held_out else "test images"
    return (
        f"{tables.percent(record.quality.top1)} of {record.quality.images:,} {where} recognised after {record.epochs:g} epochs "
        f"in {spent}."
    )


def _cards(record: TrainRecord) -> list[tables.Card]:
    quality = record.quality
    return [
        tables.Card("Top-1", tables.percent(quality.top1), f"top-5: {tables.percent(quality.top5)}"),
        tables.Card("Log-likelihood", f"{-quality.nll:.3f}", f"nats an image; calibration error {quality.ece:.3f}"),
        tables.Card(
            "Parameters", tables.count(record.params), f"{tables.count(record.macs)} multiply-adds on one image"
        ),
        tables.Card("Time", tables.duration(record.seconds), f"{record.images_per_second:.0f} images/s"),
    ]


def _curve(record: TrainRecord) -> str | None:
    rows = ({**row, "event": "epoch", "step": "", "held_out_top1": row.get("top1")} for row in record.history)
    epochs = tables.epoch_rows(rows).get("")
    if not epochs:
        return None
    figure = figures.training_curve(epochs, record.model)
    return figures.to_svg(figure, "curve", f"Chart: training curve of {record.model} over {record.epochs:g} epochs.")


def _class(row: Any) -> tuple[Cell, ...]:
    recall = Cell("no image") if row.recall is None else Cell(tables.percent(row.recall), row.recall)
    precision = Cell("never said") if row.precision is None else Cell(tables.percent(row.precision), row.precision)
    return Cell(row.name), Cell(f"{row.images:,}", row.images), recall, precision
