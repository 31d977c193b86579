# SPDX-License-Identifier: Apache-2.0
"""Activations of a vector."""

from __future__ import annotations

from ghostnets.deploy.graph import Activation


def activated(value: str, activation: Activation | None) -> str:
    """An expression; the functions are those of ``runtime/vector.h``."""
    return value if activation is None else f"{activation}({value})"
