# SPDX-License-Identifier: Apache-2.0
"""``ghostnets.compile`` and ``ghostnets.deploy.c.export``: what they take, give back and refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ghostnets
from ghostnets.deploy import c
from ghostnets.deploy.c import generation
from ghostnets.errors import GhostnetsError, UserError
from programs import needs_compiler
from tiny import build

EXAMPLE = torch.zeros(1, 1, 10, 9)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ghostnets" / "c"


@needs_compiler
@pytest.mark.parametrize("target", ["native", "scalar"])
def test_a_compiled_network_answers_as_the_network(cache: Path, target: str) -> None:
    network = build()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fast = ghostnets.compile(network, EXAMPLE, target=target)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    images = torch.randn(5, 1, 10, 9)
    with torch.no_grad():
        expected = build().eval()(images)
    found = fast(images)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    arrays = fast(images.numpy())
    assert isinstance(arrays, np.ndarray)
    assert np.array_equal(arrays, found.numpy())
    assert len(fast(images[:0])) == 0

    (folder,) = cache.iterdir()
    stamp = (folder / "model.so").stat().st_mtime_ns
    again = ghostnets.compile(build(), (EXAMPLE,), target=target, threads=2)
    torch.testing.assert_close(again(images), expected, rtol=1e-4, atol=1e-4)
    assert [path.name for path in cache.iterdir()] == [folder.name]
    assert (folder / "model.so").stat().st_mtime_ns == stamp


@needs_compiler
def test_other_weights_are_another_program() -> None:
    other = build()
    nn.init.zeros_(other.classifier.weight)
    nn.init.ones_(other.classifier.bias)
    images = torch.randn(2, 1, 10, 9)
    programs = [ghostnets.compile(network, EXAMPLE, target="scalar") for network in (build(), other)]
    assert torch.equal(programs[1](images), torch.ones(2, 10))
    assert not torch.equal(programs[0](images), torch.ones(2, 10))


def test_what_cannot_be_compiled_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^2 example inputs cannot be compiled for: give one tensor of images$"):
        ghostnets.compile(build(), (EXAMPLE, EXAMPLE))
    with pytest.raises(UserError, match="sse is not an instruction set: choose native, avx512"):
        ghostnets.compile(build(), EXAMPLE, target="sse")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GhostnetsError, match=r"there is no C compiler .*: install GCC or Clang .*apt install gcc"):
        ghostnets.compile(build(), EXAMPLE)


def test_the_room_gives_the_function(tmp_path: Path) -> None:
    program = c.export(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 5, 5), tmp_path / "one", c.Options(target="scalar"))
    assert program.graph.macs == 300
    assert c.export is generation.export
    assert (tmp_path / "one" / "model.c").is_file()


def test_running_a_program_needs_no_pytorch() -> None:
    lines = "import sys; from ghostnets.deploy.c import Program; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
