# SPDX-License-Identifier: Apache-2.0
"""A captured graph gives what PyTorch gives, layer by layer and however it is written, or says what is in its way."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tiny
from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.deploy.capture import captured
from ghostnets.deploy.graph import ZERO, Conv, Pool, Resample, Select
from ghostnets.deploy.simplify import simplified
from ghostnets.errors import UnsupportedLayer, UserError
from graphs import Forward, distance, kinds, lively, then, truth

NEAR = 1e-6
"""Weights are rounded to float32 once or twice."""


def check(model: nn.Module, x: Tensor) -> list[str]:
    """The captured graph and the simplified one are right; what the captured one consists of."""
    graph = captured(lively(model), x)
    expected = truth(model, x)
    assert distance(graph, x, expected) < NEAR
    assert distance(simplified(graph), x, expected) < NEAR
    return kinds(graph)


# Layers, drawn

channels = st.integers(1, 67)
sides = st.tuples(st.integers(5, 17), st.integers(5, 17))
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(st.data(), sides, pairs, pairs, st.booleans())
@settings(max_examples=40)
def test_convolutions(data: st.DataObject, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], bias: bool) -> None:  # fmt: skip
    groups = data.draw(st.sampled_from([1, 1, 2, 3, 7]))
    own, multiplier = (data.draw(st.integers(1, 67 // groups)) for _ in range(2))
    dilation = data.draw(pairs)
    padding = data.draw(st.one_of(st.just("valid"), st.tuples(st.integers(0, 3), st.integers(0, 3))))
    if stride == (1, 1) and data.draw(st.booleans()):
        padding = "same"
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    extra = padding if isinstance(padding, tuple) else (0, 0)
    assume(padding == "same" or all(s + 2 * p >= r for s, p, r in zip(size, extra, reach, strict=True)))
    conv = nn.Conv2d(own * groups, multiplier * groups, kernel, stride, padding, dilation, groups, bias)
    assert check(conv, torch.randn(1, own * groups, *size)) == ["Conv"]


@given(sides, st.tuples(*[st.integers(0, 3)] * 4), st.integers(1, 67), st.integers(1, 2))
@settings(max_examples=15)
def test_depthwise_convolutions_of_maps_padded_unevenly(size: tuple[int, int], pad: tuple[int, ...], width: int, multiplier: int) -> None:  # fmt: skip
    conv = nn.Conv2d(width, width * multiplier, 3, 2, 1, groups=width)
    model = Forward(lambda s, x: s.conv(F.pad(x, pad)), conv=conv)
    assert check(model, torch.randn(1, width, *size)) in (["Conv"], ["Resample", "Conv"])


pools = st.tuples(sides, st.tuples(st.integers(2, 4), st.integers(2, 4)), pairs, st.booleans())


@given(pools, st.tuples(st.integers(0, 1), st.integers(0, 1)), pairs)
@settings(max_examples=25)
def test_max_pools(drawn: Any, padding: tuple[int, int], dilation: tuple[int, int]) -> None:
    size, kernel, stride, ceil = drawn
    assume(all(s + 2 * p >= d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    model = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    assert check(model, torch.randn(1, 3, *size)) == ["Pool"]


@given(pools, st.tuples(st.integers(0, 1), st.integers(0, 1)), st.booleans(), st.sampled_from([None, 1, 5]))
@settings(max_examples=25)
def test_mean_pools(drawn: Any, padding: tuple[int, int], counted: bool, divisor: int | None) -> None:
    size, kernel, stride, ceil = drawn
    model = nn.AvgPool2d(kernel, stride, padding, ceil, counted, divisor)
    assert check(model, torch.randn(1, 3, *size)) == (["Pool", "Conv"] if divisor else ["Pool"])


@given(sides, st.tuples(st.integers(1, 36), st.integers(1, 36)), st.booleans())
@settings(max_examples=40)
def test_adaptive_pools_are_right_or_refused(size: tuple[int, int], out: tuple[int, int], greatest: bool) -> None:
    model = nn.AdaptiveMaxPool2d(out) if greatest else nn.AdaptiveAvgPool2d(out)
    try:
        check(model, torch.randn(1, 3, *size))
    except UnsupportedLayer as error:
        assert any(s % o and o % s for s, o in zip(size, out, strict=True))
        assert "choose an output size that divides" in str(error)  # noqa: PT017 - either may happen


@given(sides, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(["nearest", "nearest-exact"]))
@settings(max_examples=40)
def test_nearest_upsampling_to_any_size(size: tuple[int, int], out: tuple[int, int], mode: str) -> None:
    check(Forward(lambda _, x: F.interpolate(x, out, mode=mode)), torch.randn(1, 2, *size))


@given(sides, st.floats(0.3, 5), st.floats(0.3, 5), st.booleans())
@settings(max_examples=40)
def test_nearest_upsampling_by_any_factor(size: tuple[int, int], tall: float, wide: float, again: bool) -> None:
    model = Forward(lambda _, x: F.interpolate(x, scale_factor=(tall, wide), recompute_scale_factor=again or None))
    check(model, torch.randn(1, 2, *size))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=15)
def test_parts_and_their_joins(widths: list[int], turn: int) -> None:
    def call(_: Any, x: Tensor) -> Tensor:
        parts = x.split(widths, 1)
        return torch.cat([*parts[turn:], *parts[:turn], torch.zeros_like(parts[0])], 1)

    check(Forward(call), torch.randn(1, sum(widths), 3, 2))


# Ways to write things: the forward, what it is captured as, what it becomes


WAYS: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "hard swish, product first": (lambda s, x: then(s.c(x), lambda y: y * F.relu6(y + 3) / 6), ["Conv hard_swish"]),
    "hard swish, gate first": (lambda s, x: then(s.c(x), lambda y: y * (F.relu6(y + 3.0) / 6)), ["Conv hard_swish"]),
    "hard swish by hardtanh": (
        lambda s, x: then(s.c(x), lambda y: F.hardtanh(y + 3, 0, 6) * (1 / 6) * y),
        ["Conv hard_swish"],
    ),
    "hard swish by its gate": (lambda s, x: then(s.c(x), lambda y: y * F.hardsigmoid(y)), ["Conv hard_swish"]),
    "hard sigmoid": (lambda s, x: F.relu6(s.c(x) + 3) / 6, ["Conv hard_sigmoid"]),
    "half a hard sigmoid": (lambda s, x: F.relu6(s.c(x) + 3), ["Conv hard_sigmoid", "Conv"]),
    "silu": (lambda s, x: then(s.c(x), lambda y: y * torch.sigmoid(y)), ["Conv silu"]),
    "silu by name": (lambda s, x: F.silu(s.c(x)), ["Conv silu"]),
    "clamp": (lambda s, x: s.c(x).clamp(min=0), ["Conv relu"]),
    "clamp below and above": (lambda s, x: s.c(x).clamp_(0, 6), ["Conv relu6"]),
    "relu twice": (lambda s, x: F.relu6(s.c(x).relu().clamp_min(0)), ["Conv relu6"]),
    "sigmoid": (lambda s, x: s.c(x).sigmoid_(), ["Conv sigmoid"]),
    "numbers": (lambda s, x: 2 - (s.c(x) * 3 - 1) / 4, ["Conv"]),
    "negative": (lambda s, x: -s.c(x), ["Conv"]),
    "constants for each channel": (lambda s, x: (s.c(x) - s.k) / (s.k * s.k + 1), ["Conv"]),
    "constant less map": (lambda s, x: s.k - s.c(x), ["Conv"]),
    "difference": (lambda s, x: torch.sub(s.c(x), x, alpha=2).relu_(), ["Conv relu"]),
    "one place and all": (
        lambda s, x: x * s.d(x.mean((2, 3), keepdim=True)).sigmoid(),
        ["Pool", "Conv sigmoid", "Combine"],
    ),
    "one place spread by hand": (
        lambda s, x: x * s.d(x.mean((2, 3), keepdim=True)).sigmoid().expand_as(x),
        ["Pool", "Conv sigmoid", "Combine"],
    ),
    "one place upsampled": (
        lambda s, x: x + F.interpolate(s.d(F.adaptive_avg_pool2d(x, 1)), x.shape[2:]).relu(),
        ["Pool", "Conv relu", "Combine"],
    ),
    "a row and all": (lambda _, x: x.mean(2, keepdim=True) + x, ["Pool", "Resample", "Combine"]),
    "one channel and all": (lambda _, x: x * x.mean(1, keepdim=True).sigmoid(), ["Conv sigmoid", "Combine"]),
    "sum of places": (lambda _, x: x.sum((2, 3)), ["Pool", "Conv"]),
    "greatest": (lambda _, x: x.amax((2, 3)), ["Pool"]),
    "greatest and the mean": (
        lambda _, x: torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1).flatten(1),
        ["Pool", "Pool", "Concat"],
    ),
    "mean of flat places": (lambda s, x: s.short(x.flatten(2).mean(-1)), ["Pool", "Conv"]),
    "mean of one place": (lambda _, x: F.adaptive_avg_pool2d(x.mean((2, 3), keepdim=True), 1), ["Pool"]),
    "flat map": (lambda s, x: s.long(torch.flatten(x.relu(), 1)), ["Activate relu", "Conv"]),
    "flat map, channels last": (
        lambda s, x: s.long(x.permute(0, 2, 3, 1).reshape(len(x), -1).relu()),
        ["Activate relu", "Conv"],
    ),
    "flat part": (lambda s, x: s.part(x[:, 2:5].flatten(1)), ["Conv"]),
    "linear over channels": (lambda s, x: s.short(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ["Conv"]),
    "linear, then places again": (
        lambda s, x: x[:, :4] * s.short(x.mean((2, 3)))[:, :, None, None],
        ["Select", "Pool", "Conv", "Combine"],
    ),
    "norm of a vector": (lambda s, x: s.vector(s.short(x.mean((2, 3)))), ["Pool", "Conv"]),
    "classes": (lambda s, x: s.short(x.mean((2, 3))).softmax(-1), ["Pool", "Conv", "Softmax"]),
    "classes of each place": (lambda _, x: x.softmax(1), ["Softmax"]),
    "shuffle": (lambda s, x: s.c(x.view(1, 2, 3, 9, 7).transpose(1, 2).reshape(1, 6, 9, 7)), ["Conv"]),
    "shuffle by name": (lambda s, x: s.c(F.channel_shuffle(s.d(x), 3)), ["Conv", "Conv"]),
    "flip": (lambda _, x: x.flip(1).flip(1), []),
    "chosen channels": (lambda _, x: x[:, [4, 0, 0]], ["Select"]),
    "chunks": (lambda _, x: torch.cat([*x.chunk(3, 1)], 1), []),
    "chunks of joined maps": (lambda s, x: torch.cat([s.c(x), x], 1).chunk(2, 1)[0], ["Conv"]),
    "narrow": (lambda s, x: s.c(x).narrow(1, 1, 3), ["Conv"]),
    "every second place": (lambda s, x: s.c(x)[:, :, ::2, ::3], ["Conv"]),
    "every second place, then 1x1": (lambda s, x: s.d(x[:, :, ::2, ::2]), ["Conv"]),
    "crop": (lambda _, x: x[:, :, 1:-1, 2:], ["Resample"]),
    "shortcut of option A": (lambda _, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3)), ["Resample", "Select"]),
    "reflected": (lambda s, x: s.c(F.pad(x, (1, 2, 2, 1), mode="reflect")), ["Resample", "Conv"]),
    "padded means": (lambda _, x: F.avg_pool2d(F.pad(x, (1, 0, 2, 1)), 3, 2, 1, count_include_pad=False), ["Pool"]),
    "norm of joined convolutions": (
        lambda s, x: s.norm12(torch.cat([s.c(x), s.d(x)], 1)).relu(),
        ["Conv relu", "Conv relu", "Concat"],
    ),
    "norm before": (lambda s, x: s.d(s.norm(x)), ["Conv"]),
    "norm before padding": (lambda s, x: s.c(s.norm(x)), ["Conv", "Conv"]),
    "norm of a sum": (lambda s, x: s.norm(s.c(x) + s.d(x.relu())), ["Conv", "Activate relu", "Conv", "Combine"]),
    "branches": (lambda s, x: F.relu(s.norm(x) + s.norm2(s.d(x)) + s.c(x)), ["Conv relu"]),
    "identity branch": (lambda s, x: x + s.c(x), ["Conv"]),
    "in place": (lambda s, x: then(s.c(x), lambda y: F.relu_(y) + y), ["Conv relu", "Combine"]),
    "in place on a copy": (lambda s, x: then(s.c(x), lambda y: y.clone().relu_() + y), ["Conv", "Activate relu", "Combine"]),
    "in place on one half": (
        lambda s, x: then(s.c(x).chunk(2, 1), lambda y: y[0].relu_() + y[1]),
        ["Conv", "Select", "Select", "Activate relu", "Combine"],
    ),
    "nothing": (lambda s, x: s.drop(x).detach().contiguous().to(torch.float32), []),
    "computed weights": (lambda s, x: F.conv2d(x, s.d.weight / s.d.weight.norm(), s.k.flatten()), ["Conv"]),
    "a layer twice": (lambda s, x: s.c(s.c(x).relu()), ["Conv relu", "Conv"]),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_written(way: str) -> None:
    call, wanted = WAYS[way]
    parts: dict[str, nn.Module | Tensor] = {
        "c": nn.Conv2d(6, 6, 3, padding=1), "d": nn.Conv2d(6, 6, 1), "short": nn.Linear(6, 4),
        "long": nn.Linear(6 * 9 * 7, 4), "part": nn.Linear(3 * 9 * 7, 4), "norm": nn.BatchNorm2d(6),
        "norm2": nn.BatchNorm2d(6, affine=False), "norm12": nn.BatchNorm2d(12), "vector": nn.BatchNorm1d(4),
        "drop": nn.Dropout2d(), "k": torch.randn(1, 6, 1, 1),
    }  # fmt: skip
    model, x = lively(Forward(call, **parts)), 3 * torch.randn(2, 6, 9, 7)
    graph, expected = captured(model, x), truth(model, x)
    assert distance(graph, x, expected) < NEAR
    after = simplified(graph)
    assert distance(after, x, expected) < NEAR
    assert sorted(kinds(after)) == sorted(wanted)


# What a graph says


class Ghosts(nn.Module):
    """One of everything that an upgraded network has."""

    def __init__(self) -> None:
        super().__init__()
        self.ghost = GhostModule(3, 8, kernel_size=3, ratio=3, relu=True)
        self.gather = ChannelGather(8)
        self.gather.set_(torch.randperm(8))
        self.act = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gather(self.ghost(x))
        return self.classifier(self.act(self.act(x) + 1).mean((2, 3)))


def test_names_values_and_shapes() -> None:
    graph = captured(lively(Ghosts()), torch.randn(4, 3, 8, 6))
    assert (graph.name, graph.input_shape, graph.output_shape) == ("Ghosts", (3, 8, 6), (4,))
    assert [step.name for step in graph.operations] == [
        "ghost.primary_conv.0", "ghost.primary_conv.1", "ghost.primary_conv.2", "ghost.cheap_operation.0",
        "ghost.cheap_operation.1", "ghost.cheap_operation.2", "ghost.select", "ghost", "act.relu", "add", "act.relu_2",
        "select", "mean", "classifier",
    ]  # fmt: skip
    assert len({step.output for step in graph.operations}) == len(graph.operations)
    assert all(re.fullmatch(r"[a-z]\w*", step.output) for step in graph.operations)  # may be names in a program
    select = next(step for step in graph.operations if step.name == "ghost.select")
    assert isinstance(select, Select)
    assert (select.channels, select.shape) == ((0, 1, 2, 3, 4), (5, 8, 6))


def test_the_fields_of_the_shortcut_of_option_a() -> None:
    graph = captured(Forward(lambda _, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))), torch.randn(1, 2, 5, 4))
    resample, select = graph.operations
    assert isinstance(resample, Resample)
    assert isinstance(select, Select)
    assert (resample.rows, resample.columns) == ((0, 2, 4), (0, 2))
    assert select.channels == (ZERO, 0, 1, ZERO, ZERO)


def test_the_fields_of_a_pool_in_ceil_mode() -> None:
    (pool,) = captured(nn.AvgPool2d(3, 2, 1, ceil_mode=True), torch.randn(1, 2, 6, 5)).operations
    assert isinstance(pool, Pool)
    # 6 rows: windows from -1, 1, 3, 5, of which the last ends at 8; the padding ends at 7.
    assert (pool.shape, pool.padding, pool.counted) == ((2, 4, 3), (1, 1, 2, 1), (1, 1, 1, 1))


def test_a_linear_layer_after_a_flat_map_is_a_convolution_with_a_kernel_as_large() -> None:
    linear = nn.Linear(2 * 3 * 4, 5)
    (conv,) = captured(Forward(lambda s, x: s.linear(x.flatten(1)), linear=linear), torch.randn(1, 2, 3, 4)).operations
    assert isinstance(conv, Conv)
    assert conv.weight.shape == (5, 2, 3, 4)
    assert conv.macs == 5 * 24
    torch.testing.assert_close(torch.from_numpy(conv.weight).flatten(1), linear.weight.detach())


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.build().train()
    model.bn1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    captured(model, torch.randn(1, 1, 8, 8))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_buffers_that_the_forward_writes_stay_too() -> None:
    model = Forward(lambda s, x: x * s.count.add_(1), count=torch.ones(1))
    x = torch.randn(1, 2, 3, 3)
    graph = captured(model, x)
    count = float(model.get_buffer("count"))  # the one run that finds out whether the network runs
    assert count == 2
    assert float(graph.operations[0].weight[0, 0, 0, 0]) == 3  # pyright: ignore[reportAttributeAccessIssue]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    captured(tiny.build(), torch.randn(1, 1, 8, 8))
    with pytest.raises(UserError):
        captured(Forward(lambda _, x: x if x.sum() > 0 else -x), torch.randn(1, 1, 8, 8))
    assert capfd.readouterr() == ("", "")


# What is refused: the forward, and what the sentence says


def _cast(s: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = s.conv(x)
    return y.float()


HERE = r"\(graphs.py:\d+\)"

REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "gelu": (lambda _, x: F.gelu(x), rf"aten.gelu at the network itself {HERE} is not supported: the activations are ReLU"),
    "leaky relu": (lambda _, x: F.leaky_relu(x), "aten.leaky_relu .* the activations are ReLU, ReLU6"),
    "clamp elsewhere": (lambda _, x: x.clamp(-1, 1), "aten.clamp .* cuts at -1 and 1: the activations are"),
    "hardtanh elsewhere": (lambda _, x: F.hardtanh(x), "aten.hardtanh .* cuts at -1.0 and 1.0"),
    "group norm": (lambda s, x: s.group(x), r"aten.group_norm at group .* the nearest is BatchNorm2d"),
    "norm of this batch": (lambda s, x: s.batch(x), "aten.batch_norm at batch .* keeps no running statistics"),
    "bilinear": (lambda _, x: F.interpolate(x, scale_factor=2, mode="bilinear"), "upsample_bilinear2d .* nearest upsampling"),
    "transposed": (lambda s, x: s.up(x), "aten.conv_transpose2d at up .* nearest upsampling, then a convolution"),
    "log softmax": (lambda _, x: x.log_softmax(1), "aten.log_softmax .* softmax; take its logarithm outside"),
    "softmax over places": (lambda _, x: x.softmax(-1), "aten.softmax .* dimension -1: .* over the channels"),
    "quotient": (lambda _, x: x / (x + 9), "aten.div .* divides by a map"),
    "power": (lambda _, x: x**3, "aten.pow .* maps are added, subtracted and multiplied"),
    "constant with places": (lambda s, x: x + s.places, "aten.add .* a constant that differs from place to place"),
    "larger constant": (lambda s, x: x.mean((2, 3), keepdim=True) + s.places, "spreads a map over a larger constant"),
    "windows of several sizes": (lambda _, x: F.adaptive_avg_pool2d(x, 4), "makes 4 x 4 of 9 x 7 places"),
    "argmax": (lambda _, x: x.argmax(1, keepdim=True).float(), "aten.argmax .* AdaptiveMaxPool2d"),
    "where the greatest lie": (lambda _, x: F.max_pool2d(x, 2, return_indices=True)[1], "where the greatest values lie"),
    "greatest of channels": (lambda _, x: x.amax(1), "aten.amax .* goes over the channels"),
    "mean of everything": (lambda _, x: x.mean().view(1, 1), "goes over dimensions"),
    "pixel shuffle": (lambda _, x: F.pixel_shuffle(x[:, :4], 2).relu(), "whole rows, columns and channels of one map"),
    "rows for columns": (lambda s, x: s.conv(x.transpose(2, 3)), "aten.conv2d at conv .* 1 x 6 x 7 x 9"),
    "padding with ones": (lambda _, x: F.pad(x, (1, 1), value=1.0), "aten.pad .* pads with 1: pad with zeros"),
    "joined below": (lambda _, x: torch.cat([x, x], 2), "aten.cat .* goes along dimension 2"),
    "joined ones": (lambda _, x: torch.cat([x, torch.ones_like(x)], 1), "joins a constant that is not zero"),
    "weights from the image": (lambda _, x: F.conv2d(x, x), "aten.conv2d .* weights or places that depend on the image"),
    "attention": (lambda _, x: x @ x.transpose(-1, -2), "aten.matmul .* squeeze-and-excite"),
    "random": (lambda _, x: x + torch.rand(1), "aten.rand .* draws random numbers"),
    "dropout that draws": (lambda _, x: F.dropout(x), "aten.dropout .* draws random numbers: .* self.training"),
    "half": (lambda _, x: x.half().float(), "aten.to .* computes in torch.float16: all values are float32"),
    "part in place": (lambda s, x: then(s.conv(x), lambda y: (y[:, :1].add_(1), y)[1]), "aten.add .* read later: write it out of place"),
    "view in place": (lambda s, x: then(s.conv(x), lambda y: (y.flatten(1).relu_(), y)[1]), "aten.relu .* read later"),
    "written part": (lambda s, x: then(s.conv(x), lambda y: (y[:, 0].zero_(), y)[1]), "aten.zero .* out of place"),
    "autocast": (_cast, "wrap_with_autocast .* leave torch.autocast"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_nothing_stands_for_is_refused_by_name(what: str) -> None:
    call, sentence = REFUSED[what]
    parts: dict[str, nn.Module | Tensor] = {
        "group": nn.GroupNorm(2, 6), "batch": nn.BatchNorm2d(6, track_running_stats=False), "up": nn.ConvTranspose2d(6, 6, 2),
        "conv": nn.Conv2d(6, 6, 1), "places": torch.randn(1, 6, 9, 7),
    }  # fmt: skip
    with pytest.raises(UnsupportedLayer, match=sentence) as raised:
        captured(Forward(call, **parts), torch.randn(1, 6, 9, 7))
    assert "\n" not in str(raised.value)
    assert "/" not in str(raised.value)  # files are named without their folders


def test_the_place_in_the_users_code_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), nn.Mish()))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    with pytest.raises(
        UnsupportedLayer, match=r"aten.mish at body.1.1 \(test_capture.py:\d+\) is not supported: the act"
    ):
        captured(Net(), torch.randn(1, 3, 4, 4))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def no(call: Callable[[Any, Tensor], Any]) -> nn.Module:
    return Forward(call, linear=nn.Linear(6, 4))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (TwoInputs(), r"TwoInputs takes 2 inputs \(x, y\): it must take one tensor of images"),
        (no(lambda _, x: (x, x)), "Forward must return one tensor, not a tuple"),
        (no(lambda _, x: {"out": x}), "Forward must return one tensor, not a dict"),
        (
            no(lambda _, x: x.mean((2, 3)).squeeze()),
            r"shape \(6,\) for one image: its first dimension must be the images",
        ),
        (no(lambda _, x: x.view(2, 3, 9, 7)), r"shape \(2, 3, 9, 7\) for one image"),
        (
            no(lambda _, x: x if x.sum() > 0 else -x),
            r"depends on what a tensor holds \(\w+.py:\d+\); it must do the same",
        ),
        (no(lambda s, x: s.linear(x)), "Forward does not run on an image of 1 x 6 x 9 x 7: mat1 and mat2"),
        (no(lambda *_: torch.ones(1, 3)), "Forward returns the same for every image"),
        (nn.Conv2d(6, 6, 1).double(), r"weight of Conv2d is torch.float64: call float\(\)"),
    ],
)
def test_networks_that_are_none_are_refused(model: nn.Module, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        captured(model, torch.randn(3, 6, 9, 7))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("example", [torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8), torch.zeros(1, 3, 8, 8).double()])
def test_examples_that_are_no_images_are_refused(example: Tensor) -> None:
    with pytest.raises(UserError, match=r"is no float32 images: \(N, C, H, W\) are needed"):
        captured(tiny.build(), example)
