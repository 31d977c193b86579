# SPDX-License-Identifier: Apache-2.0
"""timm's contract, over every network of the catalogue that is not too large for a test of seconds."""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from ghostnets.errors import UserError
from ghostnets.models.backbone import Backbone, taken
from ghostnets.models.catalog import BUILDERS, create_model

LARGE = 12e6  # parameters: larger ones have the structure of a smaller one of their table


def size_of(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in BUILDERS[name]().parameters())


SMALL = [name for name in BUILDERS if size_of(name) < LARGE]


def network(name: str, **options: Any) -> Backbone:
    return create_model(name, num_classes=5, **options)


@pytest.mark.parametrize("name", SMALL)
def test_odd_sizes_one_image_and_every_parameter_learns(name: str) -> None:
    model = network(name, in_chans=2)
    x = torch.randn(2, 2, 67, 45)
    logits = model(x)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        one = model.eval()(x[:1])
        assert one.shape == (1, 5)
        assert bool(torch.isfinite(one).all())
        torch.testing.assert_close(model(x)[:1], one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_head_features_and_places_fit_together(name: str) -> None:
    model = network(name).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert maps.shape[1] == model.num_features
        before = model.forward_head(maps, pre_logits=True)
        assert before.shape == (1, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(before), model(x))
        last, found = model.forward_intermediates(x)
        assert torch.equal(last, maps)
        assert [m.shape[1] for m in found] == model.feature_info.channels()
        assert [64 // m.shape[2] for m in found] == model.feature_info.reduction()
        assert all(a < b for a, b in pairwise(model.feature_info.reduction()))
        early = model.forward_intermediates(x, [1, -1], stop_early=True, intermediates_only=True)
        assert [torch.equal(a, b) for a, b in zip(early, (found[1], found[-1]), strict=True)] == [True, True]
        net = create_model(name, num_classes=5, features_only=True, out_indices=(0, 2))
        net.load_state_dict({k: v for k, v in model.state_dict().items() if k in net.state_dict()})
        assert [torch.equal(a, b) for a, b in zip(net.eval()(x), (found[0], found[2]), strict=True)] == [True, True]
        assert net.feature_info.channels() == [model.feature_info.channels()[i] for i in (0, 2)]


HALF = ["ghostnet_050", "ghostnetv2_100", "ghostnetv3_050", "regnetx_002", "g_ghost_regnetx_002", "ghost_resnet18"]
LARGER = [name for name in BUILDERS if name not in SMALL]


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGER)
def test_larger_ones_have_the_shapes_they_say_and_export_without_their_memory(name: str) -> None:
    """That they compute, and that every parameter learns, is tested with the whole catalogue (test_catalog.py)."""
    with torch.device("meta"):
        model, x = network(name, in_chans=2).eval(), torch.randn(1, 2, 64, 96)
        maps, found = model.forward_intermediates(x)
        assert maps.shape[1] == model.num_features
        assert model.forward_head(maps, pre_logits=True).shape == (1, model.head_hidden_size)
        assert [m.shape[1] for m in found] == model.feature_info.channels()
        assert [m.shape[2:] for m in found] == [(64 // r, 96 // r) for r in model.feature_info.reduction()]
        net = create_model(name, num_classes=5, in_chans=2, features_only=True).eval()
        assert [m.shape for m in net(x)] == [m.shape for m in found]
        exported = torch.export.export(model, (x,))
        assert exported.module()(x).shape == (1, 5)
    assert {key for key, _ in model.named_parameters()} <= set(exported.state_dict) <= set(model.state_dict())


def test_a_features_network_has_nothing_that_nobody_uses() -> None:
    net = create_model("ghostnet_050", features_only=True, out_indices=(2, 3))
    torch.stack([m.sum() for m in net(torch.randn(2, 3, 64, 64))]).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert "blocks.6.4.ghost2.primary_conv.0.weight" in net.state_dict()


@pytest.mark.parametrize(
    "name", ["ghostnet_050", "resnet20", "vgg16", "regnetx_002", "g_ghost_resnet34", "ghost_resnet18"]
)
def test_another_classifier(name: str) -> None:
    model = network(name).eval()
    x = torch.randn(1, 3, 64, 64)
    kept = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(model.classifier_name)}
    with torch.no_grad():
        before = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(3)
        assert model(x).shape == (1, 3)
        assert model.num_classes == 3
        model.reset_classifier(0)
        assert torch.equal(model(x), before)
        model.reset_classifier(0, "")
        assert model(x).dim() == 4
    assert all(torch.equal(model.state_dict()[k], v) for k, v in kept.items())
    with pytest.raises(UserError, match="global_pool 'max' is not known"):
        model.reset_classifier(3, "max")


@pytest.mark.parametrize("name", ["ghostnet_050", "ghostnetv3_050", "resnet20", "g_ghost_regnetx_002"])
def test_checkpointing_changes_memory_and_nothing_else(name: str) -> None:
    model = network(name, drop_rate=0.0).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    grads, runs = [], []
    first = next(module for key, module in model.named_modules() if key.startswith(("blocks.0", "layer1")))
    first.register_forward_pre_hook(lambda *_: runs.append(model.grad_checkpointing))
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    assert runs == [False, True, True]  # once more on the way back


def test_a_network_without_blocks_cannot_be_checkpointed() -> None:
    with pytest.raises(UserError, match="VGG has no blocks"):
        network("vgg16").set_grad_checkpointing()


def test_places_answer_like_timms() -> None:
    info = network("ghostnet_050").feature_info
    assert info[-1]["num_chs"] == info.get("num_chs", -1) == info.channels(-1) == 80
    assert info.reduction((0, 2)) == [2, 8]
    assert info.module_name() == [place["module"] for place in info.get_dicts()]


def test_timms_other_arguments() -> None:
    model, x = network("ghostnet_050").eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        _, maps = model.forward_intermediates(x, 2, norm=False, stop_early=False, output_fmt="NCHW")
        assert len(maps) == 2
        assert model.forward_head(model.forward_features(x), True).shape == (1, 1280)
        with pytest.raises(UserError, match="maps are given as they are"):
            model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize(
    "name", ["ghostnet_050", "ghostnetv2_100", "ghostnetv3_050", "resnet18", "g_ghost_regnetx_002"]
)
def test_dropout_acts_in_training_alone(name: str) -> None:
    model = network(name, drop_rate=0.5)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("indices", "wanted"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, -1], [0, 3]), ((2, 2), [2])])
def test_places_are_named_as_in_timm(indices: int | list[int] | None, wanted: list[int]) -> None:
    assert taken(indices, 4) == wanted


@pytest.mark.parametrize("indices", [5, -1, [4], [-5], 0, []])
def test_places_that_are_not_there_are_refused(indices: int | list[int]) -> None:
    with pytest.raises(UserError, match="do not fit a network with 4 places"):
        taken(indices, 4)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if name in HALF else pytest.mark.slow)
        for name in SMALL
        for dtype in (torch.bfloat16, torch.float16)
    ],
)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = network(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        while not float((exact := model(x)).abs().max()) < 100:  # the maps of a fresh ResNet-56 grow to 1e10
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.mul_(0.5)
        rough = model.to(dtype)(x.to(dtype)).float()
    assert float((rough - exact).abs().max()) < 0.15 * float(exact.abs().max())


@pytest.mark.parametrize("name", [*HALF, *(pytest.param(n, marks=pytest.mark.slow) for n in SMALL if n not in HALF)])
def test_it_exports(name: str) -> None:
    model = network(name).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x))


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("ghostnet_050", {"width": 0.2}), ("ghostnetv2_100", {"width": 0.2}), ("ghostnetv3_050", {"width": 0.2}),
    ("ghost_vgg16", {"ratio": 5}), ("resnet20", {}), ("ghost_resnet18", {"ratio": 4}), ("regnetx_002", {}),
    ("g_ghost_regnetx_002", {}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_it_compiles_as_one_graph_with_the_same_logits_and_gradients(name: str, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    model, x = network(name, drop_rate=0.0, **options), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found: list[dict[str, torch.Tensor]] = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(x)
        logits.square().sum().backward()
        grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        found.append({"logits": logits.detach(), **grads})
    for key, wanted in found[0].items():
        torch.testing.assert_close(found[1][key], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, of its own parts
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_it_compiles_to_machine_code() -> None:
    torch.compiler.reset()
    model, x = network("ghost_resnet20").eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(x), model(x), rtol=1e-4, atol=1e-4)


def test_what_a_network_says_of_itself() -> None:
    plain = network("ghost_resnet18").pretrained_cfg
    assert plain["architecture"] == "ghost_resnet18"
    assert (plain["first_conv"], plain["classifier"], plain["input_size"]) == ("conv1", "fc", (3, 224, 224))
    told = create_model("ghostnet_100.in1k").pretrained_cfg
    assert (told["crop_pct"], told["interpolation"], told["hf_hub_id"]) == (0.875, "bicubic", "timm/ghostnet_100.in1k")
    assert told["mean"] == (0.485, 0.456, 0.406)
    assert (told["first_conv"], told["classifier"], told["num_classes"]) == ("conv_stem", "classifier", 1000)
    digits = create_model("resnet20.digits").pretrained_cfg
    assert (digits["input_size"], digits["interpolation"]) == ((1, 32, 32), "bilinear")
    untagged = create_model("ghostnet_100", in_chans=1, num_classes=3).pretrained_cfg  # as with checkpoint_path
    assert (untagged["mean"], untagged["crop_pct"], untagged["num_classes"]) == ((0.485, 0.456, 0.406), 0.875, 3)
    assert untagged["input_size"] == (1, 224, 224)


def test_every_network_builds_without_memory() -> None:
    with torch.device("meta"):
        for name in BUILDERS:
            assert isinstance(BUILDERS[name](), nn.Module)
