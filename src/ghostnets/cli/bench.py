# SPDX-License-Identifier: Apache-2.0
"""``ghostnets bench``: how fast a network is on the runtimes that are installed here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ghostnets.cli.arguments import image_size_of, short_name
from ghostnets.errors import UserError
from ghostnets.folder import check_seed
from ghostnets.records import to_json


def bench(
    model: str,
    /,
    *,
    targets: str = "c,openvino,onnxruntime,torch",
    threads: str = "1",
    input_size: str | None = None,
    rounds: int = 11,
    seconds: float = 20.0,
    layers: bool = False,
    trust_code: bool = False,
    seed: int = 0,
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Race a network on several runtimes, one image at a time: medians, quartiles, ratios.

    Every runtime has a process of its own, pinned to as many processors as threads, and runs when no other does. The first
    target runs a second time: what those two differ by is chance. Answers are held against PyTorch's.

    Example: ghostnets bench ghostnet_100 --targets openvino,onnxruntime,torch --threads 1,2 --out build/bench

    Args:
        model: a folder that train, upgrade or save_pretrained left, the name of a network, or file.py:factory (the file is run)
        targets: with commas: c, c-avx2, c-scalar, openvino, openvino-avx2, openvino-bf16, onnxruntime, torch, torch-channels-last, torch-compile
        threads: with commas, a race for each number
        input_size: height,width of the image (default: what the network says, else 224,224)
        rounds: in each of which every target has one turn
        seconds: about what the race takes with one number of threads
        layers: the time of every layer too, where the target tells
        trust_code: run the Python file in the network's folder, where it has one
        seed: of the image, of weights that nobody trained, and of who begins
        out: folder for bench.json and report.html
        as_json: print bench.json, and nothing else
    """
    numbers = _numbers(threads)
    size = image_size_of(input_size)
    check_seed(seed)

    from rich.console import Console

    from ghostnets.benchmark import bench as run
    from ghostnets.benchmark import opened, take
    from ghostnets.cli.terminal import bench_summary, interrupts, printing, watching
    from ghostnets.deploy.targets import chosen

    rows = chosen([name.strip() for name in targets.split(",") if name.strip()])
    if out is not None:
        take(out)
    console = Console(stderr=True, highlight=False)

    def note(text: str) -> None:
        console.print(f"note: {text}", markup=False, soft_wrap=True)

    def progress(what: str, done: int, total: int) -> None:
        check()
        tell(what, done, total)

    network, whole = opened(model, size=size, trust_code=trust_code, seed=seed)
    with watching(console) as tell, interrupts() as check:
        record = run(
            network, whole, rows, threads=numbers, rounds=rounds, seconds=seconds, layers=layers, seed=seed,
            model_name=short_name(model), out=out, command=["ghostnets", *sys.argv[1:]], note=note, progress=progress,
        )  # fmt: skip
    if as_json:
        print(json.dumps(to_json(record), indent=1))
        return
    print(bench_summary(record, printing()), end="")
    if out is not None:
        print(f"report: {out / 'report.html'}")


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise UserError(f"--threads {text!r} is not understood: write one or more numbers with commas, such as 1,2")
    return tuple(int(word) for word in words)
