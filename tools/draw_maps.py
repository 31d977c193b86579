# SPDX-License-Identifier: Apache-2.0
"""Draw the pictures of maps for the documentation: docs/figures/look-alikes.png, ghost-module.png and ghost-stage.svg.

    GHOSTNETS_DATA=… python tools/draw_maps.py

The look-alikes are SqueezeNet 1.1's for a photograph that comes with scikit-learn (china.jpg by danielbuechele, CC BY 2.0); the
pairs are found on that and on photographs of Imagenette, which are not ours to show. The Ghost module is one that an upgrade of
the network for scikit-learn's digits has made, without any training, beside the layer it was made from.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

from ghostnets.inspection import images_for, inspect, opened
from ghostnets.models.catalog import create_model
from ghostnets.pipeline import upgrade
from ghostnets.records import Budget, Inspection, from_json, read_json
from ghostnets.report.maps import figures, look_alikes, to_png, to_svg
from ghostnets.report.stage_figure import ghost_stage
from ghostnets.training.data import load_dataset

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "figures"
COLOURS = 64
"""Of the PNG: its maps are grey, and its photograph is small."""

sys.path.insert(0, str(ROOT / "benchmarks"))


def main() -> None:
    """Write all three."""
    _look_alikes()
    _ghost_module()
    (OUT / "ghost-stage.svg").write_bytes(to_svg(ghost_stage(5, 128, 0.5)))


def _look_alikes() -> None:
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
    _keep(figure, "look-alikes.png")


def _ghost_module() -> None:
    plain, digits = create_model("resnet20.digits", pretrained=True).eval(), load_dataset("digits")
    with tempfile.TemporaryDirectory() as folder:
        out, made = Path(folder) / "out", Path(folder) / "made"
        done = upgrade(plain, dataset=digits, budget=Budget(ratio=2, kernel=3), recover="none", out=made)
        inspect(done.model, digits.train.pixels[:256], out, mean=digits.mean, std=digits.std, beside=plain)
        record = from_json(Inspection, read_json(out / "inspection.json"))
        with np.load(out / "maps.npz") as arrays:
            _keep(figures(record, dict(arrays))["ghost-module"], "ghost-module.png")


def _keep(figure: Figure, name: str) -> None:
    small = Image.open(io.BytesIO(to_png(figure, dpi=75)))
    small.convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS).save(OUT / name, optimize=True)


if __name__ == "__main__":
    main()
