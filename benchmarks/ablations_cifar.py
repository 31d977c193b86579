# SPDX-License-Identifier: Apache-2.0
"""Tables 3 and 4 of the GhostNet paper (arXiv:1911.11907): the cheap filters' size d, and the ratio s.

    python benchmarks/ablations_cifar.py --out RUNS                    # every row, three seeds; goes on where it stopped
    python benchmarks/ablations_cifar.py --table --out RUNS            # the tables of what is there so far
    python benchmarks/ablations_cifar.py --model ghost_vgg16 --recipe cifar10-paper --out RUNS   # the paper's own (GPU)

All rows of a run share one schedule, short enough for two cores; so figures are to be compared with each other, and not
with the paper's, which stand beside them. Needs CIFAR-10 (GHOSTNETS_DATA or --data-dir).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

import ghostnets
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.records import read_json
from ghostnets.trainer import RECORD

Row = tuple[str, dict[str, Any], float]
"""What the row is called, the options of the Ghost network (none: the plain one), and the paper's accuracy of VGG-16."""

PLAIN: Row = ("plain", {}, 93.6)
TABLE_3: tuple[Row, ...] = (
    PLAIN,
    ("s=2 d=1", {"ratio": 2, "cheap_size": 1}, 93.5),
    ("s=2 d=3", {"ratio": 2, "cheap_size": 3}, 93.7),
    ("s=2 d=5", {"ratio": 2, "cheap_size": 5}, 93.4),
    ("s=2 d=7", {"ratio": 2, "cheap_size": 7}, 93.1),
)
TABLE_4: tuple[Row, ...] = (
    PLAIN,
    ("s=2 d=3", {"ratio": 2, "cheap_size": 3}, 93.7),
    ("s=3 d=3", {"ratio": 3, "cheap_size": 3}, 93.4),
    ("s=4 d=3", {"ratio": 4, "cheap_size": 3}, 93.0),
    ("s=5 d=3", {"ratio": 5, "cheap_size": 3}, 92.9),
)


def main() -> None:
    """Train what is missing and print both tables."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if not arguments.table:
        for seed in arguments.seeds:  # a whole table before the next seed
            for row in dict.fromkeys(name for name, _, _ in (*TABLE_3, *TABLE_4)):
                train(arguments, row, seed)
    for title, rows in (("Table 3: d", TABLE_3), ("Table 4: s", TABLE_4)):
        print(table(arguments, title, rows), end="\n\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ghost_resnet20")
    parser.add_argument("--recipe", default=str(Path(__file__).with_suffix(".yaml")), help="a name or a file")
    parser.add_argument("--epochs", type=float, default=None, help="instead of the recipe's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="only print the tables")
    return parser.parse_args()


def network(model: str, row: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a row's network."""
    options = next(options for name, options, _ in (*TABLE_3, *TABLE_4) if name == row)
    return (model, options) if options else (model.removeprefix("ghost_"), {})


def train(arguments: argparse.Namespace, row: str, seed: int) -> None:
    """One run, unless it is there; one that was stopped is gone on with."""
    out = place(arguments, row, seed)
    if (out / RECORD).is_file():
        return
    turned: dict[str, Any] = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    name, options = network(arguments.model, row)
    request = ghostnets.TrainRequest(
        model=name, model_kwargs=options, data="cifar10", recipe=ghostnets.load_recipe(arguments.recipe, turned),
        data_dir=str(arguments.data_dir) if arguments.data_dir else None, seed=seed,
    )  # fmt: skip
    record = ghostnets.train(request, out, resume=True)
    assert record is not None
    print(f"{row}, seed {seed}: {record.quality.top1:.2f} % after {record.seconds / 60:.1f} min", flush=True)


def place(arguments: argparse.Namespace, row: str, seed: int) -> Path:
    """A run's folder."""
    return arguments.out / f"{arguments.model}-{Path(arguments.recipe).stem}-{row.replace(' ', '-')}-{seed}"


def table(arguments: argparse.Namespace, title: str, rows: tuple[Row, ...]) -> str:
    """Mean and spread over the seeds that are there."""
    lines = [
        f"{title} ({arguments.model}, recipe {Path(arguments.recipe).stem})",
        "",
        "| row | params | MACs | top-1 % | n | paper (VGG-16) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row, _, papers in rows:
        name, options = network(arguments.model, row)
        model = ghostnets.create_model(name, **options).eval()
        size = model.input_size
        cost = f"{total_params(model) / 1e6:.3f} M | {total_macs(model, torch.zeros(1, 3, *size)) / 1e6:.1f} M"
        files = [place(arguments, row, seed) / RECORD for seed in arguments.seeds]
        found = [read_json(file)["quality"]["top1"] for file in files if file.is_file()]
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        figure = f"{statistics.mean(found):.2f}{spread}" if found else "–"
        lines.append(f"| {row} | {cost} | {figure} | {len(found)} | {papers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
