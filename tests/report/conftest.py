# SPDX-License-Identifier: Apache-2.0
"""A folder of made-up but plausible records: the shapes of a ResNet-56, figures nobody measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostnets.records import Budget, Cost, Decision, Pairing, Plan, Step, UpgradeRecord, write_json
from ghostnets.report.page import write_report

OTHER_MACS, OTHER_PARAMS = 443_008, 1_114  # the first convolution and the classifier, which are no sites


def _decision(number: int, name: str, out: int, inner: int, size: int) -> Decision:
    dense = 9 * inner * out
    ratio = 1 if number % 9 == 4 else 4 if number % 3 == 0 else 2
    primary = -(-out // ratio)
    params = 9 * inner * primary + 9 * (out - primary)
    return Decision(
        name=name,
        decision="keep" if ratio == 1 else "ghost",
        ratio=ratio,
        kernel=3,
        order="none" if ratio == 1 else "folded" if name.endswith("conv1") else "gather",
        reason="a Ghost module here costs more accuracy than it saves"
        if ratio == 1
        else "cheapest choice at this divergence",
        macs_before=dense * size * size,
        macs_after=params * size * size,
        params_before=dense,
        params_after=params,
        gathered=0 if ratio == 1 or name.endswith("conv1") else out * size * size,
        divergence=0.002 * (1 + number % 17) * ratio,
    )


def _sites() -> Iterator[Decision]:
    number, inner = 0, 16
    for stage, out in enumerate((16, 32, 64), start=1):
        for block in range(9):
            for conv in ("conv1", "conv2"):
                yield _decision(number, f"layer{stage}.{block}.{conv}", out, inner, 64 >> stage)
                number, inner = number + 1, out


def _pairing(decision: Decision, number: int) -> Pairing:
    half = tuple(range(0, 16, 2)), tuple(range(1, 16, 2))
    errors = (0.01 + 0.001 * number, 0.5 + 0.005 * number)
    return Pairing(
        name=decision.name,
        intrinsic=half[0],
        source=half[0],
        order=half[0] + half[1],
        primary_error=errors[0],
        ghost_error=errors[1],
    )


def _events() -> Iterator[dict[str, object]]:
    yield {"time": "2024-05-01T12:00:00", "step": "closed form", "event": "done", "top1": 90.2}
    for step, n in (("blocks", 10), ("distil", 24)):
        for i in range(1, n + 1):
            accuracy = 92.4 - (2.4 if step == "blocks" else 1.0) / i**0.7
            yield {
                "time": f"2024-05-01T12:{i:02d}:30.25",
                "step": step,
                "event": "epoch",
                "epoch": i / 2,
                "loss": round((0.4 if step == "blocks" else 1.3) / i**0.4, 4),
                "held_out_top1": round(accuracy, 2),
                "images_per_second": 380.0 + i % 5,
                "lr": 0.005,
            }


def _record(decisions: tuple[Decision, ...]) -> UpgradeRecord:
    before = Cost(
        params=OTHER_PARAMS + sum(d.params_before for d in decisions),
        macs=OTHER_MACS + sum(d.macs_before for d in decisions),
        top1=93.39,
        latency_ms=12.34,
    )
    after = Cost(
        params=OTHER_PARAMS + sum(d.params_after for d in decisions),
        macs=OTHER_MACS + sum(d.macs_after for d in decisions),
        top1=92.31,
        latency_ms=8.07,
    )
    return UpgradeRecord(
        model="resnet56",
        data="cifar10",
        budget={"macs": 0.5},
        seed=0,
        before=before,
        after=after,
        steps=(
            Step(name="closed form", top1=90.24, seconds=96.2, epochs=0.0),
            Step(name="blocks", top1=91.57, seconds=204.0, epochs=5.0),
            Step(name="distil", top1=92.31, seconds=1784.0, epochs=12.0),
        ),
        sites=tuple(d.outcome() for d in decisions),
        environment={
            "command": [
                "ghostnets",
                "upgrade",
                "--model",
                "resnet56",
                "--data",
                "cifar10",
                "--budget",
                "macs=0.5",
                "--seed",
                "0",
            ],
            "cpu": "made-up processor, 2 cores",
            "threads": 2,
            "torch": "2.13.0",
            "versions": {"numpy": "2.4", "scipy": "1.17"},
        },
    )


def _fill(folder: Path) -> Path:
    decisions = tuple(_sites())
    record = _record(decisions)
    plan = Plan(
        budget=Budget(macs=0.5),
        decisions=decisions,
        macs_before=record.before.macs,
        macs_after=record.after.macs,
        params_before=record.before.params,
        params_after=record.after.params,
        seed=0,
        calibration_images=1000,
    )
    write_json(folder / "upgrade.json", record)
    write_json(folder / "plan.json", plan)
    pairings = [_pairing(d, i) for i, d in enumerate(decisions) if d.decision == "ghost"]
    write_json(folder / "transfer.json", [vars(p) for p in pairings])
    (folder / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in _events()))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all four records, to change at will."""
    return _fill(tmp_path / "run")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with its report, drawn once, to look at only."""
    folder = _fill(tmp_path_factory.mktemp("drawn") / "run")
    write_report(folder)
    return folder
