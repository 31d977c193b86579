# SPDX-License-Identifier: Apache-2.0
"""Runtimes that a worker opens in tests: they double what they get, or misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # a worker that opens one of these loads no PyTorch
    from ghostnets.deploy.targets import Target

Run = Callable[[np.ndarray], np.ndarray]


def double(_file: Path, _threads: int, _shape: tuple[int, ...], *, factor: float = 2.0, slow: float = 0.0) -> Run:
    def run(x: np.ndarray) -> np.ndarray:
        time.sleep(slow)
        return x * np.float32(factor)

    return run


class Layer(NamedTuple):
    """As the generated programs tell them."""

    name: str
    macs: int
    ms: float


class Layered:
    """It knows its layers."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x * 2

    def layers(self) -> list[Layer]:
        return [Layer("first", 600, 0.5), Layer("</script><b>", 0, 0.25)]


def layered(_file: Path, _threads: int, _shape: tuple[int, ...]) -> Layered:
    return Layered()


def around(_file: Path, threads: int, shape: tuple[int, ...]) -> Run:
    """Fails unless the process is as it should be."""
    assert "torch" not in sys.modules
    assert os.environ["OMP_NUM_THREADS"] == str(threads)
    assert os.environ["TOLD"] == "yes"
    if hasattr(os, "sched_getaffinity"):
        assert len(os.sched_getaffinity(0)) == threads
    assert shape == (1, 2, 3, 4)
    sys.stdout.write("a runtime that prints\n")
    sys.stdout.flush()
    subprocess.run(["echo", "so does what it starts"], check=True)
    return lambda x: x * 2


def chatty(_file: Path, _threads: int, _shape: tuple[int, ...]) -> Run:
    def run(x: np.ndarray) -> np.ndarray:
        sys.stdout.write('{"error": "not for you"}\n')
        sys.stdout.flush()
        return x * 2

    return run


def failing(_file: Path, _threads: int, _shape: tuple[int, ...]) -> Run:
    raise RuntimeError("no such instruction\nand more of it")


def dying(_file: Path, _threads: int, _shape: tuple[int, ...], *, after: int = 0) -> Run:
    """It gives so many answers."""
    left = after

    def run(x: np.ndarray) -> np.ndarray:
        nonlocal left
        if not left:
            os.write(2, b"out of everything\n")
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return x * 2

    return run


def hanging(file: Path, _threads: int, _shape: tuple[int, ...]) -> Run:
    """It starts a helper, whose number it leaves beside the file, and waits for it in the second call."""
    helper = subprocess.Popen(["sleep", "600"])
    file.with_name("helper").write_text(str(helper.pid))
    left = 4  # as many as there are inputs

    def run(x: np.ndarray) -> np.ndarray:
        nonlocal left
        if not left:
            helper.wait()
        left -= 1
        return x * 2

    return run


def misshapen(_file: Path, _threads: int, _shape: tuple[int, ...]) -> Run:
    return lambda x: x[..., 1:]


def nothing(_model: object, _example: object, folder: Path) -> Path:
    """No file is needed."""
    return folder / "nothing"


def target(name: str, opener: Callable[..., Any] = double, **more: Any) -> Target:
    """A row for one of them."""
    from ghostnets.deploy.targets import Target

    given: dict[str, Any] = {"runtime": name, "distribution": "numpy", "prepare": nothing, **more}
    return Target(name=name, open=opener, **given)
