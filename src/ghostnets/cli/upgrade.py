# SPDX-License-Identifier: Apache-2.0
"""``ghostnets upgrade``: parse, run the pipeline, print."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ghostnets.cli.arguments import figures_of, image_size_of, use_threads
from ghostnets.errors import UserError
from ghostnets.folder import Recover, Request
from ghostnets.records import Budget, to_json

if TYPE_CHECKING:  # PyTorch takes seconds, and --help needs none
    from torch import nn

    from ghostnets.training.data import Dataset

MODEL = "resnet20.digits"
MACS = 0.5


def upgrade(
    *,
    model: str = MODEL,
    weights: Path | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    mean: str | None = None,
    std: str | None = None,
    input_size: str | None = None,
    no_flip: bool = False,
    budget: str | None = None,
    ratio: int | None = None,
    kernel: int = Budget.kernel,
    recover: Recover = Request.recover,
    epochs: float | None = None,
    minutes: float | None = None,
    calibration_images: int = Request.calibration_images,
    order: Literal["own", "agreed"] = Request.order,
    ignored_layers: str = "",
    seed: int = Request.seed,
    threads: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Turn a trained network into a Ghost network: plan, closed form, recovery, files, report.

    Without options it upgrades the network that comes with the package, on scikit-learn's handwritten digits.

    Example: ghostnets upgrade --model resnet56 --weights resnet56.safetensors --data cifar10 --budget macs=0.5 --out build/resnet56

    Args:
        model: a name of the catalogue, or file.py:factory (the file is run)
        weights: .safetensors, or a PyTorch file of tensors alone
        data: digits, cifar10, or a folder with a folder of images for each class
        data_dir: where CIFAR-10's binary files lie; else GHOSTNETS_DATA, else they are downloaded
        mean: of the images the network was trained on, a figure a channel: 0.485,0.456,0.406
        std: the same for the standard deviation
        input_size: height,width of the images
        no_flip: never train on mirror images, because they are something else (signs, letters)
        budget: macs=0.5 for half the multiply-adds, macs=60e6 for so many
        ratio: instead of a budget: one in so many maps stays, at every site
        kernel: side of the cheap depthwise filters
        recover: how the accuracy is won back
        epochs: of the last recovery
        minutes: the same in time, instead of epochs
        calibration_images: for the plan and the closed form
        order: of channels on a residual stream: each module its own and a gather, or one agreed
        ignored_layers: names of layers to leave alone, with commas
        seed: of every random choice
        threads: of PyTorch
        out: folder for the result (default: upgraded-MODEL)
        resume: go on with an upgrade that was stopped
        as_json: print upgrade.json, and nothing else
    """
    asked = _budget(budget, ratio, kernel)
    out = out or Path(f"upgraded-{Path(model.rpartition(':')[0]).stem if ':' in model else model}")

    from rich.console import Console

    from ghostnets.cli.terminal import event_line, interrupts, printing, summary, watching
    from ghostnets.pipeline import upgrade as run

    use_threads(threads)
    console = Console(stderr=True, highlight=False)

    def listen(event: dict[str, Any]) -> None:
        check()
        line = event_line(event)
        if line is not None:
            console.print(line, markup=False, soft_wrap=True)

    def progress(what: str, of_it: int, total: int) -> None:
        check()
        tell(what, of_it, total)

    try:
        network, dataset = _load(model, weights, data, data_dir, mean, std, input_size, no_flip=no_flip)
        with watching(console) as tell, interrupts() as check:
            for note in dataset.notes:
                listen({"event": "note", "text": note})
            done = run(
                network, dataset=dataset, budget=asked, out=out, model_name=model, recover=recover, epochs=epochs,
                minutes=minutes, calibration_images=calibration_images, order=order,
                ignored_layers=_words(ignored_layers), seed=seed, resume=resume, command=["ghostnets", *sys.argv[1:]],
                progress=progress, listen=listen,
            )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {_again()} goes on from the last finished step") from None
    if as_json:
        print(_text(done.record))
    else:
        print(summary(done.record, printing()), f"report: {out / 'report.html'}", sep="\n")


def _text(record: object) -> str:
    return json.dumps(to_json(record), indent=1)


def _again() -> str:
    words = ["ghostnets", *sys.argv[1:]]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


def _budget(budget: str | None, ratio: int | None, kernel: int) -> Budget:
    if budget is None:
        return Budget(ratio=ratio, kernel=kernel) if ratio is not None else Budget(macs=MACS, kernel=kernel)
    name, _, figure = budget.partition("=")
    try:
        macs = float(figure)
    except ValueError:
        macs = None
    if name != "macs" or macs is None:
        raise UserError(f"budget {budget!r} is not understood: write macs=0.5 for half the multiply-adds")
    return Budget(macs=macs, ratio=ratio, kernel=kernel)


def _load(
    model: str,
    weights: Path | None,
    data: str | None,
    data_dir: Path | None,
    mean: str | None,
    std: str | None,
    input_size: str | None,
    *,
    no_flip: bool,
) -> tuple[nn.Module, Dataset]:
    """The network with its weights, and the images it is for. What is quickly refused is looked at first."""
    from torch import nn

    from ghostnets.models.catalog import TRAINED, create_model
    from ghostnets.models.weights import Weights, fill, read_weights
    from ghostnets.pretrained import build, image_size, is_file
    from ghostnets.training.data import load_dataset

    row = TRAINED.get(model)
    home = row.data if isinstance(row, Weights) else None
    network = build(model)
    if weights is None and row is None and not is_file(model):  # a file's function may load its own
        raise UserError(f"{model} comes without weights: name a file of them with --weights")
    tensors = read_weights(weights) if weights is not None else None
    if data is None and home is None:
        raise UserError(
            f"it is not known what images {model} is for: name them with --data (digits, cifar10 or a folder)"
        )
    known = row if row is not None and (home is None or data in {None, home}) else None
    first = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 3)
    dataset = load_dataset(
        data or home or "",
        data_dir=data_dir,
        mean=figures_of("--mean", mean) or (known.mean if known else None),
        std=figures_of("--std", std) or (known.std if known else None),
        size=image_size_of(input_size),
        flip=False if no_flip else None,
        channels=first if data is not None and Path(data).is_dir() and first in {1, 3} else None,
    )
    if tensors is None:
        return (network if row is None else create_model(model, pretrained=True)), dataset
    if row is None and not is_file(model):
        network = build(model, num_classes=len(dataset.classes), in_chans=image_size(dataset)[0])
    fill(network, tensors, str(weights))
    return network, dataset


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
