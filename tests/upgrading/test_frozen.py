# SPDX-License-Identifier: Apache-2.0
"""The folded view against the network itself in eval mode: outputs, and the gradient of every parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.measure.trace import run, trace
from ghostnets.models.resnet import cifar_resnet, ghost_cifar_resnet
from ghostnets.upgrading import frozen
from ghostnets.upgrading.flat import FlatWeights
from ghostnets.upgrading.frozen import MergedConv, frozen_view, norm_behind

Settle = Callable[[nn.Module], nn.Module]


def shared_norm() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 6, 3), norm, nn.Flatten(), nn.LazyLinear(4))


class Twice(nn.Module):
    """One convolution, called twice, once before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(self.norm(self.conv(self.stem(x))))).mean((2, 3)))


def around(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(4)
    )


def gathered() -> ChannelGather:
    gather = ChannelGather(9)
    gather.set_(torch.randperm(9))
    return gather


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: cifar_resnet(8),
    "ghost": lambda: ghost_cifar_resnet(8),
    "ghost of three": lambda: ghost_cifar_resnet(8, ratio=3, cheap_size=5),
    "ghost of four, linear": lambda: around(
        GhostModule(7, 10, kernel_size=3, ratio=4, stride=2, relu=False), GhostModule(10, 9, ratio=2, cheap_size=1),
        gathered(),
    ),
    "ghost and its gather in a pair": lambda: around(nn.Sequential(GhostModule(7, 9, ratio=2, relu=True), gathered())),
    "ratio 1": lambda: around(GhostModule(7, 10, kernel_size=3, ratio=1), nn.Conv2d(10, 6, 3)),
    "bias, no norm, strided, dilated": lambda: around(
        nn.Conv2d(7, 8, 3, stride=2, dilation=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, (1, 3), groups=4, bias=False), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6),
    ),
    "norm without scale and shift": lambda: around(
        nn.BatchNorm2d(7, affine=False), nn.ReLU(), nn.Conv2d(7, 6, 1), nn.BatchNorm2d(6, affine=False)
    ),
    "padding of another kind": lambda: around(
        nn.Conv2d(7, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=(1, 2), padding_mode="circular"),
    ),
    "norm of the batch": lambda: around(nn.BatchNorm2d(7, track_running_stats=False), nn.ReLU()),
    "other layers with weights": lambda: around(
        nn.BatchNorm2d(7), nn.PReLU(7), nn.ConvTranspose2d(7, 6, 2), nn.GroupNorm(2, 6), nn.Conv2d(6, 5, 1)
    ),
    "shared norm": shared_norm,
    "shared convolution": Twice,
}  # fmt: skip


def prepared(name: str, settled: Settle) -> tuple[nn.Module, Tensor]:
    model = NETWORKS[name]()
    x = torch.randn(4, 3, 12, 11)
    with torch.no_grad():
        model.eval()(x)
    return settled(model), x


def norms_of(name: str, model: nn.Module, x: Tensor) -> dict[str, str]:
    return {} if "ghost" in name else norm_behind(trace(model, x))


def loss_of(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() + out.square().mean()


@pytest.mark.parametrize("limit", [0, 64])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_network_in_eval_mode(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch, settled: Settle
) -> None:
    """Written back, a norm only adds a bias: then a gradient by a merged weight is the one by the layer's own weight."""
    monkeypatch.setattr(frozen, "DENSE_LIMIT", limit)
    model, x = prepared(name, settled)
    expected = model(x)
    scale = float(expected.detach().abs().max())
    weights = FlatWeights(model, norms_of(name, model, x), torch.float32)
    torch.testing.assert_close(weights.view(x), expected, rtol=1e-5, atol=1e-5 * scale)
    plain = weights.written(weights.value)
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5 * scale)
    if name == "norm without scale and shift":  # it still divides, so its layer's gradient is another one
        return
    again = FlatWeights(plain, weights.norms, torch.float32)
    found = again.gradient(loss_of(again.view(x)))
    loss_of(plain(x)).backward()
    # What the network would be with its gradients in the weights' place: the vector the view should have found.
    slopes = copy.deepcopy(plain)
    for there, here in zip(slopes.parameters(), plain.parameters(), strict=True):
        there.data.copy_(there if here.grad is None else there + here.grad)
    unscaled = _of_merged(slopes, plain, again)
    wanted = FlatWeights(unscaled, weights.norms, torch.float32).value - again.value
    torch.testing.assert_close(found, wanted * again.learns, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_the_gradient_is_the_slope_of_the_network_written_back(settled: Settle) -> None:
    model, x = prepared("norm without scale and shift", settled)
    weights = FlatWeights(model, norm_behind(trace(model, x)), torch.float32)
    gradient = weights.gradient(loss_of(weights.view(x)))
    for direction in (gradient, torch.randn_like(gradient)):
        step = 1e-3 / float(direction.norm())
        with torch.no_grad():
            ends = [float(loss_of(weights.written(weights.value + sign * step * direction)(x))) for sign in (1, -1)]
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient @ direction), rel=0.02)


def _of_merged(model: nn.Module, like: nn.Module, weights: FlatWeights) -> nn.Module:
    """A merged norm's scale is no weight of its own in the view and takes no step; of two biases one is enough."""
    kept = dict(weights.view.named_parameters())
    for name, parameter in model.named_parameters():
        norm = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d)
        scale = norm and name.endswith("weight") and name not in kept
        if scale or name.removesuffix(".bias") in weights.norms:
            parameter.data.copy_(like.get_parameter(name))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_it_runs_and_stays_near(name: str, settled: Settle) -> None:
    model, x = prepared(name, settled)
    view = frozen_view(model, norms_of(name, model, x), torch.bfloat16)
    with torch.no_grad():
        made, expected = view(x.bfloat16()).float(), model(x)
    assert float((made - expected).square().mean().sqrt()) < 0.1 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["plain", "ghost of three", "ratio 1"])
def test_a_graph_recorded_from_the_network_runs_the_view(name: str, settled: Settle) -> None:
    """Also one that goes into a Ghost module, as that of an original that has some already does."""
    model, x = prepared(name, settled)
    recorded = trace(model, x)
    view = frozen_view(model, norm_behind(recorded), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(run(recorded, view, x)[recorded.output], model(x), rtol=1e-4, atol=1e-4)


def test_a_step_in_the_view_is_a_step_of_the_network_written_back(settled: Settle) -> None:
    model = settled(ghost_cifar_resnet(8, ratio=3))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    weights = FlatWeights(model, {"conv1": "bn1"}, torch.float32)
    x = torch.randn(4, 3, 12, 12)
    before = weights.value.clone()
    weights.value.sub_(0.01 * weights.gradient(weights.view(x).square().mean()))
    weights.publish_()
    made = weights.written(weights.value)
    assert [type(m) for m in made.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        torch.testing.assert_close(weights.view(x), made(x), rtol=1e-4, atol=1e-4)
        assert made(x).square().mean() < model(x).square().mean()
        torch.testing.assert_close(weights.written(before)(x), model(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_the_view_has_added_does_not_learn(settled: Settle) -> None:
    """As many numbers learn as the network has weights, its norms' scales and the ghosts that are cut off left out."""
    model = settled(ghost_cifar_resnet(8))
    weights = FlatWeights(model, {"conv1": "bn1"}, torch.float32)
    scales = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert int(weights.learns.sum()) == sum(p.numel() for p in model.parameters()) - scales
    assert len(weights.value) > int(weights.learns.sum())


def test_a_layer_under_two_names_stays_one(settled: Settle) -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model.add_module("again", model.get_submodule("0"))
    view = frozen_view(model, {}, torch.float32)
    assert isinstance(view.get_submodule("0"), MergedConv)
    assert view.get_submodule("0") is view.get_submodule("again")


def test_a_weight_of_two_layers_stays_one(settled: Settle) -> None:
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    model = settled(nn.Sequential(first, nn.BatchNorm2d(3), second))
    x = torch.randn(2, 3, 5, 5)
    weights = FlatWeights(model, {"0": "1"}, torch.float32)
    weights.value.add_(0.1)
    weights.publish_()
    made = weights.written(weights.value)
    with torch.no_grad():
        torch.testing.assert_close(weights.view(x), made(x))
    assert made.get_parameter("0.weight") is made.get_submodule("2").weight
