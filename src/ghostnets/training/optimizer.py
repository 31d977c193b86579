# SPDX-License-Identifier: Apache-2.0
"""What moves the weights: parameter groups by decay and depth, and the optimisers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from ghostnets.errors import MissingExtra
from ghostnets.training.recipe import Recipe

Groups = list[dict[str, Any]]
"""PyTorch's parameter groups; ``scale`` is the group's share of the learning rate, ``head`` whether it is the classifier's."""


def parameter_groups(model: nn.Module, head: nn.Module, recipe: Recipe) -> Groups:
    """Everything that learns, in groups that share decay and rate: no decay for vectors (norms, biases), and a rate that
    falls by ``layer_decay`` a block from the ``head`` down.
    """
    in_head = {id(p) for p in head.parameters()}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    blocks = list(dict.fromkeys(block_of(name) for name, p in named if id(p) not in in_head))
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for name, p in named:
        is_head, decays = id(p) in in_head, p.ndim > 1
        above = 0 if is_head else len(blocks) - blocks.index(block_of(name))
        scale = recipe.layer_decay**above
        fresh = {"params": [], "scale": scale, "head": is_head, "weight_decay": recipe.weight_decay * decays}
        groups.setdefault((decays, scale, is_head), fresh)["params"].append(p)
    return list(groups.values())


def block_of(name: str) -> str:
    """The block a parameter belongs to, by its name: the first word and the numbers behind it (``blocks.3.1``)."""
    first, *rest = name.split(".")
    return ".".join([first, *takewhile(str.isdigit, rest)])


def make_optimizer(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser. Raises MissingExtra where another library has it and is not installed."""
    return OPTIMIZERS[recipe.opt](groups, recipe)


def _sgd(groups: Iterable[Any], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _adamw(groups: Iterable[Any], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))


def _lamb(groups: Iterable[Any], recipe: Recipe) -> torch.optim.Optimizer:
    try:
        from pytorch_optimizer import Lamb  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
    except ImportError:
        raise MissingExtra("the optimiser lamb", "optimizers") from None
    # The paper's algorithm 2: the decay is part of the step that the trust ratio scales (else it would be AdamW's), and
    # that step is not made longer at the start (else the first would be 1 / (1 - momentum) times the rate).
    return Lamb(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decouple=False, adam_debias=True)


OPTIMIZERS: Mapping[str, Callable[[Iterable[Any], Recipe], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,  # arXiv:1711.05101
    "lamb": _lamb,  # arXiv:1904.00962
}
