# SPDX-License-Identifier: Apache-2.0
"""Draw the papers' Figures 6 and 7 with points of our own: docs/figures/accuracy-macs.svg and accuracy-latency.svg.

    python tools/draw_landscape.py

Accuracies measured here are those of benchmarks/README.md, latencies those of benchmarks/results/, one thread of generated C.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ghostnets.report.landscape import Point, accuracy_against
from ghostnets.report.maps import to_svg

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "figures"
RESULTS = ROOT / "benchmarks" / "results"

TABLE_6 = "GhostNet paper, Table 6"

CIFAR = (  # benchmarks/README.md: ResNet-56 of an independent author, and what `ghostnets upgrade` made of it
    Point("ResNet-56", "as it came", 125.5, 93.39, ""),
    Point("Ghost-ResNet-56", "upgraded, planned", 65.1, 92.74, ""),
    Point("Ghost-ResNet-56", "upgraded, s=2 everywhere", 65.3, 92.83, ""),
    *(
        Point(family, label, macs, top1, TABLE_6)
        for family, label, macs, top1 in (
            ("ResNet-56", "", 125, 93.0), ("Ghost-ResNet-56", "from scratch", 63, 92.7), ("pruned ResNet-56", "", 63, 92.0),
            ("pruned ResNet-56", "CP, AMC", 63, 91.9), ("pruned ResNet-56", "ℓ1", 91, 92.5),
        )
    ),
)  # fmt: skip

IMAGENET = {  # top-1 as published: GhostNet paper, Table 7; GhostNetV2 paper
    "ghostnet_050": ("GhostNet", "0.5×", 66.2), "ghostnet_100": ("GhostNet", "1.0×", 73.9),
    "ghostnet_130": ("GhostNet", "1.3×", 75.7), "ghostnetv2_100": ("GhostNetV2", "1.0×", 75.3),
    "mobilenet_v2": ("MobileNetV2", "1.0×", 71.8), "mobilenetv3_large": ("MobileNetV3-L", "1.0×", 75.2),
}  # fmt: skip


def main() -> None:
    """Write both."""
    macs = accuracy_against("macs", CIFAR, "CIFAR-10: half the multiply-adds, weights kept")
    (OUT / "accuracy-macs.svg").write_bytes(to_svg(macs))
    title = "ImageNet top-1 as published, latency in generated C, one thread"
    (OUT / "accuracy-latency.svg").write_bytes(to_svg(accuracy_against("latency", list(_timed()), title)))


def _timed() -> Iterator[Point]:
    for name, (family, label, top1) in IMAGENET.items():
        rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
        (one,) = (row["median_ms"] for row in rows if row["target"] == "c" and row["threads"] == 1)
        yield Point(family, label, one, top1, "")


if __name__ == "__main__":
    main()
