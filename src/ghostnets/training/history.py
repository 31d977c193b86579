# SPDX-License-Identifier: Apache-2.0
"""What a run writes down: a row an epoch, as JSON lines and as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ghostnets.records import write_text

ROWS, TABLE = "history.jsonl", "history.csv"

Row = Mapping[str, Any]


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Both files, whole: after a stop they hold what the checkpoint knows, and no more."""
    write_text(folder / ROWS, "".join(json.dumps(row) + "\n" for row in rows))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / TABLE, text.getvalue())
