# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghostnets.deploy.c.build import compiled as compiled
    from ghostnets.deploy.c.generation import Options as Options
    from ghostnets.deploy.c.generation import export as export
    from ghostnets.deploy.c.generation import generated as generated
    from ghostnets.deploy.c.program import Program as Program

# Loaded when first used: a compiled program runs without PyTorch.
_HOMES = {
    "Options": "ghostnets.deploy.c.generation",
    "Program": "ghostnets.deploy.c.program",
    "compiled": "ghostnets.deploy.c.build",
    "export": "ghostnets.deploy.c.generation",
    "generated": "ghostnets.deploy.c.generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ghostnets.deploy.c' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
