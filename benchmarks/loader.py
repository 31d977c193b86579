# SPDX-License-Identifier: Apache-2.0
"""How fast training images come, beside how fast a network trains on them, in one run.

    python benchmarks/loader.py --data cifar10 --model resnet20 --recipe cifar10-fast cifar10-full
    python benchmarks/loader.py --data PHOTOGRAPHS --model ghostnet_050 --recipe imagenet-paper --workers 2

The loader should never be what a run waits for: a ratio of 5 and more says that it is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from ghostnets.models.catalog import create_model
from ghostnets.trainer import make_accelerator
from ghostnets.training.batch import Batcher
from ghostnets.training.feed import MemoryFeed, Share
from ghostnets.training.loop import Run, train
from ghostnets.training.recipe import Recipe, load_recipe
from ghostnets.training.source import Asked, Source, open_source


def main() -> None:
    """Time both, in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--recipe", nargs="+", default=["cifar10-fast"])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error(f"--steps {arguments.steps} must be at least 2: the first one warms up")
    torch.set_num_threads(arguments.threads)
    source = open_source(Asked(data=arguments.data, data_dir=arguments.data_dir, workers=arguments.workers, max_bad=50))
    print("| recipe | loader, images/s | training, images/s | ratio |\n|---|---:|---:|---:|")
    for name in arguments.recipe:
        recipe = load_recipe(name)
        recipe = dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(source.train)))
        loaded, trained = [], []
        batches = prepared(source, recipe)
        for _ in range(arguments.rounds):
            loaded.append(speed(batches, arguments.steps, recipe.batch_size))
            trained.append(training(arguments.model, source, recipe, arguments.steps))
        one, other = statistics.median(loaded), statistics.median(trained)
        print(f"| {name} | {one:.0f} | {other:.0f} | {one / other:.1f} |", flush=True)


def prepared(source: Source, recipe: Recipe) -> Iterator[object]:
    """Batches as the loop makes them."""
    batcher = Batcher(
        recipe, source.train.augment, source.mean, source.std, len(source.classes), Share(), 0,
        in_memory=isinstance(source.train, MemoryFeed),
    )  # fmt: skip
    return (batcher(drawn) for drawn in source.train.training(recipe, Share(), seed=0, start=0))


def speed(batches: Iterator[object], steps: int, batch_size: int) -> float:
    """Images a second."""
    started = time.perf_counter()
    for _ in islice(batches, steps):
        pass
    return steps * batch_size / (time.perf_counter() - started)


def training(model: str, source: Source, recipe: Recipe, steps: int) -> float:
    """Images a second of the whole loop, loader included, over the later half of the steps."""
    network = create_model(model, num_classes=len(source.classes), in_chans=source.input_size[0])
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            source=source, folder=Path(folder), watch=False, max_steps=steps, checkpoint_seconds=1e9,
            progress=lambda _what, _done, _total: moments.append(time.perf_counter()),
        )  # fmt: skip
        train(network, recipe, run, make_accelerator(recipe))
    half = (len(moments) - 1) // 2
    return (len(moments) - 1 - half) * recipe.batch_size / (moments[-1] - moments[half])


if __name__ == "__main__":
    main()
