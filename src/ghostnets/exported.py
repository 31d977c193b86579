# SPDX-License-Identifier: Apache-2.0
"""The folder that an export leaves: its record, what may lie there before, and how it comes there as a whole."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghostnets.errors import UserError
from ghostnets.records import PARTIAL_BYTES, SCHEMA, from_json, is_partial, read_json, write_bytes, write_json

RECORD = "export.json"

BUILT = ("model", "model-embedded", "libmodel.so")
"""What the Makefile of a C program makes, and may be made again."""


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """One file of an export, as it was written."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far the exported network and PyTorch's are apart on the same images."""

    images: int
    of: str
    """What is in them."""
    max_abs: float
    max_rel: float
    """``max_abs`` as a part of PyTorch's largest output."""
    top1_agreement: float
    """Percent of the images for which both have their largest output at the same place."""
    runtime: str


@dataclass(frozen=True, kw_only=True)
class Export:
    """What ``export.json`` holds."""

    model: str
    format: str
    target: str | None
    """Instruction set of a C program."""
    layout: str
    """Of an image in memory."""
    input_size: tuple[int, int, int]
    """(C, H, W)"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int | None
    """Names in ``labels.txt``; None where they are not known."""
    macs: int
    """Of one image, as the exported network computes it."""
    weights_bytes: int
    threads: int
    arena_bytes: int | None
    """What a C program needs beside its weights with so many threads."""
    files: tuple[ExportedFile, ...]
    checked: Check | None
    unchecked: str = ""
    """Why it was not checked."""
    notes: tuple[str, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    schema: int = SCHEMA


def take(out: Path) -> None:
    """Raises UserError where the folder holds anything but an earlier export, as it was written."""
    try:
        found = sorted(path for path in out.iterdir() if not is_partial(path)) if out.exists() else []
    except OSError as error:
        raise UserError(f"{out} cannot be used as a folder: {error.strerror or error}") from None
    if out.exists() and out.resolve() == Path.cwd():
        raise UserError(f"{out} is the folder you are in, which is written anew as a whole: name another one")
    if not found:
        return
    if RECORD not in {path.name for path in found}:
        raise UserError(f"{out} is not empty and holds no export ({found[0].name}): choose another folder")
    written = {file.name: file.sha256 for file in from_json(Export, read_json(out / RECORD)).files}
    for path in found:
        if path.name in {RECORD, *BUILT}:
            continue
        if path.name not in written:
            raise UserError(f"{out} holds an export and {path.name} beside it: choose another folder")
        if digest(path.read_bytes()) != written[path.name]:
            raise UserError(f"{out / path.name} has been changed since it was exported: choose another folder")


def listed(files: Mapping[str, bytes]) -> tuple[ExportedFile, ...]:
    """Files as the record names them."""
    return tuple(ExportedFile(name=name, bytes=len(data), sha256=digest(data)) for name, data in files.items())


def place(out: Path, files: Mapping[str, bytes], record: Export) -> None:
    """Write files and record into the folder, all or none: in a folder beside it, which then gets its name.

    Raises UserError where that cannot be written.
    """
    out = out.resolve()
    new, old = (out.with_name(f".{out.name}.{secrets.token_hex(PARTIAL_BYTES)}") for _ in range(2))
    try:
        for name, data in files.items():
            write_bytes(new / name, data)
        write_json(new / RECORD, record)
        _swap(new, out, old)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _swap(new: Path, out: Path, old: Path) -> None:
    """``new`` becomes ``out``; what was there becomes ``old``, or stays where that fails."""
    if not out.exists():
        new.rename(out)
        return
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
