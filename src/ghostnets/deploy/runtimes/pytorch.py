# SPDX-License-Identifier: Apache-2.0
"""PyTorch: eager, or compiled by Inductor with frozen weights and everything tried."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_(
    file: Path,
    threads: int,
    shape: tuple[int, ...],  # noqa: ARG001 - in the program already
    *,
    channels_last: bool = False,
    compiled: bool = False,
) -> Callable[[np.ndarray], np.ndarray]:
    """A saved ``ExportedProgram``, run operation by operation, which takes as long as the module it was made from."""
    # Before PyTorch reads it; the user's own cache would hide what compiling takes, and would grow.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(file.parent / "inductor")
    import torch

    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network: Any = torch.export.load(file).module().to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    if compiled:
        network = torch.compile(
            network, options={"freezing": True, "max_autotune": True, "cpp.threads": threads, "compile_threads": 1}
        )

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x).to(memory_format=layout)).numpy()

    return run
