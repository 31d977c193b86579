# SPDX-License-Identifier: Apache-2.0
"""Look at networks in evaluation mode, and leave every module in the mode it had."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(*networks: nn.Module) -> Generator[None, None, None]:
    """Evaluation mode for all of ``networks`` while the block runs; each module's own mode comes back after it."""
    modes = {module: module.training for network in networks for module in network.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
