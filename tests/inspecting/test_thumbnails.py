# SPDX-License-Identifier: Apache-2.0
"""Small grey pictures of maps: which, how large, how bright."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

from ghostnets.inspecting.layers import Place
from ghostnets.inspecting.thumbnails import chosen, chosen_ghosts, grey, packed, thumbnails
from ghostnets.records import Matches


def test_each_map_goes_from_black_to_white() -> None:
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[-3.0, -3.0], [-3.0, -1.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert grey(maps).tolist() == [[[0, 64], [128, 255]], [[0, 0], [0, 255]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("size", "small"), [((64, 64), (32, 32)), ((64, 16), (32, 8)), ((7, 7), (7, 7)), ((96, 1), (32, 1))]
)
def test_large_maps_are_averaged_down(size: tuple[int, int], small: tuple[int, int]) -> None:
    maps = torch.rand(2, *size)
    assert grey(maps).shape == (2, *small)


def test_averaging_is_over_whole_blocks() -> None:
    maps = torch.arange(16.0).view(1, 4, 4)
    wanted = np.array([[2.5, 4.5], [10.5, 12.5]])
    wanted = np.round((wanted - 2.5) / 10 * 255).astype(np.uint8)
    assert (grey(maps, 2)[0] == wanted).all()


def test_what_is_no_number_is_black() -> None:
    maps = torch.tensor([[[float("nan"), 1.0], [2.0, float("inf")]]])
    assert grey(maps).tolist() == [[[0, 128], [255, 0]]]


def matches(source: list[int], nmse: list[float]) -> Matches:
    return Matches(source=tuple(source), mse=tuple(nmse), nmse=tuple(nmse), within=(0, 0, 0), dead=0)


def test_ghosts_are_kept_with_what_they_are_made_from() -> None:
    found = matches([4, 3, 5, 1, 0, 2], [0.5, 0.1, 0.6, 0.2, 0.9, 0.7])
    assert chosen(6, found, 6) == (0, 1, 2, 3, 4, 5)
    assert chosen(6, found, 2) == (1, 3)
    assert chosen(6, found, 4) == (0, 1, 3, 4)
    assert chosen(6, found, 3) == (0, 1, 3)  # the next pair does not fit whole, so any map fills the place
    assert chosen(6, None, 3) == (0, 1, 2)
    assert chosen(6, matches([-1] * 6, [0.0] * 6), 2) == (0, 1)


def test_the_thumbnails_are_of_the_very_maps() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    image = torch.randn(1, 3, 10, 10)
    found = thumbnails(model, image, {"a": (Place("1"), (0, 2, 5)), "b": (Place("2"), (3,)), "c": (Place("1"), (1,))})
    with torch.no_grad():
        first = model[:2](image)[0]
        second = model(image)[0]
    assert (found["a"] == grey(first[[0, 2, 5]])).all()
    assert (found["b"] == grey(second[[3]])).all()
    assert (found["c"] == grey(first[[1]])).all()
    assert found["a#"].tolist() == [0, 2, 5]


def test_of_a_ghost_module_the_first_maps_are_kept_with_all_their_ghosts() -> None:
    assert chosen_ghosts(6, 2, most=6) == (0, 1, 2, 3, 4, 5)
    assert chosen_ghosts(10, 2, most=4) == (0, 1, 5, 6)
    assert chosen_ghosts(12, 3, most=7) == (0, 1, 4, 5, 6, 7)  # ghosts 4 and 5 are of map 0
    assert chosen_ghosts(9, 1, most=4) == (0, 1, 2, 3)


def test_packed_arrays_come_back() -> None:
    arrays = {"layer:a.b": np.arange(6, dtype=np.uint8).reshape(1, 2, 3), "layer:a.b#": np.array([4], dtype=np.int32)}
    with np.load(io.BytesIO(packed(arrays))) as found:
        assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in arrays.items()}
