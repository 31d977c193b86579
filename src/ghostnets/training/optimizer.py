# SPDX-License-Identifier: Apache-2.0
"""What moves the weights: parameter groups by decay and depth, and the optimisers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import nn

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
    """The recipe's optimiser."""
    return OPTIMIZERS[recipe.opt](groups, recipe)


def _sgd(groups: Iterable[Any], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _adamw(groups: Iterable[Any], recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))


def _lamb(groups: Iterable[Any], recipe: Recipe) -> torch.optim.Optimizer:
    import pytorch_optimizer  # takes a while

    # The paper's algorithm 2: the decay is part of the step that the trust ratio scales (else it would be AdamW's), and
    # that step is not made longer at the start (else the first would be 1 / (1 - momentum) times the rate).
    betas = (recipe.momentum, 0.999)
    return pytorch_optimizer.Lamb(groups, lr=recipe.lr, betas=betas, weight_decouple=False, adam_debias=True)


def _muon(groups: Iterable[Any], recipe: Recipe) -> torch.optim.Optimizer:
    import pytorch_optimizer

    ready = [part for group in groups for part in _for_muon(group, recipe)]
    return pytorch_optimizer.Muon(
        ready, lr=recipe.lr, momentum=recipe.momentum, adamw_lr=recipe.lr * recipe.adamw_share
    )


def _for_muon(group: Mapping[str, Any], recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The filters of a group that mix channels, whose steps are made orthogonal, and the rest, which AdamW moves: vectors,
    depthwise filters, the classifier.
    """
    mixes = [p.ndim > 1 and p.shape[1] > 1 and not group["head"] for p in group["params"]]
    yes, no = (
        [p for p, mixing in zip(group["params"], mixes, strict=True) if mixing is wanted] for wanted in (True, False)
    )
    if yes:
        yield {**group, "params": yes, "use_muon": True}
    if no:
        own = {"scale": group["scale"] * recipe.adamw_share, "betas": (recipe.momentum, 0.999), "eps": 1e-8}
        yield {**group, "params": no, "use_muon": False, **own}


OPTIMIZERS: Mapping[str, Callable[[Iterable[Any], Recipe], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,  # arXiv:1711.05101
    "lamb": _lamb,  # arXiv:1904.00962
    "muon": _muon,  # Jordan et al., https://kellerjordan.github.io/posts/muon/
}
