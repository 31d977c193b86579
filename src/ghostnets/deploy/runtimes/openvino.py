# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's CPU plugin, set for latency."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_(file: Path, threads: int, shape: tuple[int, ...], *, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """``precision`` is forced: left alone it takes bf16 where the processor has it, and says nothing.

    Raises ValueError where the processor does not have what was asked.
    """
    import openvino

    core: Any = openvino.Core()
    model: Any = core.read_model(file)
    model.reshape(list(shape))
    settings = {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    compiled: Any = core.compile_model(model, "CPU", settings)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if taken != precision:
        raise ValueError(f"{precision} was asked, and OpenVINO takes {taken} on this processor")
    request: Any = compiled.create_infer_request()

    def run(x: np.ndarray) -> np.ndarray:
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        request.infer()
        return request.get_output_tensor().data

    return run
