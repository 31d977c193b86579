# SPDX-License-Identifier: Apache-2.0
"""Records in, rows out: the words and figures that the page and the terminal both print.

A cell carries its text and the number behind it, so that a reader sorts by value and not by spelling.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ghostnets.records import Decision, Inspection, Matches, Outcome, Pairing, UpgradeRecord

ABSENT = "–"
MINUS = "−"


class Cell(NamedTuple):
    """What is printed, and the number it stands for where there is one."""

    text: str
    value: float | None = None


class Card(NamedTuple):
    """One figure at the head of a page."""

    figure: str
    value: str
    note: str


class Column(NamedTuple):
    """A heading and, where the heading alone does not say it, what the column means."""

    title: str
    numeric: bool = True
    meaning: str = ""


class SummaryRow(NamedTuple):
    """One figure of the network, before and after."""

    figure: str
    before: str
    after: str
    change: str
    note: str
    share: float
    """What is left of the original figure; 1 means all of it."""


class StepRow(NamedTuple):
    """One finished step: where the accuracy stands, and what the step took."""

    name: str
    top1: str
    loss: str
    """Points to the original's accuracy."""
    seconds: str
    epochs: str


Times = Mapping[str, tuple[float, float]]
"""Of each site: milliseconds before and after."""


class SiteRow(NamedTuple):
    """One site; the fields are the keys of SITE_COLUMNS."""

    position: Cell
    name: Cell
    decision: Cell
    ratio: Cell
    kernel: Cell
    order: Cell
    macs_before: Cell
    macs_after: Cell
    change: Cell
    ms_before: Cell
    ms_after: Cell
    divergence: Cell
    primary_error: Cell
    ghost_error: Cell
    reason: Cell


class Epoch(NamedTuple):
    """One line of a training curve; a figure that the run did not note is None."""

    epoch: float
    loss: float | None
    held_out_top1: float | None
    images_per_second: float | None


class Total(NamedTuple):
    """A foot line of the site table, in multiply-adds."""

    label: str
    before: int
    after: int


SITE_COLUMNS: dict[str, Column] = {
    "position": Column("#", meaning="place in the order the network runs"),
    "name": Column("layer", numeric=False),
    "decision": Column("decision", numeric=False),
    "ratio": Column("ratio", meaning="one in so many output maps comes from the primary convolution"),
    "kernel": Column("kernel", meaning="side of the depthwise filters that make the ghosts"),
    "order": Column(
        "order",
        numeric=False,
        meaning="how the channel order reaches the readers of this layer; a gather moves so many elements",
    ),
    "macs_before": Column("MACs before, M", meaning="millions of multiply-adds"),
    "macs_after": Column("MACs after, M", meaning="millions of multiply-adds"),
    "change": Column("change"),
    "ms_before": Column("ms before", meaning="milliseconds in PyTorch on one image, with norm and activation"),
    "ms_after": Column("ms after", meaning="milliseconds in PyTorch on one image, with norm and activation"),
    "divergence": Column("KL, nats", meaning="divergence from the original's output when only this edit is made"),
    "primary_error": Column("primary error", meaning="normalised squared error of the intrinsic maps; 0 is perfect"),
    "ghost_error": Column("ghost error", meaning="normalised squared error of the ghosts; 0 is perfect"),
    "reason": Column("reason", numeric=False),
}


def summary_rows(record: UpgradeRecord) -> list[SummaryRow]:
    """Accuracy, multiply-adds, parameters and latency, before and after."""
    b, a = record.before, record.after
    return [
        _summary("top-1", percent, b.top1, a.top1, points(a.top1 - b.top1), ""),
        _summary("MACs", count, b.macs, a.macs, change(b.macs, a.macs), factor(b.macs, a.macs, "fewer", "more")),
        _summary(
            "parameters",
            count,
            b.params,
            a.params,
            change(b.params, a.params),
            factor(b.params, a.params, "fewer", "more"),
        ),
        _summary(
            "latency",
            milliseconds,
            b.latency_ms,
            a.latency_ms,
            change(b.latency_ms, a.latency_ms),
            factor(b.latency_ms, a.latency_ms, "faster", "slower"),
        ),
    ]


def verdict(record: UpgradeRecord) -> str:
    """The upgrade in one sentence."""
    b, a = record.before, record.after
    gain = a.top1 - b.top1
    macs = abs(a.macs - b.macs) / b.macs * 100 if b.macs else 0.0
    cost = f"{percent(macs, 1)} {'fewer' if a.macs <= b.macs else 'more'} multiply-adds"
    time = factor(b.latency_ms, a.latency_ms, "faster", "slower").replace("as before", "latency as before")
    if time != ABSENT:
        cost = f"{cost} and {time}"
    size = f"{abs(gain):.2f} points of accuracy"
    if size.startswith("0.00"):
        price = "with the accuracy unchanged"
    else:
        price = f"for {size}" if gain < 0 else f"with {size} gained"
    return f"{cost}, {price}."


def asked(budget: Mapping[str, float | int]) -> str:
    """The budget in words."""
    if set(budget) == {"macs"}:
        macs = budget["macs"]
        return f"at most {macs * 100:.4g} % of the MACs" if macs <= 1 else f"at most {count(macs)} MACs"
    if set(budget) == {"ratio", "kernel"}:
        return f"ratio {budget['ratio']}, kernel {budget['kernel']} at every site"
    return ", ".join(f"{name} {value}" for name, value in budget.items())


def decisions_in_words(decisions: Sequence[Outcome]) -> str:
    """How many sites became what."""
    ratios = Counter(d.ratio for d in decisions if d.decision == "ghost")
    ghosts = sum(ratios.values())
    split = ", ".join(f"{n} at ratio {ratio}" for ratio, n in sorted(ratios.items()))
    kept = len(decisions) - ghosts
    became = f"{ghosts} of {len(decisions)} sites became Ghost modules" + (f" ({split})" if split else "")
    return f"{became}; {kept} {'stays a convolution' if kept == 1 else 'stay convolutions'}."


def step_rows(record: UpgradeRecord) -> list[StepRow]:
    """The steps in the order they ran."""
    return [
        StepRow(
            step.name,
            percent(step.top1),
            points(step.top1 - record.before.top1),
            duration(step.seconds),
            f"{step.epochs:.4g}" if step.epochs else ABSENT,
        )
        for step in record.steps
    ]


def site_rows(sites: Iterable[Outcome], pairings: Iterable[Pairing] = (), times: Times | None = None) -> list[SiteRow]:
    """One row a site, in network order; pairings and times are matched by name and may be missing.

    Where a site is a whole Decision, its row says more.
    """
    by_name, known = {pairing.name: pairing for pairing in pairings}, times or {}
    return [_site(i, site, by_name.get(site.name), known.get(site.name)) for i, site in enumerate(sites, start=1)]


def filled_columns(rows: Sequence[SiteRow]) -> dict[str, Column]:
    """The columns of SITE_COLUMNS in which at least one row says something."""
    return {key: c for key, c in SITE_COLUMNS.items() if any(getattr(row, key).text != ABSENT for row in rows)}


def totals(record: UpgradeRecord) -> list[Total]:
    """The foot of the site table: all sites, what lies outside them, and the whole network."""
    before, after = sum(d.macs_before for d in record.sites), sum(d.macs_after for d in record.sites)
    whole_before, whole_after = record.before.macs, record.after.macs
    return [
        Total(f"{len(record.sites)} sites", before, after),
        Total("all other layers", whole_before - before, whole_after - after),
        Total("network", whole_before, whole_after),
    ]


def epoch_rows(events: Iterable[Mapping[str, Any]]) -> dict[str, list[Epoch]]:
    """The epochs of every step that noted any, in order; a resumed run's second account of an epoch wins."""
    steps: dict[str, dict[float, Epoch]] = {}
    for event in events:
        epoch = _number(event.get("epoch"))
        if event.get("event") == "epoch" and epoch is not None:
            figures = (_number(event.get(key)) for key in ("loss", "held_out_top1", "images_per_second"))
            steps.setdefault(str(event.get("step", "")), {})[epoch] = Epoch(epoch, *figures)
    return {step: [epochs[e] for e in sorted(epochs)] for step, epochs in steps.items()}


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where it ran, as names and values; the command is told apart (see ``command``)."""
    return [(key.replace("_", " "), _plain(value)) for key, value in environment.items() if key != "command"]


def command(environment: Mapping[str, Any]) -> str | None:
    """The command line that made the record, ready to be pasted into a shell."""
    given = environment.get("command")
    if isinstance(given, (list, tuple)):
        return shlex.join(str(word) for word in given)
    return str(given) if given else None


def count(number: float) -> str:
    """Multiply-adds or parameters with three or four digits: 125.5 M, 0.853 M, 73.7 k, 810."""
    size = abs(number)
    if size >= 999.95e6:
        return f"{_digits(number / 1e9)} G"
    if size >= 99.95e3:
        return f"{_digits(number / 1e6)} M"
    return f"{_digits(number / 1e3)} k" if size >= 1e3 else f"{number:.0f}"


def percent(value: float, digits: int = 2) -> str:
    """A figure that is already in percent."""
    return f"{_signless_zero(f'{value:.{digits}f}')} %" if math.isfinite(value) else ABSENT


def points(delta: float) -> str:
    """A difference of two percentages."""
    return f"{_signed(delta, 2)} points" if math.isfinite(delta) else ABSENT


def change(before: float, after: float) -> str:
    """The relative change, with its sign."""
    return f"{_signed((after / before - 1) * 100, 1)} %" if _comparable(before, after) else ABSENT


def factor(before: float, after: float, less: str, more: str) -> str:
    """How many times ``less`` or ``more`` the second is: 1.95× fewer, 1.10× slower."""
    if not (_comparable(before, after) and after):
        return ABSENT
    times = max(before / after, after / before)
    return "as before" if f"{times:.2f}" == "1.00" else f"{times:.2f}× {less if after < before else more}"


def milliseconds(value: float) -> str:
    """A latency with three digits or more: 0.853 ms, 12.3 ms, 1234 ms."""
    if not math.isfinite(value):
        return ABSENT
    return f"{value:.0f} ms" if abs(value) >= 999.95 else f"{_digits(value)} ms"


def duration(seconds: float) -> str:
    """A time span as one would say it: 0.8 s, 1 min 36 s, 2 h 05 min."""
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _summary(figure: str, show: Any, before: float, after: float, changed: str, note: str) -> SummaryRow:
    share = after / before if _comparable(before, after) else 1.0
    return SummaryRow(figure, show(before), show(after), changed, note, share)


def _site(position: int, site: Outcome, pairing: Pairing | None, times: tuple[float, float] | None) -> SiteRow:
    ghost = site.decision == "ghost"
    before, after = times or (None, None)
    decision = site if isinstance(site, Decision) else None
    return SiteRow(
        position=Cell(str(position), position),
        name=Cell(site.name),
        decision=Cell(site.decision),
        ratio=_whole(site.ratio if ghost else None),
        kernel=_whole(site.kernel if ghost else None),
        order=Cell(_order(decision) if decision else ABSENT),
        macs_before=millions(site.macs_before),
        macs_after=millions(site.macs_after),
        change=Cell(change(site.macs_before, site.macs_after), _relative(site)),
        ms_before=_fraction(before, 3),
        ms_after=_fraction(after, 3),
        divergence=_fraction(decision.divergence if decision else None, 4),
        primary_error=_fraction(pairing.primary_error if pairing else None, 3),
        ghost_error=_fraction(pairing.ghost_error if pairing else None, 3),
        reason=Cell(site.reason or ABSENT),
    )


def _order(decision: Decision) -> str:
    if decision.decision == "keep" or decision.order == "none":
        return ABSENT
    return f"{decision.order}, {count(decision.gathered)}" if decision.gathered else decision.order


def millions(number: int) -> Cell:
    """A count in the fixed unit of a column, so that the figures line up."""
    return Cell(f"{number / 1e6:.3f}", number)


def _relative(site: Outcome) -> float | None:
    return site.macs_after / site.macs_before - 1 if site.macs_before else None


def _whole(number: int | None) -> Cell:
    return Cell(ABSENT) if number is None else Cell(str(number), number)


def _fraction(number: float | None, digits: int) -> Cell:
    known = number is not None and math.isfinite(number)
    return Cell(f"{number:.{digits}f}", number) if known else Cell(ABSENT)


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(inner) for inner in value)
    return json.dumps(value)


def _comparable(before: float, after: float) -> bool:
    return math.isfinite(before) and math.isfinite(after) and before > 0 and after >= 0


def _digits(value: float) -> str:
    size = abs(value)
    return f"{value:.{3 if size < 0.9995 else 2 if size < 9.995 else 1}f}"


def _signed(value: float, digits: int) -> str:
    return _signless_zero(f"{value:+.{digits}f}").replace("-", MINUS)


def _signless_zero(text: str) -> str:
    return text.lstrip("+-") if not float(text) else text


# --- of an inspection

LAYER_TITLES = ("maps", "size", "explained", "≤ 1 %", "≤ 5 %", "≤ 10 %", "effective", "MACs, M", "ms", "note")
STAGE_TITLES = ("maps", "size", "explained", "≤ 1 %", "≤ 5 %", "≤ 10 %", "note")


def explained(matches: Matches | None) -> float | None:
    """How much of the variance of a layer's maps the best filters of other maps make, 0 to 1: the mean over those that are
    not constant.
    """
    if matches is None:
        return None
    live = [1 - nmse for nmse, source in zip(matches.nmse, matches.source, strict=True) if source >= 0]
    return sum(live) / len(live) if live else None


def mean_explained(record: Inspection) -> float | None:
    """The mean over layers."""
    found = [value for layer in record.layers if (value := explained(layer.matches)) is not None]
    return sum(found) / len(found) if found else None


def share(value: float | None) -> str:
    """0 to 1 as a percentage without decimals."""
    return ABSENT if value is None else f"{100 * value:.0f} %"


def inspection_verdict(record: Inspection) -> str:
    """What was found, in a sentence."""
    told = [(value, layer) for layer in record.layers if (value := explained(layer.matches)) is not None]
    if not told:
        return "Nothing can be said of its maps: they are not finite, constant, or too few."
    most, layer = max(told, key=lambda pair: pair[0])
    least, other = min(told, key=lambda pair: pair[0])
    mean = share(mean_explained(record))
    return (
        f"One other map and a {record.kernel}×{record.kernel} filter explain {mean} of a map on average: most in {layer.name} "
        f"({share(most)}), least in {other.name} ({share(least)})."
    )


def layer_rows(record: Inspection) -> list[tuple[Cell, ...]]:
    """One a convolution: its maps, the shares of them that another map makes within an error, and its cost."""
    return [
        (
            Cell(layer.name), Cell(str(layer.channels), layer.channels), _size(layer.size), *_within(layer.matches),
            Cell(f"{layer.rank:.1f}", layer.rank) if layer.matches else Cell(ABSENT), millions(layer.macs),
            Cell(ABSENT) if layer.milliseconds is None else Cell(f"{layer.milliseconds:.2f}", layer.milliseconds),
            Cell(layer.note),
        )
        for layer in record.layers
    ]  # fmt: skip


def stage_rows(record: Inspection) -> list[tuple[Cell, ...]]:
    """One a stage: how many of its last block's maps follow from its first block's."""
    return [
        (
            Cell(f"{stage.name} ({len(stage.blocks)} blocks)"), Cell(str(stage.channels), stage.channels), _size(stage.size),
            *_within(stage.matches), Cell(stage.note),
        )
        for stage in record.stages
    ]  # fmt: skip


def pair_titles(record: Inspection) -> tuple[str, ...]:
    """Of the filters' sizes."""
    return tuple(f"d = {kernel}" for kernel in record.pairs[0].kernels) if record.pairs else ()


def pair_rows(record: Inspection) -> list[tuple[Cell, ...]]:
    """The paper's Table 2 for the shown layer: raw errors, and in brackets those over the map's variance."""
    return [
        (
            Cell(f"map {pair.target} from map {pair.source}"),
            *(Cell(f"{mse:.3g} ({100 * nmse:.1f} %)", mse) for mse, nmse in zip(pair.mse, pair.nmse, strict=True)),
        )
        for pair in record.pairs
    ]  # fmt: skip


def _size(size: tuple[int, int]) -> Cell:
    return Cell(f"{size[0]}×{size[1]}", size[0] * size[1])


def _within(matches: Matches | None) -> tuple[Cell, ...]:
    if matches is None:
        return (Cell(ABSENT),) * 4
    return tuple(Cell(share(value), value) for value in (explained(matches), *matches.within))
