# SPDX-License-Identifier: Apache-2.0
"""Put one module in another's place."""

from __future__ import annotations

from torch import nn


def replace_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Under every name ``old`` has in ``model``, in place."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
