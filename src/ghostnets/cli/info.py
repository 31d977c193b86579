# SPDX-License-Identifier: Apache-2.0
"""``ghostnets info``: what a network costs, layer by layer."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ghostnets.cli.arguments import image_size_of
from ghostnets.errors import UserError

if TYPE_CHECKING:  # PyTorch takes seconds, and --help needs none
    from collections.abc import Iterator

    from ghostnets.measure.cost import LayerCost


def info(
    name: str,
    /,
    *,
    input_size: str | None = None,
    num_classes: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Shape, parameters, multiply-adds and activation bytes of every layer of a network, and their sums.

    Counted on the network itself, for one image, norms' parameters included; a multiply-add counts once.

    Example: ghostnets info ghostnet_100 --input-size 224,224

    Args:
        name: of the catalogue, or file.py:factory (the file is run)
        input_size: height,width of the image (default: that of the data the network is for)
        num_classes: instead of the network's own
        as_json: the figures as JSON, and nothing else
    """
    import torch

    from ghostnets.measure.cost import layer_costs, total_params
    from ghostnets.pretrained import build, is_file

    if num_classes is not None and is_file(name):
        raise UserError(f"--num-classes is for networks of the catalogue: {name} decides its own")
    model = build(name, num_classes=num_classes).eval()
    channels = next((m.in_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)), 3)
    size = image_size_of(input_size) or getattr(model, "input_size", (224, 224))
    try:
        layers = layer_costs(model, torch.zeros(1, channels, *size))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{name} does not run on images of {size[0]}×{size[1]} pixels: give --input-size") from error
    total = {"params": total_params(model), "macs": sum(layer.macs for layer in layers)}
    if as_json:
        print(json.dumps({"total": total, "layers": [asdict(layer) for layer in layers]}, indent=1))
        return
    from ghostnets.cli.terminal import printing

    print(_table(name, size, layers, total, printing()), *_sources(name), sep="\n")


def _sources(name: str) -> Iterator[str]:
    """Where the figures come from, and what is known of the weights of that name."""
    from ghostnets.models.catalog import TRAINED

    yield "Counted on the network itself, norms' parameters included; a multiply-add counts once, norms count none."
    for tagged, row in TRAINED.items():
        if name in {tagged, row.architecture}:
            yield f"{tagged}: {row.top1:g} % top-1 ({row.measured}), {row.license}"


def _table(
    name: str, size: tuple[int, int], layers: tuple[LayerCost, ...], total: dict[str, int], console: object
) -> str:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    table = Table("layer", "kind", box=SIMPLE, pad_edge=False, show_footer=True)
    table.columns[0].footer = "total"
    columns = (
        ("output", ""), ("parameters", f"{total['params']:,}"), ("MACs", f"{total['macs']:,}"),
        ("share of MACs", ""), ("activation bytes", f"{sum(layer.activation_bytes for layer in layers):,}"),
    )  # fmt: skip
    for title, foot in columns:
        table.add_column(title, foot, justify="right", no_wrap=True)
    for layer in layers:
        table.add_row(
            layer.name, layer.kind, "×".join(map(str, layer.shape)), f"{layer.params:,}",
            f"{layer.macs:,}" if layer.macs else "", f"{100 * layer.macs / max(total['macs'], 1):.1f} %" if layer.macs else "",
            f"{layer.activation_bytes:,}",
        )  # fmt: skip
    with console.capture() as captured:
        console.print(f"{name}, one image of {size[0]}×{size[1]} pixels, float32", table, sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
