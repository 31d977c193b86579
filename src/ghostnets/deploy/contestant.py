# SPDX-License-Identifier: Apache-2.0
"""The near end of a worker: start it where nothing else runs, ask it, and never wait for it without end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ghostnets.deploy.targets import Target
from ghostnets.errors import UserError

POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

OPENING = 900.0
"""Seconds in which a runtime must have opened its file: some compile then."""

QUITTING = 5.0
"""Seconds it may take to end when it is told to."""


class Lost(Exception):
    """A contestant that gives no more answers; the message says why, as the end of a sentence."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What is known of a contestant when it is ready."""

    load_s: float
    """Opening the file and the first run, from a warm file cache."""
    max_abs: float
    """Largest difference from what PyTorch answers; NaN where an answer is."""
    bare_mib: float | None
    """Memory of Python and NumPy, before the runtime; None where the system does not say."""
    peak_mib: float | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a contestant's turn gave."""

    times_ms: list[float]
    preempted: int
    """How often something else took its core."""
    max_abs: float
    peak_mib: float | None


class Contestant:
    """A target in a process of its own; ``open`` starts it, ``close`` ends it, whatever it is doing.

    ``file`` is what the target prepared, ``case`` the inputs and answers, ``log`` takes what it prints.
    """

    def __init__(
        self, target: Target, *, file: Path, case: Path, log: Path, threads: int, cores: Sequence[int] | None
    ) -> None:
        function = target.open
        self._job = {
            "open": f"{function.__module__}:{function.__qualname__}", "file": str(file.absolute()), "threads": threads,
            "options": dict(target.options), "case": str(case.absolute()), "cores": cores,
        }  # fmt: skip
        self._environment = _environment(threads, target.environment)
        self._log = log
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None

    def open(self) -> Opened:
        """Raises Lost, as every question does."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ghostnets.deploy.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8", cwd=self._log.parent,
                env=self._environment, start_new_session=True,  # Ctrl-C is for us: we end it
            )  # fmt: skip
        assert self._process.stdout is not None
        threading.Thread(target=_collect, args=(self._process.stdout, self._answers), daemon=True).start()
        return Opened(**self._ask(self._job, OPENING))

    def turn(self, *, warmup: int, runs: int, seconds: float) -> Turn:
        """So many timed runs after so many that are not counted, within ``seconds``."""
        return Turn(**self._ask({"ask": "turn", "warmup": warmup, "runs": runs}, seconds))

    def layers(self, seconds: float) -> list[tuple[str, int, float]] | None:
        """Name, multiply-adds and milliseconds of every layer; None where the runtime does not say."""
        found = self._ask({"ask": "layers"}, seconds)["layers"]
        return None if found is None else [(name, macs, ms) for name, macs, ms in found]

    def close(self) -> None:
        """Tell it to end, and end it with all it has started if it does not."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):  # it may be gone
            process.stdin.close()
        try:
            process.wait(QUITTING)
        except subprocess.TimeoutExpired:
            self._kill(process)
        self._process = None

    def _ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._kill(process)
            raise Lost(f"gave no answer within {seconds:.0f} s") from None
        except OSError:
            line = ""
        answer = json.loads(line) if line else {"error": self._last_words(process)}
        if "error" in answer:
            raise Lost(str(answer["error"]))
        return answer

    def _last_words(self, process: subprocess.Popen[str]) -> str:
        """How it ended, and the last line it printed."""
        try:
            code = process.wait(QUITTING)
        except subprocess.TimeoutExpired:
            self._kill(process)
            code = process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        return f"its process died ({how}){f': {said}' if said else ''}"

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):  # its compilers and helpers too
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def cores(threads: int) -> list[int] | None:
    """The processors that so many threads should stay on: of different cores, as far as these go. None where the system
    cannot keep them there.

    Raises UserError where this process may not use so many.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise UserError(f"{threads} threads were asked, and there are {len(allowed)} processors here: ask for fewer")
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int]] = []
    for number in allowed:
        core = _siblings(number)
        ranked.append((seen[core], number))
        seen[core] += 1
    return sorted(number for _, number in sorted(ranked)[:threads])


def _siblings(number: int, root: Path = Path("/sys/devices/system/cpu")) -> str:
    """The processors that share a core with this one."""
    path = root / f"cpu{number}" / "topology" / "thread_siblings_list"
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(number)


def _environment(threads: int, own: Mapping[str, str]) -> dict[str, str]:
    """This process's, with its way to find modules, and pools of so many threads."""
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {**os.environ, **dict.fromkeys(POOLS, str(threads)), "PYTHONPATH": path, **own}


def _collect(source: IO[str], answers: queue.SimpleQueue[str]) -> None:
    """Line by line; an empty one is the end."""
    with source:
        for line in source:
            answers.put(line)
    answers.put("")
