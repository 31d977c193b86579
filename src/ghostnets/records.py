# SPDX-License-Identifier: Apache-2.0
"""What travels between the rooms: frozen records that can be printed, saved, edited, diffed and replayed.

No torch here: a report must be drawable years later from the files alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ghostnets.errors import UserError

SCHEMA = 1

PARTIAL_BYTES = 4
"""Random bytes in the name of a file that is not whole yet."""

Order = Literal["folded", "agreed", "gather", "none"]
"""How a site's channel order is reconciled with its readers: folded into their weights (free), agreed by
every writer of the stream (free), restored by a gather after the module, or nothing to reconcile."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the upgraded network may cost.

    Either ``macs`` (a fraction of the original's multiply-adds if at most 1, else a number of them), or
    ``ratio`` and ``kernel`` for every site alike.
    """

    macs: float | None = None
    ratio: int | None = None
    kernel: int = 3

    def __post_init__(self) -> None:
        if (self.macs is None) == (self.ratio is None):
            raise UserError("a budget names either macs or ratio, not both and not neither")
        if self.macs is not None and not (math.isfinite(self.macs) and self.macs > 0):
            raise UserError(f"budget macs={self.macs} must be above 0 and finite")
        if self.ratio is not None and self.ratio < 2:
            raise UserError(f"ratio {self.ratio} must be at least 2: a ratio of 1 leaves a convolution as it is")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"kernel {self.kernel} must be odd and positive")

    def as_dict(self) -> dict[str, float | int]:
        """Only what was asked: ``{"macs": …}`` or ``{"ratio": …, "kernel": …}``."""
        return {"macs": self.macs} if self.macs is not None else {"ratio": self.ratio or 0, "kernel": self.kernel}


@dataclass(frozen=True, kw_only=True)
class Site:
    """A convolution that could become a Ghost module: conv, then its norm and activation where it has them."""

    name: str
    norm: str | None
    act: str | None
    relu: bool
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    out_size: tuple[int, int]
    macs: int
    params: int
    stream: int
    foldable: bool
    """Whether a change of this site's channel order can be moved into the weights of whoever reads it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of one site, as ``upgrade.json`` says it. ``ratio`` 1 means it stays a convolution."""

    name: str
    decision: Literal["ghost", "keep"]
    ratio: int
    kernel: int
    reason: str
    macs_before: int
    macs_after: int


@dataclass(frozen=True, kw_only=True)
class Decision(Outcome):
    """An outcome and what the plan must know beside it to carry it out."""

    order: Order
    params_before: int
    params_after: int
    channels: tuple[int, ...] = ()
    """The original channel that each output place of the Ghost module carries; empty where nothing changes."""
    gathered: int = 0
    """Elements per image that a gather moves after this module."""
    divergence: float | None = None
    """KL to the original's output (nats per image, calibration images) when only this edit is made."""

    def outcome(self) -> Outcome:
        """The part that ``upgrade.json`` holds."""
        return Outcome(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Outcome)})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One decision a site, in the order the network runs them, and what the whole then costs."""

    budget: Budget
    decisions: tuple[Decision, ...]
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    seed: int
    calibration_images: int
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Who makes whom in one Ghost module, in the original's channel numbers.

    ``order[p]`` is the original channel that output position ``p`` of the module carries; the first
    ``len(intrinsic)`` positions are the intrinsic maps.
    """

    name: str
    intrinsic: tuple[int, ...]
    source: tuple[int, ...]
    """For every ghost position, the original channel it is made from."""
    order: tuple[int, ...]
    primary_error: float
    """Normalised squared error of the intrinsic maps on the calibration images (0 is perfect)."""
    ghost_error: float
    """Normalised squared error of the ghosts on the calibration images."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A network in figures; top1 in percent, latency the median in milliseconds."""

    params: int
    macs: int
    top1: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One finished step of an upgrade; ``epochs`` counts passes over the training images."""

    name: Literal["closed form", "blocks", "distil"]
    top1: float
    seconds: float
    epochs: float


@dataclass(frozen=True, kw_only=True)
class UpgradeRecord:
    """The whole upgrade in one record: what ``upgrade.json`` holds and ``--json`` prints."""

    model: str
    data: str
    budget: dict[str, float | int]
    seed: int
    before: Cost
    after: Cost
    steps: tuple[Step, ...]
    sites: tuple[Outcome, ...]
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Matches:
    """For each map of a layer the map that predicts it best through one d×d filter and a bias (arXiv:1911.11907, Table 2)."""

    source: tuple[int, ...]
    """-1 for a map that is constant, or alone."""
    mse: tuple[float, ...]
    nmse: tuple[float, ...]
    """The same over the map's own variance: 0 is a perfect ghost, 1 as bad as the mean."""
    within: tuple[float, ...]
    """Shares of the maps that are not constant with an nmse of at most 0.01, 0.05 and 0.1."""
    dead: int
    """Maps that are constant."""


@dataclass(frozen=True, kw_only=True)
class LayerMaps:
    """A convolution and how much its maps, behind its norm and activation, repeat each other."""

    name: str
    end: str
    """The module that gives the maps out."""
    channels: int
    size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    macs: int
    milliseconds: float | None
    """Of the convolution alone, on one image, here."""
    matches: Matches | None
    rank: float
    """Effective: how many maps would say as much if none followed from others."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StageMaps:
    """Blocks in a row, and how well the last one's maps follow from the first one's (arXiv:2201.03297)."""

    name: str
    blocks: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    matches: Matches | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PairError:
    """One map made from another by the best filters of several sizes: a row of the paper's Table 2."""

    source: int
    target: int
    kernels: tuple[int, ...]
    mse: tuple[float, ...]
    nmse: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What ``inspection.json`` holds."""

    model: str
    data: str
    images: int
    kernel: int
    seed: int
    layers: tuple[LayerMaps, ...]
    stages: tuple[StageMaps, ...]
    shown: str
    """The module whose maps are drawn."""
    pairs: tuple[PairError, ...]
    """The look-alikes among them."""
    ghost: str | None = None
    """The Ghost module whose maps are drawn, where the network has one."""
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures over ``images``; percentages but for ``nll`` (nats an image) and ``ece`` (0 to 1)."""

    images: int
    top1: float
    top5: float
    nll: float
    ece: float
    classes: tuple[ClassQuality, ...]


@dataclass(frozen=True, kw_only=True)
class ClassQuality:
    """Of one class: how many of its images are recognised, and how many of those said to be it are."""

    name: str
    images: int
    recall: float | None
    """None where it has none."""
    precision: float | None
    """None where the network never says it."""


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """What has come of it: what ``train.json`` holds."""

    model: str
    data: str
    recipe: str
    """As YAML."""
    seed: int
    params: int
    macs: int
    epochs: float
    seconds: float
    images_per_second: float
    quality: Quality
    """On the test images, or those held out."""
    held_out: bool
    history: tuple[dict[str, Any], ...]
    environment: dict[str, Any]
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """A contestant with one number of threads; without figures where it gave none, and ``failure`` says why."""

    target: str
    threads: int
    precision: Literal["f32", "bf16"]
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    ratio: float | None = None
    """Over the rounds the median of its turn over that of the reference in the same round: below 1 is faster. None where
    its answers are wrong.
    """
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    min_ms: float | None = None
    n: int = 0
    """Timed runs."""
    peer: str | None = None
    """The fastest of the other runtimes, of the same precision and threads."""
    speedup: float | None = None
    """How many times as fast as ``peer``, turn by turn of the same round."""
    speedup_q1: float | None = None
    speedup_q3: float | None = None
    max_abs: float | None = None
    """Largest difference from PyTorch's eager float32 on the same inputs; None where an answer is not finite."""
    max_rel: float | None = None
    """The same as a part of PyTorch's largest output."""
    peak_share: float | None = None
    """Of the arithmetic that the machine could have done in that time, what the network needs."""
    load_s: float | None = None
    """Opening the file and the first run."""
    peak_mib: float | None = None
    """Memory of the whole process; None where the system does not say."""
    bare_mib: float | None = None
    """What of it Python and NumPy had before the runtime was loaded."""
    disturbed: int = 0
    """Turns in which other processes took a core."""
    version: str = ""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """One layer as the runtime itself timed it."""

    target: str
    threads: int
    name: str
    macs: int
    ms: float
    peak_share: float | None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What ``bench.json`` holds."""

    model: str
    input_size: tuple[int, int, int]
    """(C, H, W); the batch is one image."""
    macs: int
    rounds: int
    seed: int
    reference: str
    """The target that the ratios are over: the first that was asked for and raced."""
    rows: tuple[BenchRow, ...]
    layers: tuple[LayerTime, ...] = ()
    peak_gflops: dict[str, float] = field(default_factory=dict[str, float])
    """Threads -> billions of float32 operations a second that the machine was measured to do, a multiply-add as two."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    schema: int = SCHEMA


Record = TypeVar("Record")


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain lists and dicts, ready for ``json.dumps``."""
    return json.loads(json.dumps(dataclasses.asdict(record)))


def from_json(kind: type[Record], data: Any) -> Record:
    """The record of that kind that ``to_json`` turned into ``data``.

    Raises UserError where a field is missing, unknown or of another type; the message names it.
    """
    return _build(kind, data, kind.__name__)


def _build(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise UserError(f"{where} should be an object, not {type(data).__name__}")
        hints = get_type_hints(kind)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        unknown = sorted(set(data) - set(fields))
        missing = sorted(n for n, f in fields.items() if n not in data and _required(f))
        if unknown or missing:
            raise UserError(f"{where} has unknown fields {unknown} and lacks {missing}")
        return kind(**{n: _build(hints[n], v, f"{where}.{n}") for n, v in data.items()})  # pyright: ignore[reportCallIssue]
    inner = [k for k in get_args(kind) if k is not type(None)]
    one = inner[0] if inner else kind
    if len(inner) < len(get_args(kind)) and (get_origin(one) is not None or dataclasses.is_dataclass(one)):  # or null
        return None if data is None else _build(inner[0], data, where)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), data, where)
    if get_origin(kind) is dict:
        if not isinstance(data, dict):
            raise UserError(f"{where} should be an object, not {_shown(data)}")
        return {key: _build(get_args(kind)[1], value, f"{where}.{key}") for key, value in data.items()}
    if get_origin(kind) is Literal:
        if not any(data == choice and type(data) is type(choice) for choice in get_args(kind)):
            raise UserError(f"{where} should be one of {', '.join(map(repr, get_args(kind)))}, not {_shown(data)}")
        return data
    return _scalar(kind, data, where)


def _tuple(items: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise UserError(f"{where} should be a list, not {_shown(data)}")
    kinds = [items[0]] * len(data) if items[1:] == (Ellipsis,) else items
    if len(data) != len(kinds):
        raise UserError(f"{where} should have {len(kinds)} values, not {len(data)}")
    return tuple(_build(kind, value, f"{where}[{i}]") for i, (kind, value) in enumerate(zip(kinds, data, strict=True)))


def _scalar(kind: Any, data: Any, where: str) -> Any:
    """A number, a word, a truth or nothing. JSON writes 1.0 as 1, so a whole number serves where a float is meant."""
    if kind is Any:
        return data
    kinds = get_args(kind) or (kind,)
    if type(data) in kinds:
        return data
    if float in kinds and type(data) is int:  # and no bool, which Python counts as an int
        return float(data)
    names = " or ".join("null" if k is type(None) else _JSON_NAMES[k] for k in kinds)
    raise UserError(f"{where} should be {names}, not {_shown(data)}")


_JSON_NAMES: dict[type, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _shown(data: Any) -> str:
    text = json.dumps(data, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing. Raises UserError where the place cannot be written to."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """The same for bytes: a temporary name beside it, then a rename."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(PARTIAL_BYTES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:  # unlike mkstemp's, open to whom the umask allows
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # before the name says that it is whole: the power may fail in between
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def is_partial(path: Path) -> bool:
    """Whether this is what a killed process left of a file it was writing."""
    return path.name.startswith(".") and re.fullmatch(rf"[0-9a-f]{{{2 * PARTIAL_BYTES}}}", path.suffix[1:]) is not None


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` (a record, or plain JSON) as an indented file, whole or not at all."""
    plain = to_json(data) if dataclasses.is_dataclass(data) else data
    write_text(path, json.dumps(plain, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The parsed file. Raises UserError where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
