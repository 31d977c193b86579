# SPDX-License-Identifier: Apache-2.0
"""``ghostnets export``: a network as files that run without PyTorch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ghostnets.cli.arguments import figures_of, image_size_of, short_name
from ghostnets.errors import UserError
from ghostnets.records import to_json

if TYPE_CHECKING:  # PyTorch takes seconds, and --help needs none
    from ghostnets.exported import Export


def export(
    model: str,
    /,
    *,
    format: str = "c",  # noqa: A002 - the option's name
    out: Path,
    target: str = "native",
    layout: str = "nchw",
    input_size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    weights: Path | None = None,
    num_classes: int | None = None,
    trust_code: bool = False,
    threads: int = 1,
    check: int = 8,
    seed: int = 0,
    explain: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Write a network to a folder, as a C program that needs nothing but a compiler, or as an ONNX file.

    Where this machine can, what was written is run on some images and held against PyTorch, and nothing is left where the
    answers differ by more than 10⁻⁴ of the largest.

    Example: ghostnets export ghostnet_100.in1k --format c --out build/ghostnet

    Args:
        model: a folder that train, upgrade or save_pretrained left, the name of a network, or file.py:factory (the file is run)
        format: c or onnx
        out: folder for the files; an earlier export in it is replaced
        target: instructions of a C program: native (the best of this machine), avx512, avx2, neon (64-bit ARM) or scalar (any)
        layout: of an image of a C program: nchw, nhwc (float32, normalised) or nhwc-uint8 (bytes, as cameras give them)
        input_size: height,width of the image (default: what the network says, else 224,224)
        mean: of the images the network was trained on (default: what the network says, else ImageNet's)
        std: the same for the standard deviation
        weights: .safetensors, or a PyTorch file of tensors alone
        num_classes: of a network of the catalogue whose weights are given
        trust_code: run the Python file in the network's folder, where it has one
        threads: that a C program is checked with, and its memory told for
        check: so many images (0: it is not run)
        seed: of the images, and of weights that nobody trained
        explain: print what every pass of the C generator made
        as_json: print export.json, and nothing else
    """
    size, means, stds = image_size_of(input_size), figures_of("--mean", mean), figures_of("--std", std)
    if check < 0:
        raise UserError(f"--check {check} must be at least 0")
    if explain and (as_json or format != "c"):
        raise UserError("--explain shows the passes of the C generator as text: leave out --json and other formats")

    from rich.console import Console

    from ghostnets.exported import take
    from ghostnets.exporting import export as run
    from ghostnets.subject import opened, pixels_for

    take(out)
    network, notes = opened(
        model, weights=weights, num_classes=num_classes, mean=means, std=stds, size=size, trust_code=trust_code, seed=seed
    )  # fmt: skip
    console = Console(stderr=True, highlight=False)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    done = run(
        network, out, format=format, target=target, layout=layout, threads=threads,
        pixels=pixels_for(network, model, check, seed) if check else None, model_name=short_name(model), notes=notes,
        command=["ghostnets", *sys.argv[1:]],
    )  # fmt: skip
    if as_json:
        print(json.dumps(to_json(done.record), indent=1))
        return
    print(*(done.explained() if explain else ()), *_told(done.record, out), sep="\n")


def _told(record: Export, out: Path) -> Iterator[str]:
    channels, height, width = record.input_size
    what = f"C for {record.target}, images {record.layout}" if record.format == "c" else "ONNX, any number of images"
    yield f"{out}: {record.model} in {what} of {channels}×{height}×{width}"
    yield f"  files            {', '.join(f'{file.name} {_size(file.bytes)}' for file in record.files)}"
    yield f"  multiply-adds    {record.macs:,} an image"
    yield f"  weights          {_size(record.weights_bytes)}"
    if record.arena_bytes is not None:
        threads = f"{record.threads} thread{'s' if record.threads > 1 else ''}"
        yield f"  memory beside    {_size(record.arena_bytes)} with {threads}"
    if record.checked is None:
        yield f"  not checked      {record.unchecked}"
        return
    found = record.checked
    yield f"  against PyTorch  {found.max_rel:.1e} of the largest output at most, {found.images} images ({found.of}), {found.runtime}"


def _size(count: int) -> str:
    """Bytes in words."""
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count} bytes"
