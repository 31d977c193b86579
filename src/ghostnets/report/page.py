# SPDX-License-Identifier: Apache-2.0
"""The page: the records of a folder become one self-contained report.html beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from ghostnets.errors import UserError
from ghostnets.records import Outcome, Pairing, Plan, UpgradeRecord, from_json, read_json, write_text
from ghostnets.report import bench_page, figures, inspection_page, tables, training_page
from ghostnets.report.strip import MAPS, Arrays, Bar, layer_data, read_maps
from ghostnets.report.templating import filled

REPORT = "report.html"

UPGRADE = "upgrade.json"

OTHERS = (inspection_page, training_page, bench_page)
"""Each with the record it is the page of."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """What a folder holds; everything but the upgrade itself may be missing."""

    upgrade: UpgradeRecord
    plan: Plan | None
    pairings: tuple[Pairing, ...] | None
    events: tuple[dict[str, Any], ...] | None
    maps: Arrays
    """Of one image, small and grey."""
    broken_lines: int
    """Lines of the run's log that are no JSON object, as a killed run leaves behind."""


class Curve(NamedTuple):
    """A training curve and the words below it."""

    svg: str
    caption: str


def write_report(directory: Path) -> Path:
    """Draw ``report.html`` from the records in the folder, of an upgrade, an inspection, a training run or a benchmark, and
    return its path.

    Raises UserError where there are none, or one cannot be read.
    """
    page = directory / REPORT
    names = (UPGRADE, *(other.RECORD for other in OTHERS))
    if not any((directory / name).exists() for name in names):
        raise UserError(
            f"{directory} holds no record that a page could be drawn from: {', '.join(names[:-1])} or {names[-1]}"
        )
    for other in OTHERS:
        if (directory / other.RECORD).exists():
            write_text(page, other.render(directory))
            return page
    write_text(page, render(read_records(directory)))
    return page


def read_records(directory: Path) -> Records:
    """Read the records of one upgrade."""
    upgrade = from_json(UpgradeRecord, read_json(directory / UPGRADE))
    plan, transfer, run = (directory / name for name in ("plan.json", "transfer.json", "run.jsonl"))
    maps = directory / MAPS
    events, broken = _read_events(run) if run.exists() else (None, 0)
    return Records(
        upgrade=upgrade,
        plan=from_json(Plan, read_json(plan)) if plan.exists() else None,
        pairings=_read_pairings(transfer) if transfer.exists() else None,
        events=events,
        maps=read_maps(maps) if maps.exists() else {},
        broken_lines=broken,
    )


def render(records: Records) -> str:
    """The page as text; the same records give the same text."""
    upgrade = records.upgrade
    decisions = records.plan.decisions if records.plan else ()
    replanned = records.plan is not None and tuple(d.outcome() for d in decisions) != upgrade.sites
    done = decisions if decisions and not replanned else upgrade.sites  # the plan says more of each site
    times = _times(records.events or ())
    rows = tables.site_rows(done, records.pairings or (), times)
    pairings = {pairing.name: pairing for pairing in records.pairings or ()}
    return filled(
        "upgrade.html.j2",
        title=f"{upgrade.model} · Ghost upgrade",
        records=records,
        upgrade=upgrade,
        date=_date(records),
        asked=tables.asked(upgrade.budget),
        command=tables.command(upgrade.environment),
        verdict=tables.verdict(upgrade),
        summary=tables.summary_rows(upgrade),
        steps=tables.step_rows(upgrade),
        accuracy=_accuracy(upgrade),
        decisions=tables.decisions_in_words(upgrade.sites),
        macs=_macs(upgrade),
        replanned=replanned,
        bars=_bars(done, pairings, times),
        timed=bool(times),
        layers=[_layer(site, pairings.get(site.name), records.maps, times) for site in done],
        columns=tables.filled_columns(rows),
        rows=rows,
        totals=tables.totals(upgrade),
        millions=tables.millions,
        change=tables.change,
        curves=_curves(records.events or ()),
        environment=tables.environment_rows(upgrade.environment),
    )


def _read_pairings(path: Path) -> tuple[Pairing, ...]:
    data = read_json(path)
    if not isinstance(data, list):
        raise UserError(f"{path} should hold a list of pairings, not {type(data).__name__}")
    return tuple(from_json(Pairing, item) for item in cast("list[Any]", data))


def _read_events(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    events = [event for line in lines if (event := _parse(line)) is not None]
    return tuple(events), len(lines) - len(events)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", event) if isinstance(event, dict) else None


def _date(records: Records) -> str | None:
    stated = records.upgrade.environment.get("date")
    times = [str(event["time"]) for event in records.events or () if "time" in event]
    found = str(stated) if stated else times[-1] if times else None
    return found.split(".")[0].replace("T", " ") if found else None


def _accuracy(upgrade: UpgradeRecord) -> str | None:
    if not upgrade.steps:
        return None
    said = ", ".join(f"{step.name} {tables.percent(step.top1)}" for step in upgrade.steps)
    label = f"Chart: top-1 accuracy of the original {tables.percent(upgrade.before.top1)}; after each step: {said}."
    return figures.to_svg(figures.accuracy_by_step(upgrade), "accuracy", label)


def _macs(upgrade: UpgradeRecord) -> str | None:
    if not upgrade.sites:
        return None
    figure = figures.macs_by_site(upgrade.sites)
    label = "Chart: multiply-adds of each site before and after, in network order; the table below holds the figures."
    return figures.to_svg(figure, "macs", label, figures.site_tooltips(upgrade.sites))


def _times(events: Sequence[dict[str, Any]]) -> tables.Times:
    """Milliseconds of each site before and after, where the run took them."""
    told = next((event.get("sites") for event in reversed(events) if event.get("step") == "latency"), None)
    rows = cast("dict[str, Any]", told).items() if isinstance(told, dict) else ()
    return {
        name: (row["before_ms"], row["after_ms"])
        for name, row in rows
        if isinstance(row, dict) and all(isinstance(row.get(key), int | float) for key in ("before_ms", "after_ms"))
    }


def _bars(sites: Sequence[Outcome], pairings: Mapping[str, Pairing], times: tables.Times) -> list[Bar]:
    """How well the ghosts of each layer are made, and what the layer costs now: time where it was taken."""
    errors = {name: pairing.ghost_error for name, pairing in pairings.items()}
    costs = [times.get(site.name, (0.0, 0.0))[1] if times else site.macs_after for site in sites]
    dearest = max(costs, default=0) or 1
    return [
        Bar(
            min(max(1 - errors.get(site.name, 1.0), 0.0), 1.0) if site.decision == "ghost" else 0.0,
            cost / dearest, f"{site.name}: {_words(site)}{_took(site, times)}",
        )
        for site, cost in zip(sites, costs, strict=True)
    ]  # fmt: skip


def _took(site: Outcome, times: tables.Times) -> str:
    before, after = times.get(site.name, (None, None))
    return f"; {before:.3f} → {after:.3f} ms" if before is not None and after is not None else ""


def _words(site: Outcome) -> str:
    macs = f"{tables.count(site.macs_before)} → {tables.count(site.macs_after)} multiply-adds"
    if site.decision == "keep":
        return f"kept, {macs}; {site.reason}"
    return f"Ghost module, ratio {site.ratio}, {site.kernel}×{site.kernel}, {macs}; {site.reason}"


def _layer(site: Outcome, pairing: Pairing | None, maps: Arrays, times: tables.Times) -> dict[str, Any]:
    """Who makes whom in one layer, by the places of its maps and the original's channels."""

    def source(k: int) -> tuple[int, str]:
        if site.decision == "keep" or pairing is None or k >= len(pairing.order):
            return -1, f"Map {k} is computed."
        computed, carried = len(pairing.intrinsic), f"Map {k} (the original's {pairing.order[k]})"
        if k < computed:
            return -1, f"{carried} is computed."
        place = (k - computed) // max(site.ratio - 1, 1)
        return place, f"{carried} is a ghost of map {place}, made by a {site.kernel}×{site.kernel} filter."

    channels = len(pairing.order) if pairing else len(maps.get(f"layer:{site.name}#", ()))
    return layer_data(maps, site.name, _words(site) + _took(site, times), channels, source)


def _curves(events: Sequence[dict[str, Any]]) -> list[Curve]:
    return [_curve(i, step, epochs) for i, (step, epochs) in enumerate(tables.epoch_rows(events).items(), start=1)]


def _curve(number: int, step: str, epochs: list[tables.Epoch]) -> Curve:
    speeds = [e.images_per_second for e in epochs if e.images_per_second is not None]
    speed = f", {statistics.median(speeds):.0f} images/s (median)" if speeds else ""
    caption = f"{step}: {epochs[-1].epoch:.4g} epochs{speed}."
    figure = figures.training_curve(epochs, step)
    return Curve(figures.to_svg(figure, f"curve{number}", f"Chart: training curve of {caption}"), caption)
