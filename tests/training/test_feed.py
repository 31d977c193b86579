# SPDX-License-Identifier: Apache-2.0
"""Images in memory, drawn by one process or several: who sees what, counted image by image."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ghostnets.errors import UserError
from ghostnets.training.data import Augment, Images
from ghostnets.training.draw import generator
from ghostnets.training.feed import Drawn, MemoryFeed, Share, places, steps_per_epoch
from ghostnets.training.recipe import Recipe

WORLDS = st.integers(1, 3)


def numbered(count: int) -> MemoryFeed:
    """The k-th image shows k, and its label is k."""
    numbers = torch.arange(count)
    pixels = numbers.to(torch.uint8).view(-1, 1, 1, 1)
    return MemoryFeed(Images(pixels=pixels, labels=numbers), Augment(padding=0, flip=False))


def drawn(feed: MemoryFeed, batch: int, share: Share, *, steps: int, seed: int = 0, start: int = 0) -> list[Drawn]:
    return list(islice(feed.training(Recipe(batch_size=batch), share, seed=seed, start=start), steps))


def shown(drawn: Drawn) -> list[int]:
    """What a batch holds, after its pixels, labels and places have been found to agree."""
    seen = drawn.pixels.flatten().tolist()
    assert drawn.labels.tolist() == seen
    assert drawn.index is not None
    assert drawn.index.tolist() == seen
    return seen


# --- shares


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_shares_are_all_of_it_in_order_and_as_equal_as_can_be(count: int, world: int) -> None:
    things = list(range(count))
    parts = [things[Share(rank, world).of(count)] for rank in range(world)]
    assert [thing for part in parts for thing in part] == things
    assert {len(part) for part in parts} <= {count // world, -(-count // world)}


def test_a_process_alone_has_everything() -> None:
    assert list(range(7))[Share().of(7)] == list(range(7))


# --- steps


@given(st.integers(1, 300), st.integers(1, 300))
def test_an_epoch_is_as_many_steps_as_batches_can_be_filled(count: int, batch: int) -> None:
    filled = sum(1 for first in range(0, count, batch) if first + batch <= count)
    if filled:
        assert steps_per_epoch(count, batch) == filled
    else:
        with pytest.raises(UserError, match=f"{count} training images do not fill one batch of {batch}: .*batch_size"):
            steps_per_epoch(count, batch)


def test_too_few_images_are_refused_with_the_first_batch() -> None:
    with pytest.raises(UserError, match="3 training images do not fill one batch of 4"):
        next(numbered(3).training(Recipe(batch_size=4), Share(), seed=0, start=0))


# --- training


@given(st.integers(1, 60), st.integers(1, 60), WORLDS, st.integers(0, 5), st.integers(1, 3))
def test_every_image_of_the_whole_batches_comes_once_an_epoch(
    count: int, batch: int, world: int, seed: int, epochs: int
) -> None:
    count = max(count, batch)
    steps = count // batch
    processes = [
        drawn(numbered(count), batch, Share(rank, world), steps=steps * epochs, seed=seed) for rank in range(world)
    ]
    for epoch in range(epochs):
        own = [one for process in processes for one in process[epoch * steps : (epoch + 1) * steps]]
        seen = [number for one in own for number in shown(one)]
        assert len(seen) == len(set(seen)) == steps * batch
        assert set(seen) <= set(range(count))
        assert [(one.epoch, one.step) for one in own] == [(epoch, step) for _ in range(world) for step in range(steps)]


@given(st.integers(1, 60), st.integers(1, 20), WORLDS, st.integers(0, 5), st.integers(0, 30))
def test_the_processes_shares_side_by_side_are_the_batch_of_one(
    count: int, batch: int, world: int, seed: int, start: int
) -> None:
    feed = numbered(max(count, batch))
    alone = drawn(feed, batch, Share(), steps=4, seed=seed, start=start)
    shared = [drawn(feed, batch, Share(rank, world), steps=4, seed=seed, start=start) for rank in range(world)]
    for whole, parts in zip(alone, zip(*shared, strict=True), strict=True):
        assert [number for part in parts for number in shown(part)] == shown(whole)
        assert {(part.epoch, part.step) for part in parts} == {(whole.epoch, whole.step)}


@given(st.integers(1, 60), st.integers(1, 20), WORLDS, st.integers(0, 5), st.integers(0, 30))
def test_a_run_goes_on_where_it_stopped(count: int, batch: int, world: int, seed: int, start: int) -> None:
    feed, share = numbered(max(count, batch)), Share(world - 1, world)
    through = drawn(feed, batch, share, steps=start + 3, seed=seed)
    resumed = drawn(feed, batch, share, steps=3, seed=seed, start=start)
    assert [(one.epoch, one.step, shown(one)) for one in resumed] == [
        (one.epoch, one.step, shown(one)) for one in through[start:]
    ]


def test_the_order_is_the_permutation_of_seed_and_epoch() -> None:
    order = [number for one in drawn(numbered(20), 5, Share(), steps=8, seed=4) for number in shown(one)]
    expected = [torch.randperm(20, generator=generator(4, epoch)).tolist() for epoch in (0, 1)]
    assert order == expected[0] + expected[1]


def test_every_epoch_and_every_seed_has_another_order() -> None:
    orders = {
        tuple(
            number
            for one in drawn(numbered(40), 8, Share(), steps=5, seed=seed, start=5 * epoch)
            for number in shown(one)
        )
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_with_views_an_epoch_has_the_order_of_the_one_it_repeats() -> None:
    recipe = Recipe(batch_size=5, kd_views=3)
    found = list(islice(places(20, recipe, Share(), seed=4, start=0), 4 * 8))
    assert [place.epoch for place in found] == [k // 4 for k in range(32)]
    order = torch.stack([place.index for place in found]).reshape(8, 20)
    for epoch in range(8):
        assert order[epoch].tolist() == torch.randperm(20, generator=generator(4, epoch % 3)).tolist()


def test_over_the_epochs_no_image_is_always_left_out() -> None:
    seen = [number for one in drawn(numbered(10), 6, Share(), steps=30) for number in shown(one)]
    assert set(seen) == set(range(10))


def test_places_are_the_same_for_any_images() -> None:
    """What a folder of pictures draws its batches with is what images in memory are drawn with."""
    found = islice(places(17, Recipe(batch_size=4), Share(1, 2), seed=9, start=6), 5)
    memory = drawn(numbered(17), 4, Share(1, 2), steps=5, seed=9, start=6)
    assert [(place.epoch, place.step, place.index.tolist()) for place in found] == [
        (one.epoch, one.step, shown(one)) for one in memory
    ]


def test_drawing_leaves_the_random_state_and_the_images_alone() -> None:
    feed = numbered(12)
    before, pixels = torch.get_rng_state(), feed.images.pixels.clone()
    for one in drawn(feed, 4, Share(), steps=6):
        one.pixels.zero_()
        one.labels.zero_()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(pixels, feed.images.pixels)
    assert feed.images.labels is not None
    assert feed.images.labels.tolist() == list(range(12))


# --- testing


@given(st.integers(0, 60), st.integers(1, 20), WORLDS)
def test_every_image_is_tested_once_and_in_order(count: int, batch: int, world: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        for pixels, labels in numbered(count).testing(batch, Share(rank, world)):
            assert 1 <= len(labels) <= batch
            assert pixels.flatten().tolist() == labels.tolist()
            seen += labels.tolist()
    assert seen == list(range(count))


def test_images_without_labels_are_refused() -> None:
    with pytest.raises(UserError, match="no labels"):
        MemoryFeed(
            Images(pixels=torch.zeros(3, 1, 1, 1, dtype=torch.uint8), labels=None), Augment(padding=0, flip=False)
        )


def test_a_feed_is_as_long_as_its_images() -> None:
    assert len(numbered(13)) == 13
