# SPDX-License-Identifier: Apache-2.0
"""What a trained network says of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.models.catalog import TRAINED, create_model
from ghostnets.pretrained import from_pretrained, is_saved, located, read_config
from ghostnets.training.data import normalise
from ghostnets.training.image_folder import SUFFIXES, decode_image


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network in evaluation mode and the images it expects."""

    model: nn.Module
    input_size: tuple[int, int, int]
    """(C, H, W)"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    crop: float
    """Share of the scaled image's tighter side that is shown to it."""
    interpolation: str
    rescale: bool
    """Whether an image that already has the size is scaled and cropped like any other."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The likeliest classes of one file and their probabilities, the likeliest first; or why there are none."""

    path: str
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def load_classifier(source: str, *, trust_code: bool = False) -> Classifier:
    """The network in a folder that ``save_pretrained`` or an upgrade left, here or on the Hugging Face hub
    (``owner/name``), or the trained one of that name.

    Raises UserError where there is none.
    """
    if is_saved(source):
        folder = located(source)
        config = read_config(folder)
        model = from_pretrained(folder, trust_code=trust_code)
        return Classifier(
            model=model, input_size=config.input_size, mean=config.mean, std=config.std, classes=config.classes,
            crop=config.crop, interpolation=config.interpolation, rescale=config.rescale,
        )  # fmt: skip
    model = create_model(source, pretrained=True).eval()
    row = TRAINED.get(source) or next(row for row in TRAINED.values() if row.architecture == source)
    size = (row.in_chans, *row.input_size)
    return Classifier(
        model=model, input_size=size, mean=row.mean, std=row.std, classes=row.classes, crop=row.crop,
        interpolation=row.interpolation, rescale=row.rescale,
    )  # fmt: skip


def image_files(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    """The files among ``paths``, and the images in those that are folders, in the order of their names.

    Raises UserError where a folder has none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != ".")
        if not inside:
            raise UserError(f"{path} holds no images: files such as .jpg or .png were expected")
        found += inside
    return tuple(found)


def predict(
    classifier: Classifier, files: Sequence[Path], *, top: int = 5, batch_size: int = 32
) -> Iterator[Prediction]:
    """One answer a file, in their order; a file that cannot be decoded gets the reason, and the others go on."""
    waiting = iter(files)
    while batch := tuple(islice(waiting, batch_size)):
        decoded = [decode(path, classifier) for path in batch]
        images = [image for image in decoded if isinstance(image, Tensor)]
        answers = iter(_answers(classifier, images, top) if images else ())
        for path, image in zip(batch, decoded, strict=True):
            if isinstance(image, Tensor):
                yield Prediction(path=str(path), top=next(answers))
            else:
                yield Prediction(path=str(path), error=image)


def decode(path: Path, classifier: Classifier) -> Tensor | str:
    """The image as the network expects it, uint8 (C, H, W), or why there is none, as the end of a sentence."""
    channels, *size = classifier.input_size
    try:
        image = decode_image(
            path, size=(size[0], size[1]), channels=channels, crop=classifier.crop,
            interpolation=classifier.interpolation, rescale=classifier.rescale,
        )  # fmt: skip
        return torch.from_numpy(image.copy())
    except FileNotFoundError:
        return "does not exist"
    except Image.DecompressionBombError:
        return f"is too large: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    except OSError as error:
        return f"cannot be read: {error.strerror}" if error.strerror else "is no image, or cut short"
    except Exception:  # noqa: BLE001 - decoders raise nearly anything on a damaged file, and none may end the run
        return "is no image, or damaged"


def _answers(classifier: Classifier, images: Sequence[Tensor], top: int) -> Iterator[tuple[tuple[str, float], ...]]:
    with torch.inference_mode():
        logits = classifier.model(normalise(torch.stack(list(images)), classifier.mean, classifier.std))
        best = logits.float().softmax(1).topk(min(top, logits.shape[1]), 1)
    for places, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        yield tuple((classifier.classes[place], share) for place, share in zip(places, shares, strict=True))
