# SPDX-License-Identifier: Apache-2.0
"""The slow path gives what the words in graph.py say, counted out element by element."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostnets.deploy.graph import (
    ZERO,
    Activate,
    Activation,
    Combine,
    Concat,
    Conv,
    Graph,
    Operation,
    Pool,
    Resample,
    Select,
    Shape,
    Softmax,
)  # fmt: skip
from ghostnets.deploy.reference import outputs


def run(step: Operation, *images: np.ndarray) -> np.ndarray:
    """One operation of the input, or of the channels of the input cut up."""
    image = np.concatenate([part.reshape(-1) for part in images]).reshape(-1, 1, 1)
    cuts: list[Operation] = []
    if len(images) == 1:
        graph = Graph(
            name="one", input="x", input_shape=images[0].shape, output="y", output_shape=step.shape, operations=(step,)
        )  # fmt: skip
        return outputs(graph, images[0])["y"]
    start = 0
    for place, part in enumerate(images):
        channels = tuple(range(start, start + part.size))
        start += part.size
        cuts.append(Select(name="", inputs=("x",), output=f"x{place}", shape=(part.size, 1, 1), channels=channels))
    graph = Graph(
        name="one", input="x", input_shape=image.shape, output="y", output_shape=step.shape, operations=(*cuts, step)
    )  # fmt: skip
    return outputs(graph, image)["y"]


def numbers(shape: Shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def side(size: int, before: int, after: int, reach: int, stride: int) -> int:
    return (size + before + after - reach) // stride + 1


pads = st.tuples(*[st.integers(0, 2)] * 4)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(pads, pairs, pairs, pairs, st.integers(1, 3), st.booleans())
@settings(max_examples=25)
def test_a_convolution_sums_kernel_times_places(
    padding: tuple[int, int, int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int],
    groups: int, relu: bool,
) -> None:  # fmt: skip
    x, out = numbers((2 * groups, 7, 8)), 3 * groups
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    height, width = (side(x.shape[1 + i], padding[i], padding[i + 2], reach[i], stride[i]) for i in (0, 1))
    shape = (out, height, width)
    weight, bias = numbers((out, 2, *kernel), 1), numbers((out, 1, 1), 2).reshape(-1)  # pyright: ignore[reportArgumentType]
    step = Conv(
        name="", inputs=("x",), output="y", shape=shape, weight=weight, bias=bias, stride=stride, padding=padding,
        dilation=dilation, groups=groups, activation="relu" if relu else None,
    )  # fmt: skip
    expected = np.zeros(shape)
    for c, h, w in np.ndindex(shape):
        total = float(bias[c])
        for i, a, b in product(range(2), range(kernel[0]), range(kernel[1])):
            row = h * stride[0] + a * dilation[0] - padding[0]
            column = w * stride[1] + b * dilation[1] - padding[1]
            if 0 <= row < 7 and 0 <= column < 8:
                total += float(weight[c, i, a, b]) * float(x[c // 3 * 2 + i, row, column])
        expected[c, h, w] = max(total, 0) if relu else total
    np.testing.assert_allclose(run(step, x), expected, rtol=1e-9, atol=1e-9)
    assert step.macs == weight.size * shape[1] * shape[2]


@given(st.sampled_from(["max", "mean"]), pads, st.tuples(*[st.floats(0, 1)] * 4), pairs, pairs, pairs)
@settings(max_examples=40)
def test_a_pool_takes_the_greatest_or_the_mean_of_what_counts(
    kind: str, reach: tuple[int, int, int, int], shares: tuple[float, ...], kernel: tuple[int, int], stride: tuple[int, int],
    dilation: tuple[int, int],
) -> None:  # fmt: skip
    kernel = (kernel[0] + 2, kernel[1] + 2)  # larger than the padding, so that no window is empty
    dilation = dilation if kind == "max" else (1, 1)
    top, left, bottom, right = (round(share * own) for share, own in zip(shares, reach, strict=True))
    counted = (top, left, bottom, right) if kind == "mean" else (0, 0, 0, 0)
    x = numbers((2, 14, 15)) - 1
    reaches = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    height, width = (side(x.shape[1 + i], reach[i], reach[i + 2], reaches[i], stride[i]) for i in (0, 1))
    shape = (2, height, width)
    step = Pool(
        name="", inputs=("x",), output="y", shape=shape, kind="max" if kind == "max" else "mean", kernel=kernel, stride=stride,
        dilation=dilation, padding=reach, counted=counted,
    )  # fmt: skip
    expected = np.zeros(shape)
    for c, h, w in np.ndindex(shape):
        seen: list[float] = []
        for a, b in product(range(kernel[0]), range(kernel[1])):
            row = h * stride[0] + a * dilation[0] - reach[0]
            column = w * stride[1] + b * dilation[1] - reach[1]
            if 0 <= row < 14 and 0 <= column < 15:
                seen.append(float(x[c, row, column]))
            elif -counted[0] <= row < 14 + counted[2] and -counted[1] <= column < 15 + counted[3]:
                seen.append(0.0)
        expected[c, h, w] = max(seen) if kind == "max" else sum(seen) / len(seen)
    np.testing.assert_allclose(run(step, x), expected, rtol=1e-9, atol=1e-9)


FORMULAS = {
    "relu": lambda v: max(v, 0),
    "relu6": lambda v: min(max(v, 0), 6),
    "hard_sigmoid": lambda v: min(max(v + 3, 0), 6) / 6,
    "hard_swish": lambda v: v * min(max(v + 3, 0), 6) / 6,
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "silu": lambda v: v / (1 + math.exp(-v)),
}


@pytest.mark.parametrize("kind", list(FORMULAS))
def test_activations(kind: Activation) -> None:
    x = np.linspace(-8, 8, 65, dtype=np.float32).reshape(5, 13, 1)
    found = run(Activate(name="", inputs=("x",), output="y", shape=x.shape, activation=kind), x)
    np.testing.assert_allclose(
        found, np.vectorize(FORMULAS[kind], otypes=[float])(x.astype(float)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("other", [(3, 1, 1), (1, 1, 1)])
def test_sums_and_products_spread_one_place(other: Shape) -> None:
    x, y = numbers((3, 1, 1)), numbers(other, 1)
    for kind, made in (("add", x.astype(float) + y), ("multiply", x.astype(float) * y)):
        step = Combine(
            name="", inputs=("x0", "x1"), output="y", shape=(3, 1, 1), kind="add" if kind == "add" else "multiply",
            activation="relu",
        )  # fmt: skip
        np.testing.assert_allclose(run(step, x, y), np.maximum(made, 0), rtol=1e-9)


def test_channels_and_places_are_joined_and_chosen() -> None:
    x = numbers((3, 4, 5))
    select = Select(name="", inputs=("x",), output="y", shape=(4, 4, 5), channels=(2, ZERO, 0, 2))
    np.testing.assert_array_equal(run(select, x), np.stack([x[2], 0 * x[0], x[0], x[2]]))
    resample = Resample(
        name="", inputs=("x",), output="y", shape=(3, 3, 2), rows=(ZERO, 3, 3), columns=(0, ZERO)
    )  # fmt: skip
    expected = np.zeros((3, 3, 2))
    expected[:, 1:, 0] = x[:, 3:, 0]
    np.testing.assert_array_equal(run(resample, x), expected)
    a, b = numbers((2, 1, 1)), numbers((3, 1, 1), 1)
    joined = Concat(name="", inputs=("x1", "x0"), output="y", shape=(5, 1, 1))
    np.testing.assert_array_equal(run(joined, a, b), np.concatenate([b, a]))


def test_softmax_is_over_the_channels_of_each_place() -> None:
    x = numbers((3, 2, 2))
    found = run(Softmax(name="", inputs=("x",), output="y", shape=x.shape), x)
    powers = np.exp(x.astype(float))
    np.testing.assert_allclose(found, powers / powers.sum(0), rtol=1e-9)


def test_every_value_is_kept_in_the_precision_asked_for() -> None:
    x = numbers((2, 3, 3))
    steps = tuple(Activate(name="", inputs=(a,), output=b, shape=x.shape, activation="relu") for a, b in ("xy", "yz"))
    graph = Graph(name="two", input="x", input_shape=x.shape, output="z", output_shape=x.shape, operations=steps)
    assert {name: value.dtype for name, value in outputs(graph, x).items()} == dict.fromkeys("xyz", np.dtype("float64"))
    found = outputs(graph, x, torch.float32)
    assert found["z"].dtype == np.float32
    np.testing.assert_array_equal(found["y"], np.maximum(x, 0))
    wrong = Activate(name="wrong", inputs=("x",), output="y", shape=(2, 3, 4), activation="relu")
    with pytest.raises(AssertionError, match=r"wrong makes \(2, 3, 3\), not \(2, 3, 4\)"):
        run(wrong, x)
