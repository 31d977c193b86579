# SPDX-License-Identifier: Apache-2.0
"""Accuracy against counting by hand, and that measuring changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.accuracy import predictions, top1


def one_hot(guesses: Tensor) -> Tensor:
    """A network that is told its answers: the input is the class it shall name."""
    return nn.functional.one_hot(guesses.long(), 5).float()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), st.integers(1, 12))
def test_every_image_counts_the_same_whatever_the_batches(pairs: list[tuple[int, int]], batch_size: int) -> None:
    guesses, labels = torch.tensor(pairs).T
    batches = list(zip(guesses.split(batch_size), labels.split(batch_size), strict=True))
    assert top1(one_hot, batches) == 100 * sum(guess == label for guess, label in pairs) / len(pairs)
    assert predictions(one_hot, batches).tolist() == [guess for guess, _ in pairs]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(6))


def test_a_network_is_measured_in_evaluation_mode_and_comes_back_untouched() -> None:
    model = network()
    batches = [(torch.randn(8, 3, 5, 5), torch.randint(0, 6, (8,))) for _ in range(3)]
    model(batches[0][0])
    model[1].eval()  # a frozen BatchNorm inside a network in training: this very mix must come back
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    guesses = predictions(model, batches)
    accuracy = top1(model, batches)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    model.eval()
    expected = torch.cat([model(images).argmax(1) for images, _ in batches])
    assert torch.equal(guesses, expected)
    labels = torch.cat([labels for _, labels in batches])
    assert accuracy == pytest.approx(float((expected == labels).double().mean() * 100))


def test_the_modes_come_back_after_an_error_and_hold_only_during_the_network() -> None:
    model = network()
    seen: list[tuple[bool, bool]] = []

    def draw() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(2):
            seen.append((model.training, torch.is_grad_enabled()))
            yield torch.randn(2, 3, 5, 5), torch.zeros(2, dtype=torch.long)
        yield torch.randn(2, 1, 5, 5), torch.zeros(2, dtype=torch.long)

    with pytest.raises(RuntimeError):
        predictions(model, draw())
    assert seen == [(True, True)] * 2
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    batches = [(torch.tensor([1]), torch.tensor([1])), (torch.tensor([2]), torch.tensor([2]))]
    with pytest.raises(UserError, match="NaN or infinite logits in batch 1"):
        top1(lambda x: one_hot(x) + (bad if int(x) == 2 else 0), batches)


def test_what_is_no_classifier_of_these_labels_is_refused() -> None:
    one, label = torch.tensor([1]), torch.tensor([5])
    with pytest.raises(UserError, match="label 5 does not fit a network with 5 outputs"):
        top1(one_hot, [(one, label)])
    with pytest.raises(UserError, match=r"1 rows of logits, not shape \(1, 5, 1, 1\)"):
        top1(lambda x: one_hot(x)[:, :, None, None], [(one, label)])


def test_no_image_has_no_accuracy() -> None:
    with pytest.raises(UserError, match="no image"):
        top1(one_hot, [])
    assert predictions(one_hot, []).shape == (0,)
