# SPDX-License-Identifier: Apache-2.0
"""Where a converted site's modules stand: the Ghost module in the convolution's place, a gather in its norm's; where
there was no norm, both as a pair in the convolution's place.
"""

from __future__ import annotations

from torch import nn

from ghostnets.blocks.ghost import ChannelGather, GhostModule


def ghost_at(model: nn.Module, name: str) -> GhostModule:
    """The Ghost module of the site ``name``."""
    module = model.get_submodule(name)
    module = module[0] if isinstance(module, nn.Sequential) else module
    assert isinstance(module, GhostModule)
    return module


def gather_at(model: nn.Module, name: str, norm: str | None) -> ChannelGather | None:
    """What restores the order behind the Ghost module of the site ``name``, whose norm was ``norm``; None: nothing."""
    module = model.get_submodule(norm or name)
    behind = module[1] if norm is None and isinstance(module, nn.Sequential) and len(module) == 2 else module
    return behind if isinstance(behind, ChannelGather) else None
