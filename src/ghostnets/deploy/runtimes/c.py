# SPDX-License-Identifier: Apache-2.0
"""The program that ghostnets writes itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ghostnets.deploy.c.program import Program


def open_(file: Path, threads: int, shape: tuple[int, ...]) -> Callable[[Any], Any]:  # noqa: ARG001 - it knows
    """It also knows the times of its ``layers()``."""
    return Program(file, threads=threads)
