# SPDX-License-Identifier: Apache-2.0
"""A network of PyTorch as a program on this machine: written, compiled, kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor, nn

from ghostnets.compiler import NoCompiler, command, compile_shared, processor
from ghostnets.deploy.c.generation import Options, generated
from ghostnets.deploy.c.program import LIBRARY, PROFILED, Program
from ghostnets.download import cache_dir
from ghostnets.errors import GhostnetsError


def build(
    model: nn.Module, example: Tensor, folder: str | Path, options: Options | None = None, *, profiled: bool = False
) -> Path:
    """Write the program of a network to a folder and compile it there; the library's path. ``profiled``: and a second
    library that knows the time of every layer.

    Raises UserError and UnsupportedLayer for what cannot be captured, GhostnetsError where nothing compiles here.
    """
    options, folder = options or Options(), Path(folder)
    generated(model, example, options).save(folder)
    if profiled:
        _compile(folder, options, PROFILED, ["MODEL_PROFILE"])
    return _compile(folder, options, LIBRARY, [])


def compiled(model: nn.Module, example: Tensor, options: Options | None = None, *, threads: int = 1) -> Program:
    """A network in evaluation mode as a function of images of the size of ``example`` (N, C, H, W), in C.

    What was compiled before for the same network and machine is taken from the cache. Raises what ``build`` raises.
    """
    options = options or Options()
    program = generated(model, example, options)
    try:
        parts = [program.key, *command(), processor(), options.target]
    except NoCompiler as error:
        raise _impossible(error) from None
    folder = cache_dir() / "c" / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    if not (folder / LIBRARY).exists():
        program.save(folder)
        _compile(folder, options, LIBRARY, [])
    return Program(folder / LIBRARY, threads=threads)


def _compile(folder: Path, options: Options, name: str, defines: list[str]) -> Path:
    own = options.instructions.flags
    choices = (("-march=native", *own), own) if options.target == "native" else (own,)
    try:
        compile_shared(
            folder / "model.c",
            folder / name,
            [("-std=gnu11", "-pthread", *flags) for flags in choices],
            defines=[*defines, "MODEL_THREADS"],
        )
    except NoCompiler as error:
        raise _impossible(error) from None
    return folder / name


def _impossible(error: NoCompiler) -> GhostnetsError:
    return GhostnetsError(
        f"the program cannot be compiled, because {error}: install GCC or Clang (Debian, Ubuntu: apt install gcc)"
    )
