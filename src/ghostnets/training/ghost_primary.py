# SPDX-License-Identifier: Apache-2.0
"""The primary convolution of a Ghost module by C of our own, where its few channels leave oneDNN's lanes empty."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.compiler import NoCompiler
from ghostnets.training.native import address, compiled

INPUTS, OUTPUTS = range(8, 97), range(1, 49)
"""Channels with which ``ghost_primary.c`` is faster than oneDNN backward (benchmarks/README.md, ``train_parts.py``)."""

MOST = 8
"""Outputs with which it is faster forward too."""

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


@cache
def library() -> ctypes.CDLL | None:
    """The C, if it can be compiled and pays on this processor."""
    try:
        found = compiled(Path(__file__).with_suffix(".c"))
    except NoCompiler:
        return None
    if not found.primary_pays():
        return None
    shape = [_SIZE] * 5
    found.primary_forward.argtypes = [_POINTER, _POINTER, *shape, _POINTER]
    found.primary_backward.argtypes = [_POINTER, _POINTER, _POINTER, *shape, _POINTER, _POINTER]
    found.primary_forward.restype = found.primary_backward.restype = None
    return found


def primary(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)``, in bfloat16 where autocast says so: (N, C, H, W) to (N, K, H, W)."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype != torch.bfloat16 or not _fits(conv) or library() is None:
        return conv(x)
    return _Primary.apply(x.to(dtype), conv.weight)  # pyright: ignore[reportReturnType]


def _fits(conv: nn.Conv2d) -> bool:
    """Whether it is what the C computes, and faster."""
    usual = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    narrow = conv.in_channels in INPUTS and conv.out_channels in OUTPUTS
    return usual and narrow and conv.groups == 1 and conv.bias is None and conv.padding_mode == "zeros"


class _Primary(torch.autograd.Function):
    """x (N, C, H, W), weight (K, C, 3, 3) -> (N, K, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x.contiguous(memory_format=torch.channels_last)
        filters = weight.detach().to(x.dtype).contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, filters)
        ctx.dtype = weight.dtype
        n, c, h, w = x.shape
        k = len(weight)
        if k > MOST or c % 2:
            return F.conv2d(x, filters, padding=1)
        z = torch.empty(n, k, h, w, dtype=x.dtype, memory_format=torch.channels_last)
        _library().primary_forward(x.data_ptr(), filters.data_ptr(), n, h, w, c, k, z.data_ptr())
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, filters = ctx.saved_tensors
        dz = dz.to(x.dtype).contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        k = len(filters)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dweight = torch.empty(k, 3, 3, c)
        _library().primary_backward(
            x.data_ptr(), filters.data_ptr(), dz.data_ptr(), n, h, w, c, k, address(dx), dweight.data_ptr()
        )  # fmt: skip
        return dx, dweight.permute(0, 3, 1, 2).to(ctx.dtype)


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found
