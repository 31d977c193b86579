# SPDX-License-Identifier: Apache-2.0
"""Puts a trained network into the package: half-precision weights, measured again as they are stored, and a model card.

    ghostnets train ghost_resnet20 --data cifar10 --recipe cifar10-full --out build/run
    python tools/ship.py build/run [--data-dir DIR]

It writes src/ghostnets/models/data/NAME.safetensors and docs/cards/NAME.md, and prints what belongs into WEIGHTS of
ghostnets/models/weights.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml
from rich.console import Console
from safetensors.torch import save
from torch import nn

import ghostnets
from ghostnets.cli.arguments import short_name
from ghostnets.errors import GhostnetsError, UserError
from ghostnets.models.catalog import BUILDERS
from ghostnets.pretrained import Config, is_file, read_config
from ghostnets.records import Quality, TrainRecord, from_json, read_json, to_json, write_bytes, write_text
from ghostnets.trainer import RECORD, TrainRequest, read_request
from ghostnets.training.recipe import Recipe
from ghostnets.validation import validate

ROOT = Path(__file__).parents[1]
DATA, CARDS = ROOT / "src" / "ghostnets" / "models" / "data", ROOT / "docs" / "cards"

MOST = 2 * 2**20
"""Bytes of a file in the package."""

CARD = """\
# {name}

{architecture} for {images} of {size}, {classes} classes: **{top1:.2f} %** of the {tested:,} test images, {params:.3f} M parameters,
{macs:.1f} M multiply-adds. Trained by us from random weights{taught}; Apache-2.0.

```python
import ghostnets

model = ghostnets.create_model("{name}", pretrained=True)
```

Images are scaled to 0 to 1 and normalised with mean {mean} and standard deviation {std}. Classes: {names}.

| | |
|---|---|
| top-1, top-5 | {top1:.2f} %, {top5:.2f} % |
| negative log-likelihood, expected calibration error | {nll:.3f} nats, {ece:.3f} |
| weights | float16, {kib:,} KiB, SHA-256 `{sha256}` |
| trained | {epochs:g} epochs, seed {seed}, {hours:.2f} hours, {speed:,.0f} images/s on {machine} |

The figures are those of the stored weights in float32. The test images were looked at once, after the last epoch; whatever was
chosen was chosen on images held out of the training set.

## Again

```console
{launch} train {architecture} --data {data} --recipe recipe.yaml --seed {seed} --threads {threads} --out build/{architecture}
```

with `recipe.yaml`:

```yaml
{recipe}```
{teacher}"""

TEACHER = """
and `{file}`:

```python
{source}```
"""


def main() -> None:
    """Store, read back, measure, describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder that ghostnets train left")
    parser.add_argument("--data-dir", type=Path, help="where the images lie")
    asked = parser.parse_args()
    try:
        record, config = from_json(TrainRecord, read_json(asked.run / RECORD)), read_config(asked.run)
        request = read_request(asked.run)
        contents = stored(asked.run, record, request)
        quality = measured(contents, record, config, asked.data_dir)
    except GhostnetsError as error:
        sys.exit(f"ship: {error}")
    CARDS.mkdir(exist_ok=True)
    path = DATA / f"{record.model}_{record.data}.safetensors"
    write_bytes(path, contents)
    write_text(CARDS / f"{record.model}.{record.data}.md", card(record, request.recipe, config, quality, contents))
    Console(soft_wrap=True).print(row(record, config, quality, path, contents), markup=False, highlight=False)


def stored(run: Path, record: TrainRecord, request: TrainRequest) -> bytes:
    """The file's contents. Raises UserError for a run that began with weights or tested on training images, and for too
    large a network.
    """
    if request.model not in BUILDERS or request.weights is not None or request.model_kwargs:
        raise UserError(f"{run} is no network of the catalogue as it stands there, trained from random weights")
    if record.held_out:
        raise UserError(f"{run} kept images back and was tested on those: train on all, then ship that")
    about = {"architecture": record.model, "data": record.data, "seed": record.seed, "license": "Apache-2.0"}
    contents = halved(ghostnets.from_pretrained(run), about)
    if len(contents) > MOST:
        raise UserError(f"{run} takes {len(contents):,} bytes, more than the {MOST:,} of a file in the package")
    return contents


def halved(model: nn.Module, about: Mapping[str, object]) -> bytes:
    """Half-precision weights that say themselves what they are."""
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    return save(tensors, metadata={"ghostnets": json.dumps(about)})  # one key: the order of several is random


def measured(contents: bytes, record: TrainRecord, config: Config, data_dir: Path | None) -> Quality:
    """On the test images, read back from a file. Nothing is in the package before that."""
    with tempfile.TemporaryDirectory(prefix="ghostnets-ship-") as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(contents)
        return validate(record.model, record.data, data_dir=data_dir, weights=path, mean=config.mean, std=config.std)


def card(record: TrainRecord, recipe: Recipe, config: Config, quality: Quality, contents: bytes) -> str:
    """Markdown."""
    channels, height, width = config.input_size
    teacher = recipe.kd_model
    recipe = replace(recipe, kd_model=short_name(teacher) if teacher else None)
    return CARD.format(
        launch=_launch(record), threads=record.environment["threads"], name=f"{record.model}.{record.data}", architecture=record.model, data=record.data, seed=record.seed,
        images="grey images" if channels == 1 else "colour images", size=f"{height}×{width} pixels",
        classes=config.num_classes, names=", ".join(config.classes), tested=quality.images,
        top1=quality.top1, top5=quality.top5, nll=quality.nll, ece=quality.ece,
        params=record.params / 1e6, macs=record.macs / 1e6, mean=_figures(config.mean), std=_figures(config.std),
        kib=len(contents) // 1024, sha256=hashlib.sha256(contents).hexdigest(), epochs=record.epochs, hours=record.seconds / 3600,
        speed=record.images_per_second, recipe=_turned(recipe), machine=_machine(record),
        taught=f", taught by `{recipe.kd_model}`" if teacher else "", teacher=_teacher(teacher) if teacher else "",
    )  # fmt: skip


def row(record: TrainRecord, config: Config, quality: Quality, path: Path, contents: bytes) -> str:
    """What belongs into WEIGHTS."""
    right = round(quality.top1 * quality.images / 100)
    if record.data == "cifar10":
        return f'    "{record.model}.cifar10": _cifar10("{record.model}", "{hashlib.sha256(contents).hexdigest()}", {right}),'
    return f'''    "{record.model}.{record.data}": Weights(
        architecture="{record.model}",
        file="{path.name}",
        sha256="{hashlib.sha256(contents).hexdigest()}",
        license="Apache-2.0",
        data="{record.data}",
        in_chans={config.in_chans},
        input_size={config.input_size[1:]},
        mean={config.mean},
        std={config.std},
        classes={config.classes},
        classifier="linear",
        top1={quality.top1:.2f},
        measured="{right:,} of the {quality.images:,} test images right, float32; one run, docs/cards/{record.model}.{record.data}.md",
    ),'''


def _figures(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _turned(recipe: Recipe) -> str:
    """The knobs that do not stand where they stand anyway, as YAML; what a recipe is expected to reach is no knob."""
    usual = to_json(Recipe())
    return yaml.safe_dump(
        {name: value for name, value in to_json(recipe).items() if value != usual[name] and name != "expected"},
        sort_keys=False,
    )


def _teacher(teacher: str) -> str:
    """The file that builds it, where it is one."""
    if not is_file(teacher):
        return ""
    path = Path(teacher.rpartition(":")[0])
    return TEACHER.format(file=path.name, source=path.read_text(encoding="utf-8"))


def _machine(record: TrainRecord) -> str:
    about = record.environment
    processes, threads = about["processes"], about["threads"]
    return f"{processes} × {threads} cores (processes, threads) of {about['cpu']}, PyTorch {about['torch']}"


def _launch(record: TrainRecord) -> str:
    """How the command begins."""
    processes = record.environment["processes"]
    return "ghostnets" if processes == 1 else f"torchrun --nproc-per-node {processes} -m ghostnets"


if __name__ == "__main__":
    main()
