# SPDX-License-Identifier: Apache-2.0
"""The folder an upgrade lives in: what was asked, which steps are finished, and the log.

A step is finished when ``state.json`` says so, which is written after the step's own files. So whoever finds the folder,
after whatever happened, can go on from there.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeVar

from ghostnets.errors import UserError
from ghostnets.records import SCHEMA, Budget, from_json, is_partial, read_json, to_json, write_json

STATE, LOG, STEPS = "state.json", "run.jsonl", "steps"

Recover = Literal["none", "blocks", "distil"]
"""How accuracy is won back: not at all, block by block, or block by block and then as a whole."""

SEEDS = 2**32
"""What every library's random numbers take as a seed is below."""

Event = dict[str, Any]
"""A line of the log."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked: an upgrade may go on only where all of it is the same."""

    model: str
    data: str
    budget: Budget
    recover: Recover = "distil"
    epochs: float | None = None
    """Of the last recovery; None leaves it to the recovery."""
    minutes: float | None = None
    """The same in time."""
    calibration_images: int = 1000
    order: Literal["own", "agreed"] = "own"
    ignored_layers: tuple[str, ...] = ()
    seed: int = 0
    weights: str
    """SHA-256 of the original's weights."""
    images: str
    """SHA-256 over the data set's figures, labels and a sample of its images."""

    def __post_init__(self) -> None:
        for name, allowed in (("recover", ("none", "blocks", "distil")), ("order", ("own", "agreed"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} must be one of {', '.join(allowed)}")
        for name in ("epochs", "minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} {value:g} must be above 0 (to skip the recovery: recover none)")
        if self.epochs is not None and self.minutes is not None:
            raise UserError(
                f"epochs {self.epochs:g} and minutes {self.minutes:g} both say how long the recovery is: give one of them"
            )
        if self.recover == "none" and (self.epochs, self.minutes) != (None, None):
            raise UserError(
                "epochs and minutes are those of a recovery, and recover none asks for none: leave them out"
            )
        check_seed(self.seed)
        if self.calibration_images < 1:
            raise UserError(f"calibration images {self.calibration_images} must be at least 1")


@dataclass
class State:
    """What ``state.json`` holds."""

    request: Request
    finished: dict[str, Any] = field(default_factory=dict[str, Any])
    """Step -> what is known of it."""
    schema: int = SCHEMA


Value = TypeVar("Value")


class Folder:
    """An upgrade's files, its state and its log.

    ``listen`` hears every event as it is logged.
    """

    def __init__(self, path: Path, state: State, listen: Callable[[Event], None], *, fresh: bool) -> None:
        self.path = path
        self.fresh = fresh
        """Whether no upgrade was there before."""
        self._state = state
        self._listen = listen

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def finished(self, step: str) -> Mapping[str, Any] | None:
        """What is known of the step if it is finished."""
        return self._state.finished.get(step)

    def finish(self, step: str, **known: Any) -> Mapping[str, Any]:
        """Note that the step is finished, and say so in the log."""
        self._state.finished[step] = known
        write_json(self / STATE, self._state)
        self.log({"step": step, "event": "end", **known})
        return known

    def discard(self) -> None:
        """Remove what an upgrade that was refused has left, and the folder if it is empty then."""
        for name in (LOG, STATE):
            (self / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self.path.rmdir()

    def log(self, event: Event) -> None:
        """Append a line to ``run.jsonl``, with the time."""
        line = stamped(event)
        append_line(self / LOG, json.dumps(line))
        self._listen(line)


def open_folder(path: Path, request: Request, *, resume: bool, listen: Callable[[Event], None]) -> Folder:
    """Take the folder for this upgrade, making it if there is none.

    Raises UserError where it holds anything else, where it holds an upgrade and ``resume`` was not asked, or where that
    upgrade was asked for otherwise.
    """
    found = _contents(path)
    if not found:
        state = State(request)
        write_json(path / STATE, state)
        return Folder(path, state, listen, fresh=True)
    if not (path / STATE).is_file():
        raise UserError(f"{path} is not empty and holds no upgrade ({found[0].name}): choose another folder")
    state = from_json(State, read_json(path / STATE))
    differing = differences(request, state.request)
    if not resume:
        instead = "choose another folder" if differing else "go on with resume (--resume), or choose another folder"
        raise UserError(f"{path} holds an upgrade already: {instead}")
    if differing:
        raise UserError(
            f"{path} holds an upgrade with other settings ({'; '.join(differing)}): give those, or choose another folder"
        )
    for partial in [p for p in (*found, *(path / STEPS).glob("*")) if is_partial(p)]:
        partial.unlink(missing_ok=True)
    folder = Folder(path, state, listen, fresh=False)
    folder.log({"step": "upgrade", "event": "resume"})
    return folder


def differences(asked: Request, there: Request) -> list[str]:
    """Every setting that is not the same, with both values."""
    words = {"weights": "the original's weights", "images": "the images"}
    found: list[str] = []
    for f in dataclasses.fields(Request):
        one, other = (to_json(request)[f.name] for request in (there, asked))
        if one != other:
            found.append(
                f"{words[f.name]} differ"
                if f.name in words
                else f"{f.name.replace('_', ' ')} {_said(one)}, not {_said(other)}"
            )
    return found


def check_seed(seed: int) -> None:
    """Raises UserError where no library would take the seed."""
    if not 0 <= seed < SEEDS:
        raise UserError(f"seed {seed} must be at least 0 and below 2^32")


def stamped(event: Mapping[str, Any]) -> Event:
    """The event with the time."""
    return {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **event}


def append_line(path: Path, line: str) -> None:
    """Append a whole line, after what a killed process may have left of its last."""
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else f"\n{line}"
            file.write(f"{line}\n".encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def _contents(path: Path) -> list[Path]:
    """What is in the folder, but for what a killed process left of its first file."""
    try:
        found = sorted(path.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be used as a folder: {error.strerror or error}") from None
    return [] if all(is_partial(p) and p.name.startswith(f".{STATE}.") for p in found) else found


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={inner}" for key, inner in value.items() if inner is not None)
    return "unset" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)
