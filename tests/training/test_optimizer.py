# SPDX-License-Identifier: Apache-2.0
"""Parameter groups against tables written by hand, and optimiser steps against the formulas of their papers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ghostnets.models.catalog import create_model
from ghostnets.models.ghostnet import GhostNet
from ghostnets.training.optimizer import Groups, block_of, make_optimizer, parameter_groups
from ghostnets.training.pupil import head_of
from ghostnets.training.recipe import Recipe

Row = tuple[float, float, bool]
"""Share of the rate, weight decay, and whether it is the classifier's."""


def rows(model: nn.Module, groups: Groups) -> dict[str, Row]:
    """The groups by the names of what is in them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(p)]: (group["scale"], group["weight_decay"], group["head"])
        for group in groups
        for p in group["params"]
    }


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        stage = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1)), nn.Sequential(nn.Conv2d(4, 4, 1, bias=False)))
        self.blocks = nn.Sequential(stage, nn.Sequential(nn.BatchNorm2d(4)))
        self.fc = nn.Linear(4, 2)


SMALL: dict[str, tuple[int, bool, bool]] = {
    "conv_stem.weight": (5, True, False),
    "bn1.weight": (4, False, False),
    "bn1.bias": (4, False, False),
    "blocks.0.0.0.weight": (3, True, False),
    "blocks.0.0.0.bias": (3, False, False),
    "blocks.0.1.0.weight": (2, True, False),
    "blocks.1.0.weight": (1, False, False),
    "blocks.1.0.bias": (1, False, False),
    "fc.weight": (0, True, True),
    "fc.bias": (0, False, True),
}
"""Blocks below the classifier, whether it decays, whether it is the classifier's."""


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("conv_stem.weight", "conv_stem"),
        ("blocks.3.1.ghost1.primary_conv.0.weight", "blocks.3.1"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("features.17.weight", "features.17"),
        ("weight", "weight"),
    ],
)
def test_a_block_is_the_first_word_and_the_numbers_behind_it(name: str, block: str) -> None:
    assert block_of(name) == block


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_the_groups_of_a_small_network(layer_decay: float) -> None:
    model = Small()
    recipe = Recipe(weight_decay=0.01, layer_decay=layer_decay)
    wanted = {name: (layer_decay**above, 0.01 * decays, head) for name, (above, decays, head) in SMALL.items()}
    groups = parameter_groups(model, model.fc, recipe)
    assert rows(model, groups) == wanted
    assert len(groups) == len(set(wanted.values()))


def test_a_frozen_parameter_is_in_no_group_and_takes_no_block_away() -> None:
    model = Small()
    model.conv_stem.requires_grad_(False)
    model.bn1.weight.requires_grad_(False)
    found = rows(model, parameter_groups(model, model.fc, Recipe(layer_decay=0.5)))
    assert set(found) == set(SMALL) - {"conv_stem.weight", "bn1.weight"}
    assert found["bn1.bias"][0] == 0.5**4


@pytest.mark.parametrize("name", ["ghostnet_050", "resnet20"])
def test_every_parameter_of_a_network_is_in_one_group_at_its_depth(name: str) -> None:
    model = create_model(name)
    groups = parameter_groups(model, head_of(model), Recipe(weight_decay=1e-4, layer_decay=0.9))
    assert Counter(id(p) for group in groups for p in group["params"]) == Counter(id(p) for p in model.parameters())
    if isinstance(model, GhostNet):
        stages = [f"blocks.{i}.{j}." for i, stage in enumerate(model.blocks) for j, _ in enumerate(stage)]  # pyright: ignore[reportArgumentType]
        order = ["conv_stem.", "bn1.", *stages, "conv_head.", "classifier."]
    else:
        order = ["conv1.", "bn1.", *(f"layer{i}.{j}." for i in (1, 2, 3) for j in range(3)), "linear."]
    found = rows(model, groups)
    for key, parameter in model.named_parameters():
        (depth,) = [k for k, start in enumerate(reversed(order)) if key.startswith(start)]
        scale, decay, is_head = found[key]
        assert scale == pytest.approx(0.9**depth), key
        assert decay == (0.0 if isinstance(parameter, nn.Parameter) and parameter.dim() == 1 else 1e-4), key
        assert is_head == (depth == 0), key


def test_a_parameter_with_two_names_is_moved_once() -> None:
    model = Small()
    model.blocks[1][0] = model.bn1  # pyright: ignore[reportIndexIssue]
    moved = [p for group in parameter_groups(model, model.fc, Recipe()) for p in group["params"]]
    assert len(moved) == len({id(p) for p in moved}) == len(list(model.parameters()))


# --- steps


def steps(recipe: Recipe, by_hand: Callable[[float, list[float], float, int], float], count: int = 3) -> None:
    """Set the optimiser's way of a matrix and a vector beside ``by_hand``, which gets a weight, its gradients so far, its decay,
    and the number of the step.
    """
    model = nn.Linear(3, 2)
    weights = {name: parameter.detach().flatten().tolist() for name, parameter in model.named_parameters()}
    gradients: dict[str, list[list[float]]] = {name: [] for name in weights}
    optimizer = make_optimizer(parameter_groups(model, model, recipe), recipe)
    for step in range(1, count + 1):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            gradients[name].append(parameter.grad.flatten().tolist())
        optimizer.step()
        for name, parameter in model.named_parameters():
            decay = recipe.weight_decay if name == "weight" else 0.0
            weights[name] = [
                by_hand(w, list(seen), decay, step)
                for w, *seen in zip(weights[name], *gradients[name], strict=True)
            ]  # fmt: skip
            assert parameter.detach().flatten().tolist() == pytest.approx(weights[name], rel=1e-5, abs=1e-6)


def test_sgd_looks_ahead_as_nesterov_does() -> None:
    recipe = Recipe(opt="sgd", lr=0.1, momentum=0.8, weight_decay=0.0)

    def move(w: float, seen: list[float], _decay: float, step: int) -> float:
        velocity = sum(0.8 ** (step - 1 - k) * g for k, g in enumerate(seen))
        return w - 0.1 * (seen[-1] + 0.8 * velocity)

    steps(recipe, move)


def test_sgd_without_momentum_takes_gradient_and_decay() -> None:
    recipe = Recipe(opt="sgd", lr=0.1, momentum=0.0, weight_decay=0.3)
    steps(recipe, lambda w, seen, decay, _step: w - 0.1 * (seen[-1] + decay * w))


def test_the_decay_of_sgd_goes_through_its_momentum() -> None:
    recipe = Recipe(opt="sgd", lr=0.1, momentum=0.9, weight_decay=0.5)
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = make_optimizer([{"params": [weight], "weight_decay": 0.5}], recipe)
    w, velocity = 2.0, 0.0
    for _ in range(4):
        weight.grad = torch.zeros(1, 1)
        optimizer.step()
        velocity = 0.9 * velocity + 0.5 * w
        w -= 0.1 * (0.5 * w + 0.9 * velocity)
        assert float(weight.detach()) == pytest.approx(w)


def moments(seen: list[float], step: int, betas: tuple[float, float]) -> tuple[float, float]:
    """Averages of the gradients and of their squares."""
    first, second = (
        sum((1 - beta) * beta ** (step - 1 - k) * g**power for k, g in enumerate(seen))
        for beta, power in zip(betas, (1, 2), strict=True)
    )
    return first, second


def test_adamw_by_hand() -> None:
    recipe = Recipe(opt="adamw", lr=0.01, momentum=0.8, weight_decay=0.2)

    def move(w: float, seen: list[float], decay: float, step: int) -> float:
        first, second = moments(seen, step, (0.8, 0.999))
        first, second = first / (1 - 0.8**step), second / (1 - 0.999**step)
        return w * (1 - 0.01 * decay) - 0.01 * first / (math.sqrt(second) + 1e-8)  # arXiv:1711.05101, algorithm 2

    steps(recipe, move)


def test_lamb_by_hand() -> None:
    """arXiv:1904.00962, algorithm 2, in its third version: no correction of the averages' start."""
    recipe = Recipe(opt="lamb", lr=0.05, momentum=0.8, weight_decay=0.3)
    model = nn.Linear(4, 3)
    optimizer = make_optimizer(parameter_groups(model, model, recipe), recipe)
    own = {name: p.detach().clone().double() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(w) for name, w in own.items()} for _ in range(2))
    for _ in range(4):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            gradient = parameter.grad.double()
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient.square()
        optimizer.step()
        for name, parameter in model.named_parameters():
            decay = 0.3 if name == "weight" else 0.0
            update = first[name] / (second[name].sqrt() + 1e-6) + decay * own[name]
            trust: Tensor = own[name].norm() / update.norm()
            own[name] = own[name] - 0.05 * trust * update
            torch.testing.assert_close(parameter.detach().double(), own[name], rtol=1e-4, atol=1e-5)


def test_muon_makes_the_steps_of_mixing_filters_orthogonal() -> None:
    """Against the exact factors of Nesterov's gradient: five Newton-Schulz steps leave its singular vectors and bring the
    values to about 1 (Jordan et al., https://kellerjordan.github.io/posts/muon/).
    """
    recipe = Recipe(opt="muon", lr=0.5, momentum=0.8, weight_decay=0.1)
    model = nn.Sequential(nn.Conv2d(6, 4, 3, bias=False), nn.Linear(4, 2))
    weight = model.get_parameter("0.weight")
    optimizer = make_optimizer(parameter_groups(model, model[1], recipe), recipe)
    average = torch.zeros(4, 54)
    for _ in range(3):
        before = weight.detach().clone()
        weight.grad = torch.randn_like(weight)
        gradient = weight.grad.flatten(1).clone()
        optimizer.step()
        average = 0.8 * average + 0.2 * gradient
        left, _, right = torch.linalg.svd(0.2 * gradient + 0.8 * average, full_matrices=False)
        turned = (before * (1 - 0.5 * 0.1) - weight.detach()).flatten(1) / 0.5
        values = left.T @ turned @ right.T
        assert float(values.diagonal().min()) > 0.6
        assert float(values.diagonal().max()) < 1.3
        assert float((values - values.diagonal().diag()).abs().max()) < 0.05
        torch.testing.assert_close(turned, left @ values @ right, atol=0.05, rtol=0.0)


def test_beside_muon_adamw_moves_vectors_depthwise_filters_and_the_classifier() -> None:
    recipe = Recipe(opt="muon", lr=0.1, adamw_share=0.3, momentum=0.8, weight_decay=0.2)

    def move(w: float, seen: list[float], decay: float, step: int) -> float:
        first, second = moments(seen, step, (0.8, 0.999))
        first, second = first / (1 - 0.8**step), second / (1 - 0.999**step)
        return w * (1 - 0.03 * decay) - 0.03 * first / (math.sqrt(second) + 1e-8)  # three tenths of Muon's rate

    steps(recipe, move)
    model = create_model("ghost_resnet20")
    groups = make_optimizer(parameter_groups(model, head_of(model), recipe), recipe).param_groups
    turned = {id(p) for group in groups if group["use_muon"] for p in group["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in turned) == (name == "conv1.weight" or name.endswith("primary_conv.0.weight")), name
    assert {(group["use_muon"], group["scale"]) for group in groups} == {(True, 1.0), (False, 0.3)}
    assert Counter(id(p) for group in groups for p in group["params"]) == Counter(id(p) for p in model.parameters())


def test_the_rate_of_a_group_can_be_set_and_its_share_is_kept() -> None:
    model = Small()
    optimizer = make_optimizer(parameter_groups(model, model.fc, Recipe(layer_decay=0.5)), Recipe())
    assert {group["scale"] for group in optimizer.param_groups} == {0.5**k for k in range(6)}
    before = model.conv_stem.weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if not group["head"] else 0.1
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    head = model.fc.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.conv_stem.weight, before)
    assert not torch.equal(model.fc.weight, head)
