# SPDX-License-Identifier: Apache-2.0
"""The network that a command names, with the images it expects, and images to try it on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ghostnets import benchmark
from ghostnets.errors import UserError
from ghostnets.folder import STATE, check_seed
from ghostnets.models.catalog import TRAINED
from ghostnets.models.weights import Weights, load_weights
from ghostnets.prediction import Classifier, decode, load_classifier
from ghostnets.pretrained import build, is_file, is_saved
from ghostnets.records import read_json
from ghostnets.training.data import FOLDER_SIZE, IMAGENET_MEAN, IMAGENET_STD, load_dataset, normalisation
from ghostnets.training.image_folder import CROP_FRACTION, SUFFIXES

REQUEST = "request.json"
"""Where training notes what was asked, as STATE where an upgrade does."""

ZOOM = (0.25, 1.0)
"""Of a photograph's shorter side, what a view of it shows."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images to check an export on, uint8 (N, C, H, W), and what is in them."""

    values: Tensor
    of: str


def opened(
    source: str,
    *,
    weights: Path | None = None,
    num_classes: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: tuple[int, int] | None = None,
    trust_code: bool = False,
    seed: int = 0,
) -> tuple[Classifier, tuple[str, ...]]:
    """The network in a folder, on the hub, in the catalogue or in a file of the user's, with ``weights`` where they are
    given; the images it expects, as it says itself, else as ImageNet has them; and what must be said of it.

    Raises UserError where there is none, or the weights do not fit.
    """
    check_seed(seed)
    comes_trained = is_saved(source) or source in TRAINED
    if weights is not None and comes_trained:
        raise UserError(f"{source} has weights of its own: leave out --weights, or name the network without them")
    if num_classes is not None and (weights is None or is_file(source)):
        raise UserError(f"--num-classes {num_classes} is for a network of the catalogue whose --weights are given")
    notes: tuple[str, ...] = ()
    if comes_trained:
        known = load_classifier(source, trust_code=trust_code)
    elif weights is None and not is_file(source):
        model, whole = benchmark.opened(source, size=size, seed=seed)
        known = described(model, whole)
        tagged = [name for name, row in TRAINED.items() if row.architecture == source]
        hint = f"{tagged[0]} has trained ones" if tagged else "give --weights, or a folder that was trained"
        notes = (f"nobody trained the weights of {source}, they are drawn: {hint}",)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(source, num_classes=num_classes)
        if weights is not None:
            load_weights(model, weights)
        known = described(model)
    channels, *own = known.input_size
    height, width = size or own
    return replace(
        known, mean=normalisation("mean", mean, known.mean, channels), std=normalisation("std", std, known.std, channels),
        input_size=(channels, height, width),
    ), notes  # fmt: skip


def described(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Classifier:
    """A network in evaluation mode with the images it expects: what its ``pretrained_cfg`` says (ours or timm's), else
    ImageNet's.
    """
    says: Any = getattr(model, "pretrained_cfg", None)
    says = says if isinstance(says, Mapping) else {}
    channels = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3)
    channels, height, width = (
        input_size or says.get("input_size") or (channels, *getattr(model, "input_size", FOLDER_SIZE))
    )
    mean, std = (
        normalisation(what, None, tuple(says.get(what) or usual), channels)
        for what, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    return Classifier(
        model=model.eval(), input_size=(channels, height, width), mean=mean, std=std, classes=(), crop=CROP_FRACTION,
        interpolation="bilinear", rescale=False,
    )  # fmt: skip


def pixels_for(network: Classifier, source: str, count: int, seed: int) -> Pixels:
    """``count`` images of the network's size: of what it was trained on where that is here, else views of two photographs
    for networks of colour images, else noise.
    """
    known = _own(network, source, count)
    if known is not None:
        return known
    channels, height, width = network.input_size
    rng = np.random.default_rng(seed)
    if channels == 3:
        values = np.stack(list(islice(_views((height, width), rng), count)))
        return Pixels(values=torch.from_numpy(values).permute(0, 3, 1, 2).contiguous(), of="views of two photographs")
    values = rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return Pixels(values=torch.from_numpy(values), of="noise")


def _own(network: Classifier, source: str, count: int) -> Pixels | None:
    data = _data_of(source)
    channels, height, width = network.input_size
    if data == "digits" and channels in {1, 3}:
        found = load_dataset(data, size=(height, width), channels=channels).test.pixels[:count]
        return Pixels(values=found, of="test images of digits")
    if data is None or not Path(data).is_dir() or channels not in {1, 3}:
        return None
    files = islice((p for p in Path(data).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()), count)
    decoded = [image for path in files if isinstance(image := decode(path, network), Tensor)]
    return Pixels(values=torch.stack(decoded), of=f"images of {Path(data).name}") if decoded else None


def _data_of(source: str) -> str | None:
    """What a network was trained on: a name or a folder."""
    row = TRAINED.get(source)
    if isinstance(row, Weights):
        return row.data
    for file, keys in ((REQUEST, ("data",)), (STATE, ("request", "data"))):
        if (Path(source) / file).is_file():
            found: Any = read_json(Path(source) / file)
            for key in keys:
                found = found.get(key) if isinstance(found, dict) else None
            return found if isinstance(found, str) else None
    return None


def _views(size: tuple[int, int], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3): parts of the photographs that come with scikit-learn, a temple and a flower, without end."""
    from sklearn.datasets import load_sample_images  # a second of imports

    bunch: Any = load_sample_images()
    photographs = [Image.fromarray(values) for values in bunch.images]
    while True:
        for photograph in photographs:
            side = rng.uniform(*ZOOM) * min(photograph.size)
            left, top = (rng.uniform(0, whole - side) for whole in photograph.size)
            box = (left, top, left + side, top + side)
            yield np.array(photograph.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))
