# SPDX-License-Identifier: Apache-2.0
"""Accuracy against cost, as the papers' Figures 6 and 7 have it: points that others report, and points measured here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ghostnets.report.figures import BLUE, INK, MUTED, ORANGE, STYLE, VERMILLION

Axis = Literal["macs", "latency"]

AXES: dict[Axis, str] = {"macs": "multiply-adds of one image, millions", "latency": "latency of one image, ms"}


class Point(NamedTuple):
    """A network by what it costs and how often it is right."""

    family: str
    label: str
    cost: float
    """In the axis's unit."""
    top1: float
    """Percent."""
    source: str
    """Where the figures are from; empty for those measured here."""


TABLE_7 = "GhostNet paper, Table 7"
FIGURE_7 = "GhostNet paper, Figure 7 (read off): Huawei P30 Pro, TFLite, 1 thread"

QUOTED_MACS: tuple[Point, ...] = tuple(
    Point(family, label, macs, top1, TABLE_7)
    for family, label, macs, top1 in (  # arXiv:1911.11907, Table 7
        ("GhostNet", "0.5×", 42, 66.2), ("GhostNet", "1.0×", 141, 73.9), ("GhostNet", "1.3×", 226, 75.7),
        ("MobileNetV3-L", "0.75×", 155, 73.3), ("MobileNetV3-L", "1.0×", 219, 75.2), ("MobileNetV3-S", "0.75×", 44, 65.4),
        ("MobileNetV2", "0.35×", 59, 60.3), ("MobileNetV2", "0.6×", 141, 66.7), ("MobileNetV2", "1.0×", 300, 71.8),
        ("ShuffleNetV2", "0.5×", 41, 61.1), ("ShuffleNetV2", "1.0×", 146, 69.4), ("ShuffleNetV2", "1.5×", 299, 72.6),
        ("MobileNetV1", "0.5×", 150, 63.3), ("ProxylessNAS", "", 320, 74.6), ("FBNet", "B", 295, 74.1),
        ("MnasNet", "A1", 312, 75.2),
    )
)  # fmt: skip

QUOTED_LATENCY: tuple[Point, ...] = tuple(
    Point(family, "", latency, top1, FIGURE_7)
    for family, latency, top1 in (  # digitised from the authors' picture: facts/papers.md, G.2
        ("GhostNet", 31.1, 73.9), ("GhostNet", 34.0, 74.3), ("GhostNet", 40.8, 75.2), ("GhostNet", 46.9, 75.7),
        ("GhostNet", 54.0, 76.1), ("GhostNet", 67.4, 76.9), ("MobileNetV3-L", 32.3, 73.3), ("MobileNetV3-L", 38.6, 74.3),
        ("MobileNetV3-L", 46.4, 75.2), ("MobileNetV3-L", 66.3, 76.6), ("FBNet", 46.1, 73.0), ("FBNet", 53.8, 74.1),
        ("FBNet", 65.4, 74.9), ("ProxylessNAS", 52.5, 74.6), ("MnasNet", 52.2, 74.1), ("MnasNet", 76.2, 75.2),
        ("MobileNetV2", 81.6, 74.4),
    )
)  # fmt: skip

QUOTED: dict[Axis, tuple[Point, ...]] = {"macs": QUOTED_MACS, "latency": QUOTED_LATENCY}

LOOKS: dict[str, tuple[str, str]] = {
    "GhostNet": (VERMILLION, "o"), "MobileNetV3-L": (BLUE, "s"), "MobileNetV3-S": (BLUE, "D"), "MobileNetV2": ("#009e73", "^"),
    "MobileNetV1": ("#009e73", "v"), "ShuffleNetV2": (ORANGE, "P"), "ProxylessNAS": ("#cc79a7", "X"), "FBNet": ("#56b4e9", "h"),
    "MnasNet": ("#8c6d1f", "*"), "GhostNetV2": (VERMILLION, "d"), "ResNet-56": (BLUE, "<"),
    "Ghost-ResNet-56": (VERMILLION, ">"), "pruned ResNet-56": ("#009e73", "8"),
}  # fmt: skip
"""Colour (Okabe and Ito's) and marker of each family: one of the two is enough."""

OTHER = (INK, "p")


def accuracy_against(axis: Axis, points: Sequence[Point], title: str = "") -> Figure:
    """Top-1 over cost, a line for each family that has several points. What was measured here is filled and named; what is
    quoted is hollow, and its sources stand below.
    """
    families: dict[tuple[str, bool], list[Point]] = {}
    for point in sorted(points, key=lambda one: one.cost):
        families.setdefault((point.family, not point.source), []).append(point)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 4.6), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.set_title(title or f"top-1 against {AXES[axis].partition(' of')[0]}")
        handles: list[Line2D] = []
        for (family, measured), row in families.items():
            colour, marker = LOOKS.get(family, OTHER)
            looks: dict[str, Any] = {
                "color": colour, "marker": marker, "markersize": 7.5 if measured else 6, "linewidth": 1.8 if measured else 1.1,
                "markerfacecolor": colour if measured else "white", "linestyle": "-" if measured else (0, (4, 2)),
                "label": f"{family}{', measured here' if measured else ''}", "zorder": 4 if measured else 3,
            }  # fmt: skip
            handles += axes.plot([p.cost for p in row], [p.top1 for p in row], **looks)
            for point in row:
                if point.label:
                    offset = (5, -9) if not measured else (6, 5)
                    axes.annotate(point.label, (point.cost, point.top1), offset, textcoords="offset points", fontsize=7,
                                  color=INK if measured else MUTED)  # fmt: skip
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel("top-1, %")
        axes.margins(x=0.06, y=0.08)
        axes.legend(handles=handles, loc="lower right", ncols=2)
        sources = sorted({point.source for point in points if point.source})
        if sources:
            figure.supxlabel("hollow: quoted from " + "; ".join(sources), fontsize=7, color=MUTED, x=0.01, ha="left")
    return figure
