# SPDX-License-Identifier: Apache-2.0
"""pyproject.toml and constraints.txt agree: what can be installed is pinned, and pinned inside its range."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ghostnets

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if line and not line.startswith("#")]
DECLARED = [Requirement(line) for line in metadata.requires("ghostnets") or []]


def test_the_version_is_said_once() -> None:
    assert metadata.version("ghostnets") == ghostnets.__version__


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize("wanted", DECLARED, ids=str)
def test_every_declared_dependency_is_pinned_in_its_range(wanted: Requirement, python: str) -> None:
    here = {"python_version": python}
    pins = [pin for pin in PINS if pin.name == wanted.name and (pin.marker is None or pin.marker.evaluate(here))]
    assert len(pins) == 1
    (version,) = re.findall(r"==([^,]+)", str(pins[0].specifier))
    assert wanted.specifier.contains(version)
