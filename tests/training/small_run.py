# SPDX-License-Identifier: Apache-2.0
"""A script for the tests: a small run with everything random in it, killed over and over, or shared by processes.

python small_run.py whole OUT               the run, undisturbed
python small_run.py killed OUT KILLS SEED   the same, killed so many times with SIGKILL at random moments, then finished
python small_run.py shared OUT sync|plain   20 steps in as many processes as torchrun has started; each one's weights to OUT/weights-RANK.pt
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from ghostnets.blocks.ghost import GhostModule
from ghostnets.trainer import make_accelerator
from ghostnets.training.data import Augment, Images
from ghostnets.training.feed import MemoryFeed
from ghostnets.training.loop import Run, Trained, train
from ghostnets.training.recipe import Recipe
from ghostnets.training.source import Source


def images(count: int, seed: int) -> Images:
    source = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=source, dtype=torch.uint8)
    return Images(pixels=pixels, labels=torch.randint(4, (count,), generator=source))


def source() -> Source:
    augment = Augment(padding=1, flip=True)
    return Source(
        name="noise", train=MemoryFeed(images(70, 0), augment), test=MemoryFeed(images(30, 1), augment),
        classes=("a", "b", "c", "d"), input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip


def network(seed: int, *, dropout: float = 0.3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), GhostModule(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 4),
        )  # fmt: skip


FULL = Recipe(
    epochs=9, batch_size=16, grad_accum_steps=2, lr=0.1, warmup_epochs=1, head_epochs=0.5, layer_decay=0.9, smoothing=0.1,
    hflip="alternate", reprob=0.3, mixup=0.4, cutmix=0.7, model_ema_decay=0.95, clip_grad=5.0, kd_features=0.1,
    kd_views=4,
)  # fmt: skip


def run(out: Path) -> Trained:
    everything = Run(
        source=source(), folder=out, seed=3, teacher=network(1, dropout=0), checkpoint_seconds=0.0, watch=True
    )
    return train(network(0), FULL, everything, make_accelerator(FULL))


def killed(out: Path, kills: int, seed: int) -> None:
    """Every attempt is a fork of this process, which has not computed anything yet."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    hit = 0
    for _ in range(kills):
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            run(out)
            os._exit(0)
        time.sleep(chance.uniform(0.02, 0.5))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        hit += os.WIFSIGNALED(status)
    torch.set_num_threads(1)
    run(out)
    sys.stdout.write(f"{hit}\n")


def shared(out: Path, norms: str) -> None:
    torch.set_num_threads(1)
    recipe = Recipe(
        epochs=5, batch_size=16, lr=0.05, mixup=0.2, smoothing=0.1, reprob=0.2, sync_bn=norms == "sync", clip_grad=1.0
    )
    accelerator = make_accelerator(recipe)
    undisturbed = Run(source=source(), folder=out, seed=3)
    done = train(network(0, dropout=0), recipe, undisturbed, accelerator)
    found = {"weights": done.model.state_dict(), "loss": done.history[-1]["loss"]}
    torch.save(found, out / f"weights-{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "whole":
        torch.set_num_threads(1)
        run(folder)
    elif kind == "killed":
        killed(folder, int(sys.argv[3]), int(sys.argv[4]))
    else:
        shared(folder, sys.argv[3])
