# SPDX-License-Identifier: Apache-2.0
"""Run an exported file on images and hold it against PyTorch: one image at a time, and all at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghostnets.deploy.onnx import INPUT, optional
from ghostnets.errors import GhostnetsError, UserError, first_line
from ghostnets.measure.modes import evaluating

TOLERANCE = 1e-4
"""Largest difference, as a part of the largest logit. Float32 runtimes differ by about 1e-6; a wrong file by about 1."""

SINGLY = 16
"""Images that are also run alone."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How far a runtime and PyTorch are apart over all images, in the worst of both batch sizes."""

    n: int
    max_abs: float
    max_rel: float
    """``max_abs`` as a part of PyTorch's largest logit."""
    top1_agreement: float
    """Percent of images for which both name the same class."""
    runtime: str


def verify_onnx(model: nn.Module, path: str | Path, images: Tensor) -> Verification:
    """Compare the file with ``model`` in evaluation mode on normalised ``images`` (N, C, H, W).

    Raises GhostnetsError, and removes the file, where they disagree.
    """
    runtime = optional("onnxruntime", "checking an ONNX file")
    path = Path(path)
    if not len(images):
        raise UserError("an exported file cannot be checked without images")
    session = _open(runtime, path)
    expected = _expected(model, images)
    try:
        found = _run(session, images)
        alone = torch.cat([_run(session, image) for image in images[:SINGLY].split(1)])
    except Exception as error:
        path.unlink()
        reason = first_line(error)
        raise GhostnetsError(
            f"{path.name} does not run on {len(images)} images, so it was removed: {reason}"
        ) from error
    if found.shape != expected.shape:
        path.unlink()
        raise GhostnetsError(f"{path.name} gives {tuple(found.shape)}, PyTorch {tuple(expected.shape)}: it was removed")
    found, alone, expected = found.double(), alone.double(), expected.double()
    max_abs = float(torch.cat([(found - expected).abs(), (alone - expected[:SINGLY]).abs()]).max())
    verification = Verification(
        n=len(images),
        max_abs=max_abs,
        max_rel=max_abs / max(float(expected.abs().max()), torch.finfo(torch.float64).tiny),
        top1_agreement=float((found.argmax(1) == expected.argmax(1)).double().mean() * 100),
        runtime=f"onnxruntime {runtime.__version__}",
    )
    if not verification.max_rel <= TOLERANCE:  # so that NaN is refused, too
        path.unlink()
        raise GhostnetsError(
            f"{path.name} disagrees with PyTorch, so it was removed: on {verification.n} images the logits differ by up "
            f"to {max_abs:g} ({verification.max_rel:.2g} of the largest, {TOLERANCE:g} is allowed) and "
            f"{verification.top1_agreement:.1f} % of the classes agree ({verification.runtime})"
        )
    return verification


def _open(runtime: Any, path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base
        reason = first_line(error)
        raise UserError(f"{path} is no ONNX file that onnxruntime can open: {reason}") from error


def _expected(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return model(images)


def _run(session: Any, images: Tensor) -> Tensor:
    (found,) = session.run(None, {INPUT: images.numpy()})
    return torch.from_numpy(found)
