# SPDX-License-Identifier: Apache-2.0
"""What a network costs: parameters and multiply-adds, layer by layer.

MACs are those of convolutions and linear layers (one multiply-add = 1); norms fold away and have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghostnets.measure.modes import evaluating


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer with parameters of its own; everything for one image."""

    name: str
    kind: str
    """Its class."""
    shape: tuple[int, ...]
    """(C, H, W) or (C,) of its output where it runs first."""
    params: int
    macs: int
    activation_bytes: int
    """Of its output, in the precision it was computed in."""


def layer_costs(model: nn.Module, example: Tensor) -> tuple[LayerCost, ...]:
    """Every layer with parameters in the order it first runs on ``example``; the model is left as it was."""
    found: dict[str, LayerCost] = {}
    handles = [
        module.register_forward_hook(_counter(name, found, len(example)))
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found.values())


def total_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds for one image."""
    return sum(layer.macs for layer in layer_costs(model, example))


def total_params(model: nn.Module) -> int:
    """All parameters, the norms' included, buffers not."""
    return sum(p.numel() for p in model.parameters())


def _counter(name: str, found: dict[str, LayerCost], images: int) -> Callable[[nn.Module, object, Tensor], None]:
    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        weight = module.weight if isinstance(module, nn.Conv2d | nn.Linear) else None
        # The layer's own batch may be another: crops of an image, or its positions, are often moved there.
        macs = 0 if weight is None else weight[0].numel() * output.numel() // images
        before = found.get(name)
        found[name] = LayerCost(
            name=name,
            kind=type(module).__name__,
            shape=before.shape if before else tuple(output.shape[1:]),
            params=sum(p.numel() for p in module.parameters(recurse=False)),
            macs=macs + (before.macs if before else 0),
            activation_bytes=output.numel() * output.element_size() // images
            + (before.activation_bytes if before else 0),
        )

    return count
