# SPDX-License-Identifier: Apache-2.0
"""Merging a norm into a convolution and taking it apart again, against running the two."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghostnets.blocks.conv import merged, set_merged_


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["none", "affine", "plain"])
def test_what_is_set_is_what_is_merged(bias: bool, kind: str) -> None:
    conv = nn.Conv2d(3, 4, 3, bias=bias)
    norm = None if kind == "none" else nn.BatchNorm2d(4, affine=kind == "affine").eval()
    if norm is not None:
        norm.running_mean = torch.randn(4)
        norm.running_var = torch.rand(4) + 0.1
    weight, shift = torch.randn_like(conv.weight), torch.randn(4)
    set_merged_(conv, norm, weight, shift)
    made, level = merged(conv, norm)
    torch.testing.assert_close(made, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(level, shift if bias or norm is not None else torch.zeros(4), rtol=1e-5, atol=1e-6)
    x = torch.randn(2, 3, 5, 6)
    after = norm(conv(x)) if norm is not None else conv(x)
    torch.testing.assert_close(after, F.conv2d(x, weight, level), rtol=1e-4, atol=1e-5)
