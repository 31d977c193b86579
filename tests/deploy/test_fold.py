# SPDX-License-Identifier: Apache-2.0
"""A folded network computes what the original does, in float64 to rounding; what cannot be folded is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostnets.blocks.branches import fold_branches
from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.deploy.fold import fold
from ghostnets.errors import GhostnetsError, UnsupportedLayer, UserError
from ghostnets.models.catalog import create_model
from ghostnets.models.resnet import BUILDERS


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with figures of their own, so that every one of them matters."""
    g = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.randn(tensor.shape, generator=g))
            for tensor in (module.running_var, module.weight):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=g) + 0.5)
    return model


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max() / other.detach().abs().max())


@pytest.mark.parametrize("name", ["ghostnet_050", "ghostnetv2_100", "ghostnetv3_050", "g_ghost_regnetx_002"])
def test_attention_branches_and_stages_fold(name: str) -> None:
    """Every norm that reads a convolution alone; the branches' bare norms are for ``fold_branches``."""
    model = settle(create_model(name)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for network in (model, fold_branches(model)):
            folded = fold(network, x)
            assert distance(folded(x), model(x)) < 1e-4
    assert norms(folded) == 0


@pytest.mark.parametrize("name", BUILDERS)
def test_every_network_folds_to_the_last_norm(name: str) -> None:
    model = settle(BUILDERS[name](in_chans=3))
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    kept = dict(model.named_modules())
    x = torch.randn(2, 3, 16, 16)
    folded = fold(model, x)
    assert norms(folded) == 0
    assert not any(module.training for module in folded.modules())
    # The original is as it was, and shares nothing with the copy.
    assert all(module.training for module in model.modules())
    assert dict(model.named_modules()) == kept
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    owned = {tensor.data_ptr() for tensor in model.parameters()}
    assert owned.isdisjoint(tensor.data_ptr() for tensor in folded.parameters())
    with torch.no_grad():
        y = torch.randn(2, 3, 16, 16)
        assert distance(folded(y), model.eval()(y)) < 1e-5
        assert (
            distance(folded.double()(y.double()), model.double()(y.double())) < 1e-5
        )  # the folded weights are float32


@settings(max_examples=40)
@given(
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    affine=st.booleans(),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding_mode=st.sampled_from(["zeros", "reflect", "circular"]),
    eps=st.sampled_from([1e-5, 1e-3, 0.5]),
    seed=st.integers(0, 99),
)
def test_the_merged_convolution_equals_the_formula(
    groups: int,
    bias: bool,
    affine: bool,
    kernel: int,
    stride: int,
    dilation: int,
    padding_mode: Any,
    eps: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(
        4, 8, kernel, stride, 1 if kernel == 3 else 0, dilation, groups, bias=bias, padding_mode=padding_mode
    )
    norm = nn.BatchNorm2d(8, eps=eps, affine=affine)
    model = settle(nn.Sequential(conv, norm).double(), seed)
    x = torch.randn(3, 4, 9, 9, dtype=torch.float64)
    folded = fold(model, x)
    plain = conv(x)  # the formula of batch norm, written out
    assert norm.running_mean is not None
    assert norm.running_var is not None
    out = (plain - norm.running_mean.view(1, -1, 1, 1)) / torch.sqrt(norm.running_var + eps).view(1, -1, 1, 1)
    if affine:
        out = out * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    assert distance(folded(x), out) < 1e-12
    assert norms(folded) == 0


@settings(max_examples=25)
@given(ratio=st.integers(1, 4), out=st.integers(4, 9), cheap=st.sampled_from([1, 3, 5]), relu=st.booleans())
def test_both_branches_of_a_ghost_module_are_folded(ratio: int, out: int, cheap: int, relu: bool) -> None:
    module = GhostModule(3, out, kernel_size=3, ratio=ratio, cheap_size=cheap, relu=relu)
    model = settle(nn.Sequential(module, nn.BatchNorm2d(out), nn.Conv2d(out, 2, 1)).double().eval())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    folded = fold(model, x)
    assert norms(folded) == 1  # the one after the module follows a concatenation, not a convolution
    assert distance(folded(x), model(x)) < 1e-12
    assert [type(m) for m in folded.modules() if isinstance(m, GhostModule)] == [GhostModule]
    alone = fold(settle(module.double()), x)
    assert norms(alone) == 0
    assert distance(alone(x), module.eval()(x)) < 1e-12


class Odd(nn.Module):
    """A network whose norms each have a reason to stay, or several names."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)
        self.alias = self.norm

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        if self.how == "two readers":
            return self.norm(out) + out
        if self.how == "convolution twice":
            return self.norm(self.conv(out))
        if self.how == "norm twice":
            return self.norm(self.norm(out))
        if self.how == "weight read elsewhere":
            return self.norm(out) * self.conv.weight.sum()
        if self.how == "relu between":
            return self.norm(torch.relu(out))
        if self.how == "norm first":
            return self.conv(self.norm(x))
        if self.how == "two names":
            return self.alias(out)
        assert self.how == "two norms"
        return self.other(self.norm(out))


STAYS = {
    "two readers": 1, "convolution twice": 1, "norm twice": 1, "weight read elsewhere": 1, "relu between": 1,
    "norm first": 1, "two names": 0, "two norms": 1,
}  # fmt: skip


@pytest.mark.parametrize("how", STAYS)
def test_only_what_may_be_merged_is_merged(how: str) -> None:
    model = settle(Odd(how).double().eval())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    folded = fold(model, x)
    assert distance(folded(x), model(x)) < 1e-12
    left = [
        m for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d) and (n != "other" or how == "two norms")
    ]
    assert len(left) == STAYS[how]


def test_a_gather_and_tied_weights_are_no_obstacle() -> None:
    one, two = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    two.weight = one.weight
    gather = ChannelGather(3)
    gather.set_(torch.tensor([2, 0, 1]))
    model = settle(nn.Sequential(one, nn.BatchNorm2d(3), gather, two, nn.BatchNorm2d(3)).double().eval(), seed=3)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    folded = fold(model, x)
    assert norms(folded) == 0
    assert distance(folded(x), model(x)) < 1e-12
    assert two.weight is one.weight


def test_dtypes_and_frozen_weights_stay() -> None:
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(torch.bfloat16)).requires_grad_(False)
    folded = fold(model, torch.randn(1, 3, 8, 8, dtype=torch.bfloat16))
    assert {(p.dtype, p.requires_grad) for p in folded.parameters()} == {(torch.bfloat16, False)}


def refused(model: nn.Module, x: Tensor | None = None) -> str:
    with pytest.raises(GhostnetsError) as caught:
        fold(model, torch.randn(2, 3, 8, 8) if x is None else x)
    return str(caught.value)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, x


def test_what_cannot_be_folded_is_named() -> None:
    stateless = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(UnsupportedLayer, match=r"^1 keeps no running statistics"):
        fold(stateless, torch.randn(2, 3, 8, 8))
    hooked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    hooked[0].register_forward_hook(lambda *_: None)
    assert "0 has hooks" in refused(hooked)
    assert "Branching cannot be traced" in refused(Branching())
    assert "Pair must return one tensor" in refused(Pair())
    with pytest.raises(UserError):
        fold(Branching(), torch.zeros(1))


def test_a_network_that_hides_a_change_is_caught() -> None:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:  # what it computes depends on what it is made of
            return self.norm(self.conv(x)) * (1 if isinstance(self.norm, nn.BatchNorm2d) else 2)

    assert "folding Hiding changed its output by" in refused(settle(Hiding()))
