# SPDX-License-Identifier: Apache-2.0
"""The two functions of our C for training against PyTorch's own, shape by shape (``train_speed.py`` times whole networks).

    python benchmarks/train_parts.py                # 64 images, one thread, bfloat16 and channels last
    python benchmarks/train_parts.py --threads 2

Each is timed in turns with PyTorch's, so that the machine's moods fall on both; medians are printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ghostnets.blocks.ghost import GhostModule
from ghostnets.measure.latency import on_threads, race
from ghostnets.training.ghost_primary import primary
from ghostnets.training.ghost_tail import quickened
from ghostnets.training.native import keep_memory

PRIMARIES = ((16, 8, 32), (32, 16, 16), (64, 32, 8), (128, 64, 8))
"""Inputs, outputs and side of a map: of the Ghost-ResNets on CIFAR-10, and one that is left to oneDNN."""

TAILS = tuple((ratio, *shape) for ratio in (2, 3, 4, 5) for shape in ((16, 32), (32, 16), (64, 8)))
"""Ratio, channels and side of a map."""


def main() -> None:
    """Time every shape and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    keep_memory()  # as ghostnets train does
    with on_threads(arguments.threads), torch.autocast("cpu", torch.bfloat16):
        print("| 3×3 convolution | forward, ms, ours : oneDNN | both ways |\n|---|---:|---:|")
        for inputs, outputs, side in PRIMARIES:
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            x = maps(arguments.images, inputs, side)
            line = columns(partial(primary, conv), conv, [conv.weight], x, arguments.seconds)
            print(f"| {inputs}→{outputs}, {side}×{side} | {line} |", flush=True)
        print("\n| Ghost module, 1×1 | forward, ms, ours : PyTorch | both ways |\n|---|---:|---:|")
        for ratio, channels, side in TAILS:
            plain = GhostModule(channels, channels, kernel_size=1, ratio=ratio).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            quick, x = quickened(plain), maps(arguments.images, channels, side)
            line = columns(quick, plain, [*quick.parameters()], x, arguments.seconds)
            print(f"| ratio {ratio}, {channels} channels, {side}×{side} | {line} |", flush=True)


def maps(images: int, channels: int, side: int) -> Tensor:
    """Some that want a gradient."""
    x = torch.randn(images, channels, side, side, dtype=torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def columns(
    ours: Callable[[Tensor], Tensor], theirs: nn.Module, learned: Sequence[Tensor], x: Tensor, seconds: float
) -> str:
    """Of a row: median milliseconds of ours and of theirs, forward alone and both ways."""
    pull = torch.randn_like(theirs(x))

    def forward(function: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            function(x)

    def both(function: Callable[[Tensor], Tensor], leaves: Sequence[Tensor]) -> None:
        torch.autograd.grad(function(x), [x, *leaves], pull)

    ways = (
        {"ours": partial(forward, ours), "theirs": partial(forward, theirs)},
        {"ours": partial(both, ours, learned), "theirs": partial(both, theirs, [*theirs.parameters()])},
    )
    found = [race(way, seconds=seconds) for way in ways]
    return " | ".join(f"{times['ours'].median_ms:.2f} : {times['theirs'].median_ms:.2f}" for times in found)


if __name__ == "__main__":
    main()
