# SPDX-License-Identifier: Apache-2.0
"""``ghostnets train``: parse, run, print."""

from __future__ import annotations

import inspect
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ghostnets.cli.arguments import figures_of, image_size_of, options_of, use_threads
from ghostnets.cli.knobs import Knobs, turned
from ghostnets.errors import UserError
from ghostnets.records import to_json

RECIPE = "cifar10-paper"

HOW = ("threads", "tracker", "max_steps", "out", "resume", "as_json")
"""What a run that goes on may be told anew."""


def train(
    model: str | None = None,
    /,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    val_data: str | None = None,
    recipe: str | None = None,
    weights: str | None = None,
    model_kwargs: tuple[str, ...] = (),
    mean: str | None = None,
    std: str | None = None,
    input_size: str | None = None,
    in_chans: int | None = None,
    no_flip: bool = False,
    hold_out: int = 0,
    num_classes: int | None = None,
    train_samples: int | None = None,
    workers: int = 0,
    max_bad: int = 0,
    seed: int = 0,
    threads: int | None = None,
    tracker: str | None = None,
    max_steps: int | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    knobs: Annotated[Knobs, Parameter(name="*")] = None,  # pyright: ignore[reportInvalidTypeForm] - made from the recipe
) -> None:
    """Train a network by a recipe; any knob of the recipe can be turned.

    The test images are looked at once, in the end. The same command runs in many processes: torchrun --nproc-per-node 2 -m
    ghostnets train …

    Example: ghostnets train ghost_resnet56 --data cifar10 --recipe cifar10-fast --out build/ghost56

    Args:
        model: a name of the catalogue, file.py:factory (the file is run), or a folder that train or upgrade left, to learn on
        data: digits, cifar10, cifar100, a folder with a folder of images for each class, hf:NAME of the Hugging Face hub, or WebDataset shards such as train-{000..146}.tar
        data_dir: where CIFAR's binary files lie; else GHOSTNETS_DATA, else they are downloaded
        val_data: shards to test on
        recipe: a name (cifar10-paper, cifar10-fast, cifar10-full, imagenet-paper, imagenet-modern, finetune) or a .yaml file
        model_kwargs: options of the network, such as ratio=4 (once for each)
        weights: what to start from: pretrained, or a file of weights
        mean: of the images, a figure a channel (default: ImageNet's, of the digits their own)
        std: the same for the standard deviation
        input_size: height,width of the images
        in_chans: 1 for grey, 3 for colour
        no_flip: mirror images are something else (signs, letters)
        hold_out: so many training images are tested on instead, after every epoch
        num_classes: of shards, which do not say
        train_samples: how many the shards hold (default: they are counted)
        workers: processes that decode images
        max_bad: so many images may be damaged
        seed: of every random choice
        threads: of PyTorch
        tracker: tensorboard, wandb or trackio, beside the files
        max_steps: stop there, to go on later
        out: folder for the result
        resume: go on with the run in this folder
        as_json: print train.json, and nothing else
        knobs: of the recipe
    """
    also = _given(locals())  # before anything else has a name
    use_threads(threads)

    from rich.console import Console

    from ghostnets.cli.terminal import interrupts, printing, train_line, train_summary, watching
    from ghostnets.trainer import TrainRequest, read_request
    from ghostnets.trainer import train as run
    from ghostnets.training.native import keep_memory
    from ghostnets.training.recipe import load_recipe

    if resume is not None:
        if also:
            raise UserError(f"--resume {resume} goes on with what was asked there: leave out {', '.join(also)}")
        if out not in {None, resume}:
            raise UserError(f"--resume {resume} goes on in that folder: leave out --out {out}")
        request, out = read_request(resume), resume
    else:
        if model is None or data is None or out is None:
            lacking = [name for name, value in (("MODEL", model), ("--data", data), ("--out", out)) if value is None]
            raise UserError(f"{', '.join(lacking)} must be given (or --resume DIR to go on with a run)")
        request = TrainRequest(
            model=model, recipe=load_recipe(recipe or RECIPE, turned(knobs)), data=data,
            model_kwargs=options_of(model_kwargs), data_dir=str(data_dir) if data_dir is not None else None, val_data=val_data, weights=weights,
            mean=figures_of("--mean", mean), std=figures_of("--std", std), input_size=image_size_of(input_size),
            in_chans=in_chans, flip=False if no_flip else None, hold_out=hold_out, train_samples=train_samples,
            num_classes=num_classes, workers=workers, max_bad=max_bad, seed=seed,
        )  # fmt: skip
    if max_steps is not None and max_steps < 1:
        raise UserError(f"--max-steps {max_steps} must be at least 1")
    keep_memory()
    console = Console(stderr=True, highlight=False)

    def listen(event: dict[str, Any]) -> None:
        check()
        line = train_line(event)
        if line is not None:
            console.print(line, markup=False, soft_wrap=True)

    def progress(what: str, done: int, total: int) -> None:
        check()
        if _first_process():
            tell(what, done, total)

    try:
        with watching(console) as tell, interrupts() as check:
            record = run(
                request, out, resume=resume is not None, tracker=tracker, max_steps=max_steps, log=listen,
                progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        again = shlex.join(["ghostnets", "train", "--resume", str(out)])
        raise KeyboardInterrupt(f"interrupted; {again} goes on from the last checkpoint") from None
    if not _first_process():
        return
    if record is None:
        print(f"stopped at step {max_steps}: ghostnets train --resume {shlex.quote(str(out))} goes on")
    elif as_json:
        print(json.dumps(to_json(record), indent=1))
    else:
        print(
            train_summary(record, printing()),
            f"network: {out}",
            f"report: {out / 'report.html'}",
            sep="\n",
        )


def _given(values: Mapping[str, Any]) -> list[str]:
    """The flags of :func:`train` that say what to train; those that say how to run may differ when a run goes on."""
    known = inspect.signature(train).parameters
    given = [name for name, value in values.items() if name not in HOW and value != known[name].default]
    return [
        "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
        for name in [*given, *turned(values["knobs"])]
        if name != "knobs"
    ]


def _first_process() -> bool:
    """Whether this is the process of a run that speaks (torchrun and accelerate launch say it)."""
    return os.environ.get("RANK", "0") == "0"
