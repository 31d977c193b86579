# SPDX-License-Identifier: Apache-2.0
"""The most float32 arithmetic this machine does: what a network's speed is a share of."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).with_name("peak.c")
"""To be compiled for the machine it runs on."""

SECONDS = 0.3


def fp32_peak(functions: ctypes.CDLL, cores: Sequence[int | None]) -> float:
    """Billions of float32 operations a second (a multiply-add is two) of one thread on each of the ``cores`` at once,
    where None leaves a thread where it is; ``functions`` are those of SOURCE.
    """
    flops = functions.peak_flops
    flops.restype, flops.argtypes = ctypes.c_double, [ctypes.c_double]
    start = threading.Barrier(len(cores))

    def one(core: int | None) -> float:
        if core is not None:
            os.sched_setaffinity(0, [core])  # of this thread alone, which ends with the pool
        start.wait()
        return flops(SECONDS)

    with ThreadPoolExecutor(len(cores)) as pool:
        return sum(pool.map(one, cores)) / 1e9
