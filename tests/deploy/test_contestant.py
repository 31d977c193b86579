# SPDX-License-Identifier: Apache-2.0
"""A worker from the near end: as it should be, and in every way in which one can fail."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghostnets.deploy import contestant
from ghostnets.deploy.contestant import Contestant, Lost, cores
from ghostnets.errors import UserError
from runners import around, chatty, double, dying, failing, hanging, layered, misshapen, target

Start = Callable[..., Contestant]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    inputs = np.random.default_rng(0).standard_normal((4, 1, 2, 3, 4), dtype=np.float32)
    np.savez(tmp_path / "case.npz", inputs=inputs, expected=2 * inputs)
    begun: list[Contestant] = []

    def make(opener: Callable[..., Any], *, threads: int = 1, **more: Any) -> Contestant:
        made = Contestant(
            target("t", opener, **more), file=tmp_path / "file", case=tmp_path / "case.npz", log=tmp_path / "log",
            threads=threads, cores=cores(threads),
        )  # fmt: skip
        begun.append(made)
        return made

    yield make
    for made in begun:
        made.close()


def test_the_process_is_as_asked_and_may_print(start: Start, tmp_path: Path) -> None:
    racer = start(around, environment={"TOLD": "yes"})
    opened = racer.open()
    assert opened.max_abs == 0
    turn = racer.turn(warmup=1, runs=3, seconds=60)
    assert len(turn.times_ms) == 3
    assert racer.layers(60) is None
    racer.close()
    assert (tmp_path / "log").read_text() == "a runtime that prints\nso does what it starts\n"


def test_options_and_layers_come_through(start: Start) -> None:
    racer = start(double, options={"factor": 2.5})
    opened = racer.open()
    inputs = np.random.default_rng(0).standard_normal((4, 1, 2, 3, 4), dtype=np.float32)
    assert opened.max_abs == pytest.approx(0.5 * np.abs(inputs).max(), rel=1e-5)
    racer = start(layered)
    racer.open()
    assert racer.layers(60) == [("first", 600, 0.5), ("</script><b>", 0, 0.25)]


def test_what_a_runtime_prints_is_no_answer(start: Start) -> None:
    racer = start(chatty)
    racer.open()
    assert len(racer.turn(warmup=0, runs=2, seconds=60).times_ms) == 2


@pytest.mark.parametrize(
    ("opener", "said"),
    [
        (failing, r"^RuntimeError: no such instruction$"),
        (misshapen, r"ValueError: it gives \(1, 2, 3, 3\), and PyTorch \(1, 2, 3, 4\)"),
        (dying, r"its process died \(signal SIGKILL\): out of everything"),
    ],
)
def test_one_that_does_not_open_says_why(start: Start, opener: Callable[..., Any], said: str) -> None:
    with pytest.raises(Lost, match=said):
        start(opener).open()


def test_one_that_dies_in_a_turn_says_how(start: Start) -> None:
    racer = start(dying, options={"after": 6})
    racer.open()
    with pytest.raises(Lost, match="died"):
        racer.turn(warmup=0, runs=10, seconds=60)
    with pytest.raises(Lost, match="died"):
        racer.turn(warmup=0, runs=1, seconds=60)


def test_one_that_hangs_is_ended_with_what_it_started(start: Start, tmp_path: Path) -> None:
    racer = start(hanging)
    racer.open()
    helper = int((tmp_path / "helper").read_text())
    os.kill(helper, 0)  # it is there
    with pytest.raises(Lost, match="gave no answer within 1 s"):
        racer.turn(warmup=0, runs=1, seconds=1)
    for _ in range(100):
        if not _running(helper):
            return
        time.sleep(0.05)
    pytest.fail("the helper runs on")


def _running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_cores_before_their_second_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6}, raising=False)
    monkeypatch.setattr(contestant, "_siblings", {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 6: "6-7"}.get)
    assert cores(1) == [0]
    assert cores(2) == [0, 2]
    assert cores(3) == [0, 2, 6]
    assert cores(4) == [0, 1, 2, 6]
    with pytest.raises(UserError, match="6 threads were asked, and there are 5 processors"):
        cores(6)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores(64) is None


def test_siblings_are_read_as_linux_writes_them(tmp_path: Path) -> None:
    folder = tmp_path / "cpu3" / "topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_text("3,11\n")
    assert contestant._siblings(3, tmp_path) == "3,11"
    assert contestant._siblings(4, tmp_path) == "4"
