# SPDX-License-Identifier: Apache-2.0
"""The page of an inspection: record and maps in, HTML out."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ghostnets.errors import UserError
from ghostnets.records import Inspection, LayerMaps, from_json, read_json
from ghostnets.report import maps, tables
from ghostnets.report.templating import filled

RECORD, ARRAYS = "inspection.json", "maps.npz"

QUALITY = 60
"""Of the pictures of maps, WebP's: what is lost cannot be seen, and they are a fifth as large."""

SPRITE_COLUMNS = 8

Arrays = Mapping[str, NDArray[Any]]


class Card(NamedTuple):
    """One figure of the whole network."""

    figure: str
    value: str
    note: str


class Bar(NamedTuple):
    """A layer in the strip; both shares are 0 to 1."""

    explained: float
    time: float
    words: str


def render(directory: Path) -> str:
    """The page of the inspection in this folder; without the maps, a page without pictures.

    Raises UserError where a record cannot be read.
    """
    record = from_json(Inspection, read_json(directory / RECORD))
    path = directory / ARRAYS
    arrays = _read(path) if path.exists() else {}
    longest = max((layer.milliseconds or 0.0 for layer in record.layers), default=0.0)
    return filled(
        "inspection.html.j2",
        title=f"{record.model} · inspection",
        record=record,
        kept=arrays.keys(),
        command=tables.command(record.environment),
        verdict=tables.inspection_verdict(record),
        cards=_cards(record),
        strip=[_bar(layer, longest) for layer in record.layers],
        timed=longest > 0,
        layers=[_layer(layer, arrays) for layer in record.layers],
        pictures={name: _uri(maps.to_png(figure)) for name, figure in maps.figures(record, arrays).items()},
        layer_titles=tables.LAYER_TITLES,
        layer_rows=tables.layer_rows(record),
        stage_titles=tables.STAGE_TITLES,
        stage_rows=tables.stage_rows(record),
        pair_titles=tables.pair_titles(record),
        pair_rows=tables.pair_rows(record),
        environment=tables.environment_rows(record.environment),
    )


def _read(path: Path) -> Arrays:
    try:  # from memory, for numpy leaves a file open that it cannot read; and it refuses pickles by itself
        with np.load(io.BytesIO(path.read_bytes())) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it to draw the page without maps") from None


def _cards(record: Inspection) -> list[Card]:
    told = [layer for layer in record.layers if layer.matches is not None]
    count = sum(layer.channels for layer in told)
    tenth = sum(layer.matches.within[2] * (layer.channels - layer.matches.dead) for layer in told if layer.matches)
    rank = sum(layer.rank for layer in told)
    macs = sum(layer.macs for layer in record.layers)
    return [
        Card("Convolutions", str(len(record.layers)), f"{tables.count(macs)} multiply-adds on one image"),
        Card("Maps", f"{count:,}", f"with an effective rank of {rank:,.0f}, layer by layer"),
        Card("Explained by another map", tables.share(tables.mean_explained(record)), "of the maps' variance, mean over layers"),
        Card("Ghosts within 10 %", f"{tenth:,.0f}", f"of {count:,} maps: an error of a tenth of their variance or less"),
    ]  # fmt: skip


def _bar(layer: LayerMaps, longest: float) -> Bar:
    explained = tables.explained(layer.matches)
    words = [layer.name, f"{layer.channels} maps of {layer.size[0]}×{layer.size[1]}"]
    words.append(f"explained {tables.share(explained)}" if explained is not None else layer.note)
    if layer.milliseconds is not None:
        words.append(f"{layer.milliseconds:.2f} ms")
    return Bar(explained or 0.0, (layer.milliseconds or 0.0) / longest if longest else 0.0, ", ".join(words))


def _layer(layer: LayerMaps, arrays: Arrays) -> dict[str, Any]:
    """What the page's script draws the layer's maps from."""
    pictures, index = arrays.get(f"layer:{layer.name}"), arrays.get(f"layer:{layer.name}#")
    words = f"{layer.channels} maps of {layer.size[0]}×{layer.size[1]}, {tables.count(layer.macs)} multiply-adds"
    words += f", effective rank {layer.rank:.1f}" if layer.matches else ""
    words += f"; {layer.note}" if layer.note else ""
    if pictures is None or index is None:
        return {"name": layer.name, "words": f"{words}; its maps were not kept", "maps": []}
    kept = index.tolist()
    rows = [
        {"map": k, "from": layer.matches.source[k] if layer.matches else -1,
         "error": round(100 * layer.matches.nmse[k], 1) if layer.matches else None}
        for k in kept
    ]  # fmt: skip
    more = f"; {len(kept)} of them are shown" if len(kept) < layer.channels else ""
    return {
        "name": layer.name, "words": words + more, "maps": rows, "columns": SPRITE_COLUMNS,
        "rows": -(-len(kept) // SPRITE_COLUMNS), "ratio": pictures.shape[1] / pictures.shape[2],
        "sprite": _sprite(pictures),
    }  # fmt: skip


def _sprite(pictures: NDArray[np.uint8]) -> str:
    """All maps of a layer in one picture, as a data URI."""
    count, height, width = pictures.shape
    rows = -(-count // SPRITE_COLUMNS)
    sheet = np.zeros((rows * SPRITE_COLUMNS, height, width), dtype=np.uint8)
    sheet[:count] = pictures
    sheet = sheet.reshape(rows, SPRITE_COLUMNS, height, width).transpose(0, 2, 1, 3)
    target = io.BytesIO()
    Image.fromarray(sheet.reshape(rows * height, SPRITE_COLUMNS * width)).save(
        target, "WEBP", quality=QUALITY, method=6
    )
    return f"data:image/webp;base64,{base64.b64encode(target.getvalue()).decode()}"


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
