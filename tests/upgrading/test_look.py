# SPDX-License-Identifier: Apache-2.0
"""What each edit does, against edits really built with hooks; what the loss feels, image by image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.models.resnet import cifar_resnet
from ghostnets.upgrading import look as module
from ghostnets.upgrading.look import _importance, _trial_filters, look
from ghostnets.upgrading.order import order_cost
from ghostnets.upgrading.sites import find_sites

Settle = Callable[[nn.Module], nn.Module]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fast_dtype", lambda: torch.float32)


def keeping(kept: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    return lambda _m, _i, out: kept.append(out)


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


@torch.no_grad()
def test_a_trials_divergence_is_that_of_the_edited_network(settled: Settle, monkeypatch: pytest.MonkeyPatch) -> None:
    model = settled(cifar_resnet(8))
    images = torch.randn(30, 3, 12, 12)
    anatomy = find_sites(model, images[:1])
    used: list[tuple[str, tuple[Tensor, Tensor]]] = []

    def noted(*args: Any) -> tuple[Tensor, Tensor]:
        used.append((args[1].name, _trial_filters(*args)))
        return used[-1][1]

    monkeypatch.setattr(module, "_trial_filters", noted)
    seen = look(model, anatomy, lambda: images.split(12), ratios=(2, 3), kernel=3, seed=0, progress=quiet)
    assert [name for name, _ in used] == [c.name for c in seen.candidates]
    reference = model(images).log_softmax(1)
    for candidate, (_, (weight, bias)) in zip(seen.candidates, used, strict=True):
        intrinsic = -(-len(candidate.order) // candidate.ratio)
        edited = copy.deepcopy(model)
        site = next(s for s in anatomy.sites if s.name == candidate.name)

        def edit(
            _m: nn.Module, _i: object, value: Tensor, *, order: tuple[int, ...] = candidate.order, m: int = intrinsic,
            ratio: int = candidate.ratio, relu: bool = site.relu, weight: Tensor = weight, bias: Tensor = bias,
        ) -> Tensor:  # fmt: skip
            out = value.clone()
            for ghost, channel in enumerate(order[m:]):
                source = value[:, order[ghost // (ratio - 1)]][:, None]
                source = source.relu() if relu else source
                out[:, channel] = F.conv2d(source, weight[ghost].view(1, 1, 3, 3), bias[ghost : ghost + 1], padding=1)[
                    :, 0
                ]
            return out

        assert site.norm is not None
        edited.get_submodule(site.norm).register_forward_hook(edit)
        logits = edited(images).log_softmax(1)
        expected = float((reference.exp() * (reference - logits)).sum(1).mean())
        assert candidate.divergence == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_importance_is_the_squared_gradient_image_by_image(settled: Settle) -> None:
    model = settled(cifar_resnet(8))
    images = torch.randn(9, 3, 12, 12)
    anatomy = find_sites(model, images[:1])
    found = _importance(model, anatomy, lambda: [images[:5], images[5:]], seed=3, limit=100)
    generator = torch.Generator().manual_seed(3)
    labels = torch.cat([
        torch.multinomial(model(part).softmax(1), 1, generator=generator)[:, 0] for part in (images[:5], images[5:])
    ])  # fmt: skip
    for site in anatomy.sites:
        total = torch.zeros(site.out_channels)
        for image, label in zip(images, labels, strict=True):
            kept: list[Tensor] = []
            end = site.act or site.norm
            assert end is not None
            # act1 is in place, so its output is the value after activation; the norm's must not be overwritten
            handle = model.get_submodule(end).register_forward_hook(keeping(kept))
            loss = -model(image[None]).log_softmax(1)[0, label]
            handle.remove()
            (gradient,) = torch.autograd.grad(loss, kept)
            total += gradient.square().sum((0, 2, 3))
        torch.testing.assert_close(found[site.name].float(), total / 9, rtol=1e-3, atol=1e-9)


def test_costs_are_the_errors_of_the_best_filter_weighed_by_importance(
    settled: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against numpy on all positions; look draws them, so it draws many."""
    monkeypatch.setattr(module, "PAIR_ROWS", 3000)
    model = settled(cifar_resnet(8))
    images = torch.randn(8, 3, 12, 12)
    anatomy = find_sites(model, images[:1])
    seen = look(model, anatomy, lambda: [images], ratios=(2,), kernel=3, seed=0, progress=quiet)
    weight = _importance(model, anatomy, lambda: [images], seed=0, limit=300)["layer1.0.conv1"].numpy()
    kept: list[Tensor] = []
    model.get_submodule("layer1.0.act1").register_forward_hook(keeping(kept))
    with torch.no_grad():
        model(images)
    maps = kept[0].double()
    target = maps.permute(1, 0, 2, 3).flatten(1).T.numpy()
    costs = seen.costs["layer1.0.conv1", 3]
    for source in (0, 7):
        rows = F.unfold(maps[:, source : source + 1], 3, padding=1).permute(0, 2, 1).reshape(-1, 9).numpy()
        rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
        made = rows @ np.linalg.lstsq(rows, target, rcond=None)[0]
        expected = ((made - target) ** 2).mean(0) * weight
        np.testing.assert_allclose(np.delete(costs[source], source), np.delete(expected, source), rtol=0.15)
        assert costs[source, source] < 1e-6 * expected.max()
    for candidate in seen.candidates:
        present = tuple(range(len(candidate.order)))
        assert order_cost(seen.costs[candidate.name, 3], candidate.order, 2) <= order_cost(
            seen.costs[candidate.name, 3], present, 2
        )


def test_trials_stop_at_their_limit_and_all_images_are_counted(settled: Settle) -> None:
    model = settled(cifar_resnet(8))
    images = torch.randn(24, 3, 8, 8)
    anatomy = find_sites(model, images[:1], ignored_layers=["layer2", "layer3"])
    part = look(model, anatomy, lambda: images.split(8), ratios=(2,), kernel=1, seed=0, progress=quiet, trial_images=8)
    whole = look(model, anatomy, lambda: images.split(8), ratios=(2,), kernel=1, seed=0, progress=quiet)
    assert part.images == whole.images == 24
    assert all(c.divergence >= 0 for c in whole.candidates)
    assert [c.divergence for c in part.candidates] != [c.divergence for c in whole.candidates]


def test_without_images_nothing_can_be_seen() -> None:
    model = cifar_resnet(8).eval()
    anatomy = find_sites(model, torch.randn(1, 3, 8, 8))
    with pytest.raises(UserError, match="there is no calibration image"):
        look(model, anatomy, list[Tensor], ratios=(2,), kernel=3, seed=0, progress=quiet)
