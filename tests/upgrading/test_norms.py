# SPDX-License-Identifier: Apache-2.0
"""Refreshed norms: the same function, the statistics that hooks measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ghostnets.models.resnet import ghost_cifar_resnet
from ghostnets.upgrading.norms import refresh_norms_


def keeping(inputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[name] = given[0].clone()

    return keep


def test_the_function_stays_and_the_statistics_are_those_of_the_real_input(
    settled: Callable[[nn.Module], nn.Module], snapshot: Callable[[nn.Module], dict[str, Any]]
) -> None:
    model = settled(ghost_cifar_resnet(8))
    model.get_submodule("layer1").train()  # modes may be mixed, and come back so
    images = torch.randn(90, 3, 12, 12)
    inputs: dict[str, Tensor] = {}
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    modes = [m.training for m in model.modules()]
    before = snapshot(model)
    with torch.no_grad():
        expected = model.eval()(images)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        refresh_norms_(model, lambda: images.split(40))
        after = snapshot(model)
        assert [m.training for m in model.modules()] == modes
        assert (after["hooks"], after["objects"], after["random"]) == (
            before["hooks"],
            before["objects"],
            before["random"],
        )
        hooks = [norm.register_forward_pre_hook(keeping(inputs, name)) for name, norm in norms.items()]
        made = model.eval()(images)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    for name, norm in norms.items():
        variance, mean = torch.var_mean(inputs[name], (0, 2, 3), unbiased=False)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-5)


def test_norms_without_scale_or_statistics_and_those_never_reached_stay() -> None:
    bare, batch, unused = (
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4),
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 1), bare, batch)
    model.unused = unused
    model.forward = lambda x: batch(bare(model[0](x)))  # pyright: ignore[reportAttributeAccessIssue]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    refresh_norms_(model, lambda: [torch.randn(5, 3, 4, 4)])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_map_that_never_changes_does_no_harm() -> None:
    norm = nn.BatchNorm2d(2).eval()
    x = torch.full((4, 2, 3, 3), 5.0)
    refresh_norms_(norm, lambda: [x])
    assert torch.isfinite(norm.weight).all()
    with torch.no_grad():
        torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5, rtol=1e-5, atol=1e-5)
