# SPDX-License-Identifier: Apache-2.0
"""``ghostnets report``: draw the report again, from the records alone."""

from __future__ import annotations

from pathlib import Path


def report(directory: Path, /) -> None:
    """Draw report.html again from the records in a folder that upgrade, inspect, train or bench left.

    Example: ghostnets report build/digits

    Args:
        directory: the folder, with upgrade.json, inspection.json, train.json or bench.json in it
    """
    from ghostnets.report.page import write_report  # matplotlib takes a second

    print(write_report(directory))
