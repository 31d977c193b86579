# SPDX-License-Identifier: Apache-2.0
"""The G-Ghost stage (Han et al., IJCV 2022, arXiv:2201.03297): cheap maps across the blocks of a stage, for GPUs.

The first block is whole. The others are thin; the maps they no longer make come from the first block's output by one
cheap convolution, to which a summary of all thin blocks is added ("mix").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ghostnets.errors import UserError


class BlockFactory(Protocol):
    """Builds one block of a stage, its shortcut included."""

    def __call__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Module: ...


@dataclass(frozen=True)
class StageForm:
    """How the parts of a stage are joined: the paper's figure and the published code differ (facts K.16)."""

    sliced: bool
    """Thin blocks and the cheap convolution read each its own share of the first block's maps, or both read all."""
    mixes_first: bool
    """The summary includes the first block's maps."""
    deep_mix: bool
    """Two convolutions with norms and a ReLU make the summary, or one convolution with a bias."""
    whole_end: bool
    """A whole block follows the join."""


CODE = StageForm(sliced=True, mixes_first=True, deep_mix=True, whole_end=True)
FIGURE = StageForm(sliced=False, mixes_first=False, deep_mix=False, whole_end=False)
FORMS: Mapping[str, StageForm] = {"code": CODE, "figure": FIGURE}


@dataclass(frozen=True, kw_only=True)
class Ghosts:
    """What is free in the stages of a G-GhostNet. Raises UserError where there is no such ``form``."""

    split: float = 0.5
    cheap_size: int = 1
    mix: bool = True
    form: str = "code"
    """A name of ``FORMS``."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(f"form {self.form!r} of a G-Ghost stage is not known: choose {' or '.join(FORMS)}")


class GhostStage(nn.Module):
    """``depth`` blocks of which only the first, and where ``form`` has one the last, are whole.

    ``block`` builds a whole block, ``thin_block`` a thin one (by default the same); ``split`` is the share λ of maps
    that are made cheaply, rounded so that the thin width is a multiple of ``multiple``. Shapes: (N, in, H, W) to
    (N, out, H/stride, W/stride). Parameter names are those of the published code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        *,
        block: BlockFactory,
        thin_block: BlockFactory | None = None,
        stride: int = 1,
        split: float = 0.5,
        multiple: int = 1,
        cheap_size: int = 1,
        mix: bool = True,
        form: StageForm = CODE,
    ) -> None:
        super().__init__()
        thin_block = thin_block or block
        count = depth - 1 - form.whole_end
        self.raw = int(out_channels * (1 - split) / multiple) * multiple
        cheap = out_channels - self.raw
        if count < 1:
            raise UserError(f"depth {depth} of a G-Ghost stage leaves no thin block: at least {2 + form.whole_end}")
        if not 0 < split < 1 or not self.raw or not cheap:
            raise UserError(f"split {split} of {out_channels} channels leaves {self.raw} thin and {cheap} cheap ones")
        if cheap_size < 1 or cheap_size % 2 == 0:
            raise UserError(f"cheap kernel {cheap_size} of a G-Ghost stage must be odd and positive")
        self.form = form
        self.base = block(in_channels, out_channels, stride=stride)
        entering = self.raw if form.sliced else out_channels
        self.layers = nn.Sequential(
            *(thin_block(entering if number == 0 else self.raw, self.raw) for number in range(count))
        )
        reading = cheap if form.sliced else out_channels
        self.cheap = nn.Sequential(
            nn.Conv2d(reading, cheap, cheap_size, padding=cheap_size // 2, bias=False), nn.BatchNorm2d(cheap)
        )
        summarised = self.raw * count + (out_channels if form.mixes_first else 0)
        self.merge = summary(summarised, cheap, deep=form.deep_mix) if mix else None
        self.cheap_relu = nn.ReLU(inplace=True)
        self.end = block(out_channels, out_channels) if form.whole_end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        first = self.base(x)
        thin = first[:, : self.raw] if self.form.sliced else first
        means = [first.mean((2, 3), keepdim=True)] if self.form.mixes_first else []
        for layer in self.layers:
            thin = layer(thin)
            means.append(thin.mean((2, 3), keepdim=True))
        cheap = self.cheap(first[:, self.raw :] if self.form.sliced else first)
        if self.merge is not None:
            cheap = cheap + self.merge(torch.cat(means, 1))  # pooled before they are joined: nothing large is copied
        return self.end(torch.cat([thin, self.cheap_relu(cheap)], 1))


def stage_of(
    in_channels: int,
    out_channels: int,
    depth: int,
    *,
    block: BlockFactory,
    thin_block: BlockFactory | None = None,
    stride: int,
    multiple: int = 1,
    ghosts: Ghosts | None,
) -> nn.Module:
    """``depth`` blocks: a G-Ghost stage where ``ghosts`` are wanted and it has room for a thin block, else whole ones."""
    if ghosts is not None and depth > 1 + FORMS[ghosts.form].whole_end:
        return GhostStage(
            in_channels, out_channels, depth, block=block, thin_block=thin_block, stride=stride, split=ghosts.split,
            multiple=multiple, cheap_size=ghosts.cheap_size, mix=ghosts.mix, form=FORMS[ghosts.form],
        )  # fmt: skip
    later = (block(out_channels, out_channels) for _ in range(depth - 1))
    return nn.Sequential(block(in_channels, out_channels, stride=stride), *later)


def summary(in_channels: int, out_channels: int, *, deep: bool) -> nn.Sequential:
    """From pooled maps (N, in, 1, 1) what is added to every pixel of the cheap ones, (N, out, 1, 1)."""
    pool = nn.AdaptiveAvgPool2d(1)  # of one pixel nothing; it keeps the published names of the others
    if not deep:
        return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1))
    return nn.Sequential(
        pool,
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )
