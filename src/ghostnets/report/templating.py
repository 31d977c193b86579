# SPDX-License-Identifier: Apache-2.0
"""Templates with everything escaped and nothing undefined, and the style and script that every page shares."""

from __future__ import annotations

import base64
import hashlib
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined

_environment = Environment(
    loader=PackageLoader("ghostnets.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


def filled(template: str, **values: Any) -> str:
    """A page: the template with the values, our style sheet and our script, which the page's policy names by its digest."""
    styles, script = (_as_it_stands(name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment.get_template(template).render(styles=styles, script=script, script_hash=digest, **values)


def _as_it_stands(name: str) -> str:
    return cast("PackageLoader", _environment.loader).get_source(_environment, name)[0]
