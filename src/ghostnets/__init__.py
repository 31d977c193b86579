# SPDX-License-Identifier: Apache-2.0
"""A trained convolutional network in, a Ghost network out: weights kept, multiply-adds halved, every decision readable.

The public names are loaded when first used, so that ``import ghostnets`` and ``ghostnets report`` need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from ghostnets.blocks.ghost import GhostModule as GhostModule
    from ghostnets.compilation import compile as compile  # noqa: A004 - as torch.compile
    from ghostnets.hub import push_to_hub as push_to_hub
    from ghostnets.models.catalog import create_model as create_model
    from ghostnets.models.catalog import list_models as list_models
    from ghostnets.pipeline import upgrade as upgrade
    from ghostnets.pretrained import from_pretrained as from_pretrained
    from ghostnets.pretrained import save_pretrained as save_pretrained
    from ghostnets.records import Budget as Budget
    from ghostnets.trainer import TrainRequest as TrainRequest
    from ghostnets.trainer import train as train
    from ghostnets.training.recipe import load_recipe as load_recipe
    from ghostnets.upgrading.convert import convert as convert
    from ghostnets.upgrading.plan import plan as plan
    from ghostnets.upgrading.recover import recover as recover
    from ghostnets.validation import validate as validate

# Public name -> the module it lives in. No module directly in this package may bear a public name: importing it
# would set the attribute and hide the function (which is why the room is called upgrading).
_HOMES = {
    "Budget": "ghostnets.records",
    "GhostModule": "ghostnets.blocks.ghost",
    "TrainRequest": "ghostnets.trainer",
    "compile": "ghostnets.compilation",
    "convert": "ghostnets.upgrading.convert",
    "create_model": "ghostnets.models.catalog",
    "from_pretrained": "ghostnets.pretrained",
    "list_models": "ghostnets.models.catalog",
    "load_recipe": "ghostnets.training.recipe",
    "plan": "ghostnets.upgrading.plan",
    "push_to_hub": "ghostnets.hub",
    "recover": "ghostnets.upgrading.recover",
    "save_pretrained": "ghostnets.pretrained",
    "train": "ghostnets.trainer",
    "upgrade": "ghostnets.pipeline",
    "validate": "ghostnets.validation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ghostnets' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
