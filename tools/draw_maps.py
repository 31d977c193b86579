# SPDX-License-Identifier: Apache-2.0
"""Draw the pictures of maps for the documentation: docs/figures/look-alikes.png and ghost-stage.svg.

    GHOSTNETS_DATA=… python tools/draw_maps.py

The maps are SqueezeNet 1.1's for a photograph that comes with scikit-learn (china.jpg by danielbuechele, CC BY 2.0); the pairs
are found on that and on photographs of Imagenette, which are not ours to show.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from ghostnets.inspection import images_for, inspect, opened
from ghostnets.report.maps import look_alikes, to_png, to_svg
from ghostnets.report.stage_figure import ghost_stage

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "figures"
COLOURS = 64
"""Of the PNG: its maps are grey, and its photograph is small."""

sys.path.insert(0, str(ROOT / "benchmarks"))


def main() -> None:
    """Write both."""
    from imagenet_networks import DATA, NETWORKS, squeezenet

    size, mean, std = NETWORKS[squeezenet]
    known = opened(f"{ROOT / 'benchmarks' / 'imagenet_networks.py'}:squeezenet", mean=mean, std=std, size=size)
    with tempfile.TemporaryDirectory() as folder:
        photograph = Path(folder) / "china.png"
        Image.fromarray(np.asarray(load_sample_image("china.jpg"))).save(photograph)
        first, _ = images_for(known, None, [photograph], data_dir=None, count=1, seed=0)
        others, _ = images_for(known, str(DATA / "imagenette"), (), data_dir=None, count=255, seed=0)
        out = Path(folder) / "out"
        record = inspect(known.model, torch.cat([first, others]), out, mean=mean, std=std, model_name="SqueezeNet 1.1")
        with np.load(out / "maps.npz") as arrays:
            figure = look_alikes(record, dict(arrays))
    small = Path(folder).with_suffix(".png")
    small.write_bytes(to_png(figure, dpi=75))
    Image.open(small).convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS).save(
        OUT / "look-alikes.png", optimize=True
    )
    small.unlink()
    (OUT / "ghost-stage.svg").write_bytes(to_svg(ghost_stage(5, 128, 0.5)))


if __name__ == "__main__":
    main()
