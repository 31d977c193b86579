# SPDX-License-Identifier: Apache-2.0
"""Losses against PyTorch's own, and against sums written out number by number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostnets.training.draw import generator
from ghostnets.training.losses import cross_entropy, distillation, feature_error, targets

shapes = st.tuples(st.integers(1, 7), st.integers(2, 9))
seeds = st.integers(0, 2**31)


def noise(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=generator(seed))


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x) for x in row]
    return [x / sum(powers) for x in powers]


def test_a_smoothed_label_by_hand() -> None:
    expected = torch.tensor([[0.1, 0.1, 0.7, 0.1], [0.7, 0.1, 0.1, 0.1]])  # 0.4 shared by four
    torch.testing.assert_close(targets(torch.tensor([2, 0]), 4, 0.4), expected)
    assert torch.equal(targets(torch.tensor([2, 0]), 4), torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0]]))


@settings(max_examples=40)
@given(shapes, st.floats(0, 0.999), seeds)
def test_smoothed_cross_entropy_is_pytorchs(shape: tuple[int, int], smoothing: float, seed: int) -> None:
    count, classes = shape
    labels = torch.randint(classes, (count,), generator=generator(seed, 1))
    wanted = targets(labels, classes, smoothing)
    torch.testing.assert_close(wanted.sum(1), torch.ones(count))
    own, reference = (noise(seed, *shape).requires_grad_() for _ in range(2))
    loss = cross_entropy(own, wanted)
    expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(reference, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(own.grad, reference.grad)


@settings(max_examples=40)
@given(shapes, seeds)
def test_cross_entropy_from_any_distribution_is_pytorchs(shape: tuple[int, int], seed: int) -> None:
    wanted = noise(seed, *shape).softmax(1)
    logits = noise(seed + 1, *shape)
    torch.testing.assert_close(cross_entropy(logits, wanted), nn.CrossEntropyLoss()(logits, wanted))


@settings(max_examples=40)
@given(shapes, st.floats(0.5, 20), seeds)
def test_distillation_is_a_sum_over_images_and_classes(shape: tuple[int, int], temperature: float, seed: int) -> None:
    logits, teacher = noise(seed, *shape), noise(seed + 1, *shape)
    total = 0.0
    for student_row, teacher_row in zip(logits.tolist(), teacher.tolist(), strict=True):
        q = softmax([x / temperature for x in student_row])
        p = softmax([x / temperature for x in teacher_row])
        total += sum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))
    expected = temperature**2 * total / len(logits)
    assert float(distillation(logits, teacher, temperature)) == pytest.approx(expected, rel=2e-4, abs=1e-4)


@settings(max_examples=40)
@given(shapes, st.floats(0.5, 20), seeds)
def test_distillation_is_pytorchs_divergence_with_the_gradient_of_the_paper(
    shape: tuple[int, int], temperature: float, seed: int
) -> None:
    logits, teacher = noise(seed, *shape).requires_grad_(), noise(seed + 1, *shape)
    loss = distillation(logits, teacher, temperature)
    p, q = (teacher / temperature).softmax(1), (logits / temperature).softmax(1)
    expected = nn.KLDivLoss(reduction="batchmean")(q.log(), p) * temperature**2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    by_hand = temperature * (q - p) / len(logits)  # arXiv:1503.02531, equation 2, times T²
    torch.testing.assert_close(logits.grad, by_hand.detach(), rtol=1e-4, atol=1e-5)


def test_nothing_is_lost_where_the_teacher_is_met() -> None:
    logits = noise(0, 4, 6)
    assert float(distillation(logits + 5, logits, 2.0)) == pytest.approx(0, abs=1e-6)  # softmax forgets a constant
    assert float(feature_error(logits, logits)) == 0


@settings(max_examples=40)
@given(st.tuples(st.integers(2, 6), st.integers(2, 5)), seeds)
def test_the_error_of_features_by_hand(shape: tuple[int, int], seed: int) -> None:
    features, teacher = noise(seed, *shape), noise(seed + 1, *shape) + 4
    each = [
        sum((a - b) ** 2 for a, b in zip(own, wanted, strict=True)) / sum(b**2 for b in wanted)
        for own, wanted in zip(features.tolist(), teacher.tolist(), strict=True)
    ]
    assert float(feature_error(features, teacher)) == pytest.approx(sum(each) / len(each), rel=1e-3)
    torch.testing.assert_close(feature_error(8 * features, 8 * teacher), feature_error(features, teacher))
    halves = [feature_error(f, t) for f, t in zip(features.split(1), teacher.split(1), strict=True)]
    torch.testing.assert_close(torch.stack(halves).mean(), feature_error(features, teacher))


def test_a_teacher_whose_features_are_nothing_divides_nothing_by_zero() -> None:
    assert torch.isfinite(feature_error(torch.ones(3, 2), torch.zeros(3, 2)))


def test_half_precision_answers_are_compared_in_full() -> None:
    logits, teacher = (noise(seed, 5, 4).bfloat16() for seed in (0, 1))
    wanted = targets(torch.tensor([0, 1, 2, 3, 0]), 4, 0.1)
    assert torch.equal(cross_entropy(logits, wanted), cross_entropy(logits.float(), wanted))
    assert torch.equal(distillation(logits, teacher, 4), distillation(logits.float(), teacher.float(), 4))
    assert torch.equal(feature_error(logits, teacher), feature_error(logits.float(), teacher.float()))
