# SPDX-License-Identifier: Apache-2.0
"""Save an upgraded network and load it again in a process that has never seen it.

``config.json`` says how the original is built, which of its layers became Ghost modules, and what images the network
expects; ``model.safetensors`` holds the weights. Nothing in either is run. Only where the original comes from a Python
file of the user's is that file kept beside them, and it runs only for who says so.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ghostnets.errors import UserError
from ghostnets.models.catalog import BUILDERS, create_model
from ghostnets.models.weights import WEIGHTS, fill, read_weights
from ghostnets.records import SCHEMA, Plan, from_json, read_json, to_json, write_bytes, write_json
from ghostnets.training.data import Dataset
from ghostnets.upgrading.convert import Edit, edits, restructure
from ghostnets.upgrading.sites import find_sites

CONFIG, WEIGHTS_FILE, CODE_FILE = "config.json", "model.safetensors", "model.py"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a network comes from: the catalogue, a function in a Python file, or memory (then only its class is known)."""

    name: str | None = None
    file: str | None = None
    factory: str | None = None
    class_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """What ``config.json`` holds."""

    model: Source
    num_classes: int
    in_chans: int
    input_size: tuple[int, int, int]
    """(C, H, W)"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    edits: tuple[Edit, ...]
    schema: int = SCHEMA


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    original: nn.Module,
    plan: Plan,
    dataset: Dataset,
    source: str | None = None,
) -> None:
    """Write ``model``, which ``plan`` made of ``original``, so that ``from_pretrained`` finds it in ``directory``.

    ``source`` is the name of the original in the catalogue or ``file.py:factory``; without it the network can be
    loaded only by who has the original's code. ``dataset`` says what images and classes it is for.

    Raises UserError where what ``source`` names is another network, or ``model`` is not what the plan says.
    """
    directory = Path(directory)
    size = image_size(dataset)
    anatomy = find_sites(copy.deepcopy(original).cpu().float().eval(), torch.zeros(1, *size))
    config = Config(
        model=describe(source, original, dataset),
        num_classes=len(dataset.classes),
        in_chans=size[0],
        input_size=size,
        mean=dataset.mean,
        std=dataset.std,
        classes=dataset.classes,
        edits=edits(anatomy, plan.decisions),
    )
    _same_shapes(restructured(original, config.edits), model, "the plan")
    if config.model.file is not None:
        write_bytes(directory / CODE_FILE, Path(str(source).rpartition(":")[0]).read_bytes())
    write_weights(directory / WEIGHTS_FILE, model)
    written = to_json(config)
    written["model"] = {key: value for key, value in written["model"].items() if value is not None}
    write_json(directory / CONFIG, written)


def from_pretrained(directory: str | Path, *, base: nn.Module | None = None, trust_code: bool = False) -> nn.Module:
    """The network that ``save_pretrained`` or an upgrade left in ``directory``, in evaluation mode.

    ``base`` is the original network, with any weights, for where the folder cannot tell how to build it;
    ``trust_code`` allows it to run the Python file in the folder for that.
    """
    directory = Path(directory)
    config = read_config(directory)
    original = base if base is not None else _rebuild(config, directory, trust_code=trust_code)
    model = restructured(original, config.edits)
    fill(model, read_weights(directory / WEIGHTS_FILE), str(directory / WEIGHTS_FILE))
    return model.eval()


def read_config(directory: str | Path) -> Config:
    """What ``config.json`` in ``directory`` says."""
    path = Path(directory) / CONFIG
    return from_json(Config, _current(read_json(path), path))


def write_weights(path: Path, model: nn.Module) -> None:
    """The weights of ``model`` as a safetensors file, whole or not at all; the same weights give the same bytes."""
    write_bytes(
        path, save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()})
    )


def restructured(original: nn.Module, changes: Sequence[Edit]) -> nn.Module:
    """A copy of ``original`` with fresh Ghost modules. Raises UserError where it lacks a layer that becomes one."""
    modules = dict(original.named_modules())
    for change in changes:
        if not isinstance(modules.get(change.name), nn.Conv2d):
            raise UserError(
                f"{type(original).__name__} is not the network that was upgraded: {change.name} is no convolution of it"
            )
        for other in (change.norm, change.act):
            if other is not None and other not in modules:
                raise UserError(f"{type(original).__name__} is not the network that was upgraded: it has no {other}")
    return restructure(original, changes)


def build(source: str, *, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
    """The untrained network a source names: ``file.py:factory``, or a name of the catalogue with these numbers."""
    if is_file(source):
        path, _, factory = source.rpartition(":")
        return load_factory(Path(path), factory)
    return create_model(source, num_classes=num_classes, in_chans=in_chans)


def is_file(source: str) -> bool:
    """Whether a source has the form ``file.py:factory``."""
    return source.rpartition(":")[0].endswith(".py")


def load_factory(path: Path, factory: str) -> nn.Module:
    """What the function ``factory`` of that Python file returns. The file is run, with its own folder importable."""
    try:
        code = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    name = f"ghostnets_code_{hashlib.sha256(code).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up here
    with _importable(path.resolve().parent):
        try:
            spec.loader.exec_module(module)
            made = getattr(module, factory)()
        except Exception as error:  # the user's code may raise anything
            del sys.modules[name]
            if isinstance(error, AttributeError) and not hasattr(module, factory):
                raise UserError(f"{path} has no function {factory!r}") from None
            said = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{path}:{factory} fails with {type(error).__name__}{f': {said}' if said else ''}"
            ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{path}:{factory} returns {type(made).__name__}: it must return the network, an nn.Module")
    return made


def describe(source: str | None, model: nn.Module, dataset: Dataset) -> Source:
    """What ``config.json`` says of where ``model`` comes from.

    Raises UserError where the source cannot be built or is another network: better before an upgrade than after it.
    """
    if source is None or not (is_file(source) or source in BUILDERS or source in WEIGHTS):
        return Source(class_name=f"{type(model).__module__}.{type(model).__qualname__}")
    _same_shapes(build(source, num_classes=len(dataset.classes), in_chans=image_size(dataset)[0]), model, source)
    if is_file(source):
        return Source(file=CODE_FILE, factory=source.rpartition(":")[2])
    return Source(name=source)


def _current(data: Any, path: Path) -> Any:
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}, and this version reads up to {SCHEMA}: update ghostnets")
    return data


def image_size(dataset: Dataset) -> tuple[int, int, int]:
    """(C, H, W) of the images."""
    channels, height, width = dataset.train.pixels.shape[1:]
    return channels, height, width


def _rebuild(config: Config, directory: Path, *, trust_code: bool) -> nn.Module:
    source = config.model
    if source.name is not None:
        return create_model(source.name, num_classes=config.num_classes, in_chans=config.in_chans)
    if source.file is not None and source.factory is not None:
        code = directory / Path(source.file).name  # never a file outside the folder
        if not trust_code:
            raise UserError(
                f"{directory} needs its file {code.name} to be run: read it, then pass trust_code=True, "
                "or pass the original network as base="
            )
        return load_factory(code, source.factory)
    raise UserError(
        f"{directory} was made from a network in memory ({source.class_name}): pass one of that class as base="
    )


def _same_shapes(built: nn.Module, model: nn.Module, what: str) -> None:
    one, other = ({name: tuple(t.shape) for name, t in m.state_dict().items()} for m in (built, model))
    odd = next((name for name in {**one, **other} if one.get(name) != other.get(name)), None)
    if odd is not None:
        raise UserError(f"{what} is for another network than this {type(model).__name__}: they differ in {odd}")


@contextmanager
def _importable(folder: Path) -> Generator[None, None, None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
