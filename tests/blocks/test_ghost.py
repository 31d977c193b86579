# SPDX-License-Identifier: Apache-2.0
"""The Ghost module against a loop written from the paper's equations 2 and 3, and the gather behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from ghostnets.blocks.conv import plain_conv
from ghostnets.blocks.ghost import ChannelGather, GhostModule, ghost_conv
from ghostnets.errors import UserError
from ghostnets.measure.cost import total_macs, total_params

Maps = NDArray[np.float64]


def randomised(module: GhostModule) -> GhostModule:
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 1.5) if tensor.dim() == 1 else nn.init.normal_(tensor)
    return module.double().eval()


def correlate(maps: Maps, filters: Maps, stride: int, padding: int, dilation: int) -> Maps:
    """Equation 1 for one filter (c, k, k) and no bias, pixel by pixel."""
    padded = np.pad(maps, ((0, 0), (padding, padding), (padding, padding)))
    reach = dilation * (filters.shape[1] - 1) + 1
    height, width = ((size - reach) // stride + 1 for size in padded.shape[1:])
    out = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            top, left = y * stride, x * stride
            seen = padded[:, top : top + reach : dilation, left : left + reach : dilation]
            out[y, x] = (seen * filters).sum()
    return out


def filters_of(branch: nn.Sequential) -> Maps:
    conv = branch[0]
    assert isinstance(conv, nn.Conv2d)
    return conv.weight.detach().numpy()


def finished(maps: Maps, norm: nn.Module, channel: int, *, relu: bool) -> Maps:
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var, gamma, beta = (
        float(t.detach()[channel]) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scaled = (maps - mean) / np.sqrt(var + 1e-5) * gamma + beta
    return np.maximum(scaled, 0) if relu else scaled


def by_the_paper(module: GhostModule, image: Maps, out: int, ratio: int, cheap: int, **geometry: int) -> Maps:
    """Identity maps first; then intrinsic i's own s - 1 linear filters, i after i; what exceeds ``out`` is cut."""
    primary, cheap_operation = module.primary_conv, module.cheap_operation
    weights = filters_of(primary)
    intrinsic = [
        finished(correlate(image, weight, **geometry), primary[1], i, relu=module.relu)
        for i, weight in enumerate(weights)
    ]
    assert len(intrinsic) == -(-out // ratio)
    ghosts: list[Maps] = []
    for i, own in enumerate(intrinsic):
        for j in range(ratio - 1):
            assert cheap_operation is not None
            filters = filters_of(cheap_operation)[i * (ratio - 1) + j]
            linear = correlate(own[None], filters, stride=1, padding=cheap // 2, dilation=1)
            ghosts.append(finished(linear, cheap_operation[1], i * (ratio - 1) + j, relu=module.relu))
    return np.stack([*intrinsic, *ghosts][:out])


shapes = st.fixed_dictionaries(
    {
        "cin": st.integers(1, 5),
        "out": st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 13]),
        "ratio": st.integers(1, 5),
        "cheap": st.sampled_from([1, 3, 5, 7]),
        "kernel": st.sampled_from([1, 2, 3, 5]),
        "stride": st.integers(1, 3),
        "dilation": st.integers(1, 2),
        "padding": st.sampled_from([None, 0, 1, 2]),
        "relu": st.booleans(),
        "size": st.tuples(st.integers(1, 7), st.integers(1, 7)),
    }
)


@settings(max_examples=50)
@given(shapes)
def test_a_ghost_module_computes_what_the_paper_writes(shape: dict[str, Any]) -> None:
    size: tuple[int, int] = shape["size"]
    padding = shape["padding"] if shape["padding"] is not None else shape["dilation"] * (shape["kernel"] // 2)
    reach = shape["dilation"] * (shape["kernel"] - 1) + 1
    size = (max(size[0], reach - 2 * padding), max(size[1], reach - 2 * padding))
    module = randomised(
        GhostModule(
            shape["cin"], shape["out"], kernel_size=shape["kernel"], ratio=shape["ratio"], cheap_size=shape["cheap"],
            stride=shape["stride"], padding=shape["padding"], dilation=shape["dilation"], relu=bool(shape["relu"]),
        )
    )  # fmt: skip
    x = torch.randn(2, shape["cin"], *size, dtype=torch.float64)
    with torch.no_grad():
        maps = module(x).numpy()
    geometry = {"stride": shape["stride"], "padding": padding, "dilation": shape["dilation"]}
    for image, got in zip(x.numpy(), maps, strict=True):
        expected = by_the_paper(module, image, shape["out"], shape["ratio"], shape["cheap"], **geometry)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(shapes)
def test_counts_are_those_of_the_formulas(shape: dict[str, Any]) -> None:
    cin, out, s, d, k = (shape[name] for name in ("cin", "out", "ratio", "cheap", "kernel"))
    module = GhostModule(cin, out, kernel_size=k, ratio=s, cheap_size=d, relu=bool(shape["relu"]))
    m = module.intrinsic_channels
    assert m == -(-out // s)
    assert total_params(module) == cin * k * k * m + d * d * m * (s - 1) + 2 * m + 2 * m * (s - 1)
    example = torch.randn(1, cin, 6, 5)
    height, width = module.eval()(example).shape[2:]
    assert total_macs(module, example) == height * width * (cin * k * k * m + d * d * m * (s - 1))


@settings(max_examples=20)
@given(shapes)
def test_shapes_are_those_of_the_convolution_and_every_parameter_gets_a_gradient(shape: dict[str, Any]) -> None:
    cin, out, k = shape["cin"], shape["out"], shape["kernel"]
    module = GhostModule(
        cin, out, kernel_size=k, ratio=shape["ratio"], cheap_size=shape["cheap"], stride=shape["stride"], padding=2,
        dilation=shape["dilation"], relu=bool(shape["relu"]),
    )  # fmt: skip
    x = torch.randn(2, cin, 8, 5)
    got = module(x)
    assert got.shape == nn.Conv2d(cin, out, k, shape["stride"], 2, shape["dilation"])(x).shape
    got.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert got.shape[1] == out


def test_parameters_bear_the_published_names() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    branches = ("primary_conv", "cheap_operation")
    keys = [f"{b}.{key}" for b in branches for key in ("0.weight", *(f"1.{n}" for n in norm))]
    state = GhostModule(6, 10, kernel_size=3, ratio=3, cheap_size=5).state_dict()
    assert list(state) == keys
    assert state["primary_conv.0.weight"].shape == (4, 6, 3, 3)
    assert state["cheap_operation.0.weight"].shape == (8, 1, 5, 5)  # two of them are computed and cut off


def test_kernel_and_padding_may_differ_by_direction_and_be_words() -> None:
    x = torch.randn(1, 3, 6, 9)
    uneven = GhostModule(3, 4, kernel_size=(3, 1), stride=(2, 1), dilation=(1, 2))
    assert uneven(x).shape == (1, 4, 3, 9)
    assert uneven.primary_conv[0].padding == (1, 0)
    assert GhostModule(3, 4, kernel_size=5, padding="valid")(x).shape == (1, 4, 2, 5)
    assert GhostModule(3, 4, kernel_size=4, padding="same", dilation=2)(x).shape == (1, 4, 6, 9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratio": 0}, "ratio 0 of a Ghost module must be at least 1"),
        ({"cheap_size": 2}, "cheap kernel 2 of a Ghost module must be odd and positive"),
        ({"cheap_size": -1}, "cheap kernel -1 of a Ghost module must be odd and positive"),
    ],
)
def test_what_makes_no_ghost_module_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        GhostModule(4, 4, **wrong)  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == message


def test_the_factories_build_triples_of_one_shape() -> None:
    plain = plain_conv(4, 6, kernel_size=3, stride=2)
    ghost = ghost_conv(3, 1)(4, 6, kernel_size=3, stride=2, relu=False)
    assert isinstance(ghost.conv, GhostModule)
    assert (ghost.conv.ratio, ghost.conv.cheap_size, ghost.conv.relu) == (3, 1, False)
    assert repr(ghost.conv).startswith("GhostModule(\n  4, 6, ratio=3, cheap_size=1")
    assert isinstance(ghost.norm, nn.Identity)
    assert isinstance(ghost.act, nn.Identity)
    x = torch.randn(2, 4, 7, 5)
    assert nn.Sequential(*plain)(x).shape == nn.Sequential(*ghost)(x).shape == (2, 6, 4, 3)
    assert isinstance(plain_conv(4, 6, kernel_size=1, relu=False).act, nn.Identity)


def gather_of(order: list[int]) -> ChannelGather:
    gather = ChannelGather(len(order)).double()
    gather.set_(torch.tensor(order))
    return gather


@settings(max_examples=20)
@given(st.permutations(list(range(5))))
def test_a_gather_is_plain_indexing_forward_and_backward(order: list[int]) -> None:
    x = torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    gather = gather_of(order)
    (expected,) = torch.autograd.grad(x[:, order], x, upstream)
    (got,) = torch.autograd.grad(gather(x), x, upstream)
    assert torch.equal(gather(x), x[:, order])
    assert torch.equal(got, expected)
    with torch.no_grad():
        assert torch.equal(gather(x), x[:, order])
    assert torch.autograd.gradcheck(gather, (x,))


def test_a_gather_comes_back_from_its_state_with_its_inverse() -> None:
    order = [3, 0, 4, 1, 2]
    fresh = nn.Sequential(ChannelGather(5).double())
    state = nn.Sequential(gather_of(order)).state_dict()
    assert list(state) == ["0.index"]
    fresh.load_state_dict(state)
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    weights: Tensor = torch.arange(5, dtype=torch.float64).view(5, 1, 1)
    (fresh(x) * weights).sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0, 0].tolist() == [order.index(c) for c in range(5)]
