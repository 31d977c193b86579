# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU with all its optimisations; its threads spin, as they do by default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ERRORS_ONLY = 3


def open_(file: Path, threads: int, shape: tuple[int, ...], *, batch: str) -> Callable[[np.ndarray], np.ndarray]:
    """``batch`` is the name of the file's free dimension, which is fixed: more can be worked out beforehand then."""
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name(batch, shape[0])
    session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]
