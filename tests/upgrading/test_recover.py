# SPDX-License-Identifier: Apache-2.0
"""Recovery lowers the loss, is a matter of the seed alone, and ends alike however often it was stopped."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.trace import trace
from ghostnets.models.resnet import cifar_resnet
from ghostnets.records import Budget, Plan
from ghostnets.training.data import Augment, Dataset, Images
from ghostnets.upgrading.convert import convert
from ghostnets.upgrading.lesson import block_outputs
from ghostnets.upgrading.plan import plan
from ghostnets.upgrading.recover import RECIPES, Mode, _fitting, recover


def dataset(count: int, *, labels: bool = True) -> Dataset:
    images = Images(
        pixels=torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8),
        labels=torch.arange(count) % 10 if labels else None,
    )
    return Dataset(
        name="noise", train=images, test=images, classes=tuple("0123456789"), mean=(0.5,) * 3, std=(0.25,) * 3,
        augment=Augment(padding=2, flip=True),
    )  # fmt: skip


@pytest.fixture
def case(settled: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module, Plan, Dataset]:
    """Converted, original, plan, images."""
    original = settled(cifar_resnet(8))
    data = dataset(32)
    x = (data.train.pixels / 255 - 0.5) / 0.25
    found = plan(original, x, Budget(ratio=2))
    return convert(original, found, x, rows=500).model, original, found, data


def recovered(case: tuple[nn.Module, nn.Module, Plan, Dataset], **options: Any) -> nn.Module:
    student, original, found, data = case
    asked: dict[str, Any] = {"mode": "blocks", "epochs": 2, "batch_size": 8, **options}
    return recover(student, original, found, data, images=data.train, held_out=data.test, **asked).model


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("mode", ["blocks", "distil"])
def test_epochs_lower_the_loss_and_nothing_given_is_changed(
    mode: str, case: tuple[nn.Module, nn.Module, Plan, Dataset], snapshot: Callable[[nn.Module], dict[str, Any]]
) -> None:
    student, original, *_ = case
    before = snapshot(student), snapshot(original)
    records: list[dict[str, Any]] = []
    result = recovered(case, mode=mode, epochs=20, log=records.append)
    assert (snapshot(student), snapshot(original)) == before
    assert [record["epoch"] for record in records] == list(range(1, 21))
    assert records[-1]["loss"] < records[0]["loss"]
    assert bits(result) != bits(student)
    assert list(result.state_dict()) == list(student.state_dict())


def test_the_seed_decides_and_nothing_else(case: tuple[nn.Module, nn.Module, Plan, Dataset]) -> None:
    first = bits(recovered(case, seed=1))
    torch.manual_seed(9)
    assert bits(recovered(case, seed=1)) == first
    assert bits(recovered(case, seed=2)) != first


class Stopped(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_stopped_and_gone_on_it_ends_with_the_same_bits(
    steps: int, case: tuple[nn.Module, nn.Module, Plan, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ghostnets.upgrading.recover.CHECKPOINT_SECONDS", 0.0)
    expected = bits(recovered(case))
    calls: list[int] = []

    def stop(_what: str, done: int, _total: int) -> None:
        calls.append(done)
        if len(calls) == steps:
            raise Stopped

    with pytest.raises(Stopped):
        recovered(case, folder=tmp_path, progress=stop)
    again: list[int] = []
    assert bits(recovered(case, folder=tmp_path, progress=lambda _w, done, _t: again.append(done))) == expected
    assert again[0] >= steps - 1  # at most the step that was running is done again
    assert again[-1] == 8


def test_a_loss_that_is_not_finite_is_named(case: tuple[nn.Module, nn.Module, Plan, Dataset]) -> None:
    student, *others = case
    broken = copy.deepcopy(student)
    with torch.no_grad():
        broken.get_parameter("linear.weight")[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"the loss is nan at step 0|NaN"):
        recovered((broken, *others))  # pyright: ignore[reportArgumentType]


def test_epochs_and_minutes_together_are_refused(case: tuple[nn.Module, nn.Module, Plan, Dataset]) -> None:
    with pytest.raises(UserError, match="epochs 2 and minutes 1 both say how long to train: give one of them"):
        recovered(case, minutes=1.0)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_named(count: int, case: tuple[nn.Module, nn.Module, Plan, Dataset]) -> None:
    student, original, found, _ = case
    with pytest.raises(UserError, match=f"{count} training images are too few to recover with"):
        recovered((student, original, found, dataset(count)))


@pytest.mark.parametrize(("mode", "answers"), [("blocks", None), ("distil", 0.0), ("distil", 0.1)])
def test_labels_are_read_where_answers_count(
    mode: Mode, answers: float | None, case: tuple[nn.Module, nn.Module, Plan, Dataset]
) -> None:
    student, original, found, data = case
    assert data.train.labels is not None
    others = Images(pixels=data.train.pixels, labels=data.train.labels.flip(0))
    wrong = dataclasses.replace(data, train=others)
    recipe = RECIPES[mode] if answers is None else dataclasses.replace(RECIPES[mode], answers=answers)
    results = [bits(recovered((student, original, found, given), mode=mode, recipe=recipe)) for given in (data, wrong)]
    assert (results[0] == results[1]) is not bool(answers)


def test_minutes_become_steps_and_a_stop_before_that_starts_anew(
    case: tuple[nn.Module, nn.Module, Plan, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ghostnets.upgrading.recover.CHECKPOINT_SECONDS", 0.0)
    calls: list[tuple[int, int]] = []

    def stop(_what: str, done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == 12:
            raise Stopped

    with pytest.raises(Stopped):
        recovered(case, epochs=None, minutes=0.05, folder=tmp_path, progress=stop)
    assert not list(tmp_path.glob("*.ckpt"))
    again: list[tuple[int, int]] = []
    done = recovered(
        case, epochs=None, minutes=0.05, folder=tmp_path, progress=lambda _w, done, total: again.append((done, total))
    )
    steps = again[-1][1]
    assert steps > 25  # of 3 seconds far more than those that were timed
    assert again[-1][0] == steps
    assert bits(done)


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"mode": "pray"}, "recovery 'pray' is not known"), ({"batch_size": 0}, "batch size 0 must be at least 1")],
)
def test_what_cannot_be_is_refused(
    asked: dict[str, Any], message: str, case: tuple[nn.Module, nn.Module, Plan, Dataset]
) -> None:
    with pytest.raises(UserError, match=message):
        recovered(case, **asked)


def test_large_images_come_in_smaller_batches() -> None:
    def sizes(side: int) -> tuple[int, int]:
        images = Images(pixels=torch.zeros(1, 1, side, side, dtype=torch.uint8).expand(100, -1, -1, -1), labels=None)
        return _fitting(images, 64, 16), _fitting(images, 250, 1)

    assert [sizes(side) for side in (8, 64, 112, 224)] == [(64, 250), (64, 64), (20, 20), (16, 5)]


def test_images_without_labels_will_do(case: tuple[nn.Module, nn.Module, Plan, Dataset]) -> None:
    student, original, found, _ = case
    recovered((student, original, found, dataset(40, labels=False)), epochs=1)


def names(model: nn.Module) -> list[str]:
    recorded = trace(model.eval(), torch.randn(1, 3, 16, 16))
    return [str(node.target) for node in block_outputs(recorded)]


def test_the_blocks_of_resnet20_are_its_stem_and_its_nine_blocks() -> None:
    blocks = [f"layer{stage}.{block}.act2" for stage in (1, 2, 3) for block in range(3)]
    assert names(cifar_resnet(20)) == ["act1", *blocks]


def test_in_a_chain_every_activation_ends_a_block() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    assert [name for name in names(model) if name in "01234567"] == ["2", "4", "5", "6"]


def test_inside_branches_no_block_ends() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.mix, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = torch.cat([self.one(x), self.two(x)], 1)
            return self.head(self.mix(x).mean((2, 3)))

    found = names(Branches())
    assert "one" not in found
    assert "two" not in found
    assert {"stem", "mix"} <= set(found)
    assert len(found) == 3
