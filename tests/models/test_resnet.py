# SPDX-License-Identifier: Apache-2.0
"""The CIFAR ResNets against published counts, torch's own counter, an explicit shortcut, and a stranger's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ghostnets.blocks.ghost import GhostModule, ghost_conv
from ghostnets.blocks.residual import ShortcutA
from ghostnets.measure.accuracy import top1
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.models.catalog import create_model
from ghostnets.models.resnet import BUILDERS, DEPTHS, CifarResNet, cifar_resnet, ghost_cifar_resnet
from ghostnets.training.augment import batches
from ghostnets.training.data import load_dataset, normalise

IMAGE = torch.zeros(1, 3, 32, 32)

# network -> parameters and MACs as the papers' tables and their recalculation give them (He et al., Table 6;
# Han et al., Table 5, where 0.43M and 63M are the counts with 1×1 cheap filters)
COUNTS = [
    (cifar_resnet(56), 853_018, 125.49),
    (ghost_cifar_resnet(56), 438_154, 65.29),
    (CifarResNet(9, conv=ghost_conv(), stem=ghost_conv()), 438_010, 65.14),
    (ghost_cifar_resnet(56, cheap_size=1), 430_090, 63.22),
    (CifarResNet(9, conv=ghost_conv(2, 1), stem=ghost_conv(2, 1)), 429_882, 63.01),
]


@pytest.mark.parametrize(("model", "params", "mega_macs"), COUNTS)
def test_counts_are_the_published_ones(model: CifarResNet, params: int, mega_macs: float) -> None:
    assert total_params(model) == params
    assert round(total_macs(model, IMAGE) / 1e6, 2) == mega_macs


# depth -> parameters by hand: stem, three stages of 3×3 convolutions, two BN values a channel, classifier
BY_HAND = {
    depth: 3 * 16 * 9 + 32
    + sum((2 * n - 1) * w * w * 9 + v * w * 9 + 2 * n * 2 * w for v, w in ((16, 16), (16, 32), (32, 64)))
    + 650
    for depth, n in ((20, 3), (32, 5), (44, 7), (56, 9), (110, 18))
}  # fmt: skip


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_has_its_layers_and_costs_what_torch_counts(depth: int) -> None:
    plain, ghost = BUILDERS[f"resnet{depth}"](), BUILDERS[f"ghost_resnet{depth}"]()
    assert total_params(plain) == BY_HAND[depth]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in plain.modules()) == depth
    assert sum(isinstance(m, GhostModule) for m in ghost.modules()) == depth - 2
    for model in (plain, ghost):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(IMAGE)
        assert total_macs(model, IMAGE) * 2 == counter.get_total_flops()


def test_an_independent_author_s_weights_load_by_name(data_root: Path) -> None:
    file = data_root / "weights" / "resnet56_cifar10.safetensors"
    if not file.is_file():
        pytest.skip("the published ResNet-56 weights are not there")
    model = cifar_resnet(56)
    model.load_state_dict(load_file(file), strict=True)
    with torch.no_grad():
        assert bool(torch.isfinite(model.eval()(torch.randn(2, 3, 32, 32))).all())


@pytest.mark.slow  # 10,000 images
def test_an_independent_author_s_network_is_right_on_9339_test_images(data_root: Path) -> None:
    file = data_root / "weights" / "resnet56_cifar10.safetensors"
    if not file.is_file():
        pytest.skip("the published ResNet-56 weights are not there")
    model = create_model("resnet56", checkpoint_path=file).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    data = load_dataset("cifar10", data_dir=data_root)
    drawn = batches(data.test, batch_size=500)
    found = top1(model, ((normalise(pixels, data.mean, data.std), labels) for pixels, labels in drawn))
    assert found == pytest.approx(93.39, abs=0.005)


@pytest.mark.parametrize(("cin", "out", "stride"), [(16, 32, 2), (3, 8, 2), (4, 4, 1), (2, 5, 3)])
def test_shortcut_a_takes_every_second_pixel_and_fills_with_zeros(cin: int, out: int, stride: int) -> None:
    x = torch.randn(2, cin, 7, 6)
    got = ShortcutA(cin, out, stride)(x)
    expected = torch.zeros(2, out, -(-7 // stride), -(-6 // stride))
    for c in range(cin):
        for row in range(expected.shape[2]):
            for column in range(expected.shape[3]):
                expected[:, c + (out - cin) // 2, row, column] = x[:, c, row * stride, column * stride]
    assert torch.equal(got, expected)


def slow(model: CifarResNet, x: Tensor) -> Tensor:
    """He et al., section 4.2, written out with the functional forms."""

    def bn(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        column = (1, -1, 1, 1)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        x = (x - norm.running_mean.view(column)) / torch.sqrt(norm.running_var.view(column) + 1e-5)
        return x * norm.weight.view(column) + norm.bias.view(column)

    def conv(x: Tensor, layer: nn.Conv2d, stride: int) -> Tensor:
        return torch.nn.functional.conv2d(x, layer.weight, stride=stride, padding=1)

    x = bn(conv(x, model.get_submodule("conv1"), 1), model.get_submodule("bn1")).relu()  # pyright: ignore[reportArgumentType]
    for stage in (1, 2, 3):
        for number, block in enumerate(model.get_submodule(f"layer{stage}").children()):
            parts = dict(block.named_children())
            stride = 2 if stage > 1 and number == 0 else 1
            y = bn(conv(x, parts["conv1"], stride), parts["bn1"]).relu()  # pyright: ignore[reportArgumentType]
            y = bn(conv(y, parts["conv2"], 1), parts["bn2"])  # pyright: ignore[reportArgumentType]
            if stride == 2:
                zeros = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:], dtype=x.dtype)
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = torch.relu(x + y)
    assert isinstance(model.linear, nn.Linear)
    return x.flatten(2).mean(2) @ model.linear.weight.T + model.linear.bias


def test_the_network_computes_what_the_paper_describes() -> None:
    model = cifar_resnet(20, num_classes=7).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    x = torch.randn(2, 3, 13, 9, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(model(x), slow(model, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(32, 32), (33, 17), (1, 1), (1, 9), (5, 2)])
@pytest.mark.parametrize("build", [cifar_resnet, ghost_cifar_resnet])
def test_any_size_of_image_goes_through(build: type[CifarResNet], size: tuple[int, int]) -> None:
    model = build(20, num_classes=5, in_chans=1).eval()
    x = torch.randn(2, 1, *size)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 64, -(-size[0] // 4), -(-size[1] // 4))
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert torch.equal(model(x), model.linear(pooled))
        assert model(x).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet20", "ghost_resnet20"])
def test_every_parameter_is_trained(name: str) -> None:
    model = BUILDERS[name]()
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
