# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghostnets.deploy.c.build import compiled as compiled
    from ghostnets.deploy.c.export import Options as Options
    from ghostnets.deploy.c.export import export as export
    from ghostnets.deploy.c.export import generated as generated
    from ghostnets.deploy.c.program import Program as Program

# Loaded when first used: a compiled program runs without PyTorch.
_HOMES = {
    "Options": "ghostnets.deploy.c.export",
    "Program": "ghostnets.deploy.c.program",
    "compiled": "ghostnets.deploy.c.build",
    "generated": "ghostnets.deploy.c.export",
}


class _Room(ModuleType):
    """``export`` is the function, whether the module of that name has been loaded or not."""

    @property
    def export(self) -> Any:
        return import_module("ghostnets.deploy.c.export").export

    @export.setter
    def export(self, module: Any) -> None:
        """Python puts the module here when it is loaded."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ghostnets.deploy.c' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


sys.modules[__name__].__class__ = _Room
