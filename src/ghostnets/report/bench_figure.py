# SPDX-License-Identifier: Apache-2.0
"""The medians of a race as bars with their quartiles."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from ghostnets.records import BenchRow
from ghostnets.report.figures import BLUE, FAINT, INK, MUTED, ORANGE, STYLE

BAR = 0.34
"""Inches a contestant."""


def medians(rows: Sequence[BenchRow], *, first: str, control: str, title: str) -> Figure:
    """A bar for each of the ``rows`` that were timed, from the top in their order: the ``first`` strong, its ``control``
    pale, the others in a second colour; the line from its lower to its upper quartile.
    """
    timed = [row for row in rows if row.median_ms is not None]
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(10, 1.1 + BAR * max(len(timed), 1)), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.set_title(title)
        furthest = 0.0
        for place, row in enumerate(timed):
            assert row.median_ms is not None
            assert row.q1_ms is not None
            assert row.q3_ms is not None
            colour = {first: BLUE, control: FAINT}.get(row.target, ORANGE)
            hollow = bool(row.failure)  # a wrong answer's time is none
            axes.barh(
                place, row.median_ms, height=0.62, facecolor="none" if hollow else colour, edgecolor=MUTED if hollow or row.target == control else colour,
                linestyle="--" if hollow else "-", linewidth=0.8, gid=f"bar-{place}",
            )  # fmt: skip
            axes.plot([row.q1_ms, row.q3_ms], [place, place], color=INK, linewidth=1.6, gid=f"quartiles-{place}")
            said = f"{row.median_ms:.3g} ms{', wrong' if hollow else ''}"
            axes.annotate(said, (max(row.q3_ms, row.median_ms), place), (5, 0), textcoords="offset points", va="center")
            furthest = max(furthest, row.q3_ms, row.median_ms)
        axes.set_yticks(range(len(timed)), [row.target for row in timed])
        axes.set_ylim(max(len(timed), 1) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * (furthest or 1.0))
        axes.set_xlabel("ms")
    return figure
