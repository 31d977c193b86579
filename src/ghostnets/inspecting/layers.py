# SPDX-License-Identifier: Apache-2.0
"""Where a network's maps come out: its convolutions, its blocks and its stages, seen in one forward pass.

Nothing is traced: hooks see which module is called with what, so any forward will do.
"""

from __future__ import annotations

import difflib
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ghostnets.errors import UserError, first_line
from ghostnets.measure.modes import evaluating

FOLLOWERS = (
    nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU,
    nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus,
)  # fmt: skip
"""What belongs to the convolution whose output it reads: its norm and its activation."""

BLOCK_CONVOLUTIONS = 2
"""A module with fewer is no block."""

TIMED = 5
"""Passes; the median of each layer counts."""


class Place(NamedTuple):
    """One of the calls of a module in a forward pass: an activation may serve many layers."""

    module: str
    call: int = 0

    def __str__(self) -> str:
        return self.module if not self.call else f"{self.module} (call {self.call + 1})"


@dataclass(frozen=True)
class Layer:
    """A convolution, and the call that gives out its finished maps: its own, or its norm's or activation's."""

    name: str
    end: Place
    module: nn.Conv2d
    channels: int
    size: tuple[int, int]
    """(H, W)"""
    macs: int
    """Multiply-adds on one image."""


@dataclass(frozen=True)
class Stage:
    """Blocks in a row whose outputs have one shape (G-Ghost's unit: arXiv:2201.03297)."""

    name: str
    blocks: tuple[str, ...]
    channels: int
    size: tuple[int, int]


Hook = Callable[[Place, tuple[Any, ...], Any], None]
"""Told which call it was, what went in, and what came out."""


@contextmanager
def hooked(model: nn.Module, names: Iterable[str], hook: Hook) -> Generator[None, None, None]:
    """While the block runs, ``hook`` hears of every call of these modules, counted from the block's start."""
    calls = dict.fromkeys(names, 0)

    def counted(name: str) -> Any:
        def hear(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            hook(Place(name, calls[name] - 1), inputs, output)

        return hear

    handles = [model.get_submodule(name).register_forward_hook(counted(name)) for name in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layers_of(model: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    """The convolutions that one image (1, C, H, W) goes through, in the order they run, each at its first call.

    Raises UserError where the network does not take the image or has no convolution.
    """
    found: dict[str, Layer] = {}
    owner: dict[int, str] = {}
    kept: list[Any] = []  # so that no two tensors get the same id

    def see(place: Place, inputs: tuple[Any, ...], output: Any) -> None:
        name, module = place.module, model.get_submodule(place.module)
        kept.extend([inputs, output])
        if not isinstance(output, Tensor) or output.dim() != 4:
            return
        if isinstance(module, nn.Conv2d) and name not in found:
            _, channels, height, width = output.shape
            macs = module.weight.numel() * height * width
            found[name] = Layer(name, place, module, channels, (height, width), macs)
            owner[id(output)] = name
        elif isinstance(module, FOLLOWERS) and inputs and id(inputs[0]) in owner:
            before = found[owner[id(inputs[0])]]
            found[before.name] = Layer(before.name, place, before.module, before.channels, before.size, before.macs)
            owner[id(output)] = before.name

    leaves = [name for name, module in model.named_modules() if name and not any(module.children())]
    with hooked(model, leaves, see):
        run(model, example)
    if not found:
        raise UserError(f"{type(model).__name__} has no convolution with maps to look at")
    return tuple(found.values())


def stages_of(model: nn.Module, example: Tensor) -> tuple[Stage, ...]:
    """Rows of at least two blocks in one container whose outputs have one shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def see(place: Place, _inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            shapes.setdefault(place.module, tuple(output.shape[1:]))

    blocks = [name for name, module in model.named_modules() if name and _is_block(module)]
    with hooked(model, blocks, see):
        run(model, example)
    return tuple(_stages(model, shapes))


def _is_block(module: nn.Module) -> bool:
    convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    return convolutions >= BLOCK_CONVOLUTIONS and not isinstance(module, nn.Sequential)


def _stages(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Stage]:
    for name, container in model.named_modules():
        if not isinstance(container, nn.Sequential | nn.ModuleList):
            continue
        children = [f"{name}.{child}" if name else child for child, _ in container.named_children()]
        for shape, row in groupby(children, key=shapes.get):
            blocks = tuple(row)
            if shape is not None and len(blocks) > 1:
                whole = len(blocks) == len(children)
                label = name if whole and name else f"{blocks[0]} … {blocks[-1].rpartition('.')[2]}"
                yield Stage(label, blocks, shape[0], (shape[1], shape[2]))


def run(model: nn.Module, images: Tensor) -> None:
    """Let the network look at the images, in evaluation mode. Raises UserError where it does not take them."""
    try:
        with evaluating(model), torch.no_grad():
            model(images)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = "×".join(map(str, images.shape[1:]))
        raise UserError(f"{type(model).__name__} does not run on images of {shape}: {first_line(error)}") from error


def maps_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """What the module of that name gives out (N, C, H, W) at its first call. Raises UserError where it is no such thing."""
    modules = dict(model.named_modules())
    if not name or name not in modules:
        close = difflib.get_close_matches(name, modules, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"the network has no module {name!r}{hint}")
    found: list[Tensor] = []

    def see(_place: Place, _inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            found.append(output.detach().clone())

    with hooked(model, [name], see):
        run(model, images)
    if not found:
        raise UserError(f"module {name} gives out no maps: name one whose output is (images, channels, height, width)")
    return found[0]


def times(model: nn.Module, ends: Mapping[str, Place], example: Tensor) -> dict[str, float]:
    """Milliseconds from the first call of each module to the end of the call given with it, its own or that of a follower,
    on one image: the median of some passes, after one that does not count.
    """
    started: dict[str, float] = {}
    taken: dict[str, list[float]] = {name: [] for name in ends}
    begun = {end: [name for name, other in ends.items() if other == end] for end in ends.values()}

    def before(name: str) -> Any:
        def start(_module: nn.Module, _inputs: Any) -> None:
            started.setdefault(name, time.perf_counter())

        return start

    def see(place: Place, _inputs: tuple[Any, ...], _output: Any) -> None:
        now = time.perf_counter()
        for name in begun.get(place, ()):
            taken[name].append(1000 * (now - started[name]))

    handles = [model.get_submodule(name).register_forward_pre_hook(before(name)) for name in ends]
    try:
        for _ in range(TIMED + 1):
            started.clear()
            with hooked(model, {end.module for end in ends.values()}, see):
                run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: statistics.median(figures[1:]) for name, figures in taken.items()}
