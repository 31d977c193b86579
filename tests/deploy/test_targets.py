# SPDX-License-Identifier: Apache-2.0
"""Every runtime in a worker of its own gives what PyTorch gives here; rows are found by name, or refused."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from ghostnets.deploy.contestant import Contestant, Lost, cores
from ghostnets.deploy.targets import TARGETS, chosen, exported_program
from ghostnets.errors import UserError
from runners import target

NEEDS_TIME = ("torch-compile",)
READY = [name for name in TARGETS if not name.startswith("c") and name not in NEEDS_TIME]
SIZE = (1, 1, 20, 14)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny.build().eval()


@pytest.fixture(scope="module")
def case(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack([model(x) for x in inputs])
    path = tmp_path_factory.mktemp("case") / "case.npz"
    np.savez(path, inputs=inputs.numpy(), expected=expected.numpy())
    return path


def error(name: str, model: nn.Module, case: Path, threads: int = 1) -> float:
    """The largest, as a part of the largest output, over all inputs and after some runs."""
    row = TARGETS[name]
    if row.missing:
        pytest.skip(f"{', '.join(row.missing)} is not installed")
    file = row.prepare(model, torch.zeros(SIZE), case.parent)
    racer = Contestant(row, file=file, case=case, log=case.parent / "log", threads=threads, cores=cores(threads))
    try:
        opened = racer.open()
        turn = racer.turn(warmup=1, runs=5, seconds=60)
        assert len(turn.times_ms) == 5
    finally:
        racer.close()
    with np.load(case) as arrays:
        return max(opened.max_abs, turn.max_abs) / float(np.abs(arrays["expected"]).max())


@pytest.mark.parametrize("name", [name for name in READY if TARGETS[name].precision == "f32"])
def test_a_runtime_answers_as_pytorch_does(name: str, model: nn.Module, case: Path) -> None:
    assert error(name, model, case) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS_TIME)
def test_a_compiled_network_answers_as_pytorch_does(name: str, model: nn.Module, case: Path) -> None:
    assert error(name, model, case) < 1e-5


@pytest.mark.skipif(
    cores(1) is not None and len(__import__("os").sched_getaffinity(0)) < 2, reason="one processor only"
)
def test_two_threads_answer_the_same(model: nn.Module, case: Path) -> None:
    assert error("onnxruntime", model, case, threads=2) < 1e-5


def test_bf16_is_bf16_or_refused(model: nn.Module, case: Path) -> None:
    """Float32 is exact to 1e-5, and eight bits of mantissa are not."""
    try:
        assert 1e-4 < error("openvino-bf16", model, case) < 0.2
    except Lost as reason:
        assert "bf16 was asked, and OpenVINO takes f32 on this processor" in str(reason)  # noqa: PT017


@pytest.mark.parametrize("name", TARGETS)
def test_a_worker_finds_what_opens_it_and_the_options_fit(name: str) -> None:
    row = TARGETS[name]
    found = importlib.import_module(row.open.__module__)
    for part in row.open.__qualname__.split("."):
        found = getattr(found, part)
    assert found is row.open
    inspect.signature(row.open).bind(Path("file"), 1, (1, 3, 8, 8), **row.options)
    assert row.name == name
    assert row.version[0].isdigit()


def test_openvino_is_held_to_avx2_from_the_start() -> None:
    assert TARGETS["openvino-avx2"].environment == {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # oneDNN's documentation


def test_rows_are_chosen_by_name_in_the_order_asked() -> None:
    assert [row.name for row in chosen(["torch", "onnxruntime"])] == ["torch", "onnxruntime"]
    for names, said in (
        (["onnx"], "there is no target 'onnx': choose from c, c-avx2"),
        (["torch", "c", "torch"], "the target torch is named twice"),
        ([], "there is no target to race: choose from c, c-avx2"),
    ):
        with pytest.raises(UserError, match=said):
            chosen(names)


def test_what_is_missing_is_what_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert target("t", needs=("numpy", "torch")).missing == ()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert target("t", needs=("numpy", "torch", "no_such_package")).missing == ("torch", "no_such_package")
    assert target("t", distribution="no-such-distribution").version == "unknown"


class Ragged(nn.Module):
    """What it does depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_network_that_cannot_be_captured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Ragged cannot be captured by torch.export: "):
        exported_program(Ragged(), torch.ones(1, 1, 2, 2), tmp_path)


@pytest.mark.parametrize("prepare", dict.fromkeys(TARGETS[name].prepare for name in READY))
def test_preparing_leaves_the_network_as_it_was(prepare: Callable[..., Path], tmp_path: Path) -> None:
    if prepare is TARGETS["onnxruntime"].prepare and TARGETS["onnxruntime"].missing:
        pytest.skip("there is no ONNX here")
    model = tiny.build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert prepare(model, torch.zeros(SIZE), tmp_path).is_file()
    assert all(part.training for part in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
