# SPDX-License-Identifier: Apache-2.0
"""Crops against slices of bordered images, one by one; batches against the promise that they can be repeated."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ghostnets.errors import UserError
from ghostnets.training.augment import batches, blend, random_crop_flip
from ghostnets.training.data import Images
from ghostnets.training.draw import generator, whole


def numbered(count: int) -> Images:
    return Images(pixels=torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), labels=torch.arange(count))


def views(image: torch.Tensor, padding: int, *, flip: bool) -> list[torch.Tensor]:
    """All crops of one image, by Pillow's border and plain slices."""
    height, width = image.shape[1:]
    bordered = torch.stack(
        [
            torch.tensor(list(ImageOps.expand(Image.fromarray(channel.numpy()), padding, fill=0).tobytes()))
            for channel in image
        ]
    ).view(-1, height + 2 * padding, width + 2 * padding)
    crops = [bordered[:, y : y + height, x : x + width] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    return crops + [crop.flip(2) for crop in crops] * flip


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0),
)
def test_every_result_is_one_of_the_crops(
    count: int, channels: int, height: int, width: int, padding: int, flip: bool, seed: int
) -> None:
    pixels = torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator(seed))
    before = pixels.clone()
    result = random_crop_flip(pixels, padding=padding, flip=flip, draw=whole(generator(seed, 1), len(pixels)))
    assert torch.equal(pixels, before)
    assert result.shape == pixels.shape
    assert result.dtype == torch.uint8
    for image, cropped in zip(pixels, result, strict=True):
        assert any(torch.equal(cropped, view.to(torch.uint8)) for view in views(image, padding, flip=flip))


def test_all_crops_come_about_equally_often() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 3, 3)
    expected = views(image, 1, flip=True)
    result = random_crop_flip(image.expand(3600, 1, 3, 3), padding=1, flip=True, draw=whole(generator(0), 3600))
    counts = torch.tensor([(result == view).flatten(1).all(1).sum() for view in expected])
    assert counts.sum() == 3600
    assert counts.min() > 150  # of 200 expected, with a standard deviation of 14
    assert counts.max() < 250


def test_without_padding_and_flip_nothing_changes() -> None:
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(random_crop_flip(pixels, padding=0, flip=False, draw=whole(generator(0), len(pixels))), pixels)


def test_crops_repeat_with_their_generator_and_leave_the_random_state_alone() -> None:
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    before = torch.get_rng_state()
    first, again, other = (
        random_crop_flip(pixels, padding=2, flip=True, draw=whole(generator(*place), len(pixels)))
        for place in ((1, 2), (1, 2), (2, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_negative_padding_is_refused() -> None:
    with pytest.raises(UserError, match="padding -1"):
        random_crop_flip(
            torch.zeros(1, 1, 2, 2, dtype=torch.uint8), padding=-1, flip=False, draw=whole(generator(0), 1)
        )


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 5), st.integers(0, 5))
def test_a_pass_shows_every_image_once(count: int, batch_size: int, seed: int, epoch: int) -> None:
    drawn = list(batches(numbered(count), batch_size=batch_size, seed=seed, epoch=epoch))
    assert sorted(label for _, labels in drawn for label in labels.tolist()) == list(range(count))
    assert all(pixels.flatten().tolist() == labels.tolist() for pixels, labels in drawn)
    assert [len(labels) for _, labels in drawn[:-1]] == [batch_size] * (len(drawn) - 1)


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([labels for _, labels in batches(numbered(40), batch_size=7, seed=seed, epoch=epoch)]).tolist()

    first = order(3, 5)
    torch.manual_seed(99)
    assert order(3, 5) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5])
def test_a_pass_goes_on_where_it_stopped(start: int) -> None:
    whole = list(batches(numbered(30), batch_size=7, seed=1, epoch=2))
    rest = list(batches(numbered(30), batch_size=7, seed=1, epoch=2, start=start))
    assert len(rest) == len(whole) - start
    assert all(torch.equal(a[1], b[1]) for a, b in zip(islice(whole, start, None), rest, strict=True))


def test_an_unshuffled_pass_keeps_the_order_and_may_drop_the_last() -> None:
    drawn = [labels.tolist() for _, labels in batches(numbered(7), batch_size=3, shuffle=False, drop_last=True)]
    assert drawn == [[0, 1, 2], [3, 4, 5]]


def test_what_cannot_be_drawn_is_refused_before_the_first_batch() -> None:
    with pytest.raises(UserError, match="batch size 0"):
        batches(numbered(3), batch_size=0)
    with pytest.raises(UserError, match="3 images do not fill one batch of 4"):
        batches(numbered(3), batch_size=4, drop_last=True)
    with pytest.raises(UserError, match="no labels"):
        batches(Images(pixels=numbered(3).pixels, labels=None), batch_size=1)


@given(st.integers(1, 9), st.floats(0, 1), st.integers(0))
def test_a_share_of_the_images_is_mixed_with_others(count: int, share: float, seed: int) -> None:
    """Every image shows another bit: how much of which image is in a blend can be read off."""
    images = torch.eye(count).view(count, count, 1, 1).expand(count, count, 2, 3)
    result = blend(images, share, generator=generator(seed))
    parts = result[:, :, 0, 0]
    torch.testing.assert_close(result, parts[:, :, None, None].expand_as(result))
    torch.testing.assert_close(parts.sum(1), torch.ones(count))
    assert bool((parts.diagonal() >= 0.5).all())
    assert int((parts > 0).sum(1).max()) <= 2
    mixed = round(share * count)
    assert torch.equal(result[mixed:], images[mixed:])


def test_half_of_two_blended_images_on_average_a_quarter_of_the_other() -> None:
    images = torch.stack([torch.zeros(1, 1, 1), torch.ones(1, 1, 1)]).repeat(500, 1, 1, 1)
    result = blend(images, 0.5, generator=generator(3))
    assert torch.equal(result[500:], images[500:])
    changed = (result - images)[:500].abs()[(result != images)[:500]]
    assert 200 < len(changed) < 300  # half of the partners are of the other kind
    assert 0.22 < float(changed.mean()) < 0.28
    assert float(changed.max()) < 0.5
