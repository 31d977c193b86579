# SPDX-License-Identifier: Apache-2.0
"""Calibration images: as many as asked for, the same in every pass, and refused where there are none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training.data import Augment, Dataset, Images
from ghostnets.upgrading import calibration as module
from ghostnets.upgrading.calibration import as_chunks, calibration, first_image


def dataset(count: int, size: tuple[int, int] = (6, 5)) -> Dataset:
    images = Images(pixels=torch.randint(1, 256, (count, 3, *size), dtype=torch.uint8), labels=None)
    return Dataset(
        name="noise", train=images, test=images, classes=("a",), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
        augment=Augment(padding=0, flip=False),
    )  # fmt: skip


def test_every_image_is_drawn_once_normalised_and_the_same_in_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_PIXELS", 4 * 30)
    data = dataset(10)
    chunks = calibration(data, data.train, 99, seed=1)
    state = torch.random.get_rng_state()
    first, second = list(chunks()), list(chunks())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(chunk) for chunk in first] == [4, 4, 2]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    mean, std = torch.tensor(data.mean).view(3, 1, 1), torch.tensor(data.std).view(3, 1, 1)
    back = ((torch.cat(first) * std + mean) * 255).round().to(torch.uint8)
    assert sorted(back.flatten(1).tolist()) == sorted(data.train.pixels.flatten(1).tolist())
    assert len(torch.cat(list(calibration(data, data.train, 3, seed=1)()))) == 3
    assert not torch.equal(first_image(calibration(data, data.train, 99, seed=2)), first[0][:1])


def test_images_are_augmented_as_in_training() -> None:
    data = dataset(8)
    shifted = replace(data, augment=Augment(padding=2, flip=True))
    plain, moved = (next(iter(calibration(d, d.train, 8, seed=0)())) for d in (data, shifted))
    assert plain.shape == moved.shape
    assert not torch.equal(plain, moved)


@pytest.mark.parametrize("size", [(1, 1), (400, 400)])
def test_a_tensor_is_cut_into_chunks_of_bounded_size(size: tuple[int, int]) -> None:
    images = torch.randn(3, 1, *size)
    chunks = as_chunks(images)
    assert torch.equal(torch.cat(list(chunks())), images)
    assert torch.equal(torch.cat(list(chunks())), images)
    assert all(len(chunk) == 1 or chunk[0, 0].numel() * len(chunk) <= module.CHUNK_PIXELS for chunk in chunks())


@pytest.mark.parametrize(
    "images", [torch.empty(0, 3, 4, 4), torch.randn(3, 4, 4), torch.zeros(2, 3, 4, 4).to(torch.uint8)]
)
def test_what_is_no_batch_of_images_is_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"calibration images must be floats \(N, C, H, W\) with N > 0, not \("):
        as_chunks(images)


def test_no_image_is_named() -> None:
    data = dataset(4)
    for chunks in (calibration(data, data.train, 0, seed=0), list[Tensor]):
        with pytest.raises(UserError, match="there is no calibration image"):
            first_image(chunks)
