# SPDX-License-Identifier: Apache-2.0
"""The folded view against the network itself in eval mode: outputs, and the gradient of every parameter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.measure.trace import run, trace
from ghostnets.models.resnet import cifar_resnet, ghost_cifar_resnet
from ghostnets.upgrading import frozen
from ghostnets.upgrading.frozen import frozen_view, norm_behind

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
    "ratio 1": lambda: around(GhostModule(7, 10, kernel_size=3, ratio=1), nn.Conv2d(10, 6, 3)),
    "bias, no norm, strided, dilated": lambda: around(
        nn.Conv2d(7, 8, 3, stride=2, dilation=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, (1, 3), groups=4, bias=False), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6, affine=False),
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


def gradients(model: nn.Module, out: Tensor) -> dict[str, Tensor]:
    loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() + out.square().mean()
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("limit", [0, 64])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_network_in_eval_mode(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch, settled: Settle
) -> None:
    monkeypatch.setattr(frozen, "DENSE_LIMIT", limit)
    model, x = prepared(name, settled)
    norms = {} if "ghost" in name else norm_behind(trace(model, x))
    view = frozen_view(model, norms, torch.float32)
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    expected, made = model(x), view(x)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5 * scale)
    wanted, found = gradients(model, expected), gradients(model, made)
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(
            found[parameter], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()) + 1e-6
        )
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_it_runs_and_stays_near(name: str, settled: Settle) -> None:
    model, x = prepared(name, settled)
    view = frozen_view(model, {} if "ghost" in name else norm_behind(trace(model, x)), torch.bfloat16)
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


def test_a_step_in_the_view_is_a_step_of_the_network_and_nothing_else_changes(settled: Settle) -> None:
    model = settled(ghost_cifar_resnet(8))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    view = frozen_view(model, {"conv1": "bn1"}, torch.float32)
    optimizer = torch.optim.SGD(view.parameters(), lr=0.1)
    x = torch.randn(4, 3, 12, 12)
    view(x).square().mean().backward()
    optimizer.step()
    assert [type(m) for m in model.modules()] == kinds
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(view(x), model(x), rtol=1e-4, atol=1e-4)
