# SPDX-License-Identifier: Apache-2.0
"""The joint fit against numpy's least squares on patches cut out by ``unfold``, ghost by ghost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghostnets.upgrading import joint
from ghostnets.upgrading.fit import Window, patches, spread
from ghostnets.upgrading.joint import fit_jointly, wide_window

SIZE = 9


def window(kernel: int, stride: int) -> Window:
    return Window((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1))


class Case:
    """Maps and their patches at every output position whose cheap neighbourhood lies inside the output."""

    def __init__(self, channels: int, intrinsic: int, ghosts: int, kernel: int, stride: int, cheap: int) -> None:
        self.x = torch.randn(5, channels, SIZE, SIZE)
        self.window, self.kernel, self.stride, self.cheap = window(kernel, stride), kernel, stride, cheap
        self.out = (SIZE - 1) // stride + 1
        margin = cheap // 2
        ys, xs = torch.meshgrid(*[torch.arange(margin, self.out - margin)] * 2, indexing="ij")
        self.positions = (ys * self.out + xs).flatten().expand(5, -1)
        self.near = self.at(0, 0)
        wide = wide_window(self.window, cheap)
        assert wide is not None
        self.rows = patches(self.x, self.positions, self.out, wide)
        count = len(self.near)
        self.own = torch.randn(count, intrinsic) + 2
        self.wanted = torch.randn(count, ghosts) - 1
        self.source = torch.randint(intrinsic, (ghosts,))
        self.gram, centre = spread(self.near)
        self.start = torch.from_numpy(lstsq(self.near - centre, self.own)).T.contiguous()

    def at(self, dy: int, dx: int) -> Tensor:
        """The primary's patches at the positions moved by so many outputs, cut out by PyTorch's unfold."""
        columns = F.unfold(self.x, self.kernel, padding=self.kernel // 2, stride=self.stride)  # (N, K, pixels)
        moved = self.positions[0] + dy * self.out + dx
        return columns[:, :, moved].transpose(1, 2).flatten(0, 1)

    def taps(self) -> list[Tensor]:
        reach = range(-(self.cheap // 2), self.cheap // 2 + 1)
        return [self.at(dy, dx) for dy in reach for dx in reach]

    def best_filters(self, weight: Tensor) -> list[Tensor]:
        """For every ghost the cheap filter of least squares, given the primary filters."""
        taps = torch.stack(self.taps())  # (T, S, K)
        seen = torch.einsum("tsk,mk->smt", taps, weight)
        return [
            torch.from_numpy(lstsq(centred(seen[:, i]), centred(self.wanted[:, j : j + 1])))[:, 0]
            for j, i in enumerate(self.source.tolist())
        ]

    def error(self, weight: Tensor) -> float:
        """Of intrinsic maps and ghosts, biases and cheap filters at their best."""
        taps = torch.stack(self.taps())
        total = centred(self.own - self.near @ weight.T).square().sum()
        for j, filter_ in enumerate(self.best_filters(weight)):
            made = torch.einsum("tsk,k,t->s", taps, weight[self.source[j]], filter_)
            total = total + centred(self.wanted[:, j] - made).square().sum()
        return float(total)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def lstsq(a: Tensor, b: Tensor) -> np.ndarray:
    return np.linalg.lstsq(a.double().numpy(), centred(b).double().numpy(), rcond=None)[0].astype(np.float32)


@pytest.mark.parametrize(("kernel", "stride", "cheap"), [(3, 1, 3), (3, 2, 3), (1, 1, 3), (3, 1, 1), (1, 2, 5)])
def test_a_round_solves_the_stacked_least_squares(
    kernel: int, stride: int, cheap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "ROUNDS", 1)
    monkeypatch.setattr(joint, "RIDGE", 0.0)
    case = Case(3, 3, 4, kernel, stride, cheap)
    found = fit_jointly(case.start, case.gram, case.rows, case.wanted, case.source, case.window, cheap)
    taps, filters = torch.stack(case.taps()), case.best_filters(case.start)
    for i in range(3):
        mine = [j for j, source in enumerate(case.source.tolist()) if source == i]
        made = [torch.einsum("tsk,t->sk", taps, filters[j]) for j in mine]
        stacked = torch.cat([centred(case.near), *(centred(m) for m in made)])
        wanted = torch.cat([centred(case.own[:, i]), *(centred(case.wanted[:, j]) for j in mine)])
        expected = np.linalg.lstsq(stacked.double().numpy(), wanted.double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=2e-3, atol=2e-4)


@settings(max_examples=25)
@given(
    channels=st.integers(1, 4), intrinsic=st.integers(1, 4), ghosts=st.integers(0, 5),
    kernel=st.sampled_from([1, 3]), stride=st.integers(1, 2), cheap=st.sampled_from([1, 3]), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_error_of_all_maps_never_grows(
    channels: int, intrinsic: int, ghosts: int, kernel: int, stride: int, cheap: int, seed: int
) -> None:
    torch.manual_seed(seed)
    case = Case(channels, intrinsic, ghosts, kernel, stride, cheap)
    found = fit_jointly(case.start, case.gram, case.rows, case.wanted, case.source, case.window, cheap)
    assert case.error(found) <= case.error(case.start) * (1 + 1e-5)


def test_it_gains_where_a_ghost_needs_what_its_source_could_give() -> None:
    case = Case(4, 2, 6, 3, 1, 3)
    found = fit_jointly(case.start, case.gram, case.rows, case.wanted, case.source, case.window, 3)
    assert case.error(found) < 0.98 * case.error(case.start)


def test_ghosts_that_are_exact_already_leave_the_filters_alone() -> None:
    case = Case(4, 3, 5, 3, 1, 3)
    seen = torch.einsum("tsk,mk->smt", torch.stack(case.taps()), case.start)[:, case.source]
    wanted = torch.einsum("sgt,gt->sg", seen, torch.randn(5, 9)) + 3
    found = fit_jointly(case.start, case.gram, case.rows, wanted, case.source, case.window, 3)
    torch.testing.assert_close(found, case.start, rtol=0, atol=1e-5)


def test_dilation_has_no_wide_window() -> None:
    assert wide_window(Window((3, 3), (1, 1), (2, 2), (2, 2)), 3) is None
