# SPDX-License-Identifier: Apache-2.0
"""The state of a run in files that are whole or not there: each with a digest of itself, and the one before it kept."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ghostnets.errors import UserError
from ghostnets.records import is_partial, write_bytes

HEAD = b"ghostnets checkpoint 1\n"
KEPT = 2
"""The newest, and the one to fall back on."""


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state after ``step`` steps, then remove all but the newest files.

    Raises UserError where the place cannot be written to; the files that were there stay then.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getvalue()
    path = folder / f"step-{step:09d}.ckpt"
    write_bytes(path, HEAD + hashlib.sha256(payload).digest() + payload)
    there = checkpoints(folder)
    kept = [old for old in there if old <= path][:KEPT]  # a later one was refused, or the run would be behind it
    for other in set(there) - set(kept):
        other.unlink(missing_ok=True)
    for partial in [p for p in folder.iterdir() if is_partial(p)]:
        partial.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The files there, the newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if re.fullmatch(r"step-\d+\.ckpt", p.name)), reverse=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a file. Raises UserError, naming it, where it is cut off, damaged, or something else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not data.startswith(HEAD):
        raise UserError(f"{path} is no checkpoint of ghostnets")
    digest, payload = data[len(HEAD) : len(HEAD) + 32], data[len(HEAD) + 32 :]
    if hashlib.sha256(payload).digest() != digest:
        raise UserError(f"{path} is cut off or damaged: its digest does not fit")
    try:
        return torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError):  # whole, but written by something else
        raise UserError(f"{path} holds no state that this PyTorch reads") from None


def latest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest state that can be used, and a sentence for every newer file that cannot.

    Raises UserError where there are files and none can be used.
    """
    refused: list[str] = []
    for path in checkpoints(folder):
        try:
            return read_checkpoint(path), refused
        except UserError as error:
            refused.append(str(error))
    if refused:
        raise UserError(f"{folder} has no checkpoint that can be used: {'; '.join(refused)}")
    return None, []
