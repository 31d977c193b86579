# SPDX-License-Identifier: Apache-2.0
"""ResNet-56 on CIFAR-10 to half its multiply-adds: what each step of the upgrade reaches, and how long it takes.

    python benchmarks/upgrade_cifar.py --plan uniform planned --seeds 0 1 2 --steps closed blocks --out RUNS
    python benchmarks/upgrade_cifar.py --plan planned --steps closed blocks distil --minutes 22 --out RUNS
    python benchmarks/upgrade_cifar.py --plan uniform --order own agreed --steps closed blocks --out RUNS
    python benchmarks/upgrade_cifar.py --plan uniform --scratch --steps distil --minutes 22 --out RUNS
    python benchmarks/upgrade_cifar.py --table --out RUNS          # the table of everything measured so far

Every finished step adds one line to RUNS/results.jsonl; a run that was stopped goes on where it was. Needs the
weights and images named in the README (GHOSTNETS_DATA). Test images are only counted, never chosen by.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghostnets.measure.accuracy import top1
from ghostnets.measure.latency import environment
from ghostnets.measure.memory import peak_mib
from ghostnets.models.catalog import create_model
from ghostnets.records import Budget, Plan, from_json, read_json, write_json
from ghostnets.training.data import Dataset, Images, hold_out, load_dataset, normalise
from ghostnets.upgrading.calibration import Chunks, calibration, first_image
from ghostnets.upgrading.convert import convert, edits, restructure
from ghostnets.upgrading.plan import plan
from ghostnets.upgrading.recover import RECIPES, recover
from ghostnets.upgrading.sites import find_sites

BUDGETS = {"uniform": Budget(ratio=2, kernel=3), "planned": Budget(macs=65.29e6)}
CALIBRATION_IMAGES = 6000
HELD_OUT = 5000


def main() -> None:
    """Measure what is asked and print the table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for budget in arguments.plan:
            for order in arguments.order:
                for seed in arguments.seeds:
                    Run(arguments, budget, order, seed).go()
    print(table(read(arguments.out)))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", nargs="+", choices=sorted(BUDGETS), default=["uniform", "planned"])
    parser.add_argument("--order", nargs="+", choices=["own", "agreed"], default=["own"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", nargs="+", choices=["closed", "blocks", "distil"], default=["closed", "blocks"])
    parser.add_argument("--minutes", type=float, default=None, help="of the distillation (default: the recipe's)")
    parser.add_argument("--answers", type=float, default=None, help="weight of the right answers in the distillation")
    parser.add_argument("--rate", type=float, default=None, help="peak learning rate of the distillation")
    parser.add_argument("--scratch", action="store_true", help="random weights in the same Ghost network")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--weights", type=Path, required=False, help="resnet56_cifar10.safetensors")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="only print the table")
    return parser.parse_args()


class Run:
    """One plan, one order, one seed, step after step; the next step starts from the file the last one left."""

    def __init__(self, arguments: argparse.Namespace, budget: str, order: Any, seed: int) -> None:
        self.arguments = arguments
        self.budget, self.order, self.seed = budget, order, seed
        self.name = "-".join([budget, order, str(seed)] + (["scratch"] if arguments.scratch else []))
        self.folder = arguments.out / self.name
        dataset = load_dataset("cifar10", data_dir=arguments.data_dir)
        self.train, self.held_out = hold_out(dataset.train, HELD_OUT, seed)
        self.dataset = dataclasses.replace(dataset, train=self.train)  # not all of them twice in memory
        self.original = create_model("resnet56", checkpoint_path=arguments.weights).eval()
        self.seconds = 0.0

    def go(self) -> None:
        student, decided = self.closed()
        if "blocks" in self.arguments.steps:
            student = self.train_(student, decided, "blocks", None)
        if "distil" in self.arguments.steps:
            self.train_(student, decided, "distil", self.arguments.minutes)

    def closed(self) -> tuple[nn.Module, Plan]:
        chunks = calibration(self.dataset, self.train, CALIBRATION_IMAGES, seed=self.seed)
        path = self.folder / "closed.pt"
        if path.exists():
            decided = from_json(Plan, read_json(self.folder / "plan.json"))
            student = rebuild(self.original, decided, first_image(chunks))
            student.load_state_dict(torch.load(path, weights_only=True))
            self.seconds = read_json(self.folder / "closed.json")["seconds"]
            return student, decided
        started = time.perf_counter()
        decided = plan(self.original, chunks, BUDGETS[self.budget], order=self.order, seed=self.seed)
        if self.arguments.scratch:
            student = scratch(decided, rebuild(self.original, decided, first_image(chunks)), chunks)
        else:
            student = convert(self.original, decided, chunks).model
            self.seconds = time.perf_counter() - started
        write_json(self.folder / "plan.json", decided)
        self.note("closed", student, decided, 0.0, {})
        write_json(self.folder / "closed.json", {"seconds": self.seconds})
        torch.save(student.state_dict(), path)
        return student, decided

    def train_(self, student: nn.Module, decided: Plan, mode: Any, minutes: float | None) -> nn.Module:
        turned = {"answers": self.arguments.answers, "learning_rate": self.arguments.rate} if mode == "distil" else {}
        recipe = dataclasses.replace(
            RECIPES[mode], **{knob: value for knob, value in turned.items() if value is not None}
        )
        said = "" if recipe == RECIPES[mode] else f", answers {recipe.answers:g}, rate {recipe.learning_rate:g}"
        name = (mode if minutes is None else f"{mode} {minutes:g}") + said
        path = self.folder / f"{name}.pt"
        if path.exists():
            student.load_state_dict(torch.load(path, weights_only=True))
            self.seconds += read_json(self.folder / f"{name}.json")["seconds"]
            return student
        done = recover(
            student, self.original, decided, self.dataset, images=self.train, held_out=self.held_out, mode=mode,
            minutes=minutes, seed=self.seed, recipe=recipe, folder=self.folder / name, log=lambda e: print(json.dumps(e), flush=True),
        )  # fmt: skip
        self.seconds += done.seconds
        speed = done.epochs * len(self.train) / done.seconds
        self.note(name, done.model, decided, done.epochs, {"images_per_second": speed})
        torch.save(done.model.state_dict(), path)
        write_json(self.folder / f"{name}.json", {"seconds": done.seconds})
        return done.model

    def note(self, step: str, student: nn.Module, decided: Plan, epochs: float, more: dict[str, float]) -> None:
        """One line of results: accuracy on all test images and on the held-out ones, in float32."""
        line = {
            "plan": self.budget, "order": self.order, "scratch": self.arguments.scratch, "seed": self.seed, "step": step,
            "top1": accuracy(student, self.dataset, self.dataset.test),
            "held_out_top1": accuracy(student, self.dataset, self.held_out),
            "seconds": self.seconds, "epochs": epochs, "macs": decided.macs_after, "params": decided.params_after,
            "peak_mib": peak_mib(), **more,
            "environment": environment(),
        }  # fmt: skip
        print({k: v for k, v in line.items() if k != "environment"}, flush=True)
        with (self.arguments.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def rebuild(original: nn.Module, decided: Plan, example: Tensor) -> nn.Module:
    """The planned structure, its weights still to be loaded."""
    anatomy = find_sites(original, example)
    return restructure(original, edits(anatomy, decided.decisions)).eval()


def scratch(decided: Plan, student: nn.Module, chunks: Chunks) -> nn.Module:
    """The same structure with fresh weights, as one would start without the upgrade; its norms know their inputs."""
    for module in student.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all chunks
    for parameter in student.parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    assert sum(p.numel() for p in student.parameters()) == decided.params_after
    with torch.no_grad():
        for chunk in islice(chunks(), 10):
            student.train()(chunk)
    return student.eval()


def accuracy(model: nn.Module, dataset: Dataset, images: Images) -> float:
    """Top-1 in percent, in float32."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.arange(len(images)).split(250):
            part = images.subset(index)
            assert part.labels is not None
            x = normalise(part.pixels, dataset.mean, dataset.std).contiguous(memory_format=torch.channels_last)
            yield x, part.labels

    return top1(model, batches())


def read(out: Path) -> list[dict[str, Any]]:
    """Every line measured so far."""
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(lines: list[dict[str, Any]]) -> str:
    """Median, least and greatest over seeds, as Markdown."""
    groups: dict[tuple[str, str, bool, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["plan"], line["order"], line["scratch"], line["step"]].append(line)
    rows = [
        "| plan | order | start | step | n | top-1 % (median, least–greatest) | minutes in all | MACs | params | images/s | peak MiB |"
    ]
    rows.append("|---|---|---|---|--:|---|--:|--:|--:|--:|--:|")
    for (budget, order, random, step), members in groups.items():
        top = [m["top1"] for m in members]
        speed = [m["images_per_second"] for m in members if "images_per_second" in m]
        rows.append(
            f"| {budget} | {order} | {'random' if random else 'kept'} | {step} | {len(members)} "
            f"| {statistics.median(top):.2f} ({min(top):.2f}–{max(top):.2f}) "
            f"| {statistics.median(m['seconds'] for m in members) / 60:.1f} | {members[0]['macs'] / 1e6:.2f} M "
            f"| {members[0]['params'] / 1e6:.3f} M | {statistics.median(speed):.0f} | {max(m['peak_mib'] for m in members):.0f} |"
            if speed else
            f"| {budget} | {order} | {'random' if random else 'kept'} | {step} | {len(members)} "
            f"| {statistics.median(top):.2f} ({min(top):.2f}–{max(top):.2f}) "
            f"| {statistics.median(m['seconds'] for m in members) / 60:.1f} | {members[0]['macs'] / 1e6:.2f} M "
            f"| {members[0]['params'] / 1e6:.3f} M | – | {max(m['peak_mib'] for m in members):.0f} |"
        )  # fmt: skip
    return "\n".join(rows)


if __name__ == "__main__":
    main()
