# SPDX-License-Identifier: Apache-2.0
"""The same weights in our networks and in timm's: outputs, maps on the way and gradients, in both modes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghostnets.models import regnet
from ghostnets.models.backbone import Backbone
from ghostnets.models.catalog import create_model
from ghostnets.models.weights import fill

timm: Any = pytest.importorskip("timm", reason="timm is not installed: pip install --no-deps torchvision timm")


def same(name: str) -> str:
    return name


def of_regnet(name: str) -> str:
    """timm's name of one of our parameters."""
    name = re.sub(r"^(conv|bn)1\.", lambda m: f"stem.{m[1]}.", name)
    name = re.sub(r"^layer(\d)\.(\d+)\.", lambda m: f"s{m[1]}.b{int(m[2]) + 1}.", name)
    name = re.sub(r"\.conv(\d)\.weight", r".conv\1.conv.weight", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.bn.", name)
    name = name.replace(".downsample.0.", ".downsample.conv.").replace(".downsample.1.", ".downsample.bn.")
    return re.sub(r"^fc\.", "head.fc.", name)


# Ours: how timm names it, how it names our parameters, its tap for each of our features.
GHOST_TAPS = ("blocks.0", "blocks.2", "blocks.4", "blocks.6", "blocks.8")
LAYER_TAPS = ("act1", "layer1", "layer2", "layer3", "layer4")
ROADS: Mapping[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    **dict.fromkeys(("ghostnet_050", "ghostnet_100", "ghostnet_130"), (same, GHOST_TAPS)),
    **dict.fromkeys(("ghostnetv2_100", "ghostnetv2_130", "ghostnetv2_160"), (same, GHOST_TAPS)),
    **dict.fromkeys(("ghostnetv3_050", "ghostnetv3_100", "ghostnetv3_130", "ghostnetv3_160"), (same, GHOST_TAPS)),
    **dict.fromkeys((f"regnetx_{size}" for size in regnet.ROWS), (of_regnet, ("stem", "s1", "s2", "s3", "s4"))),
    **dict.fromkeys(("resnet18", "resnet50"), (same, LAYER_TAPS)),
}


QUICK = {"ghostnet_050", "ghostnet_100", "ghostnetv2_100", "ghostnetv3_050", "regnetx_002", "resnet18", "resnet50"}
LARGE = {f"regnetx_{size}" for size in ("064", "080", "120", "160", "320")}  # seconds each, and of one structure


def settled(model: nn.Module) -> nn.Module:
    """With weights and statistics of no pattern."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model


def pair(name: str) -> tuple[Backbone, Any]:
    """The same network twice, with the same weights."""
    ours = create_model(name, num_classes=7, drop_rate=0.0)
    settled(ours)
    theirs = timm.create_model(name, pretrained=False, num_classes=7, drop_rate=0.0)
    renamed = {ROADS[name][0](key): value for key, value in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    return ours, theirs


def close(one: Tensor, other: Tensor, relative: float = 1e-5) -> None:
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= relative * float(other.abs().max())


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ROADS])
def test_outputs_and_maps_in_evaluation(name: str) -> None:
    ours, theirs = pair(name)
    ours.eval()
    theirs.eval()
    x = torch.randn(2, 3, 75, 64)
    maps: list[Tensor] = []
    handles = [
        theirs.get_submodule(tap).register_forward_hook(lambda _m, _i, out: maps.append(out)) for tap in ROADS[name][1]
    ]
    with torch.no_grad():
        wanted = theirs(x)
        for handle in handles:
            handle.remove()
        close(ours(x), wanted)
        last, found = ours.forward_intermediates(x)
        assert len(found) == len(maps)
        for mine, own in zip(found, maps, strict=True):
            close(mine, own)
        close(last, theirs.forward_features(x))
        close(ours.forward_head(last), wanted)
        close(ours.forward_head(last, pre_logits=True), theirs.forward_head(last, pre_logits=True))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ROADS if n not in LARGE]
)
def test_outputs_maps_gradients_and_statistics_in_training(name: str) -> None:
    """In double precision: batch norms of small maps amplify rounding."""
    ours, theirs = (model.double().train() for model in pair(name))
    x = torch.randn(4, 3, 96, 64, dtype=torch.float64)
    towards = torch.randn(4, 7, dtype=torch.float64)
    maps: list[Tensor] = []
    for tap in ROADS[name][1]:
        theirs.get_submodule(tap).register_forward_hook(lambda _m, _i, out: maps.append(out.detach().clone()))
    wanted = theirs(x)
    (wanted * towards).sum().backward()
    last, found = ours.forward_intermediates(x)
    made = ours.forward_head(last)
    (made * towards).sum().backward()
    close(made.detach(), wanted.detach(), 1e-8)
    for mine, other in zip(found, maps, strict=True):
        close(mine.detach(), other, 1e-8)
    named = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        other = named[ROADS[name][0](key)].grad
        assert parameter.grad is not None, key
        assert other is not None, key
        torch.testing.assert_close(parameter.grad, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()) + 1e-12)
    buffers = dict(theirs.named_buffers())
    for key, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, buffers[ROADS[name][0](key)], rtol=1e-6, atol=1e-9)


def test_vggs_convolutions() -> None:
    ours = settled(create_model("vgg16"))
    theirs = timm.create_model("vgg16_bn", pretrained=False)
    theirs.features.load_state_dict(ours.get_submodule("features").state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        close(ours.eval().get_submodule("features")(x), theirs.eval().features(x))


@pytest.mark.parametrize(
    ("name", "channels"), [("ghostnet_100", [16, 24, 40, 112, 160]), ("resnet50", [64, 256, 512, 1024, 2048])]
)
def test_features_are_the_last_of_every_size(name: str, channels: list[int]) -> None:
    """timm taps GhostNet's 80 channels at 1/16; behind them come 112."""
    model = create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 96, 64))
    assert [m.shape[1] for m in maps] == channels == model.feature_info.channels()
    assert [96 // m.shape[2] for m in maps] == [2, 4, 8, 16, 32] == model.feature_info.reduction()


@pytest.mark.parametrize("name", ["regnetx_002", "ghostnetv3_050", "ghostnet_050", "resnet18"])
@pytest.mark.parametrize("authors", [False, True])
def test_files_of_timm_and_of_the_authors_load_unchanged(name: str, authors: bool) -> None:
    """The authors' GhostNetV3 has ``bn`` where timm has ``bn1``, and a profiler's counters."""
    theirs = settled(timm.create_model(name, pretrained=False, num_classes=7)).eval()
    state = dict(theirs.state_dict())
    if authors:
        state = {re.sub(r"(_rpr_\w+(?:\.\d)?)\.bn1\.", r"\1.bn.", key): value for key, value in state.items()}
        state |= {"conv_stem.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    ours = create_model(name, num_classes=7).eval()
    fill(ours, state, "a file")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        close(ours(x), theirs(x))
