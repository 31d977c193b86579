# SPDX-License-Identifier: Apache-2.0
"""Table 2: the errors of filters of several sizes, each against least squares on unfolded patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.inspecting.pairs import look_alikes, pair_errors
from ghostnets.records import Matches


def lstsq_error(source: Tensor, target: Tensor, kernel: int) -> float:
    rows = F.unfold(source[:, None], kernel, padding=kernel // 2).permute(0, 2, 1).reshape(-1, kernel**2)
    design = np.concatenate([rows.double().numpy(), np.ones((len(rows), 1))], 1)
    wanted = target.flatten().double().numpy()
    return float(np.square(design @ np.linalg.lstsq(design, wanted, rcond=None)[0] - wanted).mean())


@pytest.mark.parametrize("size", [(9, 7), (5, 5), (3, 8)])
def test_every_size_of_filter_is_fitted_exactly(size: tuple[int, int]) -> None:
    images = torch.randn(50, 3, *size, generator=torch.Generator().manual_seed(1)) + 1
    conv = nn.Conv2d(3, 5, 3, padding=1)
    pairs = [(0, 1), (4, 2)]
    found = pair_errors(nn.Sequential(conv, nn.Flatten()), lambda: iter(images.split(7)), "0", pairs, images=50)
    with torch.no_grad():
        maps = conv(images)
    for pair, (source, target) in zip(found, pairs, strict=True):
        assert (pair.source, pair.target, pair.kernels) == (source, target, (1, 3, 5, 7))
        for kernel, mse, nmse in zip(pair.kernels, pair.mse, pair.nmse, strict=True):
            wanted = lstsq_error(maps[:, source], maps[:, target], kernel)
            assert mse == pytest.approx(wanted, rel=1e-4, abs=1e-9)
            assert nmse == pytest.approx(wanted / float(maps[:, target].double().var(correction=0)), rel=1e-4, abs=1e-9)
        assert list(pair.mse) == sorted(pair.mse, reverse=True)  # a larger filter can do what a smaller one does


def test_no_pair_no_errors() -> None:
    assert pair_errors(nn.Conv2d(3, 4, 1), lambda: iter(()), "", [], images=1) == ()


def test_maps_that_are_no_numbers_are_refused() -> None:
    conv = nn.Conv2d(3, 4, 1)
    nn.init.constant_(conv.weight, float("nan"))
    images = torch.randn(4, 3, 8, 8)
    with pytest.raises(UserError, match="maps of 0 are NaN or infinite"):
        pair_errors(nn.Sequential(conv), lambda: iter(images.split(2)), "0", [(0, 1)], images=4)


def matches(source: list[int], nmse: list[float], variance: list[float]) -> Matches:
    mse = tuple(n * v for n, v in zip(nmse, variance, strict=True))
    return Matches(source=tuple(source), mse=mse, nmse=tuple(nmse), within=(0, 0, 0), dead=source.count(-1))


def test_the_best_pairs_share_no_map() -> None:
    found = matches([1, 0, 1, 2, 5, 4], [0.1, 0.11, 0.2, 0.3, 0.5, 0.6], [1] * 6)
    assert look_alikes(found) == ((1, 0), (2, 3), (5, 4))
    assert look_alikes(found, 1) == ((1, 0),)


def test_dark_and_constant_maps_are_not_shown() -> None:
    found = matches([1, 2, 1, -1], [0.01, 0.2, 0.3, 0.0], [0.001, 1, 1, 1])
    assert look_alikes(found) == ((2, 1),)
    assert look_alikes(matches([-1, -1], [0, 0], [1, 1])) == ()
