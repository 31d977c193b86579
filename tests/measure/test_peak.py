# SPDX-License-Identifier: Apache-2.0
"""The machine's peak: one thread a core at once; the C compiles cleanly, and counts what it does."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from ghostnets.measure.peak import SOURCE, fp32_peak

COMPILERS = [path for name in ("gcc", "clang") if (path := shutil.which(name))]


class Functions:
    """2, 3 and 4 GFLOP/s, each told only while the others wait for theirs too."""

    def __init__(self, count: int) -> None:
        self.meet = threading.Barrier(count, timeout=60)
        self.told = iter((2e9, 3e9, 4e9))
        self.places: list[Any] = []

        def peak_flops(seconds: float) -> float:
            self.places.append(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None)
            assert seconds > 0
            self.meet.wait()
            return next(self.told)

        self.peak_flops = peak_flops


def test_the_threads_of_all_cores_run_at_once_and_are_summed() -> None:
    assert fp32_peak(Functions(3), [None, None, None]) == 9.0  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin threads")
def test_each_thread_is_on_its_core_and_ours_stays_free() -> None:
    before = os.sched_getaffinity(0)
    cores = sorted(before)[:2]
    functions = Functions(len(cores))
    fp32_peak(functions, cores)  # pyright: ignore[reportArgumentType]
    assert sorted(functions.places, key=min) == [{core} for core in cores]
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("flags", [(), ("-march=native",), ("-mavx2", "-mfma")], ids=str)
def test_the_program_compiles_without_a_warning_and_runs(compiler: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "peak.so"
    words = [compiler, "-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", *flags]
    done = subprocess.run([*words, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False)
    if done.returncode and "-mavx2" in flags:
        pytest.skip("this compiler makes no code for x86")
    assert not done.returncode, done.stderr
    if "-mavx2" in flags and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this processor has no AVX2")
    functions = ctypes.CDLL(str(target))
    functions.peak_flops.restype, functions.peak_flops.argtypes = ctypes.c_double, [ctypes.c_double]
    found = functions.peak_flops(0.01)
    assert math.isfinite(found)
    assert found > 0


@pytest.mark.skipif(not COMPILERS, reason="there is no C compiler")
def test_the_chains_are_multiplied_and_added_in_registers(tmp_path: Path) -> None:
    """In the machine's own words: as many multiply-adds in a row as there are chains, without memory between them."""
    if "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("the words are those of AVX2")
    words = [COMPILERS[0], "-O3", "-mavx2", "-mfma", "-ffp-contract=fast", "-S", str(SOURCE), "-o", str(tmp_path / "s")]
    subprocess.run(words, check=True)
    lines = [line.split("\t") for line in (tmp_path / "s").read_text().splitlines() if line.startswith("\tv")]
    fused = [line for line in lines if line[1].startswith("vfmadd") and "%ymm" in line[2]]
    assert len(fused) == 12  # a chain that began at its end, 2, was once computed beforehand
    assert not any("(" in line[2] for line in fused)
