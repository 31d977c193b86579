# SPDX-License-Identifier: Apache-2.0
"""Checkpoints there and back, and every way in which a file can be broken, or its writing can fail."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ghostnets.errors import UserError
from ghostnets.training.checkpoint import HEAD, checkpoints, latest, read_checkpoint, save_checkpoint

STATE: dict[str, Any] = {
    "step": 7,
    "weights": {"a": torch.arange(6.0).view(2, 3), "half": torch.tensor([1.5], dtype=torch.bfloat16), "n": torch.tensor(3)},
    "optimizer": {"state": {0: {"momentum_buffer": None}}, "param_groups": [{"betas": (0.9, 0.999), "lr": 1e-3}]},
    "losses": [0.1, 1 / 3],
    "history": [{"epoch": 1.0, "memory_mib": None, "name": "ä"}],
}  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "new" / "folder", 7, STATE)
    assert path.name == "step-000000007.ckpt"
    assert same(read_checkpoint(path), STATE)
    state, refused = latest(path.parent)
    assert same(state, STATE)
    assert refused == []


def test_the_file_is_a_head_a_digest_and_what_pytorch_writes(tmp_path: Path) -> None:
    data = save_checkpoint(tmp_path, 1, STATE).read_bytes()
    head, digest, payload = data[: len(HEAD)], data[len(HEAD) : len(HEAD) + 32], data[len(HEAD) + 32 :]
    assert head == b"ghostnets checkpoint 1\n"
    assert digest == hashlib.sha256(payload).digest()
    plain = tmp_path / "plain.pt"
    plain.write_bytes(payload)
    assert same(torch.load(plain, weights_only=True), STATE)


def test_two_are_kept_and_the_newest_is_used(tmp_path: Path) -> None:
    for step in (3, 4, 10, 9_000, 10_000, 123_456_789):
        save_checkpoint(tmp_path, step, {"step": step})
        state, _ = latest(tmp_path)
        assert state == {"step": step}
    assert names(tmp_path) == ["step-000010000.ckpt", "step-123456789.ckpt"]
    assert [path.name for path in checkpoints(tmp_path)] == ["step-123456789.ckpt", "step-000010000.ckpt"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".step-000000002.ckpt.0123abcd", ".keep", "notes.txt", "step-x.ckpt", "step-000000001.ckpt.bak"):
        (tmp_path / name).write_text("x")
    assert checkpoints(tmp_path) == []
    save_checkpoint(tmp_path, 3, STATE)
    assert names(tmp_path) == [".keep", "notes.txt", "step-000000001.ckpt.bak", "step-000000003.ckpt", "step-x.ckpt"]


def test_where_nothing_was_saved_nothing_is_found(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") == (None, [])
    assert latest(tmp_path) == (None, [])
    (tmp_path / "file").touch()
    assert latest(tmp_path / "file") == (None, [])


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The newest of two checkpoints, and the one before it."""
    older = save_checkpoint(tmp_path, 6, {**STATE, "step": 6})
    return save_checkpoint(tmp_path, 7, STATE), older


def falls_back(newest: Path) -> str:
    """The sentence about the newest, after which the one before it is used."""
    with pytest.raises(UserError) as caught:
        read_checkpoint(newest)
    state, refused = latest(newest.parent)
    assert state is not None
    assert state["step"] == 6
    assert refused == [str(caught.value)]
    assert str(newest) in refused[0]
    assert "\n" not in refused[0]
    return refused[0]


def test_a_file_cut_off_anywhere_is_refused_by_name(two: tuple[Path, Path]) -> None:
    newest, _ = two
    data = newest.read_bytes()
    lengths = {*range(0, len(data), len(data) // 25), 1, len(HEAD) - 1, len(HEAD), len(HEAD) + 1, len(HEAD) + 31,
               len(HEAD) + 32, len(HEAD) + 33, len(data) - 100, len(data) - 10, len(data) - 2, len(data) - 1}  # fmt: skip
    assert len(lengths) >= 35
    for length in sorted(lengths):
        newest.write_bytes(data[:length])
        text = falls_back(newest)
        assert ("is no checkpoint of ghostnets" if length < len(HEAD) else "is cut off or damaged") in text, length
    newest.write_bytes(data)
    assert latest(newest.parent)[1] == []


def test_a_file_with_one_wrong_bit_anywhere_is_refused_by_name(two: tuple[Path, Path]) -> None:
    newest, _ = two
    data = newest.read_bytes()
    for k, place in enumerate([*range(0, len(HEAD) + 40, 6), *range(len(HEAD) + 40, len(data), len(data) // 30)]):
        newest.write_bytes(data[:place] + bytes([data[place] ^ (1 << k % 8)]) + data[place + 1 :])
        text = falls_back(newest)
        assert ("is no checkpoint" if place < len(HEAD) else "cut off or damaged") in text, place


def test_a_file_that_grew_is_refused_by_name(two: tuple[Path, Path]) -> None:
    newest, _ = two
    newest.write_bytes(newest.read_bytes() + b"\0")
    assert "cut off or damaged" in falls_back(newest)


def test_a_file_of_something_else_is_refused_by_name(two: tuple[Path, Path]) -> None:
    newest, _ = two
    torch.save(STATE, newest)
    assert "is no checkpoint of ghostnets" in falls_back(newest)
    for foreign in (b"", b"\0" * 5000, b"\x89PNG\r\n", pickle.dumps(STATE["losses"]), b"ghostnets checkpoint 2\n" * 9):
        newest.write_bytes(foreign)
        assert "is no checkpoint of ghostnets" in falls_back(newest)
    newest.unlink()
    newest.mkdir()
    assert "cannot be read: Is a directory" in falls_back(newest)


class Code:
    """What a pickle may make whoever reads it run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("/tmp/ghostnets-was-here"),)  # pyright: ignore[reportReturnType]  # noqa: S108


@pytest.mark.parametrize(
    "payload", [b"", b"no zip", pickle.dumps(Code(), protocol=2)], ids=["nothing", "no zip", "code"]
)
def test_a_whole_file_with_something_else_in_it_is_refused_by_name(two: tuple[Path, Path], payload: bytes) -> None:
    newest, _ = two
    newest.write_bytes(HEAD + hashlib.sha256(payload).digest() + payload)
    assert "holds no state that this PyTorch reads" in falls_back(newest)
    assert not Path("/tmp/ghostnets-was-here").exists()  # noqa: S108


def test_where_none_can_be_used_all_are_named(two: tuple[Path, Path]) -> None:
    newest, older = two
    newest.write_bytes(b"")
    older.write_bytes(older.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        latest(newest.parent)
    text = str(caught.value)
    assert text.startswith(f"{newest.parent} has no checkpoint that can be used: {newest} is no checkpoint")
    assert f"; {older} is cut off or damaged" in text


def test_a_damaged_file_does_not_cost_the_next_ones_their_reserve(two: tuple[Path, Path]) -> None:
    """A run that fell back is behind the damaged file for a while, and two whole ones are kept all the same."""
    newest, _ = two
    newest.rename(newest.with_name("step-000000009.ckpt"))
    (newest.parent / "step-000000009.ckpt").write_bytes(b"")
    save_checkpoint(newest.parent, 7, {"step": 7})
    assert names(newest.parent) == ["step-000000006.ckpt", "step-000000007.ckpt"]
    save_checkpoint(newest.parent, 8, {"step": 8})
    assert names(newest.parent) == ["step-000000007.ckpt", "step-000000008.ckpt"]


# --- writing that fails


@pytest.fixture(params=["no room", "cut off", "rename"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A disk that is full, felt at three moments; what the sentence then says."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_args: object) -> None:
        raise error

    if request.param == "no room":
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda path, mode="r": fail() if mode == "xb" else opened(path, mode))
    elif request.param == "cut off":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    yield "No space left on device"
    monkeypatch.undo()


def test_a_full_disk_is_said_and_nothing_is_lost(two: tuple[Path, Path], full_disk: str) -> None:
    before = {path: path.read_bytes() for path in two}
    target = two[0].parent / "step-000000008.ckpt"
    with pytest.raises(UserError) as caught:
        save_checkpoint(target.parent, 8, STATE)
    assert str(caught.value) == f"{target} cannot be written: {full_disk}"
    assert {path: path.read_bytes() for path in target.parent.iterdir()} == before
    state, refused = latest(target.parent)
    assert state is not None
    assert (state["step"], refused) == (7, [])


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_stop_while_writing_leaves_the_old_ones(
    two: tuple[Path, Path], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*((os, "fsync") if moment == "fsync" else (Path, "replace")), stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(two[0].parent, 8, STATE)
    assert names(two[0].parent) == ["step-000000006.ckpt", "step-000000007.ckpt"]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_named(two: tuple[Path, Path]) -> None:
    folder = two[0].parent
    folder.chmod(0o555)
    try:
        with pytest.raises(UserError, match=r"step-000000008\.ckpt cannot be written: Permission denied"):
            save_checkpoint(folder, 8, STATE)
    finally:
        folder.chmod(0o755)
    assert names(folder) == ["step-000000006.ckpt", "step-000000007.ckpt"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.step-000000008\.ckpt cannot be written: (File exists|Not a directory)"):
        save_checkpoint(tmp_path / "file", 8, STATE)

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"step-000000008\.ckpt cannot be written: Read-only file system"):
        save_checkpoint(tmp_path / "run", 8, STATE)
