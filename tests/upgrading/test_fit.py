# SPDX-License-Identifier: Apache-2.0
"""Closed-form filters against numpy's least squares on patches that torch has unfolded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.upgrading.fit import (
    PairMoments,
    Window,
    cheap_window,
    draw_positions,
    fit_ghosts,
    fit_primary,
    patches,
    values_at,
)

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
seeds = st.integers(0, 2**31 - 1)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=40)
@given(pairs, pairs, st.tuples(st.integers(0, 3), st.integers(0, 3)), pairs, pairs, seeds)
def test_patches_are_those_that_unfold_finds(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int],
    batch: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    images, channels = batch
    x = drawn(seed, images, channels, 6, 5)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(reach[0] <= 6 + 2 * padding[0] and reach[1] <= 5 + 2 * padding[1])
    size = [(s + 2 * p - r) // t + 1 for s, p, r, t in zip((6, 5), padding, reach, stride, strict=True)]
    positions = draw_positions(images, (size[0], size[1]), 7, torch.Generator().manual_seed(seed))
    assert positions.shape == (images, min(7, size[0] * size[1]))
    got = patches(x, positions, size[1], Window(kernel, stride, padding, dilation))
    columns = F.unfold(x, kernel, dilation, padding, stride)  # (N, C * area, H' * W')
    area = kernel[0] * kernel[1]
    expected = [columns[n, :, p].view(channels, area) for n in range(images) for p in positions[n].tolist()]
    assert torch.equal(got, torch.stack(expected))
    output = F.conv2d(x, drawn(seed, 4, channels, *kernel), None, stride, padding, dilation)
    assert torch.equal(
        values_at(output, positions),
        torch.stack([output[n].flatten(1)[:, p] for n in range(images) for p in positions[n].tolist()]),
    )
    assert torch.allclose(got.flatten(1) @ drawn(seed, 4, channels, *kernel).flatten(1).T, values_at(output, positions))


@pytest.mark.parametrize("rows", [20, 400])
def test_as_many_rows_as_pixels_are_every_pixel_once_in_a_drawn_order(rows: int) -> None:
    first, second = (draw_positions(3, (4, 5), rows, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert [sorted(row) for row in first.tolist()] == [list(range(20))] * 3
    assert not torch.equal(first[0], first[1])  # so that the first few columns are a fair sample too


def test_fewer_rows_reach_the_whole_map_and_come_back_with_the_seed() -> None:
    first, second = (draw_positions(300, (4, 5), 19, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert set(first.flatten().tolist()) == set(range(20))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_cheap_window_is_that_of_the_depthwise_filter(size: int) -> None:
    x, weight = drawn(0, 2, 3, 6, 5), drawn(1, 3, 1, size, size)
    positions = torch.arange(30).expand(2, 30)
    seen = patches(x, positions, 5, cheap_window(size))
    made = torch.einsum("scd,cd->sc", seen, weight.flatten(1))
    assert torch.allclose(made, values_at(F.conv2d(x, weight, padding=size // 2, groups=3), positions))


def lstsq(rows: Tensor, wanted: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """numpy's least squares with an intercept: coefficients and residuals of every column."""
    design = np.concatenate([rows.numpy(), np.ones((len(rows), 1))], 1)
    solution, *_ = np.linalg.lstsq(design, wanted.numpy(), rcond=None)
    return np.asarray(solution, dtype=np.float64), wanted.numpy() - design @ solution


@settings(max_examples=20)
@given(st.integers(2, 5), st.sampled_from([1, 3]), seeds, st.sampled_from([0.0, 5.0]))
def test_pair_moments_give_the_error_of_every_map_from_every_other(
    channels: int, size: int, seed: int, offset: float
) -> None:
    maps = drawn(seed, 3, channels, 7, 6) + offset
    maps = maps + 0.7 * maps.roll(1, 1).roll(1, 2)  # neighbours are ghosts in part
    positions = draw_positions(3, (7, 6), 40, torch.Generator().manual_seed(seed))
    moments = PairMoments(channels, size)
    for n in range(3):  # as it comes, chunk by chunk
        seen = patches(maps[n : n + 1], positions[n : n + 1], 6, cheap_window(size))
        moments.add_(seen, values_at(maps[n : n + 1], positions[n : n + 1]))
    columns = F.unfold(maps, size, padding=size // 2).view(3, channels, size * size, 42)
    got = moments.residuals().numpy()
    wanted = values_at(maps, positions)
    for i in range(channels):
        rows = torch.cat([columns[n, i][:, positions[n]].T for n in range(3)])
        _, residual = lstsq(rows, wanted)
        np.testing.assert_allclose(
            got[i], (residual**2).mean(0), rtol=1e-4, atol=1e-5
        )  # its ridge is 1e-8 of the moments, the means' squares in them
    assert moments.count == 120


def test_pair_moments_of_dead_and_constant_maps_are_finite() -> None:
    maps = drawn(0, 2, 4, 6, 6, dtype=torch.float32)
    maps[:, 0], maps[:, 1] = 0, 3
    positions = draw_positions(2, (6, 6), 50, torch.Generator().manual_seed(0))
    moments = PairMoments(4, 3)
    moments.add_(patches(maps, positions, 6, cheap_window(3)), values_at(maps, positions))
    got = moments.residuals()
    assert bool(torch.isfinite(got).all())
    assert bool((got >= 0).all())
    assert torch.allclose(got[:, :2], torch.zeros(4, 2, dtype=torch.float64), atol=1e-5)  # a bias makes them
    spread = values_at(maps, positions)[:, 2:].var(0, unbiased=False).double()
    assert torch.allclose(got[0, 2:], spread, rtol=1e-4)  # nothing but a bias can be had from a dead map


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 4), seeds, st.sampled_from([0.0, 10.0]))
def test_filters_without_activation_are_numpy_s_least_squares(
    unknowns: int, outputs: int, seed: int, offset: float
) -> None:
    rows, wanted = drawn(seed, 60, unknowns) + offset, drawn(seed + 1, 60, outputs) + offset
    solution, _ = lstsq(rows, wanted)
    weight, bias = fit_primary(rows, wanted, drawn(seed + 2, outputs, unknowns), relu=False, ridge=1e-12)
    np.testing.assert_allclose(weight.numpy(), solution[:-1].T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bias.numpy(), solution[-1], rtol=1e-6, atol=1e-7)
    seen = drawn(seed + 3, 60, outputs, 9) + offset
    weight, bias = fit_ghosts(seen, wanted, relu=False, ridge=1e-12)
    for g in range(outputs):
        solution, _ = lstsq(seen[:, g], wanted[:, g : g + 1])
        np.testing.assert_allclose(weight[g].numpy(), solution[:-1, 0], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(float(bias[g]), solution[-1, 0], rtol=1e-6, atol=1e-7)


def test_a_ridge_pulls_towards_the_start_by_its_share_of_the_mean_diagonal() -> None:
    rows, wanted, start = drawn(0, 60, 5), drawn(1, 60, 3), drawn(2, 3, 5)
    weight, bias = fit_primary(rows, wanted, start, relu=False, ridge=0.3)
    centred = (rows - rows.mean(0)).numpy()
    pull = np.sqrt(0.3 * (centred**2).sum(0).mean())
    design = np.concatenate([centred, pull * np.eye(5)])
    target = np.concatenate([(wanted - wanted.mean(0)).numpy(), pull * start.numpy().T])
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    np.testing.assert_allclose(weight.numpy(), solution.T, rtol=1e-9)
    np.testing.assert_allclose(bias.numpy(), (wanted - rows @ weight.T).mean(0).numpy(), rtol=1e-9)


def one_sided(made: Tensor, wanted: Tensor) -> float:
    """What the rounds lower: the plain error where a value should be positive, else only what ReLU lets through.

    It bounds the error after ReLU from above, and it is convex, so the rounds end at the best filter of all.
    """
    return float(torch.where(wanted > 0, made - wanted, made.clamp_min(0)).square().sum())


def after_relu(made: Tensor, wanted: Tensor) -> float:
    return float((made.relu() - wanted.relu()).square().sum())


@settings(max_examples=20)
@given(seeds, st.sampled_from([-1.0, 0.0, 1.0]))
def test_with_relu_every_round_lowers_the_bound_and_the_bound_holds(seed: int, shift: float) -> None:
    rows = drawn(seed, 80, 4)
    wanted = rows @ drawn(seed + 1, 3, 4).T + drawn(seed + 2, 80, 3) + shift
    start = drawn(seed + 3, 3, 4)
    seen = drawn(seed + 4, 80, 3, 9)
    seen[:, :, 4] += wanted
    plain = {
        "primary": fit_primary(rows, wanted, start, relu=False, ridge=1e-12),
        "ghosts": fit_ghosts(seen, wanted, relu=False, ridge=1e-12),
    }
    for kind in ("primary", "ghosts"):
        bounds: list[float] = []
        shape = rows[:, None].expand(-1, 3, -1) if kind == "primary" else seen
        usual = torch.einsum("sgk,gk->sg", shape, plain[kind][0]) + plain[kind][1]
        for rounds in [*range(1, 12), 400]:
            if kind == "primary":
                weight, bias = fit_primary(rows, wanted, start, relu=True, ridge=1e-12, rounds=rounds)
            else:
                weight, bias = fit_ghosts(seen, wanted, relu=True, ridge=1e-12, rounds=rounds)
            made = torch.einsum("sgk,gk->sg", shape, weight) + bias
            bounds.append(one_sided(made, wanted))
            assert after_relu(made, wanted) <= bounds[-1] * (1 + 1e-12)
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(bounds))
        assert bounds[-1] <= one_sided(usual, wanted) * (1 + 1e-3)


def test_with_relu_the_error_after_it_is_much_lower_than_plain_least_squares_leaves() -> None:
    """Rows that a ReLU network could have made: a plain fit spends itself on values that ReLU cuts off."""
    rows = drawn(0, 400, 6)
    wanted = rows @ drawn(1, 5, 6).T - 1.0
    wanted = torch.where(wanted > 0, wanted, wanted * 4 + drawn(2, 400, 5))
    weight, bias = fit_primary(rows, wanted, torch.zeros(5, 6, dtype=torch.float64), relu=False, ridge=1e-9)
    plain = after_relu(rows @ weight.T + bias, wanted)
    weight, bias = fit_primary(rows, wanted, weight, relu=True, ridge=1e-9, rounds=40)
    assert after_relu(rows @ weight.T + bias, wanted) < 0.1 * plain
    seen = rows[:, None].expand(400, 5, 6)
    cheap, cheap_bias = fit_ghosts(seen, wanted, relu=True, rounds=40)
    made = torch.einsum("sgk,gk->sg", seen, cheap) + cheap_bias
    assert after_relu(made, wanted) < 0.1 * plain


DEGENERATE: dict[str, Tensor] = {
    "zeros": torch.zeros(30, 9),
    "constant": torch.full((30, 9), 7.3),
    "equal columns": drawn(0, 30, 1, dtype=torch.float32).expand(30, 9).contiguous(),
    "far from zero": drawn(0, 3000, 9, dtype=torch.float32) * 1e-3 + 1e3,
    "few rows": drawn(0, 2, 9, dtype=torch.float32),
    "one row": drawn(0, 1, 9, dtype=torch.float32),
    "tiny": drawn(0, 30, 9, dtype=torch.float32) * 1e-12,
    "huge": drawn(0, 30, 9, dtype=torch.float32) * 1e12,
    "many equal rows": drawn(0, 5, 9, dtype=torch.float32).repeat(4000, 1),
    "many equal columns": (drawn(0, 40_000, 1, dtype=torch.float32) + 30).expand(-1, 9).contiguous(),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_rows_give_finite_filters_no_worse_than_the_mean(name: str, relu: bool) -> None:
    rows = DEGENERATE[name]
    wanted = drawn(3, len(rows), 4, dtype=torch.float32)
    start = torch.zeros(4, 9)
    weight, bias = fit_primary(rows, wanted, start, relu=relu)
    made = rows @ weight.T + bias
    cheap, cheap_bias = fit_ghosts(rows[:, None].expand(-1, 4, -1), wanted, relu=relu)
    ghosts = rows @ cheap.T + cheap_bias
    for value in (weight, bias, made, cheap, cheap_bias, ghosts):
        assert bool(torch.isfinite(value).all())
    mean = (after_relu if relu else lambda a, b: float((a - b).square().sum()))(
        wanted.mean(0).expand_as(wanted), wanted
    )
    for value in (made, ghosts):
        error = after_relu(value, wanted) if relu else float((value - wanted).square().sum())
        assert error <= mean * 1.01 + 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filters_come_in_the_precision_of_their_rows(dtype: torch.dtype) -> None:
    rows, wanted = drawn(0, 30, 9, dtype=dtype), drawn(1, 30, 4, dtype=dtype)
    fits = [
        *fit_primary(rows, wanted, torch.zeros(4, 9, dtype=dtype), relu=True),
        *fit_ghosts(rows[:, None].expand(-1, 4, -1), wanted, relu=True),
    ]
    assert [value.dtype for value in fits] == [dtype] * 4


def test_rows_that_are_not_finite_are_refused() -> None:
    rows, wanted = drawn(0, 30, 9), drawn(1, 30, 4)
    rows[3, 2] = torch.nan
    with pytest.raises(UserError, match="the activations to fit are not finite"):
        fit_primary(rows, wanted, torch.zeros(4, 9, dtype=torch.float64), relu=True)
    with pytest.raises(UserError, match="the activations to fit are not finite"):
        fit_ghosts(rows[:, None].expand(-1, 4, -1), wanted, relu=False)
