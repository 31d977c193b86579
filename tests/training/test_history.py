# SPDX-License-Identifier: Apache-2.0
"""What a run writes down, read back by the libraries that others would read it with."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostnets.errors import UserError
from ghostnets.training.history import ROWS, TABLE, write_history

HISTORY: list[dict[str, Any]] = [
    {"epoch": 1.0, "step": 10, "loss": 0.1 + 0.2, "memory_mib": None},
    {"epoch": 2.0, "step": 20, "loss": 1e-12, "memory_mib": 3.5, "top1": 93.4},
]  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]


def table(folder: Path) -> list[list[str]]:
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_row_an_epoch_in_both_files(tmp_path: Path) -> None:
    write_history(tmp_path / "run", HISTORY)
    assert (ROWS, TABLE) == ("history.jsonl", "history.csv")
    assert rows(tmp_path / "run") == HISTORY
    assert table(tmp_path / "run") == [
        ["epoch", "step", "loss", "memory_mib", "top1"],
        ["1.0", "10", "0.30000000000000004", "", ""],
        ["2.0", "20", "1e-12", "3.5", "93.4"],
    ]


names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8)
values = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False) | names


@settings(max_examples=25)
@given(st.lists(st.dictionaries(names, values, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_rows_come_back(tmp_path_factory: pytest.TempPathFactory, history: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_history(folder, history)
    lines = (folder / ROWS).read_bytes().decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == history
    columns, *found = table(folder)
    assert set(columns) == {key for row in history for key in row}
    wanted = [[str(row.get(column, "")) for column in columns] for row in history]
    assert found == wanted


def test_the_files_are_written_anew_not_added_to(tmp_path: Path) -> None:
    write_history(tmp_path, HISTORY)
    write_history(tmp_path, HISTORY[:1])
    assert rows(tmp_path) == HISTORY[:1]
    assert len(table(tmp_path)) == 2
    write_history(tmp_path, [])
    assert rows(tmp_path) == []
    assert not any(table(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [TABLE, ROWS]


def test_where_writing_fails_the_old_rows_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_history(tmp_path, HISTORY[:1])

    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match=r"history\.jsonl cannot be written: No space left on device"):
        write_history(tmp_path, HISTORY)
    assert rows(tmp_path) == HISTORY[:1]
    assert len(table(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [TABLE, ROWS]
