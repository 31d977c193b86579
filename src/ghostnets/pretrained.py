# SPDX-License-Identifier: Apache-2.0
"""Save a network and load it again in a process that has never seen it.

``config.json`` says how the network is built, in an upgrade which of its layers became Ghost modules, and what images the network
expects; ``model.safetensors`` holds the weights. Nothing in either is run. Only where the original comes from a Python
file of the user's is that file kept beside them, and it runs only for who says so.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import json
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import nn

from ghostnets.blocks.branches import fold_branches
from ghostnets.errors import UserError
from ghostnets.hub import CONFIG, WEIGHTS_FILE, fetch_folder, is_repository
from ghostnets.models.backbone import Backbone
from ghostnets.models.catalog import BUILDERS, TRAINED, create_model
from ghostnets.models.weights import fill, read_weights
from ghostnets.records import SCHEMA, Plan, from_json, read_json, to_json, write_bytes, write_json
from ghostnets.training.data import Dataset
from ghostnets.training.image_folder import CROP_FRACTION
from ghostnets.upgrading.convert import Edit, edits, restructure
from ghostnets.upgrading.sites import find_sites


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a network comes from: the catalogue, a function in a Python file, or memory (then only its class is known)."""

    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the catalogue's builder was given beside classes and channels."""
    folded: bool = False
    """Whether its branches are folded (GhostNetV3)."""
    file: str | None = None
    beside: tuple[str, ...] = ()
    """The Python files of its own folder, and of packages there, that it imports."""
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
    """The layers that became Ghost modules in an upgrade."""
    crop: float = CROP_FRACTION
    """Share of the scaled image's tighter side that the network is shown."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    rescale: bool = False
    """Whether an image of the input's size is scaled and cropped like any other."""
    schema: int = SCHEMA


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    dataset: Dataset | None = None,
    original: nn.Module | None = None,
    plan: Plan | None = None,
    source: str | None = None,
) -> None:
    """Write ``model`` so that ``from_pretrained`` finds it in ``directory``.

    A network of the catalogue needs no more than the ``dataset`` whose images and classes it is for, and not even that
    where it still has the classes it came trained with. One that ``plan`` made of ``original`` needs both of them;
    ``source`` is then the name of the original in the catalogue or ``file.py:factory``, without which the network can
    be loaded only by who has the original's code.

    Raises UserError where something is missing, what ``source`` names is another network, or ``model`` is not what the
    plan says.
    """
    directory = Path(directory)
    if (original is None) != (plan is None):
        raise UserError("original and plan belong together: give both for an upgraded network, neither for any other")
    config = (
        _plain(model, dataset, source)
        if original is None or plan is None
        else _upgraded(model, original, plan, dataset, source)
    )
    if config.model.file is not None:
        code = Path(str(source).rpartition(":")[0])
        for file in (code.name, *config.model.beside):
            write_bytes(directory / file, (code.parent / file).read_bytes())
    _write(directory, model, config)


def save_trained_on(model: nn.Module, directory: str | Path, *, source: str | Path, dataset: Dataset) -> None:
    """Write a network that came from the folder ``source``, upgraded or not, and has learned on ``dataset`` since.

    Raises UserError where it tells other classes apart than before.
    """
    directory, folder = Path(directory), located(source)
    before = read_config(folder)
    if len(dataset.classes) != before.num_classes:
        raise UserError(
            f"{source} tells {before.num_classes} classes apart, and the images have {len(dataset.classes)}"
        )
    for file in (before.model.file, *before.model.beside):
        if file is not None:
            write_bytes(directory / file, (folder / file).read_bytes())
    _write(directory, model, replace(before, **_expects(dataset)))


def _write(directory: Path, model: nn.Module, config: Config) -> None:
    write_weights(directory / WEIGHTS_FILE, model)
    written = to_json(config)
    written["model"] = {key: value for key, value in written["model"].items() if value}
    write_json(directory / CONFIG, written)


def _upgraded(model: nn.Module, original: nn.Module, plan: Plan, dataset: Dataset | None, source: str | None) -> Config:
    if dataset is None:
        raise UserError("an upgraded network is saved with the dataset that it is for: pass dataset=")
    size = image_size(dataset)
    anatomy = find_sites(copy.deepcopy(original).cpu().float().eval(), torch.zeros(1, *size))
    changes = edits(anatomy, plan.decisions)
    config = Config(model=describe(source, original, dataset), edits=changes, **_expects(dataset))
    _same_shapes(restructured(original, changes), model, "the plan")
    return config


def _plain(model: nn.Module, dataset: Dataset | None, source: str | None) -> Config:
    expects = _expects(dataset) if dataset is not None else _as_trained(model)
    classes = getattr(model, "num_classes", expects["num_classes"])
    if classes != expects["num_classes"]:
        raise UserError(f"the network tells {classes} classes apart, and the images have {expects['num_classes']}")
    return Config(model=_source(source, model, classes, expects["in_chans"]), edits=(), **expects)


def _expects(dataset: Dataset) -> dict[str, Any]:
    """The part of a config that the images decide."""
    size = image_size(dataset)
    return {
        "num_classes": len(dataset.classes), "in_chans": size[0], "input_size": size, "mean": dataset.mean,
        "std": dataset.std, "classes": dataset.classes,
    }  # fmt: skip


def _as_trained(model: nn.Module) -> dict[str, Any]:
    """The same of a network that has kept the classes it came trained with."""
    known = model.pretrained_cfg if isinstance(model, Backbone) else {}
    row = TRAINED.get(f"{known.get('architecture')}.{known.get('tag')}")
    if row is None or not isinstance(model, Backbone) or len(row.classes) != model.num_classes:
        raise UserError(f"what images and classes this {type(model).__name__} is for is not known: pass dataset=")
    size = (row.in_chans, *row.input_size)
    return {
        "num_classes": len(row.classes), "in_chans": row.in_chans, "input_size": size, "mean": row.mean, "std": row.std,
        "classes": row.classes, "crop": row.crop, "interpolation": row.interpolation,
        "rescale": row.rescale,
    }  # fmt: skip


def _catalogued(model: Backbone, num_classes: int, in_chans: int) -> Source:
    """Name and options of a network that ``create_model`` built, whatever has been done to its weights since."""
    name, options = model.pretrained_cfg["architecture"], dict(model.model_args)
    try:
        json.dumps(options)
    except TypeError:
        raise UserError(
            f"{name} was built with {options}, which no file can hold: name its builder with source=, file.py:factory"
        ) from None
    plain = Source(name=name, options=options)
    built = _from_catalogue(plain, num_classes, in_chans)
    if _shapes(built) == _shapes(model):
        return plain
    _same_shapes(fold_branches(built), model, name)
    return Source(name=name, options=options, folded=True)


def from_pretrained(directory: str | Path, *, base: nn.Module | None = None, trust_code: bool = False) -> nn.Module:
    """The network that ``save_pretrained`` or an upgrade left in ``directory``, in evaluation mode.

    Where there is no such folder, ``owner/name`` is looked for on the Hugging Face hub. ``base`` is the original
    network, with any weights, for where the folder cannot tell how to build it; ``trust_code`` allows it to run the
    Python file in the folder for that.
    """
    directory = located(directory)
    config = read_config(directory)
    original = base if base is not None else _rebuild(config, directory, trust_code=trust_code)
    model = restructured(original, config.edits)
    fill(model, read_weights(directory / WEIGHTS_FILE), str(directory / WEIGHTS_FILE))
    return model.eval()


def is_saved(source: str) -> bool:
    """Whether this names a network that was saved: in a folder here, or on the hub.

    A folder that is called like a network of the catalogue and holds none is not meant: it may be where that one trains.
    """
    folder = Path(source)
    if folder.is_dir():
        return (folder / CONFIG).exists() or not (source in BUILDERS or source in TRAINED)
    return is_repository(source)


def located(directory: str | Path) -> Path:
    """The folder itself, or where there is none and the name could be one of the hub, what the hub has under it."""
    if not Path(directory).exists() and is_repository(str(directory)):
        return fetch_folder(str(directory))
    return Path(directory)


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
    with _importable(path.absolute().parent):  # not resolved: the hub's cache links into another folder
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


def neighbours(code: Path) -> tuple[str, ...]:
    """The Python files beside ``code`` that it imports, directly or through others; of a package, all of its files."""
    code = code.absolute()
    folder = code.parent
    found: dict[str, Path] = {}
    waiting = [code]
    while waiting:
        tree = ast.parse(waiting.pop().read_bytes())
        for name in sorted({name for node in ast.walk(tree) for name in _imported(node)}):
            package = sorted((folder / name).rglob("*.py")) if (folder / name / "__init__.py").is_file() else []
            for file in package or [folder / f"{name}.py"]:
                relative = file.relative_to(folder).as_posix()
                if relative not in found and file.is_file() and file != code:
                    found[relative] = file
                    waiting.append(file)
    return tuple(sorted(found))


def _imported(node: ast.AST) -> Sequence[str]:
    """First parts of the names that a statement imports from elsewhere than its own package."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        return [node.module.partition(".")[0]]
    return []


def describe(source: str | None, model: nn.Module, dataset: Dataset) -> Source:
    """What ``config.json`` says of where ``model`` comes from.

    Raises UserError where the source cannot be built or is another network: better before an upgrade than after it.
    """
    return _source(source, model, len(dataset.classes), image_size(dataset)[0])


def _source(source: str | None, model: nn.Module, num_classes: int, in_chans: int) -> Source:
    known = source is not None and (is_file(source) or source in BUILDERS or source in TRAINED)
    if source is not None and known:
        _same_shapes(build(source, num_classes=num_classes, in_chans=in_chans), model, source)
        if not is_file(source):
            return Source(name=source)
        path, _, factory = source.rpartition(":")
        return Source(file=Path(path).name, beside=neighbours(Path(path)), factory=factory)
    if isinstance(model, Backbone) and "architecture" in model.pretrained_cfg:
        return _catalogued(model, num_classes, in_chans)
    return Source(class_name=f"{type(model).__module__}.{type(model).__qualname__}")


def _current(data: Any, path: Path) -> Any:
    if isinstance(data, dict) and "architecture" in data and "model" not in data:
        name = data["architecture"]
        raise UserError(f"{path} is timm's, not ours: create_model({name!r}, pretrained=True) loads what it describes")
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
        return _from_catalogue(source, config.num_classes, config.in_chans)
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


def _from_catalogue(source: Source, num_classes: int, in_chans: int) -> nn.Module:
    assert source.name is not None
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and nobody sees them
        built = create_model(source.name, num_classes=num_classes, in_chans=in_chans, **source.options)
    return fold_branches(built) if source.folded else built


def _shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _same_shapes(built: nn.Module, model: nn.Module, what: str) -> None:
    one, other = _shapes(built), _shapes(model)
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
