# SPDX-License-Identifier: Apache-2.0
"""Our networks, as built and folded, against timm's of the same name, or the nearest: inference, training, peak memory.

    python benchmarks/family_speed.py --threads 2

They run in turns (``ghostnets.measure.latency.race``), channels_last, same random images; weights do not change the time.
Memory is the peak of a process that does nothing else, less what it held before the first run. Needs timm.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ghostnets.deploy.fold import fold
from ghostnets.measure.latency import Latency, environment, race
from ghostnets.models.catalog import create_model

PAIRS = {
    "ghostnet_100": "ghostnet_100",
    "ghostnetv2_100": "ghostnetv2_100",
    "g_ghost_regnetx_032": "regnetx_032",  # timm has no G-GhostNet: the network it thins
}
WAYS = {"inference, batch 1": (1, False), "inference, batch 32": (32, False), "training step, batch 32": (32, True)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=12, help="of every race")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)  # whose, network, batch size, training
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(peak(*arguments.memory))
        return
    print(environment())
    print(
        "| network (timm's) | way | dtype | timm, ms | ours, times as fast | folded, times as fast | MiB, timm | MiB, ours |"
    )
    print("|---|---|---|--:|---|---|--:|--:|")
    for name in arguments.networks:
        for way, (batch, training) in WAYS.items():
            for dtype, kind in DTYPES.items():
                whose = ("timm", "ours") if training else ("timm", "ours", "folded")
                runs = {w: step(w, name, batch, kind, training=training) for w in whose}
                times = race(runs, rounds=arguments.rounds, seconds=arguments.seconds)
                speeds = [faster(times.get(w)) for w in ("ours", "folded")]
                peaks = [measured_peak(w, name, batch, training=training) if dtype == "fp32" else "" for w in whose[:2]]
                cells = [f"{name} ({PAIRS[name]})", way, dtype, f"{times['timm'].median_ms:.1f}", *speeds, *peaks]
                print(f"| {' | '.join(cells)} |", flush=True)


def faster(latency: Latency | None) -> str:
    """How many times as fast as the first of the race, with quartiles."""
    if latency is None:
        return "–"
    return f"{1 / latency.ratio:.2f} ({1 / latency.ratio_upper:.2f}–{1 / latency.ratio_lower:.2f})"


def built(whose: str, name: str) -> nn.Module:
    """Our network of that name, as it is or folded, or timm's that stands beside it."""
    if whose == "ours":
        return create_model(name)
    if whose == "folded":
        return fold(create_model(name).eval(), torch.randn(2, 3, 224, 224))
    declare_torchvision_operators()
    import timm  # pyright: ignore[reportMissingImports] - optional

    return timm.create_model(PAIRS[name])


def declare_torchvision_operators() -> None:
    """Beside a CPU build of torch a torchvision wheel for CUDA does not import without them, and timm imports it."""
    try:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        return  # they are there
    KEPT.append(library)


KEPT: list[torch.library.Library] = []  # a declaration goes when its library object goes


def step(whose: str, name: str, batch: int, dtype: torch.dtype, *, training: bool) -> Callable[[], Any]:
    """One run: logits, or a step of gradient descent on the cross-entropy. bf16 is cast weights, in training autocast."""
    model = built(whose, name).to(memory_format=torch.channels_last).train(training)  # pyright: ignore[reportCallIssue]
    x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    if not training:
        model, x = model.to(dtype), x.to(dtype)

        def infer() -> None:
            with torch.inference_mode():
                model(x)

        return infer
    labels = torch.arange(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def learn() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return learn


def peak(whose: str, name: str, batch: str, training: str) -> int:
    """MiB that three runs add to this process's peak."""
    run = step(whose, name, int(batch), torch.float32, training=training == "True")
    before = high_water()
    for _ in range(3):
        run()
    return round((high_water() - before) / 1024)


def high_water() -> int:
    """KiB, of this program alone: getrusage's figure begins with that of the process it was started from."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def measured_peak(whose: str, name: str, batch: int, *, training: bool) -> str:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--memory", whose, name, str(batch), str(training)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


if __name__ == "__main__":
    main()
