# SPDX-License-Identifier: Apache-2.0
"""An adapter by which the generated C takes part in a race of CPU runtimes that has one environment for each of them.

    bench.py WORK openvino ort --add benchmarks/peers_ghostnets.py

``bench.py`` reads the constants without importing this file, converts once with ``convert``, and calls ``load`` and ``run`` in
a process of its own. The environment of that name needs ghostnets, PyTorch and the networks' packages.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAME = "ghostnets C"
VENV = "ghostnets"
VARIANTS = ("native", "avx2", "scalar")
PACKAGES = ("ghostnets",)

VARIANT = VARIANTS[0]  # bench.py sets the one that was asked for

_call: Callable[[np.ndarray], np.ndarray] | None = None


def convert(net: Any, out: Path) -> Path:
    """Write and compile the program of a network; the path is the library's, with its weights beside it."""
    import torch

    from ghostnets.deploy.targets import c_program

    return c_program(net.module(), torch.from_numpy(net.inputs()[0]), Path(out), instructions=VARIANT)


def load(model: str, threads: int) -> None:
    """Open the library that ``convert`` left."""
    global _call  # noqa: PLW0603 - the harness calls two functions of a module
    from ghostnets.deploy.runtimes.c import open_

    _call = open_(Path(model), threads, ())


def run(x: np.ndarray) -> np.ndarray:
    """(1, C, H, W) float32 in, the answers out."""
    assert _call is not None
    return _call(x)
