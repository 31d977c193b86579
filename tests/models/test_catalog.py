# SPDX-License-Identifier: Apache-2.0
"""One contract for every network in the catalogue, and names that are nearly right."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import ghostnets
from ghostnets.blocks.residual import ShortcutA
from ghostnets.errors import UserError
from ghostnets.models.catalog import BUILDERS, create_model, for_channels, list_models
from ghostnets.models.published import PUBLISHED as REMOTE
from ghostnets.models.resnet import CifarResNet
from ghostnets.models.weights import WEIGHTS
from ghostnets.training.data import load_dataset

EVERY = [*BUILDERS, *WEIGHTS]
# Million parameters, He et al. (arXiv:1512.03385, Table 6); the paper rounds, and its ResNet-110 has 1.7.
PUBLISHED = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}


@pytest.mark.parametrize("name", EVERY)
def test_every_network_keeps_the_contract(name: str) -> None:
    model = create_model(name, num_classes=7, in_chans=2)
    assert model.training
    side = 32 if "vgg" in name else 16  # five times halved
    logits = model(torch.randn(2, 2, side, side))
    assert logits.shape == (2, 7)
    assert bool(torch.isfinite(logits).all())
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    again = create_model(name, num_classes=7, in_chans=2).eval()
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 2, side, side)
    with torch.no_grad():
        exact = model.eval()(x)
        assert torch.equal(again(x), exact)
        rough = again.to(torch.bfloat16)(x.bfloat16()).float()
        assert float((rough - exact).abs().max()) < 0.15 * float(exact.abs().max()) + 1e-3
        model.reset_classifier(3)
        assert model(x).shape == (1, 3)


@pytest.mark.parametrize(
    "name", ["resnet20", "ghost_resnet20", "resnet50", "ghostnet_050", "ghostnetv2_100", "ghostnetv3_050"]
)
def test_blocks_may_begin_as_their_shortcuts(name: str) -> None:
    """All but those whose shortcut pads channels: so the network is as deep as its stem and where the shape changes."""
    model = create_model(name)
    blocks: list[Any] = [
        block
        for block in model.modules()
        if hasattr(block, "zero_init_last") and not isinstance(getattr(block, "downsample", None), ShortcutA)
    ]
    assert len(blocks) >= 7
    for block in blocks:
        shortcut: Any = block.downsample if hasattr(block, "downsample") else block.shortcut
        x = torch.rand(2, next(p.shape[1] for p in block.parameters() if p.ndim == 4), 8, 8)
        for training in (True, False):
            block.train(training)
            with torch.no_grad():
                assert not torch.equal(block(x), shortcut(x))
                before = {n: p.clone() for n, p in block.named_parameters()}
                block.zero_init_last()
                torch.testing.assert_close(
                    block(x), shortcut(x).relu() if hasattr(block, "downsample") else shortcut(x)
                )
                changed = {n for n, p in block.named_parameters() if not torch.equal(p, before[n])}
                assert 1 <= len(changed) <= 8
                for n in changed:
                    block.get_parameter(n).copy_(before[n])


@pytest.mark.parametrize("name", ["resnet20", "ghost_resnet20", "resnet50", "ghostnet_050", "ghostnetv2_100"])
def test_branches_that_begin_at_zero_do_not_stay_there(name: str) -> None:
    """Where a shortcut pads channels with zeros, a branch of zeros would leave them dead behind the ReLU for good."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=4)
    blocks: list[Any] = [block for block in model.modules() if hasattr(block, "zero_init_last")]
    for block in blocks:
        block.zero_init_last()
    zeroed = {n: p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 1 and not p.any()}
    assert zeroed
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.rand(8, 3, 32, 32)), torch.arange(8) % 4).backward()
        optimizer.step()
    assert {n: f"{int((p == 0).sum())} of {len(p)} are dead" for n, p in zeroed.items() if not p.all()} == {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_plain_networks_have_the_published_size_and_their_ghosts_less(name: str) -> None:
    sizes = [sum(p.numel() for p in create_model(n).parameters()) / 1e6 for n in (name, f"ghost_{name}")]
    assert sizes[0] == pytest.approx(PUBLISHED[name], abs=0.05 if name == "resnet110" else 0.01)
    assert sizes[1] < 0.55 * sizes[0]


def test_defaults_are_those_of_cifar_and_none_means_unset() -> None:
    for model in (create_model("resnet20"), create_model("resnet20", num_classes=None, in_chans=None)):
        assert isinstance(model, CifarResNet)
        assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_keywords_reach_the_builder() -> None:
    model = create_model("ghost_resnet20", ratio=4, cheap_size=5)
    cheap = model.get_submodule("layer1.0.conv1.cheap_operation.0")
    assert isinstance(cheap, nn.Conv2d)
    assert (cheap.kernel_size, cheap.in_channels, cheap.out_channels) == ((5, 5), 4, 12)
    unset = create_model("ghost_resnet20", ratio=None, cheap_size=None).state_dict()
    plain = create_model("ghost_resnet20").state_dict()
    assert {n: t.shape for n, t in unset.items()} == {n: t.shape for n, t in plain.items()}


@pytest.mark.parametrize("name", WEIGHTS)
def test_trained_networks_hold_what_their_file_holds(name: str) -> None:
    row = WEIGHTS[name]
    stored = load_file(row.path)
    first = next(tagged for tagged, other in WEIGHTS.items() if other.architecture == row.architecture)
    for asked in (name, *([row.architecture] if name == first else [])):
        model = create_model(asked, pretrained=True)
        assert model.training
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, stored[key].to(tensor.dtype))
    untrained = create_model(name)
    assert {n: t.shape for n, t in untrained.state_dict().items()} == {n: t.shape for n, t in stored.items()}


@pytest.mark.parametrize(
    "name",
    [name if row.data == "digits" else pytest.param(name, marks=pytest.mark.slow) for name, row in WEIGHTS.items()],
)
def test_trained_networks_are_as_good_as_stated(name: str, request: pytest.FixtureRequest) -> None:
    row, model = WEIGHTS[name], create_model(name, pretrained=True).eval()
    where = None if row.data == "digits" else request.getfixturevalue("data_root")
    data = load_dataset(row.data, data_dir=where)
    assert (data.classes, data.mean, data.std) == (row.classes, row.mean, row.std)
    assert data.test.labels is not None
    centre, spread = (torch.tensor(figures).view(1, -1, 1, 1) for figures in (row.mean, row.std))
    with torch.inference_mode():
        guesses = torch.cat([model((part / 255 - centre) / spread).argmax(1) for part in data.test.pixels.split(250)])
    right = int((guesses == data.test.labels).sum())
    near = 1.5 + len(data.test) // 10_000  # another processor may round one image over the edge, of so many two
    assert abs(right - row.top1 / 100 * len(data.test)) < near


@pytest.mark.parametrize("name", WEIGHTS)
def test_another_number_of_classes_starts_only_the_classifier_anew(name: str) -> None:
    row = WEIGHTS[name]
    model, stored = create_model(name, pretrained=True, num_classes=3), load_file(row.path)
    for key, tensor in model.state_dict().items():
        if not key.startswith(row.classifier):
            assert torch.equal(tensor, stored[key].to(tensor.dtype))
    assert model(torch.zeros(2, row.in_chans, 32, 32)).shape == (2, 3)
    maps = create_model(name, pretrained=True, num_classes=0).eval()
    full = create_model(name, pretrained=True).eval()
    x = torch.randn(2, row.in_chans, 32, 32)
    with torch.no_grad():
        assert torch.equal(full.get_classifier()(maps(x)), full(x))


def test_a_first_convolution_reads_other_channels() -> None:
    """The same image in every channel gives the same answer."""
    weight, x = torch.randn(4, 3, 3, 3), torch.randn(2, 1, 8, 8)
    wanted = F.conv2d(x.expand(-1, 3, -1, -1), weight)
    for channels in (1, 2, 3, 5, 6, 7):
        own = for_channels(weight, channels)
        assert own.shape == (4, channels, 3, 3)
        if channels in {1, 3, 6}:
            torch.testing.assert_close(F.conv2d(x.expand(-1, channels, -1, -1), own), wanted, rtol=1e-4, atol=1e-4)
    digits = create_model("resnet20.digits", pretrained=True).eval()
    colour = create_model("resnet20.digits", pretrained=True, in_chans=4).eval()
    with torch.no_grad():
        grey = torch.randn(2, 1, 32, 32)
        torch.testing.assert_close(colour(grey.expand(-1, 4, -1, -1)), digits(grey), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_fills_the_network(tmp_path: Path) -> None:
    source = create_model("ghost_resnet20", in_chans=1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = create_model("ghost_resnet20", in_chans=1, checkpoint_path=tmp_path / "w.safetensors")
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(model.eval()(x), source.eval()(x))
    with pytest.raises(UserError, match="not both"):
        create_model(next(iter(WEIGHTS)), pretrained=True, checkpoint_path=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "keywords", "words"),
    [
        ("resnet65", {}, "no network 'resnet65': did you mean resnet56"),
        ("ResNet56", {}, "did you mean resnet56"),
        ("ghostresnet20", {}, "did you mean ghost_resnet20"),
        ("resnet20.digit", {}, "did you mean resnet20.digits"),
        ("resnet20.digits.v2", {}, "did you mean resnet20.digits"),
        ("", {}, "no network ''"),
        ("transformer", {}, "ghostnets list names all "),
        ("resnet110", {"pretrained": True}, "resnet110 does not come trained; these do: g_ghost_regnetx_032.in1k, "),
        ("resnet20", {"ratio": 2}, "resnet20 has no option 'ratio': it takes num_classes, in_chans"),
        ("ghost_resnet20", {"depth": 20}, "no option 'depth'"),
        ("resnet20", {"num_classes": -1}, "num_classes -1 of resnet20"),
        ("resnet20", {"global_pool": ""}, "without global_pool a classifier of 10 classes has nothing to read"),
        ("resnet20", {"in_chans": -1}, "in_chans -1"),
        ("resnet20", {"in_chans": 1.5}, "in_chans 1.5"),
        ("ghost_resnet20", {"ratio": 0}, "ratio 0"),
        ("resnet20", {"checkpoint_path": "nowhere.pt"}, "nowhere.pt do not exist"),
    ],
)
def test_what_cannot_be_is_refused_in_words(name: str, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        create_model(name, **keywords)
    assert words in str(caught.value)


def test_lists_follow_the_pattern_and_the_number() -> None:
    depths = [name.removeprefix("resnet") for name in list_models("resnet*")]
    assert depths == ["18", "20", "32", "34", "44", "50", "56", "101", "110"]
    assert set(list_models()) == set(BUILDERS)
    for pattern in ("ghost_*", "*56", "*resnet?0", "resnet[24]*", "nothing"):
        assert set(list_models(pattern)) == {name for name in BUILDERS if fnmatch(name, pattern)}
    assert list_models(pretrained=True) == sorted({*WEIGHTS, *REMOTE})
    assert list_models("*.digits", pretrained=True) == ["resnet20.digits"]
    assert list_models("ghostnet_100", pretrained=True) == ["ghostnet_100.in1k"]
    assert list_models(["ghostnet_0*", "resnet2?"], exclude_filters="*20") == ["ghostnet_050"]


def test_the_package_offers_both() -> None:
    assert ghostnets.create_model is create_model
    assert ghostnets.list_models is list_models
