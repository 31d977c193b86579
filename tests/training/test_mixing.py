# SPDX-License-Identifier: Apache-2.0
"""Mixup, CutMix and erasing pixel by pixel in loops, and shared by processes against the whole batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghostnets.training.augment import random_crop_flip
from ghostnets.training.draw import Draw, generator, seed_of, whole
from ghostnets.training.mixing import AREA, RATIO, cutmix, erased, mixed, mixup, neighbours

counts, sides, shares = st.integers(1, 7), st.integers(1, 9), st.floats(0, 1)
seeds = st.integers(0, 2**31)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def numbered(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images that are their own number all over, each of a class of its own: what is mixed can be read off."""
    x = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 2, height, width).clone()
    return x, torch.eye(count)


def other_of(k: int, count: int) -> int:
    """Pairs in a row, by counting."""
    pairs = [(first, first + 1) for first in range(0, count - 1, 2)]
    return next((b if k == a else a for a, b in pairs if k in {a, b}), k)


@given(st.integers(0, 20))
def test_neighbours_are_pairs_and_an_odd_one_stays_alone(count: int) -> None:
    assert neighbours(count).tolist() == [other_of(k, count) for k in range(count)]


@given(counts, sides, sides, shares, seeds)
def test_mixup_by_loops(count: int, height: int, width: int, weight: float, seed: int) -> None:
    x, wanted = noise(seed, count, 2, height, width), noise(seed + 1, count, 3)
    before = x.clone()
    got, got_wanted = mixup(x, wanted, weight)
    for k in range(count):
        other = other_of(k, count)
        torch.testing.assert_close(got[k], weight * x[k] + (1 - weight) * x[other])
        torch.testing.assert_close(got_wanted[k], weight * wanted[k] + (1 - weight) * wanted[other])
    assert torch.equal(x, before)


@given(counts, sides, sides, shares, shares, shares, seeds)
def test_cutmix_by_loops(
    count: int, height: int, width: int, weight: float, y: float, across: float, seed: int
) -> None:
    x, wanted = noise(seed, count, 2, height, width), noise(seed + 1, count, 3)
    before = x.clone()
    got, got_wanted = cutmix(x, wanted, weight, (y, across))
    side = math.sqrt(1 - weight)
    top, bottom = round(height * (y - side / 2)), round(height * (y + side / 2))
    left, right = round(width * (across - side / 2)), round(width * (across + side / 2))
    cut = [(r, c) for r in range(height) for c in range(width) if top <= r < bottom and left <= c < right]
    kept = 1 - len(cut) / (height * width)
    for k in range(count):
        other = other_of(k, count)
        for r in range(height):
            for c in range(width):
                assert torch.equal(got[k, :, r, c], x[other if (r, c) in cut else k, :, r, c])
        torch.testing.assert_close(got_wanted[k], kept * wanted[k] + (1 - kept) * wanted[other])
    assert torch.equal(x, before)


@given(st.integers(2, 6), sides, sides, shares, shares, shares)
def test_labels_say_how_much_of_which_image_is_seen(
    count: int, height: int, width: int, weight: float, y: float, across: float
) -> None:
    got, wanted = cutmix(*numbered(count, height, width), weight, (y, across))
    for image, row in zip(got, wanted, strict=True):
        seen = torch.stack([(image[0] == k).float().mean() for k in range(count)])
        torch.testing.assert_close(row, seen)
    torch.testing.assert_close(wanted.sum(1), torch.ones(count))


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_a_rectangle_in_the_middle_is_as_large_as_asked(weight: float) -> None:
    _, wanted = cutmix(*numbered(2, 200, 100), weight, (0.5, 0.5))
    assert float(wanted[0, 0]) == pytest.approx(weight, abs=0.01)


def test_a_rectangle_keeps_the_order_of_maps_in_memory() -> None:
    x = noise(0, 4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert cutmix(x, torch.eye(4), 0.5, (0.5, 0.5))[0].is_contiguous(memory_format=torch.channels_last)


# --- which of the two


def kind(seed: int, mixup_alpha: float, cutmix_alpha: float, side: int = 32) -> tuple[str, float]:
    """What was done to numbered images, and how much of the first is left of it."""
    x, wanted = numbered(2, side, side)
    got, row = mixed(x, wanted, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, draw=whole(generator(seed), 2))
    fractions = bool(((got[0] > 0) & (got[0] < 1)).any())
    return "mixup" if fractions else "cutmix", float(row[0, 0])


def test_with_both_each_comes_half_of_the_time() -> None:
    kinds = [kind(seed, 0.8, 1.0)[0] for seed in range(400)]
    assert 160 < kinds.count("mixup") < 240  # a standard deviation of 10


def test_one_alone_comes_always() -> None:
    assert {kind(seed, 0.8, 0.0)[0] for seed in range(40)} == {"mixup"}
    assert {kind(seed, 0.0, 0.8)[0] for seed in range(40)} == {"cutmix"}


def test_neither_changes_nothing_and_draws_nothing() -> None:
    x, wanted = numbered(3, 4, 4)
    source = generator(0)
    before = source.get_state()
    got = mixed(x, wanted, mixup_alpha=0, cutmix_alpha=0, draw=whole(source, 3))
    assert got == (x, wanted)
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_weights_are_of_the_beta_distribution(alpha: float) -> None:
    weights = np.array([kind(seed, alpha, 0.0, 2)[1] for seed in range(600)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert weights.mean() == pytest.approx(0.5, abs=4 * math.sqrt(variance / 600))
    assert weights.var() == pytest.approx(variance, rel=0.2)


# --- erasing


def test_as_many_images_are_erased_as_asked_in_rectangles_of_the_papers_areas() -> None:
    x = torch.full((1500, 2, 40, 60), 7.0)
    out = erased(x, 0.25, whole(generator(4), len(x)))
    changed = (out != x).any(1)
    hit = changed.flatten(1).any(1)
    assert 310 < int(hit.sum()) < 440  # of 375 expected, with a standard deviation of 17
    areas, forms = [], []
    for mask in changed[hit]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = mask[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        assert bool(box.all())  # one rectangle, and all of it
        areas.append(box.numel() / mask.numel())
        forms.append((box.shape[0] / 40) / (box.shape[1] / 60))
    assert AREA[0] * 0.7 < min(areas) < 0.04  # whole pixels
    assert 0.3 < max(areas) < AREA[1] * 1.1
    assert np.mean(areas) == pytest.approx(sum(AREA) / 2, rel=0.1)
    assert RATIO * 0.7 < min(forms) < max(forms) < 1 / RATIO * 1.4
    assert abs(np.mean(np.log(forms))) < 0.15  # as often flat as tall
    values = out[hit][changed[hit][:, None].expand_as(out[hit])]
    assert abs(float(values.mean())) < 0.02
    assert float(values.std()) == pytest.approx(1, abs=0.02)


@settings(derandomize=True)  # one place in a million is rounded otherwise in double precision
@given(counts, sides, sides, st.floats(0, 1), seeds)
def test_erasing_by_loops(count: int, height: int, width: int, probability: float, seed: int) -> None:
    x = noise(seed, count, 2, height, width)
    before = x.clone()
    got = erased(x, probability, whole(generator(seed), count))
    if probability == 0:
        assert got is x
        return
    source = generator(seed)
    happens, area, form, top, left = torch.rand(5, count, generator=source)
    fill = torch.randn(count, 2, height, width, generator=source)
    for k in range(count):
        share = AREA[0] + (AREA[1] - AREA[0]) * area[k]
        flat = (1 / RATIO) ** (1 - 2 * form[k])  # from 10/3 down to 3/10, equally spread over its logarithm
        tall, wide = (min(1.0, math.sqrt(s)) for s in (share * flat, share / flat))
        first = [round(float(place) * (n - s * n)) for place, n, s in ((top[k], height, tall), (left[k], width, wide))]
        size = [round(tall * height), round(wide * width)]
        for r in range(height):
            for c in range(width):
                inside = first[0] <= r < first[0] + size[0] and first[1] <= c < first[1] + size[1]
                source_of = fill if inside and happens[k] < probability else x
                assert torch.equal(got[k, :, r, c], source_of[k, :, r, c])
    assert torch.equal(x, before)


def test_certainty_erases_every_image() -> None:
    x = torch.full((200, 1, 16, 16), 7.0)
    assert bool((erased(x, 1.0, whole(generator(0), 200)) != x).flatten(1).any(1).all())


# --- shared by processes


def test_a_place_in_a_run_has_random_numbers_of_its_own() -> None:
    places = [(), (0,), (1,), (0, 1), (1, 0), (0, 1, 0), (11,), (1, 1)]
    assert len({seed_of(*place) for place in places}) == len(places)
    assert all(0 <= seed_of(*place) < 2**63 for place in places)
    assert torch.equal(torch.rand(4, generator=generator(1, 2)), torch.rand(4, generator=generator(1, 2)))


def pieces(total: int, cut: int, seed: int) -> tuple[Draw, Draw, Draw]:
    """The whole batch, and two shares of it."""
    ends = ((0, total), (0, cut), (cut, total))
    return tuple(Draw(generator(seed), total, start, stop) for start, stop in ends)  # pyright: ignore[reportReturnType]


@given(st.integers(1, 12), st.integers(0, 12), seeds)
def test_processes_draw_what_one_would_alone(total: int, cut: int, seed: int) -> None:
    everything, *parts = pieces(total, min(cut, total), seed)
    for _ in range(2):  # every call draws new numbers
        assert torch.equal(everything.integers(9, 2), torch.cat([part.integers(9, 2) for part in parts], 1))
        assert torch.equal(everything.uniform(3), torch.cat([part.uniform(3) for part in parts], 1))
        assert torch.equal(everything.normal(2, 4), torch.cat([part.normal(2, 4) for part in parts]))
        assert len({float(draw.numbers().random()) for draw in (everything, *parts)}) == 1


@settings(max_examples=50)
@given(st.integers(2, 6), st.integers(1, 5), st.sampled_from([(0.0, 0.7), (0.7, 0.0), (0.7, 0.7)]), seeds)
def test_processes_make_the_images_that_one_would_alone(
    pairs: int, cut: int, alphas: tuple[float, float], seed: int
) -> None:
    total, cut = 2 * pairs, 2 * min(cut, pairs - 1)  # whole pairs
    pixels = torch.randint(256, (total, 3, 6, 5), dtype=torch.uint8, generator=generator(seed, 1))
    wanted = torch.eye(total)

    def made(draw: Draw) -> tuple[Tensor, Tensor]:
        part = slice(draw.start, draw.stop)
        x = random_crop_flip(pixels[part], padding=2, flip=True, draw=draw).float()
        x = erased(x, 0.5, draw)
        return mixed(x, wanted[part], mixup_alpha=alphas[0], cutmix_alpha=alphas[1], draw=draw)

    everything, *parts = (made(draw) for draw in pieces(total, cut, seed))
    for alone, shared in zip(everything, zip(*parts, strict=True), strict=True):
        assert torch.equal(alone, torch.cat(shared))
