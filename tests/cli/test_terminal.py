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
    before = signal.getsignal(signal.SIGINT)
    with interrupts() as check:
        check()
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before
