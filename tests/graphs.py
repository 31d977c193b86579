# SPDX-License-Identifier: Apache-2.0
"""Networks to capture, with norms that are not the identity, and how far a graph is from what PyTorch computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ghostnets.deploy.graph import Graph
from ghostnets.deploy.reference import outputs


class Forward(nn.Module):
    """A forward written where it is tested; modules and tensors it uses are its attributes."""

    def __init__(self, call: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.call = call
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)


def then(value: Any, call: Callable[[Any], Any]) -> Any:
    """What is made of a value that is read twice."""
    return call(value)


def lively(model: nn.Module) -> nn.Module:
    """The network in evaluation mode with drawn statistics, scales and shifts in its norms, and no bias that is zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


@torch.no_grad()
def truth(model: nn.Module, x: Tensor) -> np.ndarray:
    """What PyTorch makes of the first image in float64."""
    return copy.deepcopy(model).double()(x[:1].double())[0].numpy()


def distance(graph: Graph, x: Tensor, expected: np.ndarray) -> float:
    """The largest difference between the graph in float64 and the truth, as a part of its largest number."""
    found = outputs(graph, x[0].numpy())[graph.output].reshape(graph.output_shape)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def kinds(graph: Graph) -> list[str]:
    """What its operations are, with the activations that they hold."""
    words: list[str] = []
    for step in graph.operations:
        activation = getattr(step, "activation", None)
        words.append(type(step).__name__ + (f" {activation}" if activation else ""))
    return words
