# SPDX-License-Identifier: Apache-2.0
"""Records that nobody measured, with names from outside that mean harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ghostnets.records import (
    ClassQuality,
    Inspection,
    LayerMaps,
    Matches,
    PairError,
    Quality,
    StageMaps,
    TrainRecord,
)

HOSTILE = "a</script><b>&\"'"


def layer_maps(name: str, channels: int, nmse: list[float], source: list[int], **more: Any) -> LayerMaps:
    matches = Matches(
        source=tuple(source),
        mse=tuple(2 * n for n in nmse),
        nmse=tuple(nmse),
        within=(0.25, 0.5, 0.75),
        dead=source.count(-1),
    )
    return LayerMaps(
        name=name, end=name, channels=channels, size=(8, 6), kernel_size=(3, 3), stride=(1, 1), groups=1, macs=1_500_000,
        milliseconds=0.5, matches=matches, rank=2.5, **more,
    )  # fmt: skip


INSPECTION = Inspection(
    model="net", data="noise", images=9, kernel=3, seed=4, shown="one",
    layers=(
        layer_maps("one", 4, [0.2, 0.4, 0.6, 0.0], [1, 0, 1, -1], note="1 of its maps are constant"),
        replace(layer_maps("two", 2, [0.1, 0.1], [1, 0]), matches=None, rank=0.0, note="some of its maps are NaN or infinite"),
        replace(layer_maps(HOSTILE, 2, [0.9, 0.9], [1, 0]), milliseconds=2.0),
    ),
    stages=(StageMaps(name="stage", blocks=("a", "b", "c"), channels=2, size=(4, 4), matches=layer_maps("x", 2, [0.3, 0.1], [0, 0]).matches),),
    pairs=(PairError(source=1, target=0, kernels=(1, 3), mse=(0.5, 0.4), nmse=(0.25, 0.2)),),
)  # fmt: skip


def inspection_arrays() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {
        "image": chance.integers(256, size=(16, 12, 3), dtype=np.uint8),
        "shown": chance.integers(256, size=(4, 8, 6), dtype=np.uint8),
    }
    for one in INSPECTION.layers:
        found[f"layer:{one.name}"] = chance.integers(256, size=(one.channels, 8, 6), dtype=np.uint8)
        found[f"layer:{one.name}#"] = np.arange(one.channels, dtype=np.int32)
    return found


TRAINING = TrainRecord(
    model="net", data="noise", recipe="lr: 0.1\nopt: sgd <b>\n", seed=3, params=437_658, macs=63_050_000, epochs=2.0,
    seconds=93.0, images_per_second=512.0, held_out=False,
    quality=Quality(
        images=1000, top1=92.5, top5=99.75, nll=0.25, ece=0.0125,
        classes=(
            ClassQuality(name="cat", images=600, recall=90.0, precision=95.5),
            ClassQuality(name=HOSTILE, images=0, recall=None, precision=None),
        ),
    ),
    history=(
        {"epoch": 1.0, "step": 10, "lr": 0.1, "loss": 2.0, "images_per_second": 500.0, "top1": 40.0},
        {"epoch": 2.0, "step": 20, "lr": 0.05, "loss": 1.0, "images_per_second": 512.0, "top1": 60.0},
    ),
    environment={"python": "3.11"},
)  # fmt: skip

TRAINING_REQUEST = {
    "model": "ghost_resnet20", "data": "cifar10", "seed": 0, "mean": [0.5, 0.5, 0.25], "hold_out": 5000, "flip": False,
    "model_kwargs": {"ratio": 4}, "input_size": None, "train_samples": None, "workers": 0, "recipe": {},
}  # fmt: skip
