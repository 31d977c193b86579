# SPDX-License-Identifier: Apache-2.0
"""What the terminal's keys do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import pytest
from rich.console import Console

from ghostnets.cli import terminal
from ghostnets.cli.terminal import interrupts, watching


def test_a_total_that_is_known_better_later_starts_the_bar_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds first, then steps: a recovery by minutes does not know its steps before it has timed some."""
    told: list[tuple[str, int | None, list[int]]] = []

    @contextmanager
    def bar(what: str, total: int | None, _console: Console) -> Generator[Callable[[int], None], None, None]:
        told.append((what, total, []))
        yield told[-1][2].append

    monkeypatch.setattr(terminal, "progress", bar)
    with watching(Console()) as tell:
        for said in (("distil", 1, 120), ("distil", 2, 120), ("distil", 25, 900), ("distil", 26, 900), ("ONNX", 0, 0)):
            tell(*said)
    assert told == [("distil", 120, [1, 2]), ("distil", 900, [25, 26]), ("ONNX", None, [0])]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_that_somebody_swallowed_comes_again_at_the_next_check() -> None:
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with interrupts() as check:
            check()
            with suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                check()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_ignores_interrupts_goes_on_ignoring_them() -> None:
    outside = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts() as check:
            os.kill(os.getpid(), signal.SIGINT)
            check()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, outside)
