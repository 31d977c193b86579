# SPDX-License-Identifier: Apache-2.0
"""Whole batches against a road that takes image by image through NumPy, and shares of them against the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training import batch as module
from ghostnets.training.batch import Batcher, low_res
from ghostnets.training.data import Augment, Images, normalise
from ghostnets.training.draw import generator, seed_of
from ghostnets.training.feed import Drawn, MemoryFeed, Share
from ghostnets.training.mixing import AREA, RATIO
from ghostnets.training.recipe import Recipe

MEAN, STD, CLASSES, SEED = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 5, 3
PLAIN = Recipe(batch_size=8, hflip="none", padding=0)


def batcher(recipe: Recipe, share: Share | None = None, **options: Any) -> Batcher:
    options = {"augment": Augment(padding=0, flip=False), "in_memory": True} | options
    return Batcher(recipe, mean=MEAN, std=STD, classes=CLASSES, share=share or Share(), seed=SEED, **options)


def drawn(count: int, *, height: int = 6, width: int = 5, seed: int = 0, epoch: int = 2, step: int = 1) -> Drawn:
    source = generator(seed, count)
    pixels = torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=source)
    labels = torch.randint(CLASSES, (count,), generator=source)
    return Drawn(pixels, labels, epoch, step, torch.randperm(50, generator=source)[:count])


def part_of(whole: Drawn, part: slice) -> Drawn:
    assert whole.index is not None
    return replace(whole, pixels=whole.pixels[part], labels=whole.labels[part], index=whole.index[part])


def slow(recipe: Recipe, batch: Drawn, *, padding: int, mirrored: list[bool] | None) -> tuple[np.ndarray, np.ndarray]:
    """The same image by image. The random numbers come in the order in which they are promised: places of the crop, mirrors,
    five for a rectangle, its noise, and those of the mix. ``mirrored`` None is by chance.
    """
    count, _, height, width = batch.pixels.shape
    source = generator(SEED, 1, batch.epoch, batch.step)
    top, left = torch.randint(2 * padding + 1, (2, count), generator=source).tolist()
    (chance,) = torch.randint(2, (1, count), generator=source).tolist()
    images: list[np.ndarray] = []
    for k, image in enumerate(batch.pixels.numpy()):
        border = ((0, 0), (padding, padding), (padding, padding))
        wide = np.pad(image, border, mode="reflect" if recipe.reflect else "constant")
        crop = wide[:, top[k] : top[k] + height, left[k] : left[k] + width].astype(np.float64)
        if bool(chance[k]) if mirrored is None else mirrored[k]:
            crop = crop[:, :, ::-1]
        images.append((crop / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None])
    if recipe.reprob:
        happens, area, form, down, across = torch.rand(5, count, generator=source).tolist()
        noise = torch.randn(count, 3, height, width, generator=source).numpy()
        for k, image in enumerate(images):
            share, flat = AREA[0] + (AREA[1] - AREA[0]) * area[k], RATIO ** (2 * form[k] - 1)
            tall, wide = min(math.sqrt(share * flat), 1) * height, min(math.sqrt(share / flat), 1) * width
            y, x = round(down[k] * (height - tall)), round(across[k] * (width - wide))
            box = np.s_[:, y : y + round(tall), x : x + round(wide)]
            if happens[k] < recipe.reprob:
                image[box] = noise[k][box]
    wanted = [np.full(CLASSES, recipe.smoothing / CLASSES) for _ in images]
    for row, label in zip(wanted, batch.labels.tolist(), strict=True):
        row[label] += 1 - recipe.smoothing
    if recipe.mixup and (recipe.mixup_off_epoch is None or batch.epoch < recipe.mixup_off_epoch):
        numbers = np.random.default_rng(int(torch.randint(2**62, (1,), generator=source)))
        numbers.integers(1)
        weight = numbers.beta(recipe.mixup, recipe.mixup)
        order = [k ^ 1 if k ^ 1 < count else k for k in range(count)]
        images = [weight * images[k] + (1 - weight) * images[other] for k, other in enumerate(order)]
        wanted = [weight * wanted[k] + (1 - weight) * wanted[other] for k, other in enumerate(order)]
    return np.stack(images), np.stack(wanted)


@settings(max_examples=60, derandomize=True)  # one place in a million is rounded otherwise in double precision
@given(
    st.integers(1, 9), st.integers(3, 8), st.integers(3, 8), st.integers(0, 2), st.booleans(),
    st.sampled_from(["none", "random"]), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.6]), st.sampled_from([0.0, 0.5]),
    st.none() | st.integers(0, 4), st.integers(0, 2**31),
)  # fmt: skip
def test_a_batch_is_its_images_one_by_one(
    count: int, height: int, width: int, padding: int, reflect: bool, hflip: Any, smoothing: float, reprob: float,
    mixup: float, mixup_off_epoch: float | None, seed: int,
) -> None:  # fmt: skip
    recipe = Recipe(
        batch_size=count, padding=padding, reflect=reflect, hflip=hflip, smoothing=smoothing, reprob=reprob, mixup=mixup,
        mixup_off_epoch=mixup_off_epoch,
    )  # fmt: skip
    batch = drawn(count, height=height, width=width, seed=seed)
    before = batch.pixels.clone()
    x, wanted = batcher(recipe)(batch)
    images, answers = slow(recipe, batch, padding=padding, mirrored=[False] * count if hflip == "none" else None)
    torch.testing.assert_close(x, torch.from_numpy(images).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wanted, torch.from_numpy(answers).float())
    assert torch.equal(batch.pixels, before)


@pytest.mark.parametrize("flip", [False, True])
def test_what_the_recipe_leaves_open_suits_the_images(flip: bool) -> None:
    recipe, batch = replace(PLAIN, padding=None, hflip=None), drawn(8)
    x, _ = batcher(recipe, augment=Augment(padding=2, flip=flip))(batch)
    images, _ = slow(recipe, batch, padding=2, mirrored=None if flip else [False] * 8)
    torch.testing.assert_close(x, torch.from_numpy(images).float(), rtol=1e-4, atol=1e-4)


def test_a_recipe_has_the_last_word_over_the_images() -> None:
    batch = drawn(8)
    x, _ = batcher(PLAIN, augment=Augment(padding=2, flip=True))(batch)
    assert torch.equal(x, normalise(batch.pixels, MEAN, STD))


def test_every_place_of_the_run_draws_its_own() -> None:
    recipe = replace(PLAIN, padding=2, hflip="random", mixup=0.5)
    batch = drawn(8)
    made = [batcher(recipe)(replace(batch, epoch=e, step=s))[0] for e, s in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert torch.equal(made[0], made[3])
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    before = torch.get_rng_state()
    batcher(recipe)(batch)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from(["none", "random", "alternate"]), st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 0.5]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_shares_of_a_batch_are_the_whole(
    pairs: int, world: int, hflip: Any, mixup: float, cutmix: float, reflect: bool, seed: int
) -> None:
    recipe = Recipe(
        batch_size=2 * pairs * world, padding=2, reflect=reflect, hflip=hflip, mixup=mixup, cutmix=cutmix, reprob=0.5,
        smoothing=0.1,
    )  # fmt: skip
    everything = drawn(recipe.batch_size, seed=seed)
    alone = batcher(recipe)(everything)
    shares = [Share(rank, world) for rank in range(world)]
    parts = [batcher(recipe, share)(part_of(everything, share.of(recipe.batch_size))) for share in shares]
    for whole, pieces in zip(alone, zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))


def test_alternate_flips_mirror_every_image_every_other_epoch() -> None:
    """The batches come in another order every epoch, and with other neighbours."""
    source = generator(1)
    pixels = torch.randint(256, (60, 3, 2, 3), dtype=torch.uint8, generator=source)
    feed = MemoryFeed(Images(pixels=pixels, labels=torch.zeros(60, dtype=torch.long)), Augment(padding=0, flip=True))
    recipe = replace(PLAIN, batch_size=12, hflip="alternate")
    make, plain = batcher(recipe), normalise(pixels, MEAN, STD)
    seen: list[dict[int, bool]] = [{} for _ in range(4)]
    for batch, _ in zip(feed.training(recipe, Share(), seed=SEED, start=0), range(20), strict=False):
        assert batch.index is not None
        for place, image in zip(batch.index.tolist(), make(batch)[0], strict=True):
            mirrored = torch.equal(image, plain[place].flip(2))
            assert mirrored or torch.equal(image, plain[place])
            seen[batch.epoch][place] = mirrored
    assert all(len(epoch) == 60 for epoch in seen)
    assert seen[0] == seen[2]
    assert seen[1] == seen[3] == {place: not mirrored for place, mirrored in seen[0].items()}
    assert 18 < sum(seen[0].values()) < 42  # half of them, with a standard deviation of 4


def test_alternate_flips_need_an_order() -> None:
    with pytest.raises(UserError, match=r"hflip alternate needs a set with an order, .* write hflip random"):
        batcher(replace(PLAIN, hflip="alternate"))(replace(drawn(8), index=None))
    assert batcher(replace(PLAIN, hflip="random"))(replace(drawn(8), index=None))[0].shape == (8, 3, 6, 5)


@pytest.mark.parametrize(("labels", "odd"), [([0, 5, 4], "5"), ([-1, 2, 4], "-1")])
def test_a_label_without_a_class_is_refused(labels: list[int], odd: str) -> None:
    batch = replace(drawn(3), labels=torch.tensor(labels))
    with pytest.raises(UserError, match=f"^label {odd} does not fit 5 classes: labels are 0 to 4$"):
        batcher(replace(PLAIN, batch_size=3))(batch)


@pytest.mark.parametrize("padding", [5, 6])
def test_a_mirrored_border_wider_than_the_image_is_refused(padding: int) -> None:
    recipe = replace(PLAIN, padding=padding, reflect=True)
    with pytest.raises(UserError, match=f"a border of {padding} pixels cannot mirror images of 6×5"):
        batcher(recipe)(drawn(8))
    assert batcher(replace(recipe, padding=4))(drawn(8))[0].shape == (8, 3, 6, 5)


# --- RandAugment


def test_rand_augment_is_done_here_only_for_images_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def instead(spec: str) -> Any:
        def change(image: Tensor, seed: int) -> Tensor:
            asked.append((spec, seed))
            return 255 - image

        return change

    monkeypatch.setattr(module, "rand_augment", instead)
    recipe, batch = replace(PLAIN, aa="rand-m3-n1"), drawn(8)
    assert batch.index is not None
    x, _ = batcher(recipe, in_memory=False)(batch)
    assert asked == []
    assert torch.equal(x, normalise(batch.pixels, MEAN, STD))
    x, _ = batcher(recipe)(batch)
    assert torch.equal(x, normalise(255 - batch.pixels, MEAN, STD))
    assert asked == [("rand-m3-n1", seed_of(SEED, 4, batch.epoch, place)) for place in batch.index.tolist()]


def test_rand_augment_is_torchvisions_image_by_image() -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    recipe, batch = replace(PLAIN, aa="rand-m9-n2"), drawn(8, height=16, width=16)
    assert batch.index is not None
    change = transforms.RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=11)
    images: list[Tensor] = []
    for image, place in zip(batch.pixels, batch.index.tolist(), strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(seed_of(SEED, 4, batch.epoch, place))
            images.append(change(image))
    x, _ = batcher(recipe)(batch)
    assert torch.equal(x, normalise(torch.stack(images), MEAN, STD))
    assert not torch.equal(torch.stack(images), batch.pixels)


def test_small_images_first_then_whole_ones() -> None:
    """Half the side with a triangle over four pixels: 1, 3, 3 and 1 eighths, along both axes."""
    recipe = replace(PLAIN, low_res=0.5, epochs=10, low_res_until=0.2)
    early, late = drawn(8, height=12, width=8, epoch=1), drawn(8, height=12, width=8, epoch=2)
    (small, _), (whole, _) = batcher(recipe)(early), batcher(recipe)(late)
    assert small.shape == (8, 3, 6, 4)
    assert whole.shape == (8, 3, 12, 8)
    large = normalise(early.pixels, MEAN, STD).double()
    weights = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    wanted = torch.einsum("i,j,nchwij->nchw", weights, weights, large[:, :, 1:-1, 1:-1].unfold(2, 4, 2).unfold(3, 4, 2))
    torch.testing.assert_close(small[:, :, 1:-1, 1:-1].double(), wanted, rtol=1e-5, atol=1e-5)


def test_images_may_grow_back_in_two_steps() -> None:
    recipe = replace(PLAIN, low_res=0.25, epochs=5, low_res_until=0.8, low_res_grows=True)
    sizes = [tuple(batcher(recipe)(drawn(8, height=16, width=8, epoch=epoch))[0].shape[2:]) for epoch in range(5)]
    assert sizes == [(4, 2), (4, 2), (10, 5), (10, 5), (16, 8)]


def test_the_smallest_image_still_has_a_pixel() -> None:
    small, _ = batcher(replace(PLAIN, low_res=0.1, low_res_until=1))(drawn(8, height=4, width=6))
    assert small.shape == (8, 3, 1, 1)


# --- views that come again


@settings(max_examples=60)
@given(
    views=st.integers(1, 5), epoch=st.integers(0, 12), again=st.integers(0, 6),
    hflip=st.sampled_from(["none", "random", "alternate"]), off=st.sampled_from([None, 4.0]), grows=st.booleans(),
)  # fmt: skip
def test_equal_sights_promise_equal_images(
    views: int, epoch: int, again: int, hflip: Any, off: float | None, *, grows: bool
) -> None:
    recipe = replace(
        PLAIN, epochs=13, padding=1, hflip=hflip, reprob=0.5, mixup=0.4, cutmix=0.4, mixup_off_epoch=off, aa="rand-m9-n1",
        low_res=0.5, low_res_until=0.5, low_res_grows=grows, kd_views=views,
    )  # fmt: skip
    made = batcher(recipe)
    batches = [drawn(8, height=8, width=8, epoch=e) for e in (epoch, epoch + views * again)]
    if made.sight(batches[0]) == made.sight(batches[1]):
        for one, other in zip(*map(made, batches), strict=True):
            assert torch.equal(one, other)
    else:  # of the same view: so the size has changed, or the images are no longer mixed
        assert [low_res(recipe, e) for e in (batches[0].epoch, batches[1].epoch)] != [1.0, 1.0] or off is not None


def test_a_view_is_another_one_in_another_size_and_without_mixing() -> None:
    recipe = replace(PLAIN, epochs=12, low_res=0.5, low_res_until=0.5, mixup=0.4, mixup_off_epoch=9, kd_views=2)
    sights = [batcher(recipe).sight(drawn(8, epoch=epoch, step=1)) for epoch in range(12)]
    small, whole, plain = ([(view, 1, *rest) for view in (0, 1)] for rest in ((0.5, True), (1.0, True), (1.0, False)))
    assert sights == [*small * 3, *whole, whole[0], plain[1], *plain]


def test_without_views_every_epoch_is_seen_anew() -> None:
    made = batcher(PLAIN)
    assert len({made.sight(drawn(8, epoch=epoch, step=step)) for epoch in range(7) for step in range(3)}) == 21


def test_views_need_an_order() -> None:
    with pytest.raises(UserError, match=r"kd_views needs a set with an order, and shards have none"):
        batcher(replace(PLAIN, kd_views=2))(replace(drawn(8), index=None))
