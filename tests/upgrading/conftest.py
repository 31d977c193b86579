# SPDX-License-Identifier: Apache-2.0
"""Networks whose norms have seen something, and a picture of all that a call must leave as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

Settle = Callable[[nn.Module], nn.Module]
Snapshot = Callable[[nn.Module], dict[str, Any]]


def _settled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.3)
    return model.eval()


@pytest.fixture
def settled() -> Settle:
    """The same network in eval mode, its norms given random statistics, scales and shifts."""
    return _settled


@pytest.fixture
def snapshot() -> Snapshot:
    """Weights, modes, hooks, gradients and the global random state, to be compared with ``==``."""

    def take(model: nn.Module) -> dict[str, Any]:
        return {
            "state": {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()},
            "objects": {name: id(p) for name, p in model.named_parameters()},
            "modules": {name: (type(m), m.training, tuple(vars(m))) for name, m in model.named_modules()},
            "hooks": [
                len(hooks) for m in model.modules()
                for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
            ],
            "grads": [(p.grad is None, p.requires_grad) for p in model.parameters()],
            "random": torch.random.get_rng_state().numpy().tobytes(),
        }  # fmt: skip

    return take
