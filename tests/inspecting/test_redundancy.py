# SPDX-License-Identifier: Apache-2.0
"""Planted ghosts are found, and every figure by a second road."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.inspecting import redundancy as room
from ghostnets.inspecting.layers import layers_of, stages_of
from ghostnets.inspecting.redundancy import matches_of, redundancy
from ghostnets.models.catalog import create_model
from ghostnets.records import LayerMaps
from ghostnets.upgrading.calibration import Chunks

NOISE = 0.1


class Planted(nn.Module):
    """A layer of 8 maps: four that have nothing to do with each other, and a 3×3 filtering of each, shuffled, with noise
    that the images bring along as further channels.
    """

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.filters = torch.randn(4, 1, 3, 3, generator=source)
        self.order = [5, 0, 7, 2, 4, 6, 1, 3]
        self.conv = nn.Conv2d(8, 8, 1, bias=False)  # so that there is a convolution: it changes nothing
        nn.init.dirac_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        ghosts = F.conv2d(x[:, :4], self.filters, padding=1, groups=4) + NOISE * x[:, 4:]
        return self.conv(torch.cat([x[:, :4], ghosts], 1)[:, self.order]).mean((2, 3))

    def pairs(self) -> dict[int, int]:
        """Map -> the one it is a ghost of, or that is its ghost."""
        return {self.order.index(k): self.order.index((k + 4) % 8) for k in range(8)}


def noise(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def chunks_of(images: Tensor, size: int = 16) -> Chunks:
    return lambda: iter(images.split(size))


def looked(model: nn.Module, images: Tensor, kernel: int = 3) -> tuple[LayerMaps, ...]:
    layers = layers_of(model, images[:1])
    return redundancy(model, chunks_of(images), layers, images=len(images), kernel=kernel)[0]


def test_planted_ghosts_are_found_and_their_noise_is_the_error() -> None:
    model = Planted()
    (layer,) = looked(model, noise(400, 8, 12))
    assert layer.matches is not None
    pairs = model.pairs()
    assert layer.matches.source == tuple(pairs[k] for k in range(8))
    for place, k in enumerate(model.order):
        if k >= 4:  # a ghost: what the filter cannot know is the noise
            assert layer.matches.mse[place] == pytest.approx(NOISE**2, rel=0.05)
            power = float(model.filters[k - 4].square().sum()) + NOISE**2  # of white noise, inside the border
            assert layer.matches.nmse[place] == pytest.approx(NOISE**2 / power, rel=0.15)
    assert layer.matches.dead == 0


def test_an_exact_ghost_has_no_error_and_counts_as_one() -> None:
    images = noise(100, 8, 12)
    images[:, 4:] = 0
    model = Planted()
    (layer,) = looked(model, images)
    assert layer.matches is not None
    ghosts = [place for place, k in enumerate(model.order) if k >= 4]
    assert max(layer.matches.nmse[place] for place in ghosts) < 1e-6
    assert layer.matches.within[0] >= 0.5


@settings(max_examples=20, deadline=None)
@given(
    channels=st.integers(2, 5), height=st.integers(3, 7), width=st.integers(3, 7), kernel=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_errors_are_least_squares_on_unfolded_patches(
    channels: int, height: int, width: int, kernel: int, seed: int
) -> None:
    """All positions are drawn where the maps are small, so the sums are over the very same rows."""
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(40, channels, height, width, generator=source) + 2
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        maps = conv(images)
        (layer,) = looked(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images, kernel=kernel)
    assert layer.matches is not None
    windows = F.unfold(maps, kernel, padding=kernel // 2).view(40, channels, kernel**2, -1)
    for target in range(channels):
        wanted = maps[:, target].flatten().double().numpy()
        errors = {}
        for other in range(channels):
            if other != target:
                rows = windows[:, other].permute(0, 2, 1).reshape(-1, kernel**2).double().numpy()
                design = np.concatenate([rows, np.ones((len(rows), 1))], 1)
                found = np.linalg.lstsq(design, wanted, rcond=None)[0]
                errors[other] = float(np.square(design @ found - wanted).mean())
        best = min(errors, key=errors.__getitem__)
        assert layer.matches.mse[target] == pytest.approx(errors[best], rel=2e-3, abs=1e-6)
        assert layer.matches.nmse[target] == pytest.approx(errors[best] / wanted.var(), rel=2e-3, abs=1e-6)
        assert errors[layer.matches.source[target]] == pytest.approx(errors[best], rel=1e-3)


def test_the_effective_rank_is_that_of_the_covariance() -> None:
    conv = nn.Conv2d(3, 6, 1)
    images = noise(64, 3, 8)
    (layer,) = looked(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)
    with torch.no_grad():
        rows = conv(images).permute(1, 0, 2, 3).flatten(1).double().numpy()
    values = np.linalg.eigvalsh(np.cov(rows, bias=True)).clip(1e-30)
    share = values / values.sum()
    assert layer.rank == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert layer.rank < 3.01  # three colours in


class TwoBlocks(nn.Module):
    """A stage whose last block gives out shifted copies of the first block's maps."""

    class Block(nn.Module):
        def __init__(self, shift: int) -> None:
            super().__init__()
            self.a, self.b, self.shift = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False), shift
            for conv in (self.a, self.b):
                nn.init.dirac_(conv.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.roll(self.shift, 1)))

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(self.Block(0), self.Block(1), self.Block(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(x).mean((2, 3))


def test_the_last_block_s_maps_follow_from_the_first_s() -> None:
    model, images = TwoBlocks(), noise(60, 4, 10)
    stages = stages_of(model, images[:1])
    _, (stage,) = redundancy(model, chunks_of(images), [], stages, images=60)
    assert stage.blocks == ("stage.0", "stage.1", "stage.2")
    assert stage.matches is not None
    assert stage.matches.source == (1, 2, 3, 0)  # rolled by 3 in all
    assert max(stage.matches.nmse) < 1e-6


def test_in_one_pass_or_in_many_the_figures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = create_model("resnet20").eval(), noise(12, 3, 32)
    once = looked(model, images)
    monkeypatch.setattr(room, "MEMORY", 1)
    assert looked(model, images) == once


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that one chunk adds are as many however many chunks come."""
    sizes: list[int] = []
    add = room.PairMoments.add_

    def counted(self: room.PairMoments, seen: Tensor, wanted: Tensor) -> None:
        sizes.append(len(wanted))
        add(self, seen, wanted)

    monkeypatch.setattr(room.PairMoments, "add_", counted)
    conv = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    few, many = looked(conv, noise(256, 3, 16)), len(sizes)
    looked(conv, noise(1024, 3, 16))
    assert max(sizes) == 16 * room.ROWS
    assert len(sizes) == many + 4 * many
    assert few[0].matches is not None


def test_a_module_s_own_matches() -> None:
    model = TwoBlocks()
    images = noise(60, 4, 10)
    found = matches_of(model, chunks_of(images), "stage.2", images[:1], images=60)
    assert found is not None
    assert min(found.nmse) > 0.9  # its maps have nothing to do with each other


# --- maps of which little can be said


def test_constant_maps_are_counted_apart() -> None:
    conv = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        conv.weight[1] = 0
        conv.weight[3] = 0
    (layer,) = looked(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), noise(40, 3, 8))
    assert layer.matches is not None
    assert layer.matches.dead == 2
    assert [layer.matches.source[k] for k in (1, 3)] == [-1, -1]
    assert "2 of its maps are constant" in layer.note


def test_a_layer_that_is_all_constant() -> None:
    conv = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(conv.weight)
    (layer,) = looked(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten()), noise(40, 3, 8))
    assert layer.matches is not None
    assert layer.matches.dead == 4
    assert layer.matches.within == (0.0, 0.0, 0.0)


def test_maps_that_are_no_numbers_are_said_to_be() -> None:
    conv = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        conv.weight[1] = float("nan")
    after = nn.Conv2d(4, 2, 1)
    layers = looked(nn.Sequential(conv, nn.ReLU(), after, nn.AdaptiveAvgPool2d(1), nn.Flatten()), noise(40, 3, 8))
    assert [layer.matches for layer in layers] == [None, None]
    assert layers[0].note == "some of its maps are NaN or infinite"


def test_maps_of_one_pixel_are_compared_as_they_are() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 5, 1), nn.Flatten())
    (layer,) = looked(model, noise(200, 3, 8))
    assert layer.matches is not None
    assert "single values" in layer.note


def test_a_layer_of_one_map_has_nothing_to_be_compared_with() -> None:
    (layer,) = looked(nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), noise(40, 3, 8))
    assert layer.matches is not None
    assert layer.matches.source == (-1,)
    assert layer.note == "it has only one map"


def test_too_few_positions_are_said_to_be() -> None:
    (layer,) = looked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), noise(1, 3, 7))
    assert layer.matches is None
    assert layer.note == "25 positions are too few to tell: look at more images, or larger ones"


@pytest.mark.parametrize("kernel", [0, 2, -1])
def test_an_even_filter_is_refused(kernel: int) -> None:
    with pytest.raises(UserError, match=f"kernel {kernel} of the cheap filters"):
        looked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), noise(4, 3, 8), kernel=kernel)


def test_no_image_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(UserError, match="no image"):
        redundancy(model, lambda: iter(()), layers_of(model, noise(1, 3, 8)), images=0)
