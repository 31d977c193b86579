# SPDX-License-Identifier: Apache-2.0
"""``ghostnets list``: the networks by name."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from ghostnets.errors import UserError


def list_(
    pattern: str = "*", /, *, pretrained: bool = False, as_json: Annotated[bool, Parameter(name="--json")] = False
) -> None:
    """The networks that ghostnets can build, one name a line.

    Example: ghostnets list "ghostnet*"

    Args:
        pattern: of the names, with * and ?
        pretrained: those that come with weights, by the names of these
        as_json: the names as a JSON array
    """
    from ghostnets.models.catalog import list_models

    names = list_models(pattern, pretrained=pretrained)
    if not names:
        raise UserError(f"no network is called {pattern!r}: ghostnets list shows all names")
    print(json.dumps(names, indent=1) if as_json else "\n".join(names))
