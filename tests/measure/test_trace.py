# SPDX-License-Identifier: Apache-2.0
"""A recorded network gives what the network itself gives, and what cannot be recorded is refused in a sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure.trace import compute, depends_on, run, step, trace


class Network(nn.Module):
    """Layers, and a forward that is handed in: the gallery below is one function a network."""

    def __init__(self, call: Callable[[Network, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __getattr__(self, name: str) -> nn.Module:
        found = super().__getattr__(name)
        assert isinstance(found, nn.Module)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def conv(cin: int = 3, cout: int = 6, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2)


def shared_inplace_relu(net: Network, x: Tensor) -> Tensor:
    return net.relu(net.b(net.relu(net.a(x))))


def in_place_addition(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    y = net.b(x)
    y += x
    y.mul_(2).sub_(x)
    return y


def in_place_on_what_is_used_again(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.b(net.relu(x)) + x  # an in-place ReLU: the x that is added is the rectified one


def in_place_without_taking_the_result(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    x.relu_()
    y = net.b(x)
    F.relu(y, inplace=True)
    net.relu(x)
    return y + x


def dense(net: Network, x: Tensor) -> Tensor:
    first = net.a(x)
    second = net.b(torch.cat([x, first], 1))
    return torch.cat([x, first, second], dim=1)


def sizes(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(x.size(0), c, h, w)


def own_constants(net: Network, x: Tensor) -> Tensor:
    return net.a(x * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)) + torch.tensor(0.5)


def flattened(net: Network, x: Tensor) -> Tensor:
    return net.linear(net.drop(torch.flatten(net.a(x), 1)))


def functional_relu(net: Network, x: Tensor) -> Tensor:
    return F.relu(net.b(torch.relu(net.a(x)).clamp(max=1.0))).relu()


def chunks(net: Network, x: Tensor) -> Tensor:
    left, right = net.a(x).chunk(2, 1)
    return left * right.sigmoid()


def same_conv_twice(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    return net.b(net.b(x))


GALLERY: dict[str, Callable[[], Network]] = {
    "functional relu": lambda: Network(functional_relu, a=conv(), b=conv(6)),
    "one in-place relu, called twice": lambda: Network(shared_inplace_relu, a=conv(), b=conv(6), relu=nn.ReLU(True)),
    "in-place arithmetic": lambda: Network(in_place_addition, a=conv(), b=conv(6)),
    "in place, then used again": lambda: Network(
        in_place_on_what_is_used_again, a=conv(), b=conv(6), relu=nn.ReLU(True)
    ),
    "in place, result dropped": lambda: Network(
        in_place_without_taking_the_result, a=conv(), b=conv(6), relu=nn.ReLU(True)
    ),
    "concatenation, densely": lambda: Network(dense, a=conv(), b=conv(9)),
    "flatten and dropout": lambda: Network(
        flattened, a=conv(), drop=nn.Dropout(inplace=True), linear=nn.Linear(210, 4)
    ),
    "sizes": lambda: Network(sizes, a=conv()),
    "constants of the forward": lambda: Network(own_constants, a=conv()),
    "chunks": lambda: Network(chunks, a=conv()),
    "one convolution, called twice": lambda: Network(same_conv_twice, a=conv(), b=conv(6)),
}


@pytest.mark.parametrize("name", GALLERY)
def test_a_replayed_network_gives_the_same_bits_and_is_left_untouched(name: str) -> None:
    model = GALLERY[name]().eval()
    example, other = torch.randn(1, 3, 7, 5), torch.randn(2, 3, 7, 5)
    kept = example.clone()
    attributes, state = set(vars(model)), copy.deepcopy(model.state_dict())
    recorded = trace(model, example)
    with torch.no_grad():
        expected = model(example.clone())
        assert torch.equal(run(recorded, model, example)[recorded.output], expected)
        if name != "flatten and dropout":  # whatever the batch
            assert torch.equal(run(recorded, model, other)[recorded.output], model(other.clone()))
    assert torch.equal(example, kept)
    assert set(vars(model)) == attributes  # fx leaves constants behind, unless they are taken away
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not model.training
    assert recorded.shapes[recorded.input] == example.shape
    assert recorded.shapes[recorded.output] == expected.shape


@pytest.mark.parametrize("name", GALLERY)
def test_nothing_is_changed_in_place_while_replaying(name: str) -> None:
    model = GALLERY[name]().eval()
    recorded = trace(model, torch.randn(1, 3, 7, 5))
    env = {recorded.input: torch.randn(1, 3, 7, 5)}
    with torch.no_grad():
        for node in recorded.nodes[1:]:
            before = {n: v.clone() for n, v in env.items() if isinstance(v, Tensor)}
            env[node] = compute(model, node, env)
            assert all(torch.equal(env[n], v) for n, v in before.items()), node


def test_the_graph_of_the_original_runs_a_copy_with_other_modules() -> None:
    model = Network(shared_inplace_relu, a=conv(), b=conv(6), relu=nn.ReLU(True)).eval()
    recorded = trace(model, torch.randn(1, 3, 7, 5))
    edited = copy.deepcopy(model)
    edited.b = nn.Sequential(conv(6), nn.BatchNorm2d(6))
    edited.eval()
    x = torch.randn(2, 3, 7, 5)
    with torch.no_grad():
        assert torch.equal(run(recorded, edited, x)[recorded.output], edited(x))


def test_only_what_depends_on_a_value_is_named_and_in_running_order() -> None:
    model = Network(dense, a=conv(), b=conv(9)).eval()
    recorded = trace(model, torch.randn(1, 3, 7, 5))
    node = {str(n.target): n for n in recorded.nodes}
    names = [n.op if n.op != "call_module" else str(n.target) for n in depends_on(recorded, node["a"])]
    assert names == ["call_function", "b", "call_function", "output"]
    x = torch.randn(1, 3, 7, 5)
    env = run(recorded, model, x)
    env[node["a"]] = torch.zeros(1, 6, 7, 5)
    step(model, depends_on(recorded, node["a"]), env)
    model.a.requires_grad_(False)
    for parameter in model.a.parameters():
        parameter.zero_()
    with torch.no_grad():
        assert torch.equal(env[recorded.output], model(x))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


def value_branch(net: Network, x: Tensor) -> Tensor:
    return net.a(x) if x.sum() > 0 else net.a(-x)


def in_place_on_a_part(net: Network, x: Tensor) -> Tensor:
    x = net.a(x)
    x[:, :2].mul_(0)
    return net.b(x)


def noise(net: Network, x: Tensor) -> Tensor:
    return net.a(x) + torch.rand(())


def failing(net: Network, x: Tensor) -> Tensor:
    return net.a(x).view(1, 7)


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (TwoInputs, "TwoInputs must take one tensor and return one tensor"),
    (TwoOutputs, "TwoOutputs must take one tensor and return one tensor"),
    (lambda: Network(lambda net, x: net.a(x).chunk(2, 1), a=conv()), "return one tensor, not a tuple"),  # pyright: ignore[reportArgumentType, reportReturnType]
    (lambda: Network(value_branch, a=conv()), "cannot be traced: .*control flow; its forward must not branch"),
    (lambda: Network(in_place_on_a_part, a=conv(), b=conv(6)), "replayed call by call it gives another output"),
    (lambda: Network(noise, a=conv()), "or draw random numbers"),
    (lambda: Network(failing, a=conv()), "does not run on an input of 1 × 3 × 7 × 5: shape '.1, 7.' is invalid"),
    (lambda: Network(functional_relu, a=conv(4), b=conv(6)), "does not run on an input of 1 × 3 × 7 × 5"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_cannot_be_followed_is_refused_in_one_sentence(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        trace(build().eval(), torch.randn(1, 3, 7, 5))
    assert "\n" not in str(caught.value)


def test_a_network_in_training_is_refused_before_its_statistics_move() -> None:
    norm = nn.BatchNorm2d(6)
    model = nn.Sequential(conv(), norm).eval()
    norm.train()
    with pytest.raises(UserError, match=r"must be in eval mode to be followed: call eval\(\)"):
        trace(model, torch.randn(1, 3, 7, 5))
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, torch.zeros(6))


def test_a_network_whose_output_is_not_finite_is_still_followed() -> None:
    model = Network(functional_relu, a=conv(), b=conv(6)).eval()
    with torch.no_grad():
        next(model.b.parameters()).fill_(torch.nan)
    assert trace(model, torch.randn(1, 3, 7, 5)).shapes  # whoever needs finite values says so, and says which
