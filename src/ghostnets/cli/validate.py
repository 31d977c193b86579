# SPDX-License-Identifier: Apache-2.0
"""``ghostnets validate``: how good a trained network is, in figures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ghostnets.cli.arguments import figures_of, use_threads
from ghostnets.errors import UserError
from ghostnets.records import to_json, write_text


def validate(
    network: str,
    /,
    *,
    data: str,
    data_dir: Path | None = None,
    weights: Path | None = None,
    mean: str | None = None,
    std: str | None = None,
    batch_size: int = 250,
    num_classes: int | None = None,
    workers: int = 0,
    max_bad: int = 0,
    trust_code: bool = False,
    threads: int | None = None,
    results_file: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Top-1 and top-5 accuracy, log-likelihood and calibration of a trained network on test images, and class by class.

    Example: ghostnets validate build/ghost56 --data cifar10 --results-file results.csv

    Args:
        network: a folder that train, upgrade or save_pretrained left, or the name of a network; one that does not come trained needs --weights
        data: digits, cifar10, cifar100, a folder with a folder of images for each class, hf:NAME, or WebDataset shards
        data_dir: where CIFAR's binary files lie; else GHOSTNETS_DATA, else they are downloaded
        weights: .safetensors, or a PyTorch file of tensors alone
        mean: of the images the network was trained on (default: what the network says)
        std: the same for the standard deviation
        batch_size: images at a time
        num_classes: of shards, which do not say
        workers: processes that decode images
        max_bad: so many images may be damaged
        trust_code: run the Python file in the network's folder, where it has one
        threads: of PyTorch
        results_file: add the figures to this table (.csv), or write them to this file (.json)
        as_json: the figures as JSON, and nothing else
    """
    from rich.console import Console

    from ghostnets.cli.terminal import printing, quality_summary
    from ghostnets.validation import validate as run

    use_threads(threads)
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} must be at least 1")
    if results_file is not None and results_file.suffix not in {".csv", ".json"}:
        raise UserError(f"--results-file {results_file} should end in .csv or .json")
    found = run(
        network, data, data_dir=data_dir, weights=weights, mean=figures_of("--mean", mean),
        std=figures_of("--std", std), batch_size=batch_size, num_classes=num_classes, workers=workers, max_bad=max_bad,
        trust_code=trust_code, note=lambda text: Console(stderr=True).print(f"note: {text}", markup=False, soft_wrap=True),
    )  # fmt: skip
    told: dict[str, Any] = {"network": network, "data": data, **to_json(found)}
    if results_file is not None:
        _keep(results_file, told)
    if as_json:
        print(json.dumps(told, indent=1))
    else:
        print(quality_summary(found, f"{network}, {data}", printing()))


def _keep(path: Path, told: dict[str, Any]) -> None:
    if path.suffix == ".json":
        write_text(path, json.dumps(told, indent=1) + "\n")
        return
    row = {key: value for key, value in told.items() if key != "classes"}
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    if not before:
        writer.writeheader()
    elif before.partition("\n")[0] != ",".join(row):
        raise UserError(f"--results-file {path} is another table (its first line is {before.partition(chr(10))[0]!r})")
    writer.writerow(row)
    write_text(path, before + text.getvalue())
