# SPDX-License-Identifier: Apache-2.0
"""Words of the command line that several verbs understand alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ghostnets.errors import UserError


def image_size_of(text: str | None) -> tuple[int, int] | None:
    """What ``--input-size`` says, (H, W). Raises UserError where it is no size."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--input-size {text!r} is not understood: write height,width, such as 224,224")
    return int(parts[0]), int(parts[1])


def figures_of(option: str, text: str | None) -> tuple[float, ...] | None:
    """What ``--mean`` or ``--std`` says. Raises UserError where it is no list of figures."""
    if text is None:
        return None
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r} is not understood: write a figure a channel, with commas") from None


def use_threads(threads: int | None) -> None:
    """What ``--threads`` says. Raises UserError where it is no number of threads."""
    import torch

    if threads is not None:
        if threads < 1:
            raise UserError(f"threads {threads} must be at least 1")
        torch.set_num_threads(threads)


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """What ``--model-kwargs`` says. Raises UserError where a word is no option=value."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals):
            raise UserError(f"--model-kwargs {word!r} is not understood: write option=value, such as ratio=4")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--model-kwargs {word!r}: {value!r} is no value") from None
    return found


def short_name(model: str) -> str:
    """Without the folder that a file or a network lies in."""
    return Path(model).name if Path(model.partition(":")[0]).exists() else model
