# SPDX-License-Identifier: Apache-2.0
"""The figures of a classifier against scikit-learn's, and the calibration error as a loop over bins."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as typed_metrics
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.measure.accuracy import top1
from ghostnets.measure.quality import BINS, Tally
from ghostnets.records import Quality
from ghostnets.training.draw import generator

metrics: Any = typed_metrics  # whose types know the figures of two classes alone

shapes = st.tuples(st.integers(1, 60), st.integers(2, 12))
seeds = st.integers(0, 2**31)


def answers(count: int, classes: int, seed: int, sharpness: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than by chance, and labels of which some classes may have none."""
    source = generator(seed)
    labels = torch.randint(classes, (count,), generator=source) // 2
    logits = sharpness * torch.randn(count, classes, generator=source)
    return logits + sharpness * torch.nn.functional.one_hot(labels, classes), labels


def tallied(logits: Tensor, labels: Tensor, batch_size: int = 7) -> Tally:
    tally = Tally(logits.shape[1])
    for some, theirs in zip(logits.split(batch_size), labels.split(batch_size), strict=True):
        tally.add_(some, theirs)
    return tally


def names(classes: int) -> list[str]:
    return [f"class {k}" for k in range(classes)]


@settings(max_examples=20)
@given(shapes, st.integers(1, 20), seeds)
def test_the_figures_are_scikit_learns(shape: tuple[int, int], batch_size: int, seed: int) -> None:
    count, classes = shape
    logits, labels = answers(*shape, seed)
    tally = tallied(logits, labels, batch_size)
    found = tally.quality(names(classes))
    true, every = labels.numpy(), np.arange(classes)
    probability = logits.double().softmax(1).numpy()
    said = probability.argmax(1)
    assert found.images == count
    assert found.top1 == pytest.approx(100 * metrics.accuracy_score(true, said))
    assert found.nll == pytest.approx(metrics.log_loss(true, probability, labels=every), rel=1e-6)
    assert np.array_equal(tally.confusion.numpy(), metrics.confusion_matrix(true, said, labels=every))
    if classes > 5:
        assert found.top5 == pytest.approx(100 * metrics.top_k_accuracy_score(true, probability, k=5, labels=every))
    else:
        assert found.top5 == 100
    precision = metrics.precision_score(true, said, labels=every, average=None, zero_division=np.nan)
    recall = metrics.recall_score(true, said, labels=every, average=None, zero_division=0)
    for k, row in enumerate(found.classes):
        assert row.name == f"class {k}"
        assert row.images == int((true == k).sum())
        assert row.recall == (pytest.approx(100 * recall[k]) if row.images else None)
        assert (row.precision is None) == bool(np.isnan(precision[k]))
        if row.precision is not None:
            assert row.precision == pytest.approx(100 * precision[k])


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Guo et al. (arXiv:1706.04599), equation 3: bins (0, 1/15], (1/15, 2/15], …"""
    total = 0.0
    rows = list(zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True))
    for m in range(15):
        inside = [(max(p), p.index(max(p)) == label) for p, label in rows if m / 15 < max(p) <= (m + 1) / 15]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(sure for sure, _ in inside) / len(inside)
            total += len(inside) / len(rows) * abs(accuracy - confidence)
    return total


@settings(max_examples=20)
@given(st.tuples(st.integers(1, 60), st.integers(2, 40)), st.integers(1, 20), st.floats(0.01, 40), seeds)
def test_the_calibration_error_is_a_loop_over_bins(
    shape: tuple[int, int], batch_size: int, sharpness: float, seed: int
) -> None:
    logits, labels = answers(*shape, seed, sharpness)
    found = tallied(logits, labels, batch_size).quality([])
    assert found.ece == pytest.approx(calibration_error(logits, labels), abs=1e-9)
    assert BINS == 15


def test_a_confidence_on_the_edge_of_two_bins_is_of_the_lower() -> None:
    tally = tallied(torch.tensor([[0.0, 0, 0], [math.log(2.0), 0, 0], [99.0, 0, 0]]), torch.tensor([0, 0, 0]))
    assert tally.bins[0].nonzero().flatten().tolist() == [4, 7, 14]  # 5/15, 7.5/15 and 15/15


def test_a_network_that_knows_how_sure_it_is_is_calibrated() -> None:
    """Three of four are right where it says three quarters, and all are where it is certain."""
    unsure = torch.tensor([[math.log(3.0), 0.0]]).expand(4, 2)
    certain = torch.tensor([[0.0, 1000.0]]).expand(2, 2)
    tally = tallied(torch.cat([unsure, certain]), torch.tensor([0, 0, 1, 0, 1, 1]))
    assert tally.quality(["a", "b"]).ece == pytest.approx(0, abs=1e-6)
    wrong = tallied(certain, torch.tensor([0, 0])).quality(["a", "b"])
    assert (wrong.ece, wrong.top1, wrong.nll) == (1.0, 0.0, 1000.0)


@settings(max_examples=20)
@given(shapes, st.integers(1, 3), seeds)
def test_the_sums_of_processes_add_up(shape: tuple[int, int], processes: int, seed: int) -> None:
    """Some may have no image at all."""
    logits, labels = answers(*shape, seed)
    parts = [
        tallied(logits[k::processes], labels[k::processes]) if len(labels[k::processes]) else Tally(shape[1])
        for k in range(processes)
    ]
    total = torch.stack([part.vector() for part in parts]).sum(0)
    alone = tallied(logits, labels)
    for part in parts:
        part.take_(total)
        torch.testing.assert_close(part.vector(), alone.vector())
        assert close(part.quality(names(shape[1])), alone.quality(names(shape[1])))


def close(one: Quality, other: Quality) -> bool:
    figures = [(q.top1, q.top5, q.nll, q.ece) for q in (one, other)]
    return one.classes == other.classes and one.images == other.images and figures[0] == pytest.approx(figures[1])


def test_a_vector_there_and_back_is_the_same() -> None:
    tally = tallied(*answers(30, 6, 0))
    other = Tally(6)
    other.take_(tally.vector().float())  # some processes can only add single precision
    assert other.vector().dtype == torch.float64
    torch.testing.assert_close(other.vector(), tally.vector(), rtol=1e-6, atol=1e-6)
    assert torch.equal(other.confusion, tally.confusion)


@settings(max_examples=10)
@given(shapes, seeds)
def test_the_first_figure_is_that_of_accuracy(shape: tuple[int, int], seed: int) -> None:
    """Also where logits are too close for their softmax to tell."""
    for scale in (1.0, 1e-20, 1e6):
        logits, labels = answers(*shape, seed)
        expected = top1(lambda x, scale=scale: x * scale, [(logits, labels)])
        assert tallied(logits * scale, labels).quality([]).top1 == pytest.approx(expected)


def test_half_precision_logits_are_summed_in_full() -> None:
    logits, labels = answers(40, 10, 1)
    short = logits.bfloat16()
    assert close(tallied(short, labels).quality(names(10)), tallied(short.float(), labels).quality(names(10)))


def test_a_class_that_is_never_said_has_no_precision_and_one_without_images_no_recall() -> None:
    found = tallied(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1])).quality(["a", "b", "c"])
    rows = [(row.images, row.recall, row.precision) for row in found.classes]
    assert rows == [(1, 100.0, 50.0), (2, 50.0, 100.0), (0, None, None)]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 4), [0, 1], r"a classifier of 3 classes should not give logits of shape \(2, 4\)"),
        (torch.zeros(2, 3, 1, 1), [0, 1], r"should not give logits of shape \(2, 3, 1, 1\)"),
        (torch.zeros(1, 3), [0, 1], r"should give 2 rows of logits, not shape \(1, 3\)"),
        (torch.zeros(2, 3), [0, 3], "label 3 does not fit a network with 3 outputs"),
        (torch.zeros(2, 3), [-1, 2], "label -1 does not fit a network with 3 outputs"),
        (torch.tensor([[0.0, float("nan"), 0]]), [0], "NaN or infinite logits: check its weights and its input"),
        (torch.tensor([[0.0, float("inf"), 0]]), [0], "NaN or infinite logits"),
    ],
)
def test_what_is_no_classifier_of_these_labels_is_refused_and_not_counted(
    logits: Tensor, labels: list[int], message: str
) -> None:
    tally = Tally(3)
    with pytest.raises(UserError, match=message):
        tally.add_(logits, torch.tensor(labels))
    assert not tally.vector().any()


def test_no_image_has_no_quality_and_an_empty_batch_counts_nothing() -> None:
    tally = Tally(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tally.add_(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(UserError, match="there is no image to measure the accuracy on"):
        tally.quality(["a", "b", "c"])
