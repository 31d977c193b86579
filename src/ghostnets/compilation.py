# SPDX-License-Identifier: Apache-2.0
"""A network of PyTorch as a function in C, compiled here: ``ghostnets.compile``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ghostnets.deploy.c.build import compiled
from ghostnets.deploy.c.generation import Options
from ghostnets.deploy.c.program import Program
from ghostnets.errors import UserError


def compile(  # noqa: A001 - as torch.compile
    module: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, target: str = "native", threads: int = 1
) -> Program:
    """``module`` in evaluation mode as a C program of its own: a function from float32 images (N, C, H, W), N at will, to
    their answers; tensors give tensors, NumPy arrays give NumPy arrays.

    ``example_inputs`` (N, C, H, W) decides the size of the images; a sequence of that one tensor will do. ``target`` is an
    instruction set (``avx512``, ``avx2``, ``neon``, ``scalar``), or ``native``: the best this machine has. What was
    compiled before is taken from the cache.

    Raises UserError and UnsupportedLayer for what cannot be captured, GhostnetsError where nothing compiles here.
    """
    return compiled(module, _one(example_inputs), Options(target=target), threads=threads)


def _one(example_inputs: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(example_inputs, Tensor):
        return example_inputs
    if len(example_inputs) != 1 or not isinstance(example_inputs[0], Tensor):
        raise UserError(f"{len(example_inputs)} example inputs cannot be compiled for: give one tensor of images")
    return example_inputs[0]
