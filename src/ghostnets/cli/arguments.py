# SPDX-License-Identifier: Apache-2.0
"""Words of the command line that several verbs understand alike."""

from __future__ import annotations

from ghostnets.errors import UserError


def image_size_of(text: str | None) -> tuple[int, int] | None:
    """What ``--input-size`` says, (H, W). Raises UserError where it is no size."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--input-size {text!r} is not understood: write height,width, such as 224,224")
    return int(parts[0]), int(parts[1])
