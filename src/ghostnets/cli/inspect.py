# SPDX-License-Identifier: Apache-2.0
"""``ghostnets inspect``: how much a network's maps repeat each other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ghostnets.cli.arguments import figures_of, image_size_of, short_name, use_threads
from ghostnets.errors import UserError
from ghostnets.folder import check_seed
from ghostnets.records import to_json


def inspect(
    model: str,
    images: tuple[Path, ...] = (),
    /,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    count: int = 256,
    layer: str | None = None,
    kernel: int = 3,
    beside: str | None = None,
    weights: Path | None = None,
    num_classes: int | None = None,
    mean: str | None = None,
    std: str | None = None,
    input_size: str | None = None,
    trust_code: bool = False,
    seed: int = 0,
    threads: int | None = None,
    out: Path,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Find the ghosts in a network: for every map the other map that a cheap filter makes it from best.

    Example: ghostnets inspect resnet20.digits --data digits --out build/inspection

    Args:
        model: a folder that train, upgrade or save_pretrained left, the name of a network, or file.py:factory (the file is run)
        images: files to look at, and folders of them
        data: instead of files, training images of digits, cifar10, cifar100 or a folder
        data_dir: where CIFAR's binary files lie; else GHOSTNETS_DATA, else they are downloaded
        count: so many images of the data
        layer: the module whose maps are drawn (default: the first block's, else the most redundant layer's)
        kernel: side of the cheap filters
        beside: a trained plain network, whose layer is drawn next to a Ghost module of that name
        weights: .safetensors, or a PyTorch file of tensors alone
        num_classes: of a network whose weights are given
        mean: of the images the network was trained on (default: what the network says, else ImageNet's)
        std: the same for the standard deviation
        input_size: height,width of the images (default: what the network says, else 224,224)
        trust_code: run the Python file in the network's folder, where it has one
        seed: of the images drawn, and of the positions looked at
        threads: of PyTorch
        out: folder for the result
        as_json: print inspection.json, and nothing else
    """
    from rich.console import Console

    from ghostnets.cli.terminal import inspection_summary, interrupts, printing, watching
    from ghostnets.inspection import images_for, opened, take
    from ghostnets.inspection import inspect as run

    use_threads(threads)
    if count < 1:
        raise UserError(f"--count {count} must be at least 1")
    check_seed(seed)
    take(out)
    console = Console(stderr=True, highlight=False)
    network = opened(
        model, weights=weights, num_classes=num_classes, mean=figures_of("--mean", mean), std=figures_of("--std", std),
        size=image_size_of(input_size), trust_code=trust_code,
    )  # fmt: skip
    pixels, notes = images_for(network, data, images, data_dir=data_dir, count=count, seed=seed)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)

    def progress(what: str, done: int, total: int) -> None:
        check()
        tell(what, done, total)

    with watching(console) as tell, interrupts() as check:
        record = run(
            network.model, pixels, out, mean=network.mean, std=network.std, model_name=short_name(model),
            data_name=data or ", ".join(map(str, images)), layer=layer, kernel=kernel, seed=seed,
            beside=opened(beside, trust_code=trust_code).model if beside is not None else None, command=["ghostnets", *sys.argv[1:]], progress=progress,
        )  # fmt: skip
    if as_json:
        print(json.dumps(to_json(record), indent=1))
    else:
        print(inspection_summary(record, printing()), f"report: {out / 'report.html'}", sep="\n")
