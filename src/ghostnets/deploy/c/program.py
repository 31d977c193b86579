# SPDX-License-Identifier: Apache-2.0
"""A generated program on the machine that wrote it: compiled, kept, loaded, called."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from ghostnets.compiler import NoCompiler, command, compile_shared, processor
from ghostnets.deploy.c.export import Options, generated
from ghostnets.download import cache_dir
from ghostnets.errors import GhostnetsError, UserError

LIBRARY, WEIGHTS = "model.so", "model.weights"

PROFILED = "model.profiled.so"
"""The same program with a clock in it."""


class _Model(ctypes.Structure):
    """``model`` of ``model.h``."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("arena", ctypes.c_void_p),
        ("owned", ctypes.c_void_p * 2),
    )


@dataclass(frozen=True)
class Layer:
    """One step of a program, and what it took."""

    name: str
    macs: int
    ms: float


def build(model: nn.Module, example: Tensor, folder: Path, *, options: Options | None = None) -> Path:
    """Write the program of a network to a folder, compile it there, and return the library's path.

    Raises UserError and UnsupportedLayer for what cannot be captured, GhostnetsError where nothing compiles here.
    """
    options = options or Options()
    generated(model, example, options).save(folder)
    compile_in(folder, options)
    return folder / LIBRARY


def compile_in(folder: Path, options: Options, *, profiled: bool = False) -> Path:
    """Compile a written program with the compiler of this machine."""
    own = options.instructions.flags
    choices = (("-march=native", *own), own) if options.target == "native" else (own,)
    library = folder / (PROFILED if profiled else LIBRARY)
    try:
        flags = [("-std=gnu11", *flags) for flags in choices]
        compile_shared(folder / "model.c", library, flags, defines=["MODEL_PROFILE"] if profiled else [])
    except NoCompiler as error:
        raise GhostnetsError(
            f"the program cannot be compiled, because {error}: install GCC or Clang (on Debian and Ubuntu: apt install gcc)"
        ) from None
    return library


class Program:
    """A compiled network: images in, answers out. May be called from several threads, which take turns."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load a library and the weights beside it. Raises GhostnetsError where they are no such pair."""
        if threads != 1:
            raise UserError(f"{threads} threads: a generated program runs on one")
        self.path = path
        try:
            self._functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise GhostnetsError(f"{path} cannot be loaded: {error}") from None
        self._functions.model_message.restype = ctypes.c_char_p
        self._functions.model_describe.restype = ctypes.c_char_p
        self._model, self._turn = _Model(), threading.Lock()
        code = self._functions.model_init(ctypes.byref(self._model), str(path.with_name(WEIGHTS)).encode())
        if code:
            raise GhostnetsError(f"{path.with_name(WEIGHTS)}: {self._functions.model_message(code).decode()}")
        shapes = self._functions.model_describe().decode().split(";")
        self.input_shape, self.output_shape = (tuple(map(int, shape.split(","))) for shape in shapes[:2])

    def __del__(self) -> None:
        if getattr(self, "_model", None) is not None:
            self._functions.model_free(ctypes.byref(self._model))

    @overload
    def __call__(self, images: Tensor) -> Tensor: ...
    @overload
    def __call__(self, images: np.ndarray) -> np.ndarray: ...
    def __call__(self, images: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Answers (N, ...) for images (N, C, H, W), float32, one after the other. Raises UserError for other shapes."""
        if isinstance(images, Tensor):
            return torch.from_numpy(self(images.detach().cpu().numpy()))
        if images.shape[1:] != self.input_shape or images.dtype != np.float32:
            wanted = " x ".join(map(str, self.input_shape))
            given = " x ".join(map(str, images.shape))
            raise UserError(f"images of {given} in {images.dtype} do not fit: give N x {wanted} in float32")
        images = np.ascontiguousarray(images)
        answers = np.empty((len(images), *self.output_shape), np.float32)
        run, model = self._functions.model_run, ctypes.byref(self._model)
        with self._turn:
            for image, answer in zip(images, answers, strict=True):
                run(model, ctypes.c_void_p(image.ctypes.data), ctypes.c_void_p(answer.ctypes.data))
        return answers


def compiled(model: nn.Module, example: Tensor, *, options: Options | None = None) -> Program:
    """A network as a program that was compiled for this machine, now or when the same one was compiled before.

    Raises what ``build`` raises.
    """
    options = options or Options()
    program = generated(model, example, options)
    parts = [program.key, *command(), processor(), options.target]
    folder = cache_dir() / "c" / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    if not (folder / LIBRARY).exists():
        program.save(folder)
        compile_in(folder, options)
    return Program(folder / LIBRARY)
