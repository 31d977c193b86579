# SPDX-License-Identifier: Apache-2.0
"""How good a trained network is on test images, as one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ghostnets.errors import UserError
from ghostnets.measure.quality import tally
from ghostnets.models.catalog import TRAINED
from ghostnets.models.weights import load_weights
from ghostnets.prediction import Classifier, load_classifier
from ghostnets.pretrained import build, is_saved
from ghostnets.records import Quality
from ghostnets.training.data import NAMES, normalise
from ghostnets.training.feed import Share
from ghostnets.training.pictures import PictureFeed
from ghostnets.training.source import Asked, Source, open_source


def validate(
    network: str,
    data: str,
    *,
    data_dir: Path | None = None,
    weights: Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 250,
    num_classes: int | None = None,
    workers: int = 0,
    max_bad: int = 0,
    trust_code: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Quality:
    """The figures of a folder's network, or of the one of that name, over the test images of ``data``.

    Images are scaled and normalised as the network says, where it says it.

    Raises UserError where the network, its weights or the images cannot be had, or do not fit each other.
    """
    known = None
    if weights is None:
        known = load_classifier(network, trust_code=trust_code)
    elif is_saved(network) or network in TRAINED:
        raise UserError(f"{network} has weights of its own: leave out --weights, or name the network without them")
    source = open_source(_asked(known, data, data_dir, mean, std, num_classes, workers, max_bad), told=note)
    for text in source.notes:
        note(text)
    if known is None:
        assert weights is not None
        model = build(network, num_classes=len(source.classes), in_chans=source.input_size[0])
        load_weights(model, weights)
    else:
        model = known.model
    return figures(model, _as_expected(source, known), batch_size)


def figures(model: nn.Module, source: Source, batch_size: int) -> Quality:
    """Of a network over all test images. It runs on the GPU where there is one, in evaluation mode, and is left as it was."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    fast = torch.device("cuda") if torch.cuda.is_available() else device
    tested = source.test.testing(batch_size, Share())
    batches = ((normalise(pixels, source.mean, source.std).to(fast), labels) for pixels, labels in tested)
    try:
        return tally(model.to(fast), batches, len(source.classes)).quality(source.classes)
    finally:
        model.to(device)


def _asked(
    known: Classifier | None, data: str, data_dir: Path | None, mean: Sequence[float] | None, std: Sequence[float] | None,
    num_classes: int | None, workers: int, max_bad: int,
) -> Asked:  # fmt: skip
    own = known is not None and data not in NAMES  # sets in memory have a size of their own
    shards = ".tar" in data
    return Asked(
        data=data, data_dir=data_dir, val_data=data if shards else None,
        mean=mean or (known.mean if known else None), std=std or (known.std if known else None),
        size=known.input_size[1:] if own and known is not None else None,
        channels=known.input_size[0] if own and known is not None else None,
        num_classes=num_classes or (len(known.classes) if known is not None and shards else None),
        workers=workers, max_bad=max_bad,
    )  # fmt: skip


def _as_expected(source: Source, known: Classifier | None) -> Source:
    """The source with its photographs scaled as the network says, and classes that it has.

    Raises UserError where it tells other classes apart.
    """
    if known is not None and len(known.classes) != len(source.classes):
        raise UserError(
            f"the network tells {len(known.classes)} classes apart, and {source.name} has {len(source.classes)}"
        )
    if known is None or not isinstance(source.test, PictureFeed):
        return source
    return replace(source, test=replace(source.test, crop=known.crop, interpolation=known.interpolation))
