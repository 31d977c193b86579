# SPDX-License-Identifier: Apache-2.0
"""A compiled program: loaded, called, timed. It needs NumPy alone."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ghostnets.errors import GhostnetsError, UserError

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY, PROFILED, WEIGHTS = "model.so", "model.profiled.so", "model.weights"
"""A folder's files: the program, the same with a clock in it, the weights."""

MOST_THREADS = 64
"""As ``model.h`` has it."""


class _Model(ctypes.Structure):
    """``model`` of ``model.h``."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("arena", ctypes.c_void_p),
        ("team", ctypes.c_void_p),
        ("owned", ctypes.c_void_p),
        ("owned_bytes", ctypes.c_size_t),
    )


@dataclass(frozen=True)
class Layer:
    """One step of a program, and what it took."""

    name: str
    macs: int
    ms: float


class Program:
    """A compiled network: images in, answers out. May be called from several threads, which take turns."""

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        """Load a library and the weights beside it, for so many threads.

        Raises GhostnetsError where they are no such pair, UserError for a number of threads that cannot be.
        """
        if not 1 <= threads <= MOST_THREADS:
            raise UserError(f"{threads} threads cannot run a program: give 1 to {MOST_THREADS}")
        self.path, self.threads = Path(path), threads
        try:
            self._functions: Any = ctypes.CDLL(str(self.path))
            self._functions.model_message.restype = ctypes.c_char_p
            self._functions.model_describe.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise GhostnetsError(f"{path} is no program of ghostnets for this machine: {error}") from None
        self._model, self._turn = _Model(), threading.Lock()
        weights = self.path.with_name(WEIGHTS)
        code = self._functions.model_init(ctypes.byref(self._model), str(weights).encode(), threads)
        if code:
            raise GhostnetsError(f"{weights}: {self._functions.model_message(code).decode()}")
        weakref.finalize(self, self._functions.model_free, ctypes.byref(self._model))
        image, answer, kind, self.title = self._functions.model_describe().decode().split(";", 3)
        self.input_shape = tuple(map(int, image.split(",")))
        """Of one image, in the order in which its values lie."""
        self.output_shape = tuple(map(int, answer.split(",")))
        self.dtype = np.dtype(kind)

    @overload
    def __call__(self, images: Tensor) -> Tensor: ...
    @overload
    def __call__(self, images: np.ndarray) -> np.ndarray: ...
    def __call__(self, images: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Answers (N, ...) for images (N, ...), one after the other; what comes as a tensor comes back as one.

        Nothing is copied that lies in memory as the program reads it. Raises UserError for other shapes and types.
        """
        if isinstance(images, np.ndarray):
            return self._answers(images)
        if "torch" not in sys.modules or not hasattr(images, "detach"):
            raise UserError(f"a {type(images).__name__} is no images: give an array of NumPy or a tensor of PyTorch")
        return sys.modules["torch"].from_numpy(self._answers(images.detach().cpu().numpy()))

    def _answers(self, images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != self.input_shape or images.dtype != self.dtype:
            wanted, given = (" x ".join(map(str, shape)) for shape in (("N", *self.input_shape), images.shape))
            raise UserError(f"images of {given} in {images.dtype} do not fit: give {wanted} in {self.dtype}")
        images = np.ascontiguousarray(images)
        answers = np.empty((len(images), *self.output_shape), np.float32)
        with self._turn:
            for image, answer in zip(images, answers, strict=True):
                self._run(image, answer)
        return answers

    def _run(self, image: np.ndarray, answer: np.ndarray) -> None:
        places = (ctypes.c_void_p(array.ctypes.data) for array in (image, answer))
        self._functions.model_run(ctypes.byref(self._model), *places)

    def layers(self, runs: int = 50) -> list[Layer]:
        """What every step takes with as many threads, the median of some runs on noise, with the clock that the profiled
        library has.

        Raises GhostnetsError where that library is not there.
        """
        profiled = Program(self.path.with_name(PROFILED), threads=self.threads)
        described: list[str] = []
        profiled._functions.model_step.restype = ctypes.c_char_p
        while (line := profiled._functions.model_step(len(described))) is not None:
            described.append(line.decode())
        seconds = (ctypes.c_double * len(described)).in_dll(profiled._functions, "model_profile")
        image = (np.random.default_rng(0).random(self.input_shape) * 255).astype(self.dtype)[None]
        times = np.empty((runs, len(described)))
        for run in range(-3, runs):  # the first ones are not counted
            ctypes.memset(seconds, 0, ctypes.sizeof(seconds))
            profiled(image)
            if run >= 0:
                times[run] = seconds
        medians = np.median(times, axis=0) * 1e3
        pairs = (line.split(" ", 1) for line in described)
        return [Layer(name, int(macs), float(ms)) for (macs, name), ms in zip(pairs, medians, strict=True)]
