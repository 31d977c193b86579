# SPDX-License-Identifier: Apache-2.0
"""The network as a strip of layers, and what the page's script shows of the one that is chosen."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ghostnets.errors import UserError

MAPS = "maps.npz"

QUALITY = 60
"""Of the pictures of maps, WebP's: what is lost cannot be seen, and they are a fifth as large."""

COLUMNS = 8
"""Of the picture that holds a layer's maps."""

Arrays = Mapping[str, NDArray[Any]]
"""For each layer ``layer:NAME`` (n, h, w), and the maps' numbers in ``layer:NAME#``."""


class Bar(NamedTuple):
    """A layer in the strip; both shares, by which it is coloured, are 0 to 1."""

    first: float
    second: float
    words: str


def read_maps(path: Path) -> Arrays:
    """What a ``maps.npz`` holds. Raises UserError where it cannot be read."""
    try:  # from memory, for numpy leaves a file open that it cannot read; and it refuses pickles by itself
        with np.load(io.BytesIO(path.read_bytes())) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it to draw the page without maps") from None


def layer_data(
    arrays: Arrays, name: str, words: str, channels: int, source: Callable[[int], tuple[int, str]]
) -> dict[str, Any]:
    """A layer for the script; ``source`` says of a map which other one it is made from (-1: none), and a sentence."""
    pictures, index = arrays.get(f"layer:{name}"), arrays.get(f"layer:{name}#")
    if pictures is None or index is None:
        return {"name": name, "words": f"{words}; its maps were not kept", "maps": []}
    kept = index.tolist()
    told = ((k, *source(k)) for k in kept)
    return {
        "name": name, "words": words + (f"; {len(kept)} of them are shown" if len(kept) < channels else ""),
        "maps": [{"map": k, "from": other, "words": said} for k, other, said in told], "columns": COLUMNS,
        "rows": -(-len(kept) // COLUMNS), "ratio": pictures.shape[1] / pictures.shape[2], "sprite": _sprite(pictures),
    }  # fmt: skip


def _sprite(pictures: NDArray[np.uint8]) -> str:
    """All maps of a layer in one picture, as a data URI."""
    count, height, width = pictures.shape
    rows = -(-count // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, height, width), dtype=np.uint8)
    sheet[:count] = pictures
    sheet = sheet.reshape(rows, COLUMNS, height, width).transpose(0, 2, 1, 3)
    target = io.BytesIO()
    Image.fromarray(sheet.reshape(rows * height, COLUMNS * width)).save(target, "WEBP", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(target.getvalue()).decode()}"
