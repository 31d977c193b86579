# SPDX-License-Identifier: Apache-2.0
"""A whole inspection as one function: a network and images in; a folder with records, pictures and a page out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ghostnets.blocks.ghost import GhostModule
from ghostnets.errors import UserError
from ghostnets.inspecting.layers import Layer, Place, Stage, layers_of, maps_of, stages_of, times
from ghostnets.inspecting.pairs import look_alikes, pair_errors
from ghostnets.inspecting.redundancy import matches_of, redundancy
from ghostnets.inspecting.thumbnails import Arrays, chosen, grey, packed, thumbnails
from ghostnets.measure.latency import environment
from ghostnets.models.weights import load_weights
from ghostnets.prediction import Classifier, decode, image_files, load_classifier
from ghostnets.pretrained import build, is_file
from ghostnets.records import Inspection, LayerMaps, is_partial, write_bytes, write_json
from ghostnets.report import maps
from ghostnets.report.page import write_report
from ghostnets.report.strip import MAPS
from ghostnets.report.tables import explained
from ghostnets.training import image_folder
from ghostnets.training.data import (
    FOLDER_SIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NAMES,
    load_dataset,
    normalisation,
    normalise,
)
from ghostnets.training.draw import generator
from ghostnets.upgrading.calibration import Chunks, Progress, quiet

RECORD = "inspection.json"

CHUNK_PIXELS = 8 * 224 * 224
"""Of the images that go through the network together."""

LARGE = 112
"""Pixels: the longest side of the shown layer's maps in the pictures."""

LIKELY = 8
"""Maps, and pixels of their shorter side, that a layer should have to be worth showing."""


def inspect(
    model: nn.Module,
    pixels: Tensor,
    out: str | Path,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    model_name: str = "model",
    data_name: str = "images",
    layer: str | None = None,
    kernel: int = 3,
    seed: int = 0,
    beside: nn.Module | None = None,
    command: list[str] | None = None,
    progress: Progress = quiet,
) -> Inspection:
    """Look at ``model`` on images, uint8 (N, C, H, W); what is found lies in the folder ``out``, with a page that shows it.

    ``layer`` names the module whose maps are drawn (default: the first block's of the first stage, else the most redundant
    layer's). Where it has Ghost modules one is drawn too, with the layer of that name of the network ``beside`` next
    to it. Both networks stay as they are.

    Raises UserError where there is no image, the network has no convolution or does not take the images, ``layer`` is no
    module with maps, or the folder holds something else.
    """
    out = Path(out)
    take(out)
    if not len(pixels):
        raise UserError("there is no image to look at")
    model = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    chunks, count = _chunks(pixels, mean, std), len(pixels)
    first = normalise(pixels[:1], mean, std)
    layers, stages = layers_of(model, first), stages_of(model, first)
    if layer is not None:
        maps_of(model, layer, first)
    looked, rows = redundancy(
        model, chunks, layers, stages, images=count, kernel=kernel, seed=seed,
        milliseconds=times(model, {layer.name: Place(layer.name) for layer in layers}, first), progress=progress,
    )  # fmt: skip
    shown = layer or _default(layers, looked, stages)
    matches = next((one.matches for one in looked if one.end == shown), None) or matches_of(
        model, chunks, shown, first, images=count, kernel=kernel, seed=seed
    )
    pairs = look_alikes(matches) if matches is not None else ()
    record = Inspection(
        model=model_name, data=data_name, images=count, kernel=kernel, seed=seed, layers=looked, stages=rows, shown=shown,
        pairs=pair_errors(model, chunks, shown, pairs, images=count, seed=seed),
        ghost=_ghost(model, layers, layer), environment=environment() | ({"command": command} if command else {}),
    )  # fmt: skip
    ends = {
        f"layer:{layer.name}": (layer.end, chosen(layer.channels, one.matches))
        for layer, one in zip(layers, looked, strict=True)
    }
    arrays = thumbnails(model, first, ends) | {"image": pixels[0].permute(1, 2, 0).numpy()}
    arrays["shown"] = grey(maps_of(model, shown, first)[0], LARGE)
    arrays |= _ghost_arrays(model, beside, record.ghost, first)
    write_bytes(out / MAPS, packed(arrays))
    write_json(out / RECORD, record)
    for name, figure in maps.figures(record, arrays).items():
        write_bytes(out / f"{name}.png", maps.to_png(figure))
        write_bytes(out / f"{name}.svg", maps.to_svg(figure))
    write_report(out)
    return record


def opened(
    source: str,
    *,
    weights: Path | None = None,
    num_classes: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: tuple[int, int] | None = None,
    trust_code: bool = False,
) -> Classifier:
    """The network in a folder, on the hub, in the catalogue (with ``weights``, where it does not come with some) or in a
    file of the user's, and the images it expects; what is not known is taken to be as ImageNet has it.

    Raises UserError where there is no such network, or no weights.
    """
    if weights is None and not is_file(source):
        known = load_classifier(source, trust_code=trust_code)
    else:
        model = build(source, num_classes=None if is_file(source) else num_classes)
        if weights is not None:
            load_weights(model, weights)
        channels = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3)
        height, width = getattr(model, "input_size", FOLDER_SIZE)
        known = Classifier(
            model=model.eval(), input_size=(channels, height, width), mean=normalisation("mean", None, IMAGENET_MEAN, channels),
            std=normalisation("std", None, IMAGENET_STD, channels), classes=(), crop=image_folder.CROP_FRACTION,
            interpolation="bilinear", rescale=False,
        )  # fmt: skip
    channels, height, width = known.input_size
    height, width = size or (height, width)
    return replace(
        known, mean=normalisation("mean", mean, known.mean, channels), std=normalisation("std", std, known.std, channels),
        input_size=(channels, height, width),
    )  # fmt: skip


def images_for(
    classifier: Classifier, data: str | None, files: Sequence[Path], *, data_dir: Path | None, count: int, seed: int
) -> tuple[Tensor, tuple[str, ...]]:
    """uint8 images (N, C, H, W) as the network expects them, and what must be said of them: the ``files``, or ``count``
    training images drawn from a set in memory or a folder.

    Raises UserError where there is none that can be decoded.
    """
    if (data is None) == (not files):
        raise UserError("name either image files or --data (digits, cifar10, cifar100 or a folder of images)")
    channels, *size = classifier.input_size
    if data is not None and data in NAMES:
        found = load_dataset(data, data_dir=data_dir, size=(size[0], size[1]), channels=channels).train.pixels
        return found[torch.randperm(len(found), generator=generator(seed, 2))[:count]], ()
    if data is not None:
        if not Path(data).is_dir():
            raise UserError(f"there is no data set or folder {data!r}: choose {', '.join(NAMES)} or a folder of images")
        if data_dir is not None:
            raise UserError(f"--data-dir {data_dir} is where CIFAR lies, and {data} was asked: leave it out")
        listed = image_files([Path(data) / "train"] if (Path(data) / "train").is_dir() else [data])
        order = torch.randperm(len(listed), generator=generator(seed, 2))[:count]
        files = [listed[k] for k in order.tolist()]
    decoded = [(path, decode(path, classifier)) for path in image_files(files)]
    notes = tuple(f"{path} {reason}, and is left out" for path, reason in decoded if isinstance(reason, str))
    kept = [image for _, image in decoded if isinstance(image, Tensor)]
    if not kept:
        raise UserError(f"there is no image that can be decoded: {notes[0].removesuffix(', and is left out')}")
    return torch.stack(kept), notes


def take(out: Path) -> None:
    """Raises UserError where the folder cannot be used, or holds something that no inspection has left."""
    try:
        found = sorted(path.name for path in out.iterdir() if not is_partial(path)) if out.exists() else []
    except OSError as error:
        raise UserError(f"{out} cannot be used as a folder: {error.strerror or error}") from None
    if found and RECORD not in found:
        raise UserError(f"{out} is not empty and holds no inspection ({found[0]}): choose another folder")


def _chunks(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Chunks:
    size = max(1, CHUNK_PIXELS // (pixels.shape[2] * pixels.shape[3]))

    def chunks() -> Iterator[Tensor]:
        return (normalise(part, mean, std) for part in pixels.split(size))

    return chunks


def _default(layers: Sequence[Layer], looked: Sequence[LayerMaps], stages: Sequence[Stage]) -> str:
    """As in the paper's Figure 1 what the first block gives out; where there are no blocks, the most redundant layer of some
    size.
    """
    if stages:
        return stages[0].blocks[0]
    told = [(layer, explained(one.matches) or 0.0) for layer, one in zip(layers, looked, strict=True)]
    likely = [pair for pair in told if pair[0].channels >= LIKELY and min(pair[0].size) >= LIKELY]
    best, _ = max(likely or told, key=lambda pair: pair[1])
    return best.name if best.end.call else best.end.module


def _ghost(model: nn.Module, layers: Sequence[Layer], asked: str | None) -> str | None:
    """The Ghost module to draw: the one asked for or around what is asked for, else the second that runs, as in the paper's
    Figure 4.
    """
    found = [
        name for layer in layers
        if (name := layer.name.rpartition(".primary_conv.")[0]) and _halves(model.get_submodule(name))
    ]  # fmt: skip
    around = [name for name in found if asked is not None and f"{asked}.".startswith(f"{name}.")]
    return (around or found[1:] or found or [None])[0]


def _halves(module: nn.Module) -> bool:
    return isinstance(module, GhostModule) and module.cheap_operation is not None


def _ghost_arrays(model: nn.Module, beside: nn.Module | None, name: str | None, image: Tensor) -> Arrays:
    """The computed maps and the ghosts of a Ghost module, and the maps of the plain layer of that name where there is one."""
    if name is None:
        return {}
    found = {
        "ghost:computed": grey(maps_of(model, f"{name}.primary_conv", image)[0], LARGE),
        "ghost:made": grey(maps_of(model, f"{name}.cheap_operation", image)[0], LARGE),
    }
    if beside is not None:
        plain = copy.deepcopy(beside).eval()
        end = next((layer.end.module for layer in layers_of(plain, image) if layer.name == name), None)
        if end is None:
            raise UserError(f"the network beside it has no convolution {name}, so its maps cannot be set beside")
        found["ghost:plain"] = grey(maps_of(plain, end, image)[0], LARGE)
    return found
