# SPDX-License-Identifier: Apache-2.0
"""The closed form against numpy's least squares on patches cut out by hand, and what a walk keeps and forgets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.ghost import GhostModule
from ghostnets.models.resnet import cifar_resnet
from ghostnets.records import Budget, Plan
from ghostnets.upgrading import transfer, walk
from ghostnets.upgrading.convert import convert
from ghostnets.upgrading.layout import ghost_at
from ghostnets.upgrading.norms import refresh_norms_
from ghostnets.upgrading.plan import plan
from ghostnets.upgrading.sites import find_sites
from ghostnets.upgrading.walk import Walk

Settle = Callable[[nn.Module], nn.Module]


def only(found: Plan, *ghosts: str) -> Plan:
    """The same plan, in which only these sites become Ghost modules."""
    decisions = tuple(
        d if d.name in ghosts
        else replace(d, decision="keep", ratio=1, kernel=0, order="none", channels=(), gathered=0, divergence=None)
        for d in found.decisions
    )  # fmt: skip
    return replace(found, decisions=decisions)


@torch.no_grad()
def tap(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's input and output, by hooks."""
    kept: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, i, o: kept.append((i[0].clone(), o.clone())))
    model(x)
    handle.remove()
    return kept[0]


def solved(rows: Tensor, wanted: Tensor, start: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Ridge regression towards ``start`` with a free bias, by numpy: the ridge as rows of its own."""
    x, y = rows.double().numpy(), wanted.double().numpy()
    centre, level = x.mean(0), y.mean(0)
    x = x - centre
    weight = ridge * (x**2).sum(0).mean()
    begin = start.double().numpy()
    system = np.concatenate([x, np.sqrt(weight) * np.eye(x.shape[1])])
    found, *_ = np.linalg.lstsq(system, np.concatenate([y - level, np.sqrt(weight) * begin.T]), rcond=None)
    return torch.from_numpy(found.T).float(), torch.from_numpy(level - centre @ found).float()


class Chain(nn.Module):
    """Maps of one pixel behind the first layers, so that all rows are drawn; a head that reads 9 channels."""

    def __init__(self, *, bias: bool, norm: bool, affine: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.a = nn.Conv2d(8, 8, 3, stride=2)
        self.b = nn.Conv2d(8, 9, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(9, affine=affine) if norm else nn.Identity()
        self.head = nn.Linear(9, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.b(F.relu(self.a(F.relu(self.stem(x)))))).flatten(1))


IMAGES = (150, 3, 5, 5)


@pytest.mark.parametrize(("bias", "norm", "affine"), [
    (True, False, True), (False, False, True), (False, True, True), (True, True, True), (False, True, False),
    (True, True, False),
])  # fmt: skip
def test_a_kept_layer_is_refitted_by_least_squares_on_what_it_now_reads(
    bias: bool, norm: bool, affine: bool, settled: Settle
) -> None:
    model = settled(Chain(bias=bias, norm=norm, affine=affine))
    images = torch.randn(*IMAGES)
    student = convert(model, only(plan(model, images, Budget(ratio=4)), "a"), images, rows=150).model
    last = "norm" if norm else "b"
    seen, _ = tap(student, "b", images)
    _, made = tap(student, last, images)
    _, wanted = tap(model, last, images)
    assert wanted.shape[2:] == (1, 1)
    # The order of a is folded into b, so b reads it in a's order.
    (order,) = (d.channels for d in plan(model, images, Budget(ratio=4)).decisions if d.name == "a")
    rows = F.unfold(seen, 3, padding=1)[:, :, 0]
    start = model.get_parameter("b.weight")[:, list(order)].flatten(1)
    if norm:
        layer = model.get_submodule("norm")
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_var is not None
        scale = torch.rsqrt(layer.running_var + layer.eps) * (layer.weight if affine else 1)
        start = start * scale[:, None]
    target = wanted[:, :, 0, 0]
    if not bias and not norm:
        rows, target = torch.cat([rows, -rows]), torch.cat([target, -target])
    weight, shift = solved(rows, target, start.detach(), transfer.RIDGE)
    expected = F.conv2d(seen, weight.view(9, 8, 3, 3), shift, padding=1)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=2e-4)
    # and the classifier, on what it now reads
    features, logits = tap(student, "head", images)
    rows, target = features, tap(model, "head", images)[1]
    if not bias:
        rows, target = torch.cat([rows, -rows]), torch.cat([target, -target])
    weight, shift = solved(rows, target, model.get_parameter("head.weight").detach(), 1e-2)
    torch.testing.assert_close(logits, features @ weight.T + shift, rtol=1e-3, atol=2e-4)


class Shortcut(nn.Module):
    """A block behind which an addition makes up; ``late``: the shortcut's own convolution runs after the block's."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Conv2d(8, 8, 3, stride=2)
        self.down = nn.Conv2d(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if self.late:
            out = self.body(x)
            out += self.down(x)
        else:
            shortcut = self.down(x)
            out = self.body(x) + shortcut
        return self.head(out.flatten(1))


@pytest.mark.parametrize("late", [False, True])
def test_the_last_of_two_summands_makes_up_for_what_the_first_has_lost(late: bool) -> None:
    model = Shortcut(late).eval()
    images = torch.randn(*IMAGES)
    first, last = ("body", "down") if late else ("down", "body")
    student = convert(model, only(plan(model, images, Budget(ratio=2)), first), images, rows=150).model
    seen, made = tap(student, last, images)
    _, lost_to = tap(model, first, images)
    name = f"{first}.1" if isinstance(student.get_submodule(first), nn.Sequential) else first
    _, lost = tap(student, name, images)
    target = (tap(model, last, images)[1] + lost_to - lost)[:, :, 0, 0]
    rows = F.unfold(seen, 3)[:, :, 0]
    weight, shift = solved(rows, target, model.get_parameter(f"{last}.weight").detach().flatten(1), transfer.RIDGE)
    torch.testing.assert_close(made[:, :, 0, 0], rows @ weight.T + shift, rtol=1e-3, atol=2e-4)
    assert float((target - tap(model, last, images)[1][:, :, 0, 0]).abs().max()) > 1e-2


@pytest.mark.parametrize("late", [False, True])
def test_with_both_summands_converted_nothing_is_computed_through_weights_still_to_come(late: bool) -> None:
    model = Shortcut(late).eval()
    images = torch.randn(*IMAGES)
    found = plan(model, images, Budget(ratio=2))
    torch.manual_seed(1)
    one = convert(model, found, images, rows=150)
    torch.manual_seed(2)
    other = convert(model, found, images, rows=150)
    for (name, value), again in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(value, again), name
    with torch.no_grad():
        assert float((one.model(images) - model(images)).square().mean() / model(images).var()) < 0.6


def test_an_addition_that_spreads_one_value_over_a_map_is_not_made_up_for() -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.body = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            wide = self.body(x)
            return self.head((self.gate(x.mean((2, 3), keepdim=True)) + wide).mean((2, 3)))

    model = Spread().eval()
    images = torch.randn(60, 3, 7, 7)
    student = convert(model, plan(model, images, Budget(ratio=2)), images, rows=600).model
    with torch.no_grad():
        assert torch.isfinite(student(images)).all()


class Add(nn.Linear):
    """A layer of the user's own that happens to be called add, and takes two."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward((x * other).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


Add.__module__ = "torch.nn.own"  # so that it is called as one layer, as torch's own kinds are


def test_a_layer_called_add_is_no_addition() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.add, self.head = Add(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            one = self.one(x)
            return self.head(self.add(self.two(x), one).mean((2, 3)))

    model = Named().eval()
    anatomy = find_sites(model, torch.randn(1, 3, 7, 7))
    both = Walk(anatomy.trace, model, model, lambda: [torch.randn(2, 3, 7, 7)], seed=0)
    assert transfer._other_summands(both, anatomy.places["two"]) == []
    both.close()


def states(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_on_disk_or_in_memory_the_result_is_the_same_and_no_file_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settled: Settle
) -> None:
    model = settled(cifar_resnet(8))
    with torch.no_grad():
        model.get_parameter("bn1.weight").mul_(3000)  # some maps become too large for half precision
    images = torch.randn(250, 3, 20, 20).split(100)
    found = plan(model, lambda: images, Budget(ratio=2))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: set[str] = set()

    def watch(_what: str, _done: int, _total: int) -> None:
        seen.update(path.name for path in tmp_path.rglob("*.safetensors"))

    for exact in (walk.EXACT_LIMIT, 0):
        monkeypatch.setattr(walk, "EXACT_LIMIT", exact)
        kept = convert(model, found, lambda: images, rows=1000)
        with monkeypatch.context() as patch:
            patch.setattr(walk, "MEMORY_LIMIT", 0)
            spilt = convert(model, found, lambda: images, rows=1000, progress=watch)
        assert len(seen) == 6  # three chunks, two networks
        assert states(kept.model) == states(spilt.model)
        assert kept.pairings == spilt.pairings
        assert not list(tmp_path.iterdir())


def test_files_are_removed_when_something_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = cifar_resnet(8).eval()
    images = torch.randn(30, 3, 12, 12)
    found = plan(model, images, Budget(ratio=2))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(walk, "MEMORY_LIMIT", 0)

    def stop(_what: str, done: int, _total: int) -> None:
        assert list(tmp_path.rglob("*.safetensors"))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, found, images, rows=500, progress=stop)
    assert not list(tmp_path.iterdir())


def test_it_does_not_matter_how_the_images_are_cut_into_chunks() -> None:
    """Maps of one pixel and a row an image: then every cut draws the same rows."""
    model = Chain(bias=True, norm=True).eval()
    images = torch.randn(*IMAGES)
    found = plan(model, images, Budget(ratio=2))
    found = only(found, "b")
    whole = convert(model, found, lambda: [images], rows=150).model
    parts = convert(model, found, lambda: images.split(40), rows=150).model
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_norms_of_the_converted_network_have_the_statistics_of_their_input(settled: Settle) -> None:
    model = settled(cifar_resnet(8))
    images = torch.randn(200, 3, 16, 16)
    refresh_norms_(model, lambda: [images])
    student = convert(model, plan(model, images, Budget(ratio=2)), images, rows=40_000).model
    ghost = ghost_at(student, "layer2.0.conv2")
    assert isinstance(ghost, GhostModule)
    for name in ("layer1.0.conv1", "layer2.0.conv2", "layer3.0.conv1"):
        inside = f"{name}.0" if isinstance(student.get_submodule(name), nn.Sequential) else name
        for branch in ("primary_conv", "cheap_operation"):
            norm = student.get_submodule(f"{inside}.{branch}.1")
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            values, _ = tap(student, f"{inside}.{branch}.1", images)
            variance, mean = torch.var_mean(values, (0, 2, 3), unbiased=False)
            assert float(((norm.running_mean - mean).abs() / variance.sqrt()).max()) < 0.1
            assert float((norm.running_var / variance - 1).abs().max()) < 0.2
    with torch.no_grad():
        still = student.eval()(images)
        moving = student.train()(images)
    assert float((moving - still).square().mean() / still.var()) < 1e-2  # the first step in train mode is harmless


def test_more_images_than_rows_take_no_more_memory() -> None:
    model = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.ReLU()).eval()
    chunks = [torch.randn(4, 5, 6, 6) for _ in range(10)]
    anatomy = find_sites(model, chunks[0])
    (site,) = anatomy.sites
    both = Walk(anatomy.trace, model, model, lambda: chunks, seed=0)
    assert both.some(100) == dict.fromkeys(range(10), 4)
    assert both.some(8) == {0: 4, 5: 4}
    sample, _, drawn = transfer._sample(both, anatomy.places[site.name], model[0], 8, None, 0)  # pyright: ignore[reportArgumentType]
    assert sample.rows.shape == (8, 5, 9)
    assert [len(positions) for positions in drawn] == [4, 0, 0, 0, 0, 4, 0, 0, 0, 0]
    few = transfer._sample(both, anatomy.places[site.name], model[0], 80, None, 0)[0]  # pyright: ignore[reportArgumentType]
    assert few.rows.shape == (80, 5, 9)
    # They are the patches that these images have, wherever they were drawn.
    patches = F.unfold(chunks[5], 3, padding=1).view(4, 5, 9, 36)
    for image in range(4):
        assert any(torch.equal(sample.rows[4 + image], patches[image, :, :, place]) for place in range(36))
