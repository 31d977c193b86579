# SPDX-License-Identifier: Apache-2.0
"""The page of an inspection: record and maps in, HTML out."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from ghostnets.records import Inspection, LayerMaps, from_json, read_json
from ghostnets.report import maps, tables
from ghostnets.report.strip import MAPS, Arrays, Bar, layer_data, read_maps
from ghostnets.report.templating import filled

RECORD = "inspection.json"


def render(directory: Path) -> str:
    """The page of the inspection in this folder; without the maps, a page without pictures.

    Raises UserError where a record cannot be read.
    """
    record = from_json(Inspection, read_json(directory / RECORD))
    path = directory / MAPS
    arrays = read_maps(path) if path.exists() else {}
    longest = max((layer.milliseconds or 0.0 for layer in record.layers), default=0.0)
    return filled(
        "inspection.html.j2",
        title=f"{record.model} · inspection",
        record=record,
        kept=arrays.keys(),
        command=tables.command(record.environment),
        verdict=tables.inspection_verdict(record),
        cards=_cards(record),
        bars=[_bar(layer, longest) for layer in record.layers],
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


def _cards(record: Inspection) -> list[tables.Card]:
    told = [layer for layer in record.layers if layer.matches is not None]
    count = sum(layer.channels for layer in told)
    tenth = sum(layer.matches.within[2] * (layer.channels - layer.matches.dead) for layer in told if layer.matches)
    rank = sum(layer.rank for layer in told)
    macs = sum(layer.macs for layer in record.layers)
    return [
        tables.Card("Convolutions", str(len(record.layers)), f"{tables.count(macs)} multiply-adds on one image"),
        tables.Card("Maps", f"{count:,}", f"with an effective rank of {rank:,.0f}, layer by layer"),
        tables.Card("Explained by another map", tables.share(tables.mean_explained(record)), "of the maps' variance, mean over layers"),
        tables.Card("Ghosts within 10 %", f"{tenth:,.0f}", f"of {count:,} maps: an error of a tenth of their variance or less"),
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
    words = f"{layer.channels} maps of {layer.size[0]}×{layer.size[1]}, {tables.count(layer.macs)} multiply-adds"
    words += f", effective rank {layer.rank:.1f}" if layer.matches else ""
    words += f"; {layer.note}" if layer.note else ""
    matches = layer.matches

    def source(k: int) -> tuple[int, str]:
        if matches is None or matches.source[k] < 0:
            return -1, f"Map {k} says nothing of its own."
        share = 100 * (1 - matches.nmse[k])
        return matches.source[k], f"Map {matches.source[k]} and one filter explain {share:.1f} % of map {k}."

    return layer_data(arrays, layer.name, words, layer.channels, source)


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
