# SPDX-License-Identifier: Apache-2.0
"""What a network costs: parameters and multiply-adds, layer by layer.

MACs are those of convolutions and linear layers (one multiply-add = 1); norms fold away and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghostnets.measure.modes import evaluating


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One convolution or linear layer; MACs for one image."""

    name: str
    params: int
    macs: int


def layer_costs(model: nn.Module, example: Tensor) -> tuple[LayerCost, ...]:
    """Every convolution and linear layer in the order it first runs on ``example``; the model is left as it was."""
    macs: dict[str, int] = {}
    handles = [
        module.register_forward_hook(_counter(name, macs, len(example)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    params = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in macs}
    return tuple(LayerCost(name=name, params=params[name], macs=count) for name, count in macs.items())


def total_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds for one image."""
    return sum(layer.macs for layer in layer_costs(model, example))


def total_params(model: nn.Module) -> int:
    """All parameters, the norms' included, buffers not."""
    return sum(p.numel() for p in model.parameters())


def _counter(name: str, macs: dict[str, int], images: int) -> Callable[[nn.Module, object, Tensor], None]:
    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        # The layer's own batch may be another: crops of an image, or its positions, are often moved there.
        macs[name] = macs.get(name, 0) + weight[0].numel() * output.numel() // images

    return count
