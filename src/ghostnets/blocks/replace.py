# SPDX-License-Identifier: Apache-2.0
"""Put one module in another's place."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn


def swapped(model: nn.Module, other: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy with what ``other`` makes of each module in its place, under every name it has; None: it stays."""
    out = copy.deepcopy(model)
    for module in list(out.modules()):
        new = other(module)
        if new is None:
            continue
        if module is out:
            return new
        replace_(out, module, new)
    return out


def replace_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Under every name ``old`` has in ``model``, in place."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
