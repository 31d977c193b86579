# SPDX-License-Identifier: Apache-2.0
"""Look at the original on calibration images: how well every map can be made from every other, and what
each single edit does to the output. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ghostnets.errors import UserError
from ghostnets.measure.trace import Env, Trace, compute, depends_on, run
from ghostnets.records import Site
from ghostnets.upgrading.calibration import Chunks, Progress
from ghostnets.upgrading.fit import PairMoments, cheap_window, draw_positions, fit_ghosts, patches, values_at
from ghostnets.upgrading.frozen import fast_dtype, frozen_view, norm_behind
from ghostnets.upgrading.order import best_order, intrinsic_count, source_places
from ghostnets.upgrading.sites import Anatomy, Place

PAIR_ROWS = 24  # positions drawn per image for the pair moments
TRIAL_IMAGES = 300  # the divergences of two draws of 300 images rank the sites alike
NOT_FINITE = "the network's output is not finite on the calibration images: NaN or Inf in its weights?"
FIT_ROWS = 192  # positions drawn per image for the filters of a trial edit


@dataclass(frozen=True)
class Candidate:
    """One way to treat one site, and what it does to the output when nothing else is changed."""

    name: str
    ratio: int
    kernel: int
    order: tuple[int, ...]
    divergence: float
    """KL to the original's softmax, nats per image, on calibration images."""


@dataclass(frozen=True)
class Look:
    """Everything the plan needs to know about a network's maps."""

    costs: Mapping[tuple[str, int], NDArray[np.float64]]
    """(site, kernel) → (n, n) error of making map j from map i, weighed by how much the loss feels map j."""
    candidates: tuple[Candidate, ...]
    images: int


def look(
    model: nn.Module,
    anatomy: Anatomy,
    chunks: Chunks,
    *,
    ratios: Sequence[int],
    kernel: int,
    seed: int,
    progress: Progress,
    trial_images: int = TRIAL_IMAGES,
) -> Look:
    """Measure every site of ``model``; ``trial_images`` of the images serve the trial edits.

    Raises UserError where activations are not finite or there is no image.
    """
    model = frozen_view(model, norm_behind(anatomy.trace), fast_dtype())
    importance = _importance(model, anatomy, chunks, seed=seed, limit=trial_images)
    moments, images = _pair_moments(model, anatomy, chunks, kernel=kernel, seed=seed, progress=progress)
    costs: dict[tuple[str, int], NDArray[np.float64]] = {}
    for site in anatomy.sites:
        weighed = moments[site.name].residuals() * importance[site.name][None]
        costs[site.name, kernel] = weighed.numpy()
    orders = {
        (site.name, ratio): best_order(costs[site.name, kernel], ratio)
        for site in anatomy.sites for ratio in ratios if intrinsic_count(site.out_channels, ratio) < site.out_channels
    }  # fmt: skip
    divergence = _trials(
        model, anatomy, chunks, orders, kernel=kernel, seed=seed, limit=min(trial_images, images), progress=progress
    )
    candidates = tuple(
        Candidate(name, ratio, kernel, tuple(order.tolist()), divergence[name, ratio])
        for (name, ratio), order in orders.items()
    )
    return Look(costs, candidates, images)


def _importance(model: nn.Module, anatomy: Anatomy, chunks: Chunks, *, seed: int, limit: int) -> dict[str, Tensor]:
    """For every site the mean squared gradient of the log-likelihood by each map: the diagonal of the Fisher
    information, with labels drawn from the network's own output, so that no label is needed.
    """
    generator = torch.Generator().manual_seed(seed)
    places = anatomy.places
    total = {name: torch.zeros(1, dtype=torch.float64) for name in places}
    seen = 0
    for chunk in chunks():
        with torch.enable_grad():
            env = _run_with_grad(model, anatomy.trace, chunk)
            logits = env[anatomy.trace.output]
            if not bool(torch.isfinite(logits).all()):
                raise UserError(NOT_FINITE)
            drawn = torch.multinomial(logits.detach().float().softmax(1), 1, generator=generator)[:, 0]
            loss = F.cross_entropy(logits.float(), drawn, reduction="sum")
            ends = [env[place.end] for place in places.values()]
            # Nobody may read what an auxiliary branch makes: then there is none, which the stubs do not know.
            grads = cast("tuple[Tensor | None, ...]", torch.autograd.grad(loss, ends, allow_unused=True))
        for name, end, grad in zip(places, ends, grads, strict=True):
            felt = torch.zeros_like(end) if grad is None else grad
            total[name] = total[name] + felt.square().sum((0, 2, 3), dtype=torch.float64)
        seen += len(chunk)
        if seen >= limit:
            break
    return {name: value / max(seen, 1) for name, value in total.items()}


def _run_with_grad(model: nn.Module, recorded: Trace, x: Tensor) -> Env:
    env: Env = {recorded.input: x.detach().requires_grad_()}  # the caller's tensor stays as it is
    for node in recorded.nodes[1:]:
        env[node] = compute(model, node, env)
    return env


def _pair_moments(
    model: nn.Module, anatomy: Anatomy, chunks: Chunks, *, kernel: int, seed: int, progress: Progress
) -> tuple[dict[str, PairMoments], int]:
    moments = {site.name: PairMoments(site.out_channels, kernel) for site in anatomy.sites}
    generator = torch.Generator().manual_seed(seed + 1)
    images, total = 0, sum(1 for _ in chunks())
    for number, chunk in enumerate(chunks()):
        env = run(anatomy.trace, model, chunk)
        if not torch.isfinite(env[anatomy.trace.output]).all():
            raise UserError(NOT_FINITE)
        for site in anatomy.sites:
            value = env[anatomy.places[site.name].end]
            positions = draw_positions(len(chunk), site.out_size, PAIR_ROWS, generator)
            seen = patches(value, positions, site.out_size[1], cheap_window(kernel)).float()
            moments[site.name].add_(seen, values_at(value, positions).float())
        images += len(chunk)
        progress("look", number + 1, total)
    if not images:
        raise UserError("there is no calibration image")
    return moments, images


def _trials(
    model: nn.Module,
    anatomy: Anatomy,
    chunks: Chunks,
    orders: Mapping[tuple[str, int], NDArray[np.int64]],
    *,
    kernel: int,
    seed: int,
    limit: int,
    progress: Progress,
) -> dict[tuple[str, int], float]:
    """KL of every single edit: filters fitted on the first chunk, the divergence taken over ``limit`` images."""
    generator = torch.Generator().manual_seed(seed + 2)
    sites = {site.name: site for site in anatomy.sites}
    after = {name: depends_on(anatomy.trace, place.linear) for name, place in anatomy.places.items()}
    filters: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    total = dict.fromkeys(orders, 0.0)
    seen = 0
    for chunk in chunks():
        env = run(anatomy.trace, model, chunk)
        reference = F.log_softmax(env[anatomy.trace.output].float(), 1)
        for number, (key, order) in enumerate(orders.items()):
            site, place = sites[key[0]], anatomy.places[key[0]]
            if key not in filters:
                filters[key] = _trial_filters(env, site, place, order, key[1], kernel, generator)
            edited = _edited(env, place, order, filters[key], kernel=kernel, ratio=key[1])
            logits = _rerun(model, anatomy.trace, after[key[0]], env, place.linear, edited)
            divergence = F.kl_div(F.log_softmax(logits.float(), 1), reference, log_target=True, reduction="sum")
            total[key] += float(divergence)
            progress(
                "sensitivities", seen * len(orders) // len(chunk) + number + 1, len(orders) * -(-limit // len(chunk))
            )
        seen += len(chunk)
        if seen >= limit:
            break
    return {key: max(value / seen, 0.0) for key, value in total.items()}  # rounding may bring it below


def _roles(order: NDArray[np.int64], ratio: int) -> tuple[Tensor, Tensor]:
    """The channels that are sources, ghost by ghost, and the channels that are ghosts."""
    intrinsic = intrinsic_count(len(order), ratio)
    return torch.from_numpy(order[source_places(len(order), ratio)]), torch.from_numpy(order[intrinsic:])


def _trial_filters(
    env: Env, site: Site, place: Place, order: NDArray[np.int64], ratio: int, kernel: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    sources, ghosts = _roles(order, ratio)
    value = env[place.end]
    positions = draw_positions(len(value), site.out_size, FIT_ROWS, generator)
    seen = patches(value[:, sources], positions, site.out_size[1], cheap_window(kernel)).float()
    return fit_ghosts(seen, values_at(env[place.linear], positions)[:, ghosts].float(), relu=site.relu)


def _edited(
    env: Env,
    place: Place,
    order: NDArray[np.int64],
    filters: tuple[Tensor, Tensor],
    *,
    kernel: int,
    ratio: int,
) -> Tensor:
    """The site's value before activation, its ghosts made from its intrinsic maps."""
    sources, ghosts = _roles(order, ratio)
    maps = env[place.end][:, sources]
    weight = filters[0].view(-1, 1, kernel, kernel).to(maps.dtype)
    made = F.conv2d(maps, weight, filters[1].to(maps.dtype), padding=kernel // 2, groups=len(sources))
    edited = env[place.linear].clone()
    edited[:, ghosts] = made
    return edited


@torch.no_grad()
def _rerun(
    model: nn.Module, recorded: Trace, nodes: Sequence[fx.Node], env: Env, changed: fx.Node, value: Tensor
) -> Tensor:
    """The output when ``changed`` has another value: only what depends on it is computed again."""
    fresh: Env = {**env, changed: value}
    for node in nodes:
        fresh[node] = compute(model, node, fresh)
    return fresh[recorded.output]
