# SPDX-License-Identifier: Apache-2.0
"""What a worker does with a job, held against a clock of our own."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghostnets.deploy import worker

INPUTS = [np.full((1, 2), value, np.float32) for value in (1, 2, 3)]
EXPECTED = [2 * x for x in INPUTS]


class Machine:
    """A clock that moves only while the runtime runs, each time by what is next in the list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
        self.now, self.seconds, self.seen = 0.0, iter(seconds), list[float]()
        monkeypatch.setattr(worker.time, "perf_counter", lambda: self.now)

    def run(self, x: np.ndarray) -> np.ndarray:
        assert not gc.isenabled()
        self.now += next(self.seconds)
        self.seen.append(float(x[0, 0]))
        return 2 * x


def test_warm_up_is_not_counted_and_inputs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [9.0, 9.0, 0.001, 0.002, 0.003, 0.004])
    found = worker.turn(machine.run, INPUTS, EXPECTED, warmup=2, runs=4)
    assert found["times_ms"] == pytest.approx([1, 2, 3, 4])
    assert machine.seen == [1, 2, 1, 2, 3, 1]
    assert found["max_abs"] == 0
    assert gc.isenabled()


def test_the_last_answer_of_a_turn_is_looked_at() -> None:
    answers = iter([0, 0, 0.25])
    found = worker.turn(lambda x: 2 * x + next(answers), INPUTS, EXPECTED, warmup=1, runs=2)
    assert found["max_abs"] == 0.25


def test_a_failing_run_leaves_the_collector_on() -> None:
    with pytest.raises(ZeroDivisionError):
        worker.turn(lambda _: 1 / 0, INPUTS, EXPECTED, warmup=0, runs=1)  # pyright: ignore[reportArgumentType]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("found", "expected"),
    [([1, 2], 1.0), ([[1, 5]], 2.0), ([1, math.nan], math.nan), ([1, math.inf], math.inf)],
)
def test_a_difference_is_the_largest_one(found: list[float], expected: float) -> None:
    assert worker.difference(np.array(found, np.float32), np.array([[1, 3]], np.float32)) == pytest.approx(
        expected, nan_ok=True
    )


def test_too_few_figures_are_told() -> None:
    with pytest.raises(ValueError, match=r"gives \(3,\), and PyTorch \(1, 2\)"):
        worker.difference(np.zeros(3), np.zeros((1, 2)))


def test_a_job_is_served(tmp_path: Path) -> None:
    case = tmp_path / "case.npz"
    np.savez(case, inputs=np.stack(INPUTS), expected=np.stack(EXPECTED))
    said: list[Mapping[str, Any]] = []
    job = {"open": "runners:layered", "file": "x", "threads": 1, "options": {}, "case": str(case), "cores": None}
    worker.serve(job, [{"ask": "turn", "warmup": 0, "runs": 2}, {"ask": "layers"}], said.append)
    opened, turn, layers = said
    assert opened["max_abs"] == 0
    assert opened["load_s"] >= 0
    assert len(turn["times_ms"]) == 2
    assert layers["layers"][0] == ["first", 600, 0.5]
    assert worker.layer_times(lambda x: x) == {"layers": None}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's memory")
def test_memory_is_that_of_the_process_alone() -> None:
    """A child of a process with 300 MiB more has no more than other children, unlike ru_maxrss says."""
    code = (
        "import subprocess, sys\n"
        "kept = bytearray(300 * 2**20) if sys.argv[1] == 'large' else None\n"
        "words = 'from ghostnets.deploy.worker import peak_mib; print(peak_mib())'\n"
        "print(subprocess.run([sys.executable, '-c', words], capture_output=True, text=True, check=True).stdout)"
    )
    figures = [
        float(subprocess.run([sys.executable, "-c", code, size], capture_output=True, text=True, check=True).stdout)
        for size in ("small", "large")
    ]
    assert 5 < figures[0] < 100
    assert figures[1] == pytest.approx(figures[0], abs=10)
