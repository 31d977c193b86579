# SPDX-License-Identifier: Apache-2.0
"""The primary convolution in C against PyTorch's in float64, and what is left to PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostnets.measure.latency import on_threads
from ghostnets.training import ghost_primary
from ghostnets.training.ghost_primary import primary


@pytest.fixture(scope="module")
def library() -> None:
    if ghost_primary.library() is None:
        pytest.skip("there is no compiler, or this processor does not multiply pairs of bfloat16, or has tiles")


def passed(conv: nn.Conv2d, x: Tensor, pull: Tensor, *, ours: bool) -> list[Tensor]:
    """What goes out, and the gradients of the images and of the filters; in bfloat16 where that is ours."""
    x = x.detach().clone().requires_grad_()
    conv.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ours):
        out = primary(conv, x) if ours else conv(x)
    out.backward(pull.to(out.dtype))
    assert x.grad is not None
    assert conv.weight.grad is not None
    return [out.detach(), x.grad, conv.weight.grad.clone()]


def drawn(outputs: int, inputs: int, shape: tuple[int, int, int], seed: int) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """Everything in values that bfloat16 has, so that its sums are all that is rounded."""
    images, height, width = shape
    source = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=source).bfloat16())
    x = torch.randn(images, inputs, height, width, generator=source).bfloat16().float()
    return conv, x, torch.randn(images, outputs, height, width, generator=source).bfloat16().float()


@pytest.mark.usefixtures("library")
@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 20), inputs=st.integers(8, 40), images=st.integers(1, 20), height=st.integers(1, 12),
    width=st.integers(1, 37), threads=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_gives_what_pytorch_gives(
    outputs: int, inputs: int, images: int, height: int, width: int, threads: int, seed: int
) -> None:
    conv, x, pull = drawn(outputs, inputs, (images, height, width), seed)
    with on_threads(threads):
        out, dx, dweight = passed(conv, x, pull, ours=True)
    assert out.dtype == torch.bfloat16
    assert dweight.dtype == torch.float32
    wanted = passed(conv.double(), x.double(), pull.double(), ours=False)
    for found, true, rounding in zip((out, dx, dweight), wanted, (2**-8, 2**-8, 1e-5), strict=True):
        assert float((found.double() - true).norm()) <= rounding * float(true.norm()) + 1e-6


@pytest.mark.usefixtures("library")
def test_by_hand() -> None:
    """Ones over ones: every pixel counts its neighbours, those of the border are zero; so does every tap its pixels."""
    conv = nn.Conv2d(8, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    out, dx, dweight = passed(conv, torch.ones(1, 8, 2, 3), torch.ones(1, 1, 2, 3), ours=True)
    assert out.flatten().tolist() == [32, 48, 32, 32, 48, 32]
    assert dx[0, 7].flatten().tolist() == [4, 6, 4, 4, 6, 4]
    assert dweight[0, 0].flatten().tolist() == [2, 3, 2, 4, 6, 4, 2, 3, 2]


@pytest.mark.usefixtures("library")
def test_the_same_step_twice_is_the_same_to_the_bit() -> None:
    drawn_once = drawn(8, 16, (13, 9, 11), 0)
    both = [passed(*drawn_once, ours=True) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))


@pytest.mark.usefixtures("library")
def test_it_is_used_where_it_fits_alone() -> None:
    """Whose backward it is shows which way was taken."""

    def name(conv: nn.Conv2d) -> str:
        made = primary(conv, torch.randn(2, conv.in_channels, 5, 5, requires_grad=True))
        assert made.grad_fn is not None
        return made.grad_fn.name()

    fits = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    others = [
        nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 3, bias=False),
        nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, bias=False, padding_mode="reflect"),
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(128, 64, 3, padding=1, bias=False),  # oneDNN is faster
    ]  # fmt: skip
    assert name(fits) == "ConvolutionBackward0"  # float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert name(fits) == "_PrimaryBackward"
        assert {name(conv) for conv in others} == {"ConvolutionBackward0"}
