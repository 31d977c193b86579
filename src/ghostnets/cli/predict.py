# SPDX-License-Identifier: Apache-2.0
"""``ghostnets predict``: what a trained network says of images."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ghostnets.errors import GhostnetsError, UserError

if TYPE_CHECKING:  # PyTorch takes seconds, and --help needs none
    from collections.abc import Iterable

    from ghostnets.prediction import Prediction


def predict(
    network: str,
    /,
    *images: Path,
    top: int = 5,
    batch_size: int = 32,
    trust_code: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """The likeliest classes of images, in any format that Pillow reads.

    One image after the other in words; for a folder a CSV table. A file that cannot be read is named and left out, and the
    exit code is 1 then.

    Example: ghostnets predict build/digits photo.png

    Args:
        network: a folder that an upgrade left, or the name of a network that comes trained
        images: files, or folders of them
        top: so many classes an image
        batch_size: images at a time
        trust_code: run the Python file in the network's folder, where it has one
        as_json: an array of objects, and nothing else
    """
    if not images:
        raise UserError("there is nothing to predict: name image files or a folder of them")
    if top < 1 or batch_size < 1:
        raise UserError(f"--top {top} and --batch-size {batch_size} must be at least 1")

    from ghostnets.prediction import image_files, load_classifier
    from ghostnets.prediction import predict as run

    files = image_files(images)
    answers = list(_told(run(load_classifier(network, trust_code=trust_code), files, top=top, batch_size=batch_size)))
    good = [answer for answer in answers if answer.error is None]
    if as_json:
        print(json.dumps([_as_dict(answer) for answer in answers], indent=1))
    elif any(path.is_dir() for path in images):
        _table(good)
    else:
        for answer in good:
            print(answer.path, *(f"  {share:6.1%}  {name}" for name, share in answer.top), sep="\n")
    if len(good) < len(answers):
        raise GhostnetsError(f"{len(answers) - len(good)} of {len(answers)} images could not be read")


def _told(answers: Iterable[Prediction]) -> Iterable[Prediction]:
    """The same, what cannot be read named as it comes."""
    for answer in answers:
        if answer.error is not None:
            print(f"ghostnets: {answer.path} {answer.error}", file=sys.stderr)
        yield answer


def _as_dict(answer: Prediction) -> dict[str, object]:
    if answer.error is not None:
        return {"path": answer.path, "error": answer.error}
    return {"path": answer.path, "top": [{"class": name, "probability": share} for name, share in answer.top]}


def _table(answers: list[Prediction]) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    width = max((len(answer.top) for answer in answers), default=0)
    out.writerow(["path", *(f"{what}{place}" for place in range(1, width + 1) for what in ("class", "probability"))])
    for answer in answers:
        out.writerow([answer.path, *(cell for name, share in answer.top for cell in (name, f"{share:.4f}"))])
