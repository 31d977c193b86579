# SPDX-License-Identifier: Apache-2.0
"""One step of a recovery with the teacher, Ghost-ResNet-56 on 32×32 images: how fast, and where the time goes.

    python benchmarks/recovery_step.py --threads 2

Three ways to compute the same lesson (all block outputs compared) take turns: PyTorch's modules in training mode under
bfloat16 autocast, the same in evaluation mode, and the frozen view that recovery uses. The last line is recovery as it
is, which compares every other block. Random weights and images will do: neither changes the time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.measure.latency import environment
from ghostnets.measure.trace import trace
from ghostnets.models.resnet import cifar_resnet, ghost_cifar_resnet
from ghostnets.upgrading.flat import FlatWeights
from ghostnets.upgrading.frozen import fast_dtype, frozen_view, norm_behind
from ghostnets.upgrading.lesson import Lesson, block_outputs


def main() -> None:
    """Measure, then print a table and the profile of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x = torch.randn(arguments.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    ways = {
        "modules, training mode": modules(x, training=True),
        "modules, evaluation mode": modules(x, training=False),
        "frozen view, every block": view(x, stride=1),
        "frozen view, every other block": view(x, stride=2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in ways.values():
        step()
    for _ in range(arguments.rounds):
        for name, step in ways.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    print(environment())
    print("| a step of | images/s (median, least–greatest) | times the first |")
    print("|---|---|--:|")
    first = statistics.median(seconds["modules, training mode"])
    for name, taken in seconds.items():
        low, middle, high = (len(x) / t for t in (max(taken), statistics.median(taken), min(taken)))
        print(f"| {name} | {middle:.0f} ({low:.0f}–{high:.0f}) | {first / statistics.median(taken):.2f} |")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ways["frozen view, every other block"]()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


def modules(x: Tensor, *, training: bool) -> Callable[[], None]:
    """The networks as they are, hooks at the ends of blocks, Adam over their parameters."""
    original, student = cifar_resnet(56).eval().requires_grad_(False), ghost_cifar_resnet(56).train(training)
    names = [str(node.target) for node in block_outputs(trace(copy.deepcopy(original), x[:1]))]
    kept: dict[tuple[int, str], Tensor] = {}
    for side, network in enumerate((original, student)):
        for name in names:
            network.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, key=(side, name): kept.__setitem__(key, out)
            )
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                original(x)
            student(x)
        loss = torch.stack([F.mse_loss(kept[1, name].float(), kept[0, name].float()) for name in names]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def view(x: Tensor, *, stride: int) -> Callable[[], None]:
    """Recovery's own way; see ghostnets.upgrading.frozen."""
    original, student = cifar_resnet(56).eval(), ghost_cifar_resnet(56).eval()
    recorded = trace(original, x[:1])
    norms, dtype = norm_behind(recorded), fast_dtype()
    weights = FlatWeights(student, norms, dtype)
    narrow = x.to(dtype)
    teacher = frozen_view(original, norms, dtype)
    lesson = Lesson(recorded, teacher, narrow, blocks=1.0, answers=0.0, stride=stride)
    trained = nn.Parameter(weights.value)
    optimizer = torch.optim.Adam([trained], lr=1e-4)

    def step() -> None:
        trained.grad = weights.gradient(lesson.loss(weights.view, narrow, torch.zeros(len(x), dtype=torch.long), 0))
        optimizer.step()
        weights.publish_()

    return step


if __name__ == "__main__":
    main()
