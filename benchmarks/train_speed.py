# SPDX-License-Identifier: Apache-2.0
"""How fast the small networks train on this machine: the order of maps in memory, precision, torch.compile, and our own C.

    python benchmarks/train_speed.py                       # resnet20/56 and their Ghost forms, batch 128
    python benchmarks/train_speed.py --models ghost_resnet20 --no-compile

Every way is timed in turns with the others of its network, so that the machine's moods fall on all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ghostnets.models.catalog import create_model
from ghostnets.training.ghost_tail import quickened
from ghostnets.training.native import keep_memory

WAYS = (
    ("float32, channels last", torch.float32, torch.channels_last, ""),
    ("float32, channels last, our C", torch.float32, torch.channels_last, "native"),
    ("bfloat16, channels last", torch.bfloat16, torch.channels_last, ""),
    ("bfloat16, channels first", torch.bfloat16, torch.contiguous_format, ""),
    ("bfloat16, channels last, compiled", torch.bfloat16, torch.channels_last, "compile"),
    ("bfloat16, channels last, our C", torch.bfloat16, torch.channels_last, "native"),
)


def main() -> None:
    """Time every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "ghost_resnet20", "resnet56", "ghost_resnet56"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_memory()  # as ghostnets train does
    print("| network | way | images/s, median (least–greatest) | first step, s |\n|---|---|---:|---:|")
    for name in arguments.models:
        ghost = name.startswith("ghost")
        ways = [
            way for way in WAYS if (way[3] != "compile" or not arguments.no_compile) and (way[3] != "native" or ghost)
        ]
        steps = [step(name, arguments.batch_size, *way[1:]) for way in ways]
        first = [seconds(one) for one in steps]
        found = [[arguments.batch_size / seconds(one) for one in steps] for _ in range(3 * arguments.rounds)]
        for k, way in enumerate(ways):
            each = sorted(row[k] for row in found[arguments.rounds :])  # the first rounds warm up
            spread = f"{statistics.median(each):.0f} ({each[0]:.0f}–{each[-1]:.0f})"
            print(f"| {name} | {way[0]} | {spread} | {first[k]:.1f} |", flush=True)


def step(
    name: str,
    batch_size: int,
    dtype: torch.dtype,
    order: torch.memory_format,
    how: str,
) -> Callable[[], None]:
    """One step of SGD on images that never change."""
    model = create_model(name).train().to(memory_format=order)  # pyright: ignore[reportCallIssue]
    model = quickened(model) if how == "native" else model
    forward = torch.compile(model) if how == "compile" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    x = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=order)
    labels = torch.randint(10, (batch_size,))

    def run() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = forward(x)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return run


def seconds(run: Callable[[], None]) -> float:
    """Of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
