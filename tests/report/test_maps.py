# SPDX-License-Identifier: Apache-2.0
"""Pictures of maps, looked at pixel by pixel: what was kept is what is seen, and the frames are around the right maps."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from ghostnets.errors import UserError
from ghostnets.records import PairError
from ghostnets.report import landscape, maps
from ghostnets.report.landscape import QUOTED, Point, accuracy_against
from ghostnets.report.stage_figure import ghost_stage
from made_up import INSPECTION, inspection_arrays

DPI = 120


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as it is drawn, without trimming, so that places in it can be computed."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=DPI)
    return np.array(Image.open(target).convert("RGB"))


def corner(figure: Figure, axes: Axes, x: float, y: float) -> tuple[int, int]:
    """Row and column of a point of the axes."""
    figure.set_dpi(DPI)
    column, row = axes.transData.transform((x, y))
    return round(figure.get_figheight() * DPI - row), round(column)


def part(figure: Figure, axes: Axes, extent: Any) -> NDArray[np.uint8]:
    """What is drawn where one map is."""
    left, right, bottom, top = extent
    (row0, column0), (row1, column1) = corner(figure, axes, left, top), corner(figure, axes, right, bottom)
    return pixels(figure)[row0:row1, column0:column1]


def pair(source: int, target: int) -> PairError:
    return PairError(source=source, target=target, kernels=(1,), mse=(0.1,), nmse=(0.1,))


def test_each_map_is_drawn_where_it_belongs() -> None:
    arrays = inspection_arrays()
    figure = maps.look_alikes(replace(INSPECTION, pairs=()), arrays)
    _, axes = figure.axes
    images = axes.get_images()
    assert len(images) == 4
    for image, values in zip(images, arrays["shown"], strict=True):
        seen = part(figure, axes, image.get_extent()).mean(2)
        rows, columns = (
            (np.arange(count) + 0.5) / count * length for count, length in zip(values.shape, seen.shape, strict=True)
        )
        middles = seen[rows.astype(int)][:, columns.astype(int)]
        assert np.abs(middles - values).max() <= 2


def test_the_frames_of_a_pair_have_one_colour_and_are_around_its_maps() -> None:
    arrays = inspection_arrays() | {"shown": np.zeros((9, 8, 8), np.uint8)}
    figure = maps.look_alikes(replace(INSPECTION, pairs=(pair(7, 2), pair(0, 4))), arrays)
    _, axes = figure.axes
    extents = [image.get_extent() for image in axes.get_images()]
    picture = pixels(figure).astype(float)
    framed: dict[str, list[int]] = {}
    for colour in (maps.FRAMES[0][0], maps.FRAMES[1][0]):
        like = np.abs(picture - 255 * np.array(to_rgb(colour))).sum(2) < 40
        for k, (left, right, bottom, top) in enumerate(extents):
            row0, column0 = corner(figure, axes, left - 0.03, top - 0.03)
            row1, column1 = corner(figure, axes, right + 0.03, bottom + 0.03)
            edge = like[row0 - 3 : row0 + 3, column0:column1].any(0).mean()  # dashes leave gaps
            below = like[row1 - 3 : row1 + 3, column0:column1].any(0).mean()
            if min(edge, below) > 0.4:
                framed.setdefault(colour, []).append(k)
    assert framed == {maps.FRAMES[0][0]: [2, 7], maps.FRAMES[1][0]: [0, 4]}
    assert [text.get_text() for text in axes.texts] == ["1", "1′", "2", "2′"]


def test_frames_differ_in_line_and_in_lightness() -> None:
    assert len({str(line) for _, line in maps.FRAMES}) == len(maps.FRAMES)
    lightness = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour, _ in maps.FRAMES[:3]]
    assert len({round(value, 1) for value in lightness}) >= 2


def test_of_many_maps_the_pairs_are_among_those_shown() -> None:
    arrays = inspection_arrays() | {"shown": np.zeros((200, 4, 4), np.uint8)}
    figure = maps.look_alikes(replace(INSPECTION, pairs=(pair(199, 150), pair(3, 100))), arrays)
    _, axes = figure.axes
    assert len(axes.get_images()) == maps.MOST
    assert axes.get_title(loc="left") == "64 of the 200 maps of one, net"
    assert len([patch for patch in axes.patches if isinstance(patch, Rectangle)]) == 8  # each frame on a white one


def test_a_ghost_module_s_halves_are_framed_apart() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    halves = np.full((8, 4, 4), 200, np.uint8), np.full((8, 4, 4), 90, np.uint8)
    plain = maps.Shown("plain", np.full((16, 4, 4), 30, np.uint8), "#0072b2", "solid")
    figure = maps.ghost_module(image, *halves, "layer1", plain)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["input", "layer1: computed (8 maps)", "ghosts of them (8 maps)", "plain (16 maps)"]
    for axes, shade in zip(figure.axes[1:], (200, 90, 30), strict=True):
        assert np.abs(part(figure, axes, axes.get_images()[0].get_extent()).mean() - shade) < 6


@pytest.mark.parametrize("draw", [maps.to_png, maps.to_svg])
def test_the_same_record_gives_the_same_bytes(draw: Any) -> None:
    first, second = (draw(maps.look_alikes(INSPECTION, inspection_arrays())) for _ in range(2))
    assert first == second


def test_an_svg_and_a_png_show_the_same_size() -> None:
    figure = maps.look_alikes(INSPECTION, inspection_arrays())
    width, height = Image.open(io.BytesIO(maps.to_png(figure, dpi=72))).size
    text = maps.to_svg(figure).decode()
    assert (
        f'width="{width}' in text.replace(".", " ") or abs(float(text.split('width="')[1].split("pt")[0]) - width) < 2
    )
    assert abs(float(text.split('height="')[1].split("pt")[0]) - height) < 2


# --- accuracy against cost


@pytest.mark.parametrize("axis", ["macs", "latency"])
def test_every_point_is_drawn_at_its_figures(axis: landscape.Axis) -> None:
    here = [Point("GhostNet", "ours", 100.0, 74.5, "")]
    figure = accuracy_against(axis, [*QUOTED[axis], *here])
    (axes,) = figure.axes
    drawn = {(x, y) for line in axes.lines for x, y in np.asarray(line.get_xydata()).tolist()}
    assert drawn == {(point.cost, point.top1) for point in [*QUOTED[axis], *here]}
    measured = [line for line in axes.lines if "measured here" in str(line.get_label())]
    assert len(measured) == 1
    assert measured[0].get_markerfacecolor() != "white"
    assert all(line.get_markerfacecolor() == "white" for line in axes.lines if line is not measured[0])
    assert axes.get_xlabel() == landscape.AXES[axis]
    assert "quoted from GhostNet paper" in str(figure.get_supxlabel())


def test_families_differ_in_marker() -> None:
    assert len({marker for _, marker in landscape.LOOKS.values()}) == len(landscape.LOOKS)


def test_the_papers_table_is_quoted_as_it_is() -> None:
    """Rows of facts/papers.md, G.1 and G.2, typed by hand once more."""
    assert Point("GhostNet", "1.0×", 141, 73.9, landscape.TABLE_7) in QUOTED["macs"]
    assert Point("MobileNetV3-L", "0.75×", 155, 73.3, landscape.TABLE_7) in QUOTED["macs"]
    assert Point("GhostNet", "", 67.4, 76.9, landscape.FIGURE_7) in QUOTED["latency"]


# --- the stage of G-Ghost


@pytest.mark.parametrize(("blocks", "channels", "ratio"), [(2, 10, 0.1), (5, 128, 0.5), (7, 408, 0.75)])
def test_a_stage_has_its_blocks_at_their_widths(blocks: int, channels: int, ratio: float) -> None:
    (axes,) = ghost_stage(blocks, channels, ratio).axes
    words = [text.get_text() for text in axes.texts]
    raw = channels - round(ratio * channels)
    assert words[0] == f"block 1\n{channels}"
    assert [word for word in words if word.startswith("block ")][1:] == [
        f"block {k}\n{raw}" for k in range(2, blocks + 1)
    ]
    assert sum(str(channels - raw) in word and "1×1" in word for word in words) == 1
    assert f"λ = {ratio:g}" in axes.get_title(loc="left")


@pytest.mark.parametrize(
    ("blocks", "ratio", "message"), [(1, 0.5, "2 at least"), (3, 0.0, "λ 0 leaves"), (3, 1.0, "λ 1 leaves")]
)
def test_a_stage_that_is_none_is_refused(blocks: int, ratio: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ghost_stage(blocks, 16, ratio)
