# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a running upgrade, on standard error, and its summary."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ghostnets.progress import progress
from ghostnets.records import Bench, Inspection, Quality, TrainRecord, UpgradeRecord
from ghostnets.report import bench_tables, tables
from ghostnets.report.tables import Cell

WIDE = 200
"""Columns."""

TERMINAL = ("maps", "size", "explained", "≤ 5 %", "≤ 10 %", "effective", "ms")
"""Columns of an inspection that fit beside a layer's name."""

LEFT_OUT = {"least, ms", "load, s"}
"""Columns of a benchmark that the page has, and a terminal no room for."""

SHOWN_NOTES = 10

SHOWN_CLASSES = 100
"""Rows that a person still reads."""


def printing() -> Console:
    """For what goes to standard output; a file or a pipe has no width of its own."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


@contextmanager
def interrupts() -> Generator[Callable[[], None], None, None]:
    """Ctrl-C as KeyboardInterrupt, and once more at the next call of what this yields.

    The first may land where a library swallows every exception (an import it can do without, a destructor), and
    would be lost. A process that was told to ignore Ctrl-C goes on ignoring it.
    """
    came = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def watching(console: Console) -> Generator[Callable[[str, int, int], None], None, None]:
    """A function to tell what is going on, how much of it is done, and of how much (0: unknown)."""
    current = ("", 0)
    report: Callable[[int], None] = lambda _: None  # noqa: E731
    with ExitStack() as shown:

        def tell(what: str, done: int, total: int) -> None:
            nonlocal current, report
            if (what, total) != current:  # a total that is known better now starts the bar anew
                shown.close()
                current, report = (what, total), shown.enter_context(progress(what, total or None, console))
            report(done)

        yield tell


def event_line(event: dict[str, Any]) -> str | None:
    """What is worth saying of a line of the log, if anything."""
    step, kind = event.get("step"), event.get("event")
    if kind == "note":
        return f"note: {event['text']}"
    if kind == "resume":
        return "going on with what is there"
    if kind != "end":
        return None
    if step == "plan":
        return f"plan: {event['ghosts']} of {event['sites']} sites become Ghost modules"
    if "top1" in event:
        spent = f" after {tables.duration(event['seconds'])}" if "seconds" in event else ""
        return f"{step}: top-1 {tables.percent(event['top1'])}{spent}"
    if step == "onnx":
        return f"onnx: {event['skipped']}" if "skipped" in event else f"onnx: agrees with PyTorch ({event['runtime']})"
    return None


def summary(record: UpgradeRecord, console: Console) -> str:
    """The steps, and the network before and after."""
    steps = _table("step", "top-1", "to original", "time", "epochs")
    for step in tables.step_rows(record):
        steps.add_row(*step)
    network = _table(f"{record.model}, {record.data}", "before", "after", "change", "")
    for row in tables.summary_rows(record):
        network.add_row(row.figure, row.before, row.after, row.change, row.note)
    return _printed(console, steps, network, tables.decisions_in_words(record.sites), tables.verdict(record))


def inspection_summary(record: Inspection, console: Console) -> str:
    """Every layer's share of ghosts, the stages' and the shown pairs."""
    layers = _columns("layer", tables.LAYER_TITLES, tables.layer_rows(record), TERMINAL)
    parts: list[Table | str] = [f"{record.model}, {record.images} images of {record.data}", layers]
    if record.stages:
        parts.append(_columns("stage: last block from first", tables.STAGE_TITLES, tables.stage_rows(record), TERMINAL))
    if record.pairs:
        titles = tables.pair_titles(record)
        parts.append(_columns(f"MSE in {record.shown}", titles, tables.pair_rows(record), titles))
    told = [*record.layers, *record.stages]
    parts += [f"{part.name}: {part.note}" for part in told if part.note][:SHOWN_NOTES]
    parts.append(tables.inspection_verdict(record))
    return _printed(console, *parts)


def bench_summary(record: Bench, console: Console) -> str:
    """Every contestant's figures and, where they were asked for, those of the layers."""
    titles = [column.title for column in bench_tables.columns(record)]
    race = _columns("target", titles, bench_tables.rows(record), set(titles) - LEFT_OUT)
    parts: list[Table | str] = [f"{record.model}: {bench_tables.asked(record)}", race]
    if record.layers:
        parts.append(
            _columns("layer", bench_tables.LAYER_TITLES, bench_tables.layer_rows(record), bench_tables.LAYER_TITLES)
        )
    told = (bench_tables.verdict(record), bench_tables.control(record), bench_tables.disturbed(record))
    return _printed(console, *parts, *(words for words in told if words))


def _printed(console: Console, *parts: Table | str) -> str:
    """As the console would print them, without the blanks at the ends of lines."""
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _columns(first: str, titles: Sequence[str], rows: Iterable[Sequence[Cell]], shown: Collection[str]) -> Table:
    """A table of the columns that are ``shown``."""
    table = _table(first, *(title for title in titles if title in shown))
    for name, *cells in rows:
        table.add_row(name.text, *(cell.text for title, cell in zip(titles, cells, strict=True) if title in shown))
    for column in table.columns:
        column.no_wrap = True
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=SIMPLE, pad_edge=False)
    for title in others:
        table.add_column(title, justify="right")
    return table


def train_line(event: dict[str, Any]) -> str | None:
    """What is worth saying of a line of a training run's log, if anything."""
    kind = event["event"]
    if kind == "note":
        return f"note: {event['text']}"
    if kind == "resume":
        return f"going on from step {event['step']}"
    if kind != "epoch":
        return None
    words = [f"epoch {event['epoch']:g}", f"loss {event['loss']:.4f}"]
    if "top1" in event:
        words.append(f"held-out top-1 {tables.percent(event['top1'])}")
    words.append(f"{event['images_per_second']:.0f} images/s")
    if event["memory_mib"] is not None:
        words.append(f"{event['memory_mib']:.0f} MiB")
    return ", ".join(words)


def train_summary(record: TrainRecord, console: Console) -> str:
    """What has come of a training run."""
    spent = f"{record.epochs:g} epochs in {tables.duration(record.seconds)}, {record.images_per_second:.0f} images/s"
    title = f"{record.model}, {record.data}{' (held-out training images)' if record.held_out else ''}"
    return f"{quality_summary(record.quality, title, console)}{spent}\n"


def quality_summary(quality: Quality, title: str, console: Console) -> str:
    """The figures, and those of every class where they are not too many to read."""
    table = _table(title, "figure")
    for name, figure in (
        ("images", f"{quality.images:,}"), ("top-1", tables.percent(quality.top1)), ("top-5", tables.percent(quality.top5)),
        ("log-likelihood (nats)", f"{-quality.nll:.4f}"), ("calibration error", f"{quality.ece:.4f}"),
    ):  # fmt: skip
        table.add_row(name, figure)
    classes = _table("class", "images", "recognised", "right when said")
    for row in quality.classes[:SHOWN_CLASSES]:
        precision = "never said" if row.precision is None else tables.percent(row.precision)
        recall = "no image" if row.recall is None else tables.percent(row.recall)
        classes.add_row(row.name, f"{row.images:,}", recall, precision)
    more = len(quality.classes) - SHOWN_CLASSES
    rest = [f"and {more} classes more: --json has them"] if more > 0 else []
    return _printed(console, table, classes, *rest)
