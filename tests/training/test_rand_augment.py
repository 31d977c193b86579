# SPDX-License-Identifier: Apache-2.0
"""RandAugment in timm's words, against torchvision's own under the same seed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ghostnets.errors import MissingExtra, UserError
from ghostnets.training.rand_augment import rand_augment

transforms = pytest.importorskip("torchvision.transforms")


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(20, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
    ("spec", "n", "m"),
    [
        ("rand-m9-n2", 2, 9), ("rand-n2-m9", 2, 9), ("rand-m0-n1", 1, 0), ("rand-m10-n3", 3, 10), ("rand-m7", 2, 7),
        ("rand-n1", 1, 9), ("rand", 2, 9),
    ],
)  # fmt: skip
def test_the_words_are_so_many_changes_of_so_many_tenths(spec: str, n: int, m: int) -> None:
    theirs = transforms.RandAugment(num_ops=n, magnitude=m, num_magnitude_bins=11)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = np.asarray(theirs(picture()))
        assert (np.asarray(rand_augment(spec)(picture(), seed)) == expected).all()


def test_the_greatest_strength_is_the_greatest_of_torchvisions_own_scale() -> None:
    """Timm's 10 of 10 is torchvision's 30 of 30."""
    theirs = transforms.RandAugment(num_ops=1, magnitude=30, num_magnitude_bins=31)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = np.asarray(theirs(picture()))
        assert (np.asarray(rand_augment("rand-m10-n1")(picture(), seed)) == expected).all()


@pytest.mark.parametrize(
    "spec",
    [
        "", "rand-m11-n2", "rand-m-n2", "rand-m9-n2-", "rand-m9-m3", "rand-x3", "rand-m9.5", "rand-m-1", "rand m9",
        "rand-m9-mstd0.5-inc1", "augmix-m3", "original", "randm9", "Rand-m9",
    ],
)  # fmt: skip
def test_other_words_are_refused_with_those_that_are_understood(spec: str) -> None:
    with pytest.raises(
        UserError, match="is not understood: write rand-m9-n2, with a strength m of at most 10"
    ) as caught:
        rand_augment(spec)
    assert repr(spec) in str(caught.value)


@given(st.lists(st.sampled_from("rand m9 n2 m10 m11 n0 m n 9 x1 m² m٣ m-1 mstd0.5".split()), max_size=4).map("-".join))
def test_whatever_is_written_is_understood_or_refused(spec: str) -> None:
    try:
        changed = rand_augment(spec)
    except UserError:
        return
    assert spec.startswith("rand")
    assert changed(picture(), 0).size == (16, 20)


@given(st.integers(0, 2**63 - 1))
def test_a_seed_says_what_is_changed(seed: int) -> None:
    change = rand_augment("rand-m9-n2")
    first = np.asarray(change(picture(), seed))
    torch.manual_seed(5)
    assert (np.asarray(change(picture(), seed)) == first).all()
    assert (np.asarray(rand_augment("rand-m9-n2")(picture(), seed)) == first).all()


def test_other_seeds_change_something_else() -> None:
    change = rand_augment("rand-m9-n2")
    results = {np.asarray(change(picture(), seed)).tobytes() for seed in range(30)}
    assert len(results) > 20


def test_the_random_state_and_the_image_are_left_alone() -> None:
    image = picture()
    before, pixels = torch.get_rng_state(), np.array(image)
    for seed in range(10):
        rand_augment("rand-m9-n2")(image, seed)
    assert torch.equal(before, torch.get_rng_state())
    assert (np.asarray(image) == pixels).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_and_pictures_keep_their_kind_and_size(channels: int) -> None:
    change = rand_augment("rand-m10-n3")
    tensor = torch.randint(256, (channels, 20, 16), dtype=torch.uint8)
    before = tensor.clone()
    image = picture("RGB" if channels == 3 else "L")
    for seed in range(30):
        changed: Any = change(tensor, seed)
        assert changed.dtype == torch.uint8
        assert changed.shape == tensor.shape
        drawn: Any = change(image, seed)
        assert (drawn.mode, drawn.size) == (image.mode, image.size)
    assert torch.equal(tensor, before)


def test_no_strength_and_no_change_leave_the_image_as_it_is() -> None:
    for seed in range(10):
        assert (np.asarray(rand_augment("rand-n0")(picture(), seed)) == np.asarray(picture())).all()


def test_without_torchvision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(MissingExtra, match=r"RandAugment \(rand-m9-n2\) needs the extra 'vision'"):
        rand_augment("rand-m9-n2")
