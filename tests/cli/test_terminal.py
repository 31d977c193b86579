# SPDX-License-Identifier: Apache-2.0
"""What the terminal's keys do."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from ghostnets.cli.terminal import interrupts


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
