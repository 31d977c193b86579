# SPDX-License-Identifier: Apache-2.0
"""What a network can be raced on: one row a runtime and setting.

A row says how a network becomes a file here, and which function opens that file in a process of its own, where nothing
of another runtime is loaded.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ghostnets.deploy.c.build import build
from ghostnets.deploy.c.generation import Options
from ghostnets.deploy.onnx import BATCH, export_onnx
from ghostnets.deploy.runtimes import c, onnxruntime, openvino, pytorch
from ghostnets.errors import UserError, first_line

Prepare = Callable[[nn.Module, Tensor, Path], Path]
"""A network in evaluation mode, an example (N, C, H, W), a folder: the file it became there."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime, and how it is set."""

    name: str
    runtime: str
    """As its makers write it; the same for all rows of a runtime."""
    precision: Literal["f32", "bf16"] = "f32"
    needs: tuple[str, ...] = ()
    """Packages to install, named as they are imported."""
    distribution: str
    """Whose version counts."""
    prepare: Prepare
    open: Callable[..., Callable[[Any], Any]]
    """``open(file, threads, shape, **options)`` in the worker: NumPy float32 of that shape in, NumPy out. A function of a
    module, for the worker imports it by its name.
    """
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Set before the worker starts."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Of what it needs, what is not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)

    @property
    def version(self) -> str:
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:  # used from a source folder
            return "unknown"


def onnx_file(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """Folded, with any batch size."""
    return export_onnx(model, example, folder / "model.onnx")


def exported_program(model: nn.Module, example: Tensor, folder: Path) -> Path:
    """The network as it is, as PyTorch itself takes it elsewhere: no code of the user's runs in a worker.

    Raises UserError where it cannot be captured.
    """
    path = folder / "model.pt2"
    try:
        torch.export.save(torch.export.export(copy.deepcopy(model).eval(), (example,)), path)
    except Exception as error:  # the exporter and the user's forward may raise anything
        raise UserError(f"{type(model).__name__} cannot be captured by torch.export: {first_line(error)}") from error
    return path


def c_program(model: nn.Module, example: Tensor, folder: Path, *, instructions: str = "native") -> Path:
    """Generated and compiled for these instructions."""
    return build(model, example, folder / f"c-{instructions}", Options(target=instructions), profiled=True)


OPENVINO = ("openvino", "onnx", "onnxscript")

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="c", runtime="ghostnets C", distribution="ghostnets", prepare=c_program, open=c.open_),
        Target(name="c-avx2", runtime="ghostnets C", distribution="ghostnets",
               prepare=partial(c_program, instructions="avx2"), open=c.open_),
        Target(name="c-scalar", runtime="ghostnets C", distribution="ghostnets",
               prepare=partial(c_program, instructions="scalar"), open=c.open_),
        Target(name="openvino", runtime="OpenVINO", needs=OPENVINO, distribution="openvino", prepare=onnx_file,
               open=openvino.open_, options={"precision": "f32"}),
        Target(name="openvino-avx2", runtime="OpenVINO", needs=OPENVINO, distribution="openvino", prepare=onnx_file,
               open=openvino.open_, options={"precision": "f32"}, environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        Target(name="openvino-bf16", runtime="OpenVINO", precision="bf16", needs=OPENVINO, distribution="openvino",
               prepare=onnx_file, open=openvino.open_, options={"precision": "bf16"}),
        Target(name="onnxruntime", runtime="ONNX Runtime", needs=("onnxruntime", "onnx", "onnxscript"),
               distribution="onnxruntime", prepare=onnx_file, open=onnxruntime.open_, options={"batch": BATCH}),
        Target(name="torch", runtime="PyTorch", distribution="torch", prepare=exported_program, open=pytorch.open_),
        Target(name="torch-channels-last", runtime="PyTorch", distribution="torch", prepare=exported_program,
               open=pytorch.open_, options={"channels_last": True}),
        Target(name="torch-compile", runtime="PyTorch", distribution="torch", prepare=exported_program,
               open=pytorch.open_, options={"channels_last": True, "compiled": True}),
    )
}  # fmt: skip


def chosen(names: Sequence[str]) -> tuple[Target, ...]:
    """The rows of that name, in that order. Raises UserError for a name that is not there, or there twice."""
    for place, name in enumerate(names):
        if name not in TARGETS:
            raise UserError(f"there is no target {name!r}: choose from {', '.join(TARGETS)}")
        if name in names[:place]:
            raise UserError(f"the target {name} is named twice: the first of all runs a second time by itself")
    if not names:
        raise UserError(f"there is no target to race: choose from {', '.join(TARGETS)}")
    return tuple(TARGETS[name] for name in names)
