# SPDX-License-Identifier: Apache-2.0
"""How far a long step is: a bar with the time left on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SILENCE = 5.0
"""Seconds between two plain lines, and before the first: a short step says nothing."""

RARER = 0.1
"""Of the time a step has taken so far passes between two plain lines, so that hours do not fill the screen."""


@contextmanager
def progress(
    what: str, total: int | None, console: Console | None = None
) -> Generator[Callable[[int], None], None, None]:
    """A function to call with how much of ``total`` (None: unknown) is done by now; drawn on standard error. What the
    first call says was there before: the time left is judged by what came since.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(what: str, total: int | None, console: Console) -> Callable[[int], None]:
    started = said = time.monotonic()
    first: tuple[float, int] | None = None

    def report(done: int) -> None:
        nonlocal said, first
        now = time.monotonic()
        since, there = first = first or (now, done)
        if total and done > there and now - said >= max(SILENCE, RARER * (now - started)):
            said = now
            left = (now - since) * (total - done) / (done - there)
            line = f"{what}: {100 * done // total} %, {left:.0f} s left"
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    return report
