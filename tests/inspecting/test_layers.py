# SPDX-License-Identifier: Apache-2.0
"""Which module gives out a convolution's finished maps, and which blocks make a stage."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.inspecting.layers import Place, layers_of, maps_of, stages_of, times
from ghostnets.measure.cost import total_macs
from ghostnets.models.catalog import create_model

EXAMPLE = torch.zeros(1, 3, 32, 32)


class Odd(nn.Module):
    """Branches on a value, calls one convolution twice, adds in place, and has one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.idle = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        if float(x.sum()) > 1e9:
            x = self.idle(x)
        y = self.act(self.twice(F.relu(x)))
        y = self.twice(y)
        y += 1
        return y.mean((2, 3))


def test_any_forward_will_do() -> None:
    found = {layer.name: layer for layer in layers_of(Odd(), EXAMPLE)}
    assert {name: str(layer.end) for name, layer in found.items()} == {"first": "norm", "twice": "act"}
    assert found["twice"].size == (16, 16)
    assert found["twice"].macs == 4 * 4 * 9 * 16 * 16


def test_a_residual_network_s_layers_end_before_the_addition() -> None:
    model = create_model("resnet20")
    found = layers_of(model, EXAMPLE)
    assert [layer.name for layer in found[:3]] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert [str(layer.end) for layer in found[:3]] == ["act1", "layer1.0.act1", "layer1.0.bn2"]
    linear = model.get_submodule("linear")
    assert isinstance(linear, nn.Linear)
    assert sum(layer.macs for layer in found) == total_macs(model, EXAMPLE) - linear.weight.numel()


def test_an_activation_may_serve_many_layers() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.b(self.relu(self.a(x)))).mean((2, 3))

    found = layers_of(Shared(), EXAMPLE)
    assert [(layer.name, str(layer.end), layer.channels) for layer in found] == [
        ("a", "relu", 4),
        ("b", "relu (call 2)", 6),
    ]


def test_an_identity_is_no_layer_s_end() -> None:
    """Option A's shortcut is one, and reads what the layer before the block gives out."""
    assert "downsample" not in " ".join(layer.end.module for layer in layers_of(create_model("resnet20"), EXAMPLE))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet20", {"layer1": 3, "layer2": 3, "layer3": 3}),
        ("ghost_resnet20", {"layer1": 3, "layer2": 3, "layer3": 3}),
        ("resnet50", {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}),
        ("vgg16", {}),
    ],
)
def test_stages_are_rows_of_blocks(name: str, stages: dict[str, int]) -> None:
    model = create_model(name)
    assert {stage.name: len(stage.blocks) for stage in stages_of(model, EXAMPLE)} == stages


def test_a_row_within_a_longer_one_is_named_by_its_ends() -> None:
    def block(width: int, out: int) -> nn.Module:
        return nn.ModuleDict({"a": nn.Conv2d(width, out, 1), "b": nn.Conv2d(out, out, 1)})

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ModuleList([Both(3, 4), Both(4, 6), Both(6, 6), Both(6, 6), nn.ReLU(), Both(6, 8)])

        def forward(self, x: Tensor) -> Tensor:
            for part in self.features:
                x = part(x)
            return x.mean((2, 3))

    class Both(nn.Module):
        def __init__(self, width: int, out: int) -> None:
            super().__init__()
            self.parts = block(width, out)

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.parts, nn.ModuleDict)
            return self.parts["b"](self.parts["a"](x))

    (stage,) = stages_of(Run(), EXAMPLE)
    assert stage.name == "features.1 … 3"
    assert stage.blocks == ("features.1", "features.2", "features.3")


def test_the_network_is_left_as_it_was() -> None:
    model = create_model("resnet20").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = layers_of(model, EXAMPLE)
    stages_of(model, EXAMPLE)
    times(model, {layer.name: layer.end for layer in layers}, EXAMPLE)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_every_layer_has_a_time() -> None:
    model = create_model("resnet20")
    layers = layers_of(model, EXAMPLE)
    took = times(model, {layer.name: Place(layer.name) for layer in layers}, EXAMPLE)
    assert list(took) == [layer.name for layer in layers]
    assert all(figure > 0 for figure in took.values())


def test_a_time_lasts_until_the_end_that_was_given() -> None:
    def slow(_module: nn.Module, _inputs: object) -> None:
        time.sleep(0.005)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model[2].register_forward_pre_hook(slow)
    (layer,) = layers_of(model, EXAMPLE)
    own, whole = (times(model, {"0": end}, EXAMPLE)["0"] for end in (Place("0"), layer.end))
    assert own < whole
    assert whole > 5


def test_what_a_module_gives_out() -> None:
    model = create_model("resnet20").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model.get_submodule("layer1")(model.get_submodule("act1")(model.bn1(model.conv1(images))))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(maps_of(model, "layer1", images), wanted)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer1.9", r"has no module 'layer1\.9' \(did you mean layer1\.\d\?\)"),
        ("", "has no module ''"),
        ("linear", "module linear gives out no maps"),
    ],
)
def test_what_gives_out_no_maps_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        maps_of(create_model("resnet20"), name, EXAMPLE)


def test_a_network_without_a_convolution_is_refused() -> None:
    with pytest.raises(UserError, match="Sequential has no convolution"):
        layers_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), EXAMPLE)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="CifarResNet does not run on images of 1×32×32"):
        layers_of(create_model("resnet20"), torch.zeros(1, 1, 32, 32))
