# SPDX-License-Identifier: Apache-2.0
"""How much memory a process has come to need."""

from __future__ import annotations

import sys

import torch


def peak_mib() -> float | None:
    """The most so far, in MiB: of the GPU where PyTorch uses one, else of the process; None where the system does not say."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # macOS counts bytes
