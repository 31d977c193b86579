# SPDX-License-Identifier: Apache-2.0
"""Networks of timm and torchvision, for ``ghostnets bench benchmarks/other_networks.py:squeezenet1_1``.

pip install --no-deps torchvision==0.28.0 timm
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn


def _declared() -> torch.library.Library | None:
    """The operators of torchvision, where its compiled part does not fit this torch: its networks call none of them."""
    if importlib.util.find_spec("torchvision") is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_KEPT_ALIVE = _declared()


def mobilenet_v2() -> nn.Module:
    """Sandler et al., arXiv:1801.04381: 300.8 M multiply-adds."""
    import torchvision

    return torchvision.models.mobilenet_v2()


def mobilenetv3_large() -> nn.Module:
    """Howard et al., arXiv:1905.02244, of timm: 217 M multiply-adds."""
    import timm

    return timm.create_model("mobilenetv3_large_100")


def squeezenet1_1() -> nn.Module:
    """Iandola et al., arXiv:1602.07360, the second version: 349 M multiply-adds."""
    import torchvision

    return torchvision.models.squeezenet1_1()
