# SPDX-License-Identifier: Apache-2.0
"""Charts as pure functions of records, and their form as SVG that takes the colours of the page around it.

The colours of the marks are from Okabe and Ito's palette ("Color Universal Design", 2008), told apart by lightness or form
as well, so that the charts survive colour blindness and a grey printer. Every chart uses Figure objects of its own and leaves
matplotlib's global state alone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ghostnets.records import Outcome, UpgradeRecord
from ghostnets.report.tables import Epoch, change, count, duration, percent, points

BLUE, ORANGE, VERMILLION = "#0072b2", "#e69f00", "#d55e00"
INK, MUTED, RULE, FAINT = "#1d1f23", "#5c6370", "#dedbd4", "#edebe6"

PAGE_COLOURS = {
    BLUE: f"var(--blue, {BLUE})",
    ORANGE: f"var(--orange, {ORANGE})",
    VERMILLION: f"var(--vermillion, {VERMILLION})",
    INK: "currentColor",
    MUTED: f"var(--muted, {MUTED})",
    RULE: f"var(--rule, {RULE})",
    FAINT: f"var(--faint, {FAINT})",
}
"""What each colour of a chart becomes on the page, which has one set of values a theme."""

STYLE: Any = {  # matplotlib types the keys as literals, and not in every release
    "svg.fonttype": "none",  # text stays text: it can be selected, searched, read aloud, and takes the page's font
    "svg.hashsalt": "ghostnets",  # else the ids, and so the file, differ from run to run
    "text.parse_math": False,  # a layer may have a $ in its name
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titlepad": 12,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "font.size": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}

SVG = "{http://www.w3.org/2000/svg}"
XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
LABELS = 64  # more names than this do not fit beside each other; then every second, third, … is written
NAME_LENGTH = 24


def accuracy_by_step(record: UpgradeRecord) -> Figure:
    """Top-1 after each step as points on a line, the original as a dashed line above."""
    original, steps = record.before.top1, record.steps
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(5.6, 3.1, "Top-1 accuracy after each step, %")
        x = range(len(steps))
        axes.axhline(original, color=INK, linestyle=(0, (5, 3)), linewidth=1.1, gid="original")
        axes.plot(x, [s.top1 for s in steps], color=BLUE, marker="o", markersize=7, linewidth=2, gid="steps")
        low, high = min([original, *(s.top1 for s in steps)]), max([original, *(s.top1 for s in steps)])
        room = max(high - low, 1.0)
        axes.set_ylim(low - 0.42 * room, high + 0.2 * room)
        axes.set_xlim(-0.45, len(steps) - 0.4)
        axes.set_xticks(list(x), [f"{s.name}\n{duration(s.seconds)}" for s in steps], fontsize=8.5)
        axes.annotate(
            f"original {percent(original)}",
            (0, original),
            (-0.4, 4),
            textcoords=("data", "offset points"),
            fontsize=8.5,
        )
        for i, step in enumerate(steps):
            _label(axes, i, step.top1, percent(step.top1), points(step.top1 - original))
    return figure


def macs_by_site(sites: Sequence[Outcome]) -> Figure:
    """A bar a site in network order: solid what it costs now, a dashed ghost of what it cost before.

    Each bar links to the table row ``#site-N`` and has the gid ``site-N-bar``.
    """
    ghosts = [d.decision == "ghost" for d in sites]
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(10, 3.3, "Cost of each site, millions of multiply-adds")
        x = range(len(sites))
        before = axes.bar(x, [d.macs_before / 1e6 for d in sites], width=0.72, facecolor=FAINT, edgecolor=MUTED)
        after = axes.bar(
            x, [d.macs_after / 1e6 for d in sites], width=0.72, color=[BLUE if g else ORANGE for g in ghosts]
        )
        for i, (ghost, bar) in enumerate(zip(before, after, strict=True), start=1):
            ghost.set(linestyle=(0, (2, 1.5)), linewidth=0.6, url=f"#site-{i}", gid=f"site-{i}-before")
            bar.set(url=f"#site-{i}", gid=f"site-{i}-bar")
        step = -(-len(sites) // LABELS)
        shown = range(0, len(sites), max(step, 1))
        axes.set_xticks(list(shown), [_short(sites[i].name) for i in shown], rotation=90, fontsize=6.5)
        axes.tick_params(axis="x", length=0, pad=2)
        axes.set_xlim(-0.7, len(sites) - 0.3)
        axes.set_ylim(0, 1.06 * max(1e-9, *(max(d.macs_before, d.macs_after) / 1e6 for d in sites)))
        handles = {"before": before[:1], "after, Ghost module": after[_first(ghosts)]}
        handles["after, kept as it was"] = after[_first([not g for g in ghosts])]
        drawn = {name: bars[0] for name, bars in handles.items() if bars}
        axes.legend(
            drawn.values(),
            drawn.keys(),
            ncols=3,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            borderaxespad=0.2,
            handlelength=1.1,
        )
    return figure


def site_tooltips(sites: Sequence[Outcome]) -> dict[str, str]:
    """For each bar of ``macs_by_site``, what a reader learns on pointing at it."""
    said: dict[str, str] = {}
    for i, d in enumerate(sites, start=1):
        what = f"ratio {d.ratio}, kernel {d.kernel}" if d.decision == "ghost" else "kept"
        macs = f"{count(d.macs_before)} → {count(d.macs_after)} MACs ({change(d.macs_before, d.macs_after)})"
        said |= dict.fromkeys((f"site-{i}-before", f"site-{i}-bar"), f"{d.name}: {what}\n{macs}")
    return said


def training_curve(epochs: Sequence[Epoch], step: str) -> Figure:
    """Loss over epochs and, where it was noted, the accuracy on the held-out images beside it."""
    panels = [("loss", [(e.epoch, e.loss) for e in epochs if e.loss is not None], VERMILLION, "s")]
    held_out = [(e.epoch, e.held_out_top1) for e in epochs if e.held_out_top1 is not None]
    panels.append(("top-1 on held-out images, %", held_out, BLUE, "o"))
    panels = [panel for panel in panels if panel[1]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.7), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
        for axis, (name, line, colour, marker) in zip(axes, panels, strict=False):
            axis.set_title(f"{step}: {name}")
            axis.patch.set_alpha(0)
            axis.plot(*zip(*line, strict=True), color=colour, marker=marker if len(line) <= 40 else "", markersize=4)
            axis.set_xlabel("epoch")
            axis.margins(x=0.03, y=0.15)
    return figure


def to_svg(figure: Figure, prefix: str, label: str, tooltips: Mapping[str, str] | None = None) -> str:
    """The figure as an SVG element to put into a page.

    Every id starts with ``prefix``, so that several figures can share a page; ``label`` is what a screen reader says;
    ``tooltips`` maps the gid of an artist to the text shown on pointing at it. The same figure gives the same text.
    """
    root = ElementTree.fromstring(_draw(figure))  # noqa: S314 - matplotlib wrote it
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag == f"{SVG}style" or not c.tag.startswith(SVG)]:
            parent.remove(child)
        for child in [c for c in parent if c.tag == f"{SVG}metadata"]:
            parent.remove(child)
    ids = {node.attrib["id"] for node in root.iter() if "id" in node.attrib}
    for node in root.iter():
        _adopt(node, prefix, ids)
    for gid, text in (tooltips or {}).items():
        for node in root.iterfind(f".//g[@id='{prefix}-{gid}']"):
            title = ElementTree.Element("title")
            title.text = _printable(text)
            node.insert(0, title)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _draw(figure: Figure) -> str:
    target = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The browser draws the text in its own fonts: a letter missing from matplotlib's is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return target.getvalue().decode("utf-8")


def _adopt(node: ElementTree.Element, prefix: str, ids: set[str]) -> None:
    node.tag = node.tag.removeprefix(SVG)
    node.tail = (node.tail or "").strip()
    if node.tag not in {"text", "tspan", "title"}:
        node.text = (node.text or "").strip()
    if "id" in node.attrib:
        node.attrib["id"] = f"{prefix}-{node.attrib['id']}"
    if XLINK_HREF in node.attrib:
        target = node.attrib.pop(XLINK_HREF).removeprefix("#")
        node.attrib["href"] = f"#{prefix}-{target}" if target in ids else f"#{target}"
    if node.tag == "a":
        node.attrib = {"href": node.attrib["href"], "tabindex": "-1"}  # the table rows are the keyboard's way
    if "clip-path" in node.attrib:
        node.attrib["clip-path"] = node.attrib["clip-path"].replace("url(#", f"url(#{prefix}-")
    if "style" in node.attrib:
        style = re.sub(r"'[^;]*sans-serif", "var(--sans, sans-serif)", node.attrib["style"])
        node.attrib["style"] = re.sub(r"#[0-9a-f]{6}", lambda m: PAGE_COLOURS.get(m[0], m[0]), style)


def _canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.set_title(title)
    return figure, axes


def _label(axes: Axes, x: float, y: float, value: str, delta: str) -> None:
    for text, below, size, weight, colour in ((value, 9, 9.5, "bold", INK), (delta, 21, 8, "normal", MUTED)):
        axes.annotate(
            text,
            (x, y),
            (0, -below),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=size,
            fontweight=weight,
            color=colour,
        )


def _first(flags: Sequence[bool]) -> slice:
    at = flags.index(True) if True in flags else len(flags)
    return slice(at, at + 1)


def _short(name: str) -> str:
    half = NAME_LENGTH // 2
    return _printable(name if len(name) <= NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}")


def _printable(text: str) -> str:
    # XML has no way to write most control characters, not even escaped.
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
