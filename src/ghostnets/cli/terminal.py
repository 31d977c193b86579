# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a running upgrade, on standard error, and its summary."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ghostnets.progress import progress
from ghostnets.records import UpgradeRecord
from ghostnets.report import tables


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
    with console.capture() as captured:
        console.print(steps, network, tables.decisions_in_words(record.sites), tables.verdict(record), sep="\n")
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=SIMPLE, pad_edge=False)
    for title in others:
        table.add_column(title, justify="right")
    return table
