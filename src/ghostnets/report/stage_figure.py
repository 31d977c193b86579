# SPDX-License-Identifier: Apache-2.0
"""The G-Ghost stage as a picture (arXiv:2201.03297, section 3.2): what the blocks compute, and what is made cheaply."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ghostnets.errors import UserError
from ghostnets.report.figures import BLUE, INK, MUTED, STYLE, VERMILLION

GREEN = "#009e73"
HEIGHT = 2.0
"""Of a block of full width."""


def ghost_stage(blocks: int, channels: int, ratio: float) -> Figure:
    """A stage of so many ``blocks`` and ``channels`` with a share λ = ``ratio`` of its maps made from the first block's: a
    block's height is its width in channels.

    Raises UserError where there are fewer than two blocks, or λ leaves one side without channels.
    """
    cheap = round(ratio * channels)
    if blocks < 2:
        raise UserError(f"a stage of {blocks} block has nothing to be made cheaply: 2 at least")
    if not 0 < cheap < channels:
        raise UserError(f"λ {ratio:g} leaves one side of {channels} channels empty: between 0 and 1")
    raw = channels - cheap
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.0 + 1.55 * blocks, 3.1), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_title(f"a G-Ghost stage: {blocks} blocks, {channels} channels, λ = {ratio:g}")
        top = HEIGHT
        _box(axes, 0, 0, HEIGHT, f"block 1\n{channels}", INK)
        tall = HEIGHT * raw / channels
        for k in range(1, blocks):
            _box(axes, 1.6 * k, top - tall, tall, f"block {k + 1}\n{raw}", BLUE)
            _arrow(axes, (1.6 * (k - 1) + 1, top - tall / 2), (1.6 * k, top - tall / 2), BLUE)
        last = 1.6 * blocks
        low = HEIGHT * cheap / channels
        _box(axes, last - 0.05, 0, low, f"cheap\n1×1\n{cheap}" if low > 0.7 else f"1×1 {cheap}", VERMILLION)
        _arrow(axes, (1, low / 2), (last - 0.05, low / 2), VERMILLION)
        for k in range(1, blocks):
            _arrow(axes, (1.6 * k + 0.5, top - tall), (1.6 * k + 0.5, low / 2 + 0.08), GREEN, dashed=True)
        axes.text(1.6 * (blocks - 1) + 0.6, low / 2 - 0.1, "mix: pooled maps of all blocks, added", color=GREEN, fontsize=7,
                  ha="right", va="top")  # fmt: skip
        _box(axes, last + 1.55, 0, HEIGHT, f"output\n{channels}", INK)
        _arrow(axes, (1.6 * (blocks - 1) + 1, top - tall / 2), (last + 1.55, top - tall / 2), BLUE)
        _arrow(axes, (last + 0.95, low / 2), (last + 1.55, low / 2), VERMILLION)
        axes.text(0.5, -0.12, "heights: channels", color=MUTED, fontsize=7, ha="center", va="top")
        axes.set_xlim(-0.1, last + 2.7)
        axes.set_ylim(-0.45, HEIGHT + 0.1)
    return figure


def _box(axes: Axes, x: float, y: float, height: float, text: str, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x + 0.06, y + 0.06), 0.88, max(height - 0.12, 0.05), boxstyle="round,pad=0.06,rounding_size=0.08",
                       facecolor="white", edgecolor=colour, linewidth=1.6)
    )  # fmt: skip
    axes.text(x + 0.5, y + height / 2, text, ha="center", va="center", fontsize=7.5, color=colour)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, *, dashed: bool = False
) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.3, shrinkA=1, shrinkB=1,
                        linestyle=(0, (3, 2)) if dashed else "-")
    )  # fmt: skip
