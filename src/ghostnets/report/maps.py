# SPDX-License-Identifier: Apache-2.0
"""Pictures of feature maps, as the papers show them: pure functions of saved records and arrays.

Maps are drawn each from its own least to its own greatest value. What belongs together is framed in one colour of Okabe and
Ito's palette and in one kind of line, and numbered, so that it stays together in greyscale.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from numpy.typing import NDArray

from ghostnets.records import Inspection
from ghostnets.report.figures import BLUE, MUTED, ORANGE, STYLE

GREEN, SKY, PURPLE, VERMILLION = "#009e73", "#56b4e9", "#cc79a7", "#d55e00"

FRAMES: Sequence[tuple[str, Any]] = (
    (VERMILLION, "solid"), (GREEN, (0, (4, 2))), (BLUE, (0, (1, 1.2))), (ORANGE, (0, (5, 1.5, 1, 1.5))),
    (PURPLE, (0, (3, 1))), (SKY, (0, (6, 2))),
)  # fmt: skip
"""Colour and line of the frames, pair by pair."""

MOST = 64
"""Maps of one picture."""

GAP = 0.12
"""Between two maps, in maps."""

Maps = NDArray[np.uint8]
"""(n, h, w)"""


class Shown(NamedTuple):
    """Maps side by side, with the frame that is around all of them."""

    title: str
    maps: Maps
    colour: str
    line: Any


def figures(record: Inspection, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Figure]:
    """The pictures of an inspection, by the names of their files."""
    found: dict[str, Figure] = {}
    if record.pairs and {"shown", "image"} <= arrays.keys():
        found["look-alikes"] = look_alikes(record, arrays)
    if record.ghost is not None and {"ghost:computed", "ghost:made", "image"} <= arrays.keys():
        plain = arrays.get("ghost:plain")
        beside = None if plain is None else Shown("the plain layer", plain, BLUE, (0, (1, 1.2)))
        found["ghost-module"] = ghost_module(
            arrays["image"], arrays["ghost:computed"], arrays["ghost:made"], record.ghost, beside
        )
    return found


def look_alikes(record: Inspection, arrays: Mapping[str, NDArray[Any]]) -> Figure:
    """The maps of the shown layer for one image, the found pairs boxed in pairs (arXiv:1911.11907, Figure 1)."""
    maps, image = arrays["shown"], arrays["image"]
    kept = _kept(record, len(maps))
    columns = min(len(kept), 11 if len(kept) > 40 else 8)
    rows = math.ceil(len(kept) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.0 * columns + 2.6, 0.98 * rows + 0.75))
        figure.patch.set_facecolor("white")
        wide = columns + 2.6
        beside = figure.add_axes((0.1 / wide, 0.06, 2.1 / wide, 0.8))
        _picture(beside, image)
        beside.set_title("the image", color=MUTED)
        axes = figure.add_axes((2.45 / wide, 0.02, (columns + 0.1) / wide, 0.86))
        axes.set_title(f"{len(kept)} of the {len(maps)} maps of {record.shown}, {record.model}" if len(kept) < len(maps)
                       else f"the {len(maps)} maps of {record.shown}, {record.model}")  # fmt: skip
        place = _grid(axes, maps[kept], columns)
        for number, pair in enumerate(record.pairs):
            colour, line = FRAMES[number % len(FRAMES)]
            for side, role in ((pair.source, "source"), (pair.target, "ghost")):
                _frame(axes, place[kept.index(side)], colour, line, f"{number + 1}{'' if role == 'source' else '′'}")
            _arrow(axes, place[kept.index(pair.source)], place[kept.index(pair.target)], colour)
    return figure


def ghost_module(
    image: NDArray[np.uint8], primary: Maps, ghosts: Maps, name: str, plain: Shown | None = None
) -> Figure:
    """The input, a Ghost module's primary maps and the ghosts made from them, and the same layer of the plain network
    beside them (Figures 4 and 5).
    """
    parts = [
        Shown(f"{name}: computed", primary, VERMILLION, "solid"),
        Shown("ghosts of them", ghosts, GREEN, (0, (4, 2))),
    ]
    return panels(image, [*parts, plain] if plain is not None else parts)


def panels(image: NDArray[np.uint8], parts: Sequence[Shown]) -> Figure:
    """An image and some groups of its maps, each in a frame."""
    sides = [max(2, math.ceil(math.sqrt(min(len(part.maps), MOST)))) for part in parts]
    heights = [math.ceil(min(len(part.maps), MOST) / side) for part, side in zip(parts, sides, strict=True)]
    tall = max(*heights, 3)
    wide = 2.6 + sum(side + 0.6 for side in sides)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.72 * wide, 0.72 * tall + 0.55))
        figure.patch.set_facecolor("white")
        beside = figure.add_axes((0.15 / wide, 0.05, 2.2 / wide, 0.82))
        _picture(beside, image)
        beside.set_title("input", color=MUTED)
        left = 2.8
        for part, side in zip(parts, sides, strict=True):
            axes = figure.add_axes((left / wide, 0.03, side / wide, 0.84))
            axes.set_title(f"{part.title} ({len(part.maps)} maps)")
            place = _grid(axes, part.maps[:MOST], side)
            right = max(x for x, _ in place) + 1
            bottom = max(y for _, y in place) + 1
            axes.add_patch(
                Rectangle((-0.1, -0.1), right + 0.2, bottom + 0.2, fill=False, edgecolor=part.colour, linewidth=2.2,
                          linestyle=part.line, clip_on=False)
            )  # fmt: skip
            left += side + 0.6
    return figure


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as a PNG, on white; the same figure gives the same bytes."""
    target = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(target, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return target.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The same as SVG, the maps in it as pixels."""
    target = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path"}):
        figure.savefig(
            target, format="svg", bbox_inches="tight", pad_inches=0.08, metadata={"Date": None, "Creator": None}
        )
    return target.getvalue()


def _kept(record: Inspection, count: int) -> list[int]:
    """As many as fit, those of the pairs among them."""
    paired = [side for pair in record.pairs for side in (pair.source, pair.target)]
    first = [k for k in range(count) if k not in paired]
    return sorted([*paired, *first[: max(0, MOST - len(paired))]])


def _picture(axes: Axes, image: NDArray[np.uint8]) -> None:
    grey = image.shape[2] == 1
    axes.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("N")


def _grid(axes: Axes, maps: Maps, columns: int) -> list[tuple[float, float]]:
    """Draw the maps row by row; where the corner of each is, in maps."""
    ratio = maps.shape[1] / maps.shape[2]
    place = [((k % columns) * (1 + GAP), (k // columns) * (ratio + GAP)) for k in range(len(maps))]
    for (x, y), values in zip(place, maps, strict=True):
        axes.imshow(values, cmap="gray", vmin=0, vmax=255, extent=(x, x + 1, y + ratio, y), interpolation="nearest")
    axes.set_xlim(-0.15, columns * (1 + GAP) + 0.05)
    axes.set_ylim(place[-1][1] + ratio + 0.15, -0.15)
    axes.set_aspect("equal")
    axes.set_anchor("NW")
    axes.set_axis_off()
    return place


def _frame(axes: Axes, at: tuple[float, float], colour: str, line: Any, text: str) -> None:
    x, y = at
    for back, width in (("white", 4.6), (colour, 2.6)):
        axes.add_patch(
            Rectangle((x - 0.03, y - 0.03), 1.06, 1.06, fill=False, edgecolor=back, linewidth=width,
                      linestyle=line if back == colour else "solid", zorder=3)
        )  # fmt: skip
    axes.text(
        x + 0.06, y + 0.08, text, color="white", fontsize=7.5, fontweight="bold", va="top", zorder=4,
        bbox={"boxstyle": "round,pad=0.18", "facecolor": colour, "edgecolor": "white", "linewidth": 0.6},
    )  # fmt: skip


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    middle = [(x + 0.5, y + 0.5) for x, y in (start, end)]
    for back, width in (("white", 3.4), (colour, 1.6)):
        axes.add_patch(
            FancyArrowPatch(*middle, connectionstyle="arc3,rad=0.18", arrowstyle="-|>", mutation_scale=11, color=back,
                            linewidth=width, shrinkA=16, shrinkB=16, zorder=3.5)
        )  # fmt: skip
