# SPDX-License-Identifier: Apache-2.0
"""Draw the figures of the blocks for the documentation: docs/figures/*.svg.

    python tools/draw_blocks.py

Intrinsic maps are blue, ghosts orange with a dashed edge, everything else grey. Coordinates are in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "docs" / "figures"
BLUE, ORANGE, INK, MUTED, RULE = "#0072b2", "#e69f00", "#1d1f23", "#5c6370", "#b9bcc4"
FILLS = {"plain": ("#f3f4f6", "#9aa0ab", ""), "own": ("#dbeaf5", BLUE, ""), "ghost": ("#fdf1d6", ORANGE, "4 3")}
STEP = 7  # between the maps of a stack


class Drawing:
    """A white card on which boxes, stacks of maps and arrows are put."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(self, x: float, y: float, width: float, label: str, below: str = "", kind: str = "plain") -> None:
        """An operation, centred at (x, y)."""
        fill, edge, dash = FILLS[kind]
        height = 46 if below else 32
        self._rect(x - width / 2, y - height / 2, width, height, fill, edge, dash, radius=7)
        self.text(x, y + (-3 if below else 4.5), label, size=12, weight=600)
        if below:
            self.text(x, y + 14, below, size=10.5, color=MUTED)

    def maps(self, x: float, y: float, count: int, kind: str = "plain", side: float = 34) -> None:
        """A stack of feature maps, its middle at (x, y)."""
        fill, edge, dash = FILLS[kind]
        shift = STEP * (count - 1) / 2
        for number in range(count):
            at = number * STEP - shift
            self._rect(x - side / 2 + at, y - side / 2 + at, side, side, fill, edge, dash, radius=3)

    def sum(self, x: float, y: float, sign: str = "+") -> None:
        """A round node that adds or multiplies."""
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="12" fill="#fff" stroke="{INK}" stroke-width="1.5"/>')
        self.text(x, y + 5.5, sign, size=17)

    def arrow(self, *points: tuple[float, float], head: bool = True) -> None:
        """A line through the points."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        end = ' marker-end="url(#head)"' if head else ""
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{INK}" stroke-width="1.4"{end}/>')

    def text(self, x: float, y: float, words: str, *, size: float = 12, color: str = INK, weight: int = 400) -> None:
        """Centred at x, on the base line y."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" font-weight="{weight}">{escape(words)}</text>'
        )

    def frame(self, x: float, y: float, width: float, height: float, label: str) -> None:
        """A group with its name at the top."""
        self._rect(x, y, width, height, "none", RULE, "2 3", radius=10)
        self.text(x + width / 2, y + 18, label, size=12, color=MUTED, weight=600)

    def _rect(self, x: float, y: float, w: float, h: float, fill: str, edge: str, dash: str, *, radius: float) -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" fill="{fill}" stroke="{edge}" '
            f'stroke-width="1.4"{dashes}/>'
        )

    def svg(self) -> str:
        """The whole file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'role="img" aria-label="{escape(self.title)}" text-anchor="middle" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n"
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0.5 L7.5 4 L0 7.5 z" fill="{INK}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" rx="12" fill="#fff"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def ghost_bottleneck() -> Drawing:
    """The Ghost module, and the bottleneck of two of them."""
    d = Drawing(860, 400, "A Ghost module, and GhostNet's bottleneck of two of them")
    d.frame(16, 14, 828, 178, "Ghost module, s = 2")
    d.maps(80, 105, 4)
    d.text(80, 150, "c maps", color=MUTED)
    d.arrow((112, 105), (160, 105))
    d.box(235, 105, 146, "1×1 convolution", "norm, ReLU", "own")
    d.arrow((308, 105), (352, 105))
    d.maps(388, 105, 3, "own")
    d.text(388, 150, "n/2 intrinsic maps", color=BLUE)
    d.arrow((418, 105), (470, 105))
    d.box(545, 105, 146, "depthwise 3×3", "norm, ReLU", "ghost")
    d.arrow((618, 105), (662, 105))
    d.maps(692, 105, 3, "ghost")
    d.text(692, 150, "n/2 ghosts", color="#9a6a00")
    d.arrow((388, 74), (388, 52), (790, 52), (790, 68))
    d.arrow((722, 105), (752, 105))
    d.maps(783, 93, 3, "own", 28)
    d.maps(797, 114, 3, "ghost", 28)
    d.text(790, 166, "n maps", color=MUTED)
    d.frame(16, 206, 828, 182, "Ghost bottleneck")
    d.maps(64, 282, 3)
    d.arrow((92, 282), (120, 282))
    d.box(185, 282, 126, "Ghost module", "expands, ReLU", "own")
    d.arrow((249, 282), (274, 282))
    d.box(346, 282, 140, "depthwise k×k", "only at stride 2")
    d.arrow((417, 282), (442, 282))
    d.box(502, 282, 116, "squeeze-excite", "in some")
    d.arrow((561, 282), (586, 282))
    d.box(651, 282, 126, "Ghost module", "shrinks, no ReLU", "own")
    d.arrow((715, 282), (744, 282))
    d.sum(757, 282)
    d.arrow((770, 282), (792, 282))
    d.maps(815, 282, 3)
    d.arrow((64, 310), (64, 352), (200, 352))
    d.box(
        410, 352, 416, "the input itself", "where size or channels change: depthwise k×k, norm, 1×1 convolution, norm"
    )
    d.arrow((619, 352), (757, 352), (757, 295))
    return d


def dfc_attention() -> Drawing:
    """GhostNetV2's attention beside the first Ghost module of a bottleneck."""
    d = Drawing(860, 250, "GhostNetV2: attention beside a Ghost module")
    d.frame(16, 14, 828, 222, "the first Ghost module of a bottleneck, from the third bottleneck on")
    d.maps(70, 120, 4)
    d.arrow((102, 108), (130, 84), (352, 84))
    d.box(420, 84, 134, "Ghost module", "norm, ReLU", "own")
    d.arrow((488, 84), (754, 84), (754, 107))
    d.arrow((102, 132), (130, 178), (144, 178))
    d.box(196, 178, 102, "2×2 mean", "half the size")
    d.arrow((248, 178), (268, 178))
    d.box(318, 178, 98, "1×1 conv.", "norm", "own")
    d.arrow((368, 178), (388, 178))
    d.box(446, 178, 114, "depthwise 1×5", "along rows", "ghost")
    d.arrow((504, 178), (520, 178))
    d.box(578, 178, 114, "depthwise 5×1", "along columns", "ghost")
    d.arrow((636, 178), (656, 178))
    d.box(702, 178, 90, "sigmoid", "nearest ×2")
    d.arrow((748, 178), (754, 178), (754, 134))
    d.sum(754, 121, "×")
    d.arrow((767, 121), (788, 121))
    d.maps(815, 121, 4, side=28)
    return d


def branches() -> Drawing:
    """GhostNetV3's branches while it trains, and the convolution they become."""
    d = Drawing(860, 300, "GhostNetV3: branches that train and fold into one convolution")
    d.frame(16, 14, 560, 272, "while it trains")
    d.frame(592, 14, 252, 272, "deployed: the same function")
    own, cheap = (114, 160, 206), (68, 114, 160, 206, 252)
    labels = ("depthw. 3×3, norm",) * 3 + ("depthw. 1×1, norm", "norm alone")
    d.maps(46, 160, 3, side=26)
    d.arrow((68, 160), (86, 160), head=False)
    for y in own:
        d.arrow((86, 160), (86, y), (100, y))
        d.box(165, y, 130, "1×1 conv., norm", kind="own")
        d.arrow((230, y), (252, y), (252, 160), (257, 160))
    d.sum(270, 160)
    d.arrow((283, 160), (296, 160))
    d.box(322, 160, 50, "ReLU")
    d.arrow((347, 160), (362, 160), head=False)
    for y, label in zip(cheap, labels, strict=True):
        d.arrow((362, 160), (362, y), (376, y))
        d.box(448, y, 144, label, kind="ghost")
        d.arrow((520, y), (536, y), (536, 160), (541, 160))
    d.sum(554, 160)
    d.maps(628, 118, 3, side=26)
    d.arrow((650, 118), (666, 118))
    d.box(736, 118, 138, "1×1 conv., bias", "ReLU", "own")
    d.arrow((736, 142), (736, 166))
    d.box(736, 190, 138, "depthwise, bias", "ReLU", "ghost")
    d.arrow((736, 214), (736, 246))
    d.text(736, 264, "intrinsic maps and ghosts", color=MUTED)
    return d


def ghost_resnet() -> Drawing:
    """The blocks of VGG and ResNet with every convolution a Ghost module."""
    d = Drawing(860, 270, "Ghost-VGG, Ghost-ResNet: convolutions become Ghost modules")
    for x, width, title, rows in (
        (16, 190, "VGG", ["3×3"]), (222, 270, "basic block", ["3×3", "3×3"]),
        (508, 336, "bottleneck", ["1×1", "3×3", "1×1"]),
    ):  # fmt: skip
        d.frame(x, 14, width, 240, title)
        middle = x + width / 2 - (0 if title == "VGG" else 44)
        gap = 62 if len(rows) == 3 else 84
        top = 80 if len(rows) > 1 else 122
        d.arrow((middle, 42), (middle, top - 24))
        for number, kernel in enumerate(rows):
            y = top + number * gap
            last = number == len(rows) - 1
            relu = "norms, no ReLU" if last and title != "VGG" else "norms, ReLUs"
            d.box(middle, y, 150, f"Ghost module, {kernel}", relu, "own")
            d.arrow((middle, y + 24), (middle, y + gap - 24 if not last else y + (44 if title == "VGG" else 22)))
        if title != "VGG":
            y = top + (len(rows) - 1) * gap + 36
            d.sum(middle, y)
            side = middle + 128
            d.arrow((middle, 46), (side, 46), (side, y), (middle + 13, y))
            d.box(side, 130, 98, "shortcut", "x, or 1×1 Ghost")
    return d


def stage() -> Drawing:
    """The G-Ghost stage, as the code has it."""
    d = Drawing(860, 290, "A stage of G-GhostNet: thin blocks, and cheap maps from the first block")
    d.frame(16, 14, 828, 262, "a stage of n blocks, λ = 1/2, as published")
    d.arrow((30, 162), (50, 162))
    d.box(102, 162, 100, "block 1", "whole, stride 2")
    d.arrow((153, 152), (172, 152), (172, 88), (190, 88))
    d.text(100, 110, "1 − λ of its maps", size=11, color=BLUE)
    for number, name in enumerate(("block 2", "…", "block n−1")):
        x = 240 + 134 * number
        d.box(x, 88, 98, name, "thin", "own")
        d.arrow(
            (x + 50, 88),
            (x + 84, 88) if number < 2 else (x + 120, 88),
            *(((628, 88), (628, 146), (652, 146)) if number > 1 else ()),
        )
        d.arrow((x, 112), (x, 138))
    d.arrow((153, 162), (190, 162))
    d.box(374, 162, 366, "mix", "means of all these blocks' maps, two 1×1 convolutions")
    d.arrow((558, 162), (575, 162), (575, 223))
    d.arrow((153, 172), (172, 172), (172, 236), (196, 236))
    d.text(106, 222, "λ of its maps", size=11, color="#9a6a00")
    d.box(268, 236, 142, "1×1 convolution", "norm: the ghosts", "ghost")
    d.arrow((340, 236), (562, 236))
    d.sum(575, 236)
    d.arrow((588, 236), (602, 236))
    d.box(628, 236, 50, "ReLU")
    d.arrow((628, 219), (628, 176), (652, 176))
    d.maps(668, 152, 3, "own", 24)
    d.maps(676, 170, 3, "ghost", 24)
    d.arrow((698, 162), (716, 162))
    d.box(766, 162, 98, "block n", "whole")
    d.arrow((816, 162), (838, 162))
    return d


FIGURES: dict[str, Callable[[], Drawing]] = {
    "ghostnet": ghost_bottleneck, "ghostnetv2": dfc_attention, "ghostnetv3": branches, "ghost-resnet": ghost_resnet,
    "g-ghost": stage,
}  # fmt: skip


def main() -> None:
    """Write every figure."""
    OUT.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (OUT / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
