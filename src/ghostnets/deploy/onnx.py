# SPDX-License-Identifier: Apache-2.0
"""A folded network as one ONNX file with any batch size, float32 as it is.

Cheap operations with a ratio above 2 are depthwise convolutions with several outputs per channel. They stay that:
runtimes have their fastest depthwise kernels for one output per channel only, but splitting them costs more nodes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghostnets.deploy.fold import fold
from ghostnets.errors import MissingExtra, UserError, first_line
from ghostnets.records import write_bytes

INPUT, OUTPUT, BATCH = "images", "logits", "batch"
"""The names in the file."""

LARGEST = 2**31 - 1
"""Bytes of one protobuf message, and so of a file without external data."""


def export_onnx(model: nn.Module, example: Tensor, path: str | Path) -> Path:
    """Fold a copy of ``model``, write it to ``path``, all of it or nothing, and return the path.

    ``example`` (N, C, H, W) decides everything but the batch size. Nothing is printed, and the file holds no trace of
    the machine that wrote it.

    Raises MissingExtra without the extra ``onnx``, UserError where the network cannot be exported.
    """
    for name in ("onnx", "onnxscript"):
        optional(name, "ONNX export")
    path = Path(path)
    folded = fold(model, example)
    batch = example if len(example) > 1 else example.expand(2, *example.shape[1:])  # of one image, one is a constant
    try:
        with _quiet():
            program = torch.onnx.export(
                folded,
                (batch.contiguous(),),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            )
            assert program is not None
            proto = program.model_proto
    except Exception as error:  # the exporter and the user's forward may raise anything
        reason = first_line(error)
        raise UserError(f"{type(model).__name__} cannot be exported to ONNX: {reason}") from error
    _forget_origin_(proto)
    if proto.ByteSize() > LARGEST:
        raise UserError(f"{type(model).__name__} is too large for one ONNX file: {proto.ByteSize() / 2**30:.1f} GiB")
    write_bytes(path, proto.SerializeToString())
    return path


def optional(module: str, feature: str) -> Any:
    """A module of the extra ``onnx``. Raises MissingExtra, which names ``feature``, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(feature, "onnx") from None


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """The exporter reports its steps, and what else could be installed, on every channel there is."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _forget_origin_(proto: Any) -> None:
    """Take out what the exporter notes on every node: stack traces, with the folders of this machine in them."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    assert not proto.functions, "functions would need the same"
