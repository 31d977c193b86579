# SPDX-License-Identifier: Apache-2.0
"""The folder of an export: put in place whole, or everything stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ghostnets import exported
from ghostnets.errors import UserError
from ghostnets.exported import Check, Export, listed, place, take
from ghostnets.records import from_json, read_json

FILES = {"model.c": b"int main(void);", "model.weights": bytes(range(9))}

RECORD = Export(
    model="net", format="c", target="scalar", layout="nchw", input_size=(3, 4, 5), mean=(0.5,), std=(0.5,), classes=None,
    macs=7, weights_bytes=9, threads=1, arena_bytes=64, files=listed(FILES),
    checked=Check(images=1, of="noise", max_abs=0.0, max_rel=0.0, top1_agreement=100.0, runtime="cc"),
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_written_and_its_record_read_back(tmp_path: Path) -> None:
    take(tmp_path / "a" / "b")
    place(tmp_path / "a" / "b", FILES, RECORD)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert {name: data for name, data in contents(tmp_path / "a" / "b").items() if name != "export.json"} == FILES
    assert from_json(Export, read_json(tmp_path / "a" / "b" / "export.json")) == RECORD
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "a").stat().st_mode  # not private, as mkdtemp's are


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    place(tmp_path / "link", FILES, RECORD)
    assert (tmp_path / "link").is_symlink()
    assert set(contents(tmp_path / "real")) == {*FILES, "export.json"}


@pytest.mark.parametrize("step", ["write_bytes", "write_json", "_swap"])
def test_what_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    place(tmp_path / "c", FILES, RECORD)
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exported, step, full)
    with pytest.raises(UserError, match="c cannot be written: No space left on device"):
        place(tmp_path / "c", {"model.c": b"other"}, replace(RECORD, macs=8))
    assert contents(tmp_path) == before


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path / "c", FILES, RECORD)
    before, rename, count = contents(tmp_path), Path.rename, 0

    def second_fails(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(UserError, match="busy"):
        place(tmp_path / "c", {"model.c": b"other"}, RECORD)
    assert contents(tmp_path) == before


def test_a_folder_is_taken_only_where_nothing_is_lost(tmp_path: Path) -> None:
    out = tmp_path / "c"
    out.mkdir()
    take(out)
    (out / ".model.c.0123abcd").write_bytes(b"half")  # what a killed process left
    take(out)
    place(out, FILES, RECORD)
    take(out)
    (out / "libmodel.so").write_bytes(b"built")
    take(out)
    (out / "model.c").write_bytes(b"int main(void) ;")
    with pytest.raises(UserError, match=r"c/model\.c has been changed since it was exported: choose another folder"):
        take(out)
    (out / "export.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        take(out)
    (out / "export.json").unlink()
    with pytest.raises(UserError, match=r"c is not empty and holds no export \(libmodel\.so\)"):
        take(out)
