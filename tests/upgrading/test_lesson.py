# SPDX-License-Identifier: Apache-2.0
"""The lesson's loss and gradients against hooks, ``mse_loss`` and autograd on the networks themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.measure.trace import trace
from ghostnets.models.resnet import cifar_resnet
from ghostnets.upgrading.lesson import NO_LABEL, Lesson, block_outputs, squared_error

Settle = Callable[[nn.Module], nn.Module]


def outputs(model: nn.Module, names: list[str], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what the modules of these names gave."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _inputs, out: kept.update({name: out})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, [kept[name] for name in names]


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_loss_and_gradients_are_those_of_the_formula(turn: int, settled: Settle) -> None:
    original, student = settled(cifar_resnet(8)), settled(cifar_resnet(8))
    example, x, labels = torch.randn(6, 3, 12, 12), torch.randn(4, 3, 12, 12), torch.tensor([1, NO_LABEL, 3, NO_LABEL])
    recorded = trace(original, example)
    lesson = Lesson(recorded, copy.deepcopy(original), example, blocks=0.7, answers=0.2)
    every = [str(node.target) for node in block_outputs(recorded)]
    names = every[turn % 2 :: 2]

    loss = lesson.loss(student, x, labels, turn)
    found = torch.autograd.grad(loss, list(student.parameters()))

    with torch.no_grad():
        wanted, targets = outputs(original, names, x)
        _, examples = outputs(original, names, example)
    logits, made = outputs(student, names, x)
    expected = torch.stack([
        F.mse_loss(a, b) / e.var() for a, b, e in zip(made, targets, examples, strict=True)
    ]).mean() * 0.7  # fmt: skip
    p, q = wanted.softmax(1)[[1, 3]], logits.softmax(1)
    right = -q[0, 1].log() - q[2, 3].log() + (p * (p / q[[1, 3]]).log()).sum()
    expected = expected + 0.2 * right / 4
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(found, torch.autograd.grad(expected, list(student.parameters())), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-7)


def test_blocks_are_compared_in_turns(settled: Settle) -> None:
    """What only the last block does wrong is seen in every other turn."""
    original = settled(cifar_resnet(8))
    x = torch.randn(3, 3, 12, 12)
    recorded = trace(original, x)
    lesson = Lesson(recorded, copy.deepcopy(original), x, blocks=1.0, answers=0.0)
    student = copy.deepcopy(original)
    with torch.no_grad():
        student.get_parameter("layer3.0.bn2.bias").add_(3)
    losses = [float(lesson.loss(student, x, torch.arange(3), turn).detach()) for turn in range(4)]
    last = (len(block_outputs(recorded)) - 1) % 2
    assert losses[last] == losses[last + 2] > 0.01
    assert losses[1 - last] == losses[(1 - last) + 2] < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squared_error_is_a_sum_of_squares(dtype: torch.dtype) -> None:
    made, wanted = torch.randn(3, 4, 5, 6, dtype=dtype, requires_grad=True), torch.randn(3, 4, 5, 6, dtype=dtype)
    loss = squared_error(made, wanted)
    expected = F.mse_loss(made.double(), wanted.double(), reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.02)
    (found,) = torch.autograd.grad(loss, made)
    torch.testing.assert_close(found.double(), 2 * (made - wanted).double(), rtol=0.02, atol=0.02)
