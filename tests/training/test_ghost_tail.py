# SPDX-License-Identifier: Apache-2.0
"""The Ghost module in C against the same module by PyTorch, in float64 where figures are compared."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostnets.blocks.ghost import GhostModule, ghost_conv
from ghostnets.blocks.residual import BasicBlock, ShortcutA
from ghostnets.compiler import NoCompiler
from ghostnets.measure.latency import on_threads
from ghostnets.models.catalog import create_model
from ghostnets.training import ghost_tail
from ghostnets.training.ghost_tail import QuickBasicBlock, QuickGhostModule, quickened


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    try:
        ghost_tail.libraries()
    except NoCompiler as error:
        pytest.skip(str(error))


def ghost(outputs: int, side: int, *, relu: bool, ratio: int = 2, seed: int = 0) -> GhostModule:
    """With norms that do something, and filters far from symmetric."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = GhostModule(3, outputs, kernel_size=1, ratio=ratio, cheap_size=side, relu=relu)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum, norm.eps = 0.3, 1e-3
                nn.init.normal_(norm.running_mean)  # pyright: ignore[reportArgumentType]
    return module


def passed(module: nn.Module, x: Tensor, pull: Tensor) -> dict[str, Tensor]:
    """What goes out, every gradient, and every buffer after one step."""
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(pull)
    assert x.grad is not None
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **grads, **dict(module.named_buffers())}


def error(found: Tensor, wanted: Tensor) -> float:
    """Of all values together, over the length of those wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-3))


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(3, 20), height=st.integers(2, 12), width=st.integers(2, 12), outputs=st.integers(2, 80),
    ratio=st.integers(2, 8), side=st.sampled_from([1, 3, 5, 7]), threads=st.integers(1, 3), relu=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_gives_what_pytorch_gives(
    images: int, height: int, width: int, outputs: int, ratio: int, side: int, threads: int, *, relu: bool, seed: int
) -> None:
    if side == 1 and not relu:
        side = 3  # a norm undoes what a filter of one weight does: its gradient is 0, and all that is left is rounding
    source = torch.Generator().manual_seed(seed)
    x = 3 + torch.randn(images, 3, height, width, generator=source)
    pull = torch.randn(images, outputs, height, width, generator=source)
    module = ghost(outputs, side, relu=relu, ratio=ratio, seed=seed)
    with on_threads(threads):
        found = passed(quickened(module), x, pull)
    wanted = passed(copy.deepcopy(module).double(), x.double(), pull.double())
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert error(found[name], tensor) < 1e-3, name  # a value that float32 puts on the other side of 0 counts fully
    torch.testing.assert_close(found["out"], wanted["out"].float(), rtol=1e-3, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    images=st.integers(3, 12), height=st.integers(2, 9), width=st.integers(2, 9), channels=st.integers(1, 12),
    strided=st.booleans(), threads=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_residual_block_gives_what_pytorch_gives(
    images: int, height: int, width: int, channels: int, *, strided: bool, threads: int, seed: int
) -> None:
    """The shortcut's gradient, which x's holds a share of, too; padded channels are ReLU's alone."""
    wide = 2 * channels * (2 if strided else 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shortcut = ShortcutA(2 * channels, wide, 2) if strided else nn.Identity()
        block = BasicBlock(
            2 * channels, wide, stride=1 + strided, conv=ghost_conv(ratio=2, cheap_size=3), downsample=shortcut
        )
        x = torch.randn(images, 2 * channels, height, width)
        pull = torch.randn(images, wide, -(-height // (1 + strided)), -(-width // (1 + strided)))
        wanted = copy.deepcopy(block).double()
    quick = quickened(block)
    assert isinstance(quick, QuickBasicBlock)
    with on_threads(threads):
        found = passed(quick, x, pull)
    for name, tensor in passed(wanted, x.double(), pull.double()).items():
        assert error(found[name], tensor) < 1e-3, name


def test_a_block_in_bfloat16_is_as_near_as_pytorch_s_own() -> None:
    source = torch.Generator().manual_seed(1)
    x, pull = torch.randn(32, 16, 16, 16, generator=source), torch.randn(32, 16, 16, 16, generator=source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = BasicBlock(16, 16, stride=1, conv=ghost_conv(ratio=2, cheap_size=3), downsample=nn.Identity())
    wanted = passed(copy.deepcopy(block).double(), x.double(), pull.double())
    errors: list[dict[str, float]] = []
    for network in (quickened(block), copy.deepcopy(block)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = passed(network, x.bfloat16(), pull.bfloat16())
        assert found["out"].dtype == torch.bfloat16
        errors.append({name: error(found[name], tensor) for name, tensor in wanted.items()})
    for name, ours in errors[0].items():
        assert ours < 1.2 * errors[1][name] + 1e-3, name


def test_a_shortcut_of_another_type_is_added_as_pytorch_adds_it() -> None:
    module = quickened(ghost(8, 3, relu=False))
    shortcut = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    assert isinstance(module, QuickGhostModule)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(module(x, shortcut), torch.relu(module(x) + shortcut), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_as_near_as_pytorch_s_own() -> None:
    source = torch.Generator().manual_seed(1)
    x, pull = torch.randn(32, 3, 16, 16, generator=source), torch.randn(32, 16, 16, 16, generator=source)
    module = ghost(16, 3, relu=True)
    wanted = passed(copy.deepcopy(module).double(), x.double(), pull.double())
    errors: list[dict[str, float]] = []
    for network in (quickened(module), copy.deepcopy(module)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = passed(network, x, pull.bfloat16())
        assert found["out"].dtype == torch.bfloat16
        errors.append({name: error(found[name], tensor) for name, tensor in wanted.items()})
    for name, ours in errors[0].items():
        assert ours < 2 * errors[1][name] + 1e-3, name


def test_a_map_far_from_zero_keeps_its_variance() -> None:
    """A sum of squares in float32 around 0 would lose it: 1000² is 10^6 times a variance of 1."""
    x = 1000 + torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    module = ghost(8, 3, relu=False)
    conv = nn.Conv2d(3, 4, 1, bias=False)
    nn.init.dirac_(conv.weight)
    module.primary_conv[0] = conv
    quick = quickened(module)
    quick(x)
    assert isinstance(quick, QuickGhostModule)
    variance = quick.primary_conv[1].running_var
    assert isinstance(variance, Tensor)
    wanted = 0.7 + 0.3 * x.double().var((0, 2, 3))
    torch.testing.assert_close(variance[:3].double(), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["ghost_resnet20", "ghostnet_050"])
def test_a_whole_network_keeps_its_names_and_its_gradients(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_model(name, num_classes=10).train()
        side = 32 if "resnet" in name else 64
        x = torch.randn(8, 3, side, side)
    quick = quickened(network)
    assert sum(isinstance(module, QuickGhostModule) for module in quick.modules()) >= 18
    assert list(quick.state_dict()) == list(network.state_dict())
    outs: list[Tensor] = []
    for one in (network, quick):
        torch.manual_seed(0)  # of dropout
        out = one(x)
        out.square().mean().backward()
        outs.append(out.detach())
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-3, atol=1e-4)
    flat = [torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]) for one in (network, quick)]
    assert float(torch.cosine_similarity(flat[0], flat[1], dim=0)) > 0.9999
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), quick.eval()(x), rtol=1e-3, atol=1e-3)


def test_the_same_step_twice_is_the_same_to_the_bit() -> None:
    source = torch.Generator().manual_seed(1)
    x, pull = torch.randn(13, 3, 9, 7, generator=source), torch.randn(13, 10, 9, 7, generator=source)
    module = ghost(10, 3, relu=True)
    runs = [passed(quickened(module), x, pull) for _ in range(2)]
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())


def test_a_frozen_norm_stays_as_it_is() -> None:
    module = ghost(8, 3, relu=True)
    quick = quickened(module)
    for one in (module, quick):
        for part in one.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
    x, pull = torch.randn(4, 3, 5, 5), torch.randn(4, 8, 5, 5)
    found, wanted = passed(quick, x, pull), passed(module, x, pull)
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


OTHERS = {
    "ratio 1": GhostModule(3, 8, ratio=1),
    "wide": GhostModule(3, 8, cheap_size=9),
    "double": GhostModule(3, 8).double(),
}
OTHERS["cumulative"] = GhostModule(3, 8)
OTHERS["cumulative"].primary_conv[1].momentum = None  # pyright: ignore[reportArgumentType]
OTHERS["bare"] = GhostModule(3, 8)
OTHERS["bare"].primary_conv[1] = nn.BatchNorm2d(4, affine=False)


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_c_does_not_compute_is_left_to_pytorch(name: str) -> None:
    assert type(quickened(OTHERS[name])) is GhostModule


def test_a_module_with_two_names_stays_one() -> None:
    shared = ghost(8, 3, relu=True)
    quick = quickened(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}))
    assert isinstance(quick, nn.ModuleDict)
    assert quick["a"] is quick.get_submodule("b.0")
    assert isinstance(quick["a"], QuickGhostModule)


def test_one_value_a_channel_is_refused_as_pytorch_refuses_it() -> None:
    quick = quickened(ghost(8, 3, relu=True))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        quick(torch.randn(1, 3, 1, 1))


def test_nan_stays_nan() -> None:
    x = torch.randn(4, 3, 5, 5)
    x[2, 1, 3, 3] = float("nan")
    assert not torch.isfinite(quickened(ghost(8, 3, relu=True))(x)).any()


def test_without_a_compiler_the_module_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ghost_tail.libraries.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NoCompiler, match="there is no C compiler"):
        quickened(ghost(8, 3, relu=True))
    assert type(quickened(nn.Conv2d(3, 3, 1))) is nn.Conv2d  # nothing to compile for
