# SPDX-License-Identifier: Apache-2.0
"""The instruction sets that code is written for: one row each."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from ghostnets.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a generator must know of a processor."""

    name: str
    lanes: int
    """float32 values in a vector."""
    registers: int
    """Vectors that a loop can hold without spilling."""
    flags: tuple[str, ...]
    """For GCC and Clang."""
    flag: str | None
    """The flag of /proc/cpuinfo that a processor must have."""
    machine: str | None
    """As ``platform.machine()`` says it; None: any."""

    def round_up(self, count: int) -> int:
        """To whole vectors."""
        return -(-count // self.lanes) * self.lanes


TARGETS = {
    target.name: target
    for target in (
        Target(name="avx512", lanes=16, registers=32, flag="avx512f", machine="x86_64",
               flags=("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512")),
        Target(name="avx2", lanes=8, registers=16, flag="avx2", machine="x86_64", flags=("-mavx2", "-mfma")),
        Target(name="neon", lanes=4, registers=32, flag="asimd", machine="aarch64", flags=()),
        Target(name="scalar", lanes=1, registers=16, flag=None, machine=None, flags=()),
    )
}  # fmt: skip


def target_named(name: str) -> Target:
    """Raises UserError for a name that is not a row, and for ``native`` never."""
    if name == "native":
        return native()
    if name not in TARGETS:
        raise UserError(f"{name} is not an instruction set: choose native, {', '.join(TARGETS)}")
    return TARGETS[name]


def machine_named(name: str) -> str:
    """What systems and compilers call a processor, as TARGETS name it."""
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(name, name)


def this_machine() -> str:
    """As TARGETS name it."""
    return machine_named(platform.machine())


def native(cpuinfo: Path = Path("/proc/cpuinfo")) -> Target:
    """The best row that this machine runs."""
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    flags = set(text.split())
    machine = this_machine()
    for target in TARGETS.values():
        known = target.flag is None or target.flag in flags or (target.name == "neon" and machine == "aarch64")
        if known and target.machine in (None, machine):
            return target
    raise AssertionError("scalar runs everywhere")
