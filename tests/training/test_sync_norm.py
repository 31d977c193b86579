# SPDX-License-Identifier: Apache-2.0
"""Norms over all processes against PyTorch's own over the whole batch.

python test_sync_norm.py RANK FOLDER   one of two processes; what it has computed goes to FOLDER/RANK.pt
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ghostnets.training.sync_norm import SyncBatchNorm2d, synchronised

WORLD, TOTAL, CUT, STEPS = 2, 7, 3, 3
"""Processes, images, how many of them the first process has, and steps."""

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cumulative": {"momentum": None},
    "bare": {"affine": False},
    "biasless": {},
    "forgetful": {"track_running_stats": False},
    "frozen": {"eps": 0.1},
    "double": {},
}


def network(case: str) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        out = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, **CASES[case]), nn.ReLU(),
            nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(5, **CASES[case]),
        )  # fmt: skip
        for parameter in out.parameters():
            nn.init.normal_(parameter)
    if case == "frozen":
        out[1].eval().requires_grad_(False)
    if case == "biasless":
        out[1].register_parameter("bias", None)  # as the newest PyTorch makes it for bias=False
        out[4].register_parameter("bias", None)
    return out.double() if case == "double" else out


def batch(step: int, case: str) -> tuple[Tensor, Tensor]:
    """Images far from 0, of which the shares differ, and weights that make a loss of the outputs."""
    source = torch.Generator().manual_seed(step)
    x = 5 + torch.randn(TOTAL, 3, 6, 5, generator=source) * torch.arange(1.0, TOTAL + 1).view(-1, 1, 1, 1)
    weights = torch.randn(TOTAL, 5, 4, 3, generator=source)
    return (x.double(), weights.double()) if case == "double" else (x, weights)


def learn(model: nn.Module, case: str, part: slice) -> dict[str, Any]:
    """Some steps without a change of weights: the outputs and gradients of ``part`` of every batch, and the state after."""
    outputs: list[Tensor] = []
    inward: list[Tensor] = []
    for step in range(STEPS):
        images, weights = batch(step, case)
        x = images[part].clone().requires_grad_()
        out = model(x)
        (out * weights[part]).sum().backward()
        assert x.grad is not None
        outputs.append(out.detach())
        inward.append(x.grad)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"outputs": outputs, "inward": inward, "gradients": gradients, "state": model.state_dict()}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    part = slice(0, CUT) if rank == 0 else slice(CUT, TOTAL)
    found = {case: learn(synchronised(network(case)), case, part) for case in CASES}
    ready = synchronised(network("plain")).eval()
    found["evaluation"] = {"outputs": [ready(batch(0, "plain")[0][part]).detach()]}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes have computed."""
    folder = tmp_path_factory.mktemp("processes")
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(WORLD)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does_with_the_whole_batch(case: str, shared: list[dict[str, Any]]) -> None:
    def close(one: Tensor, other: Tensor) -> None:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    alone = learn(network(case), case, slice(0, TOTAL))
    first, second = (found[case] for found in shared)
    for step in range(STEPS):
        close(torch.cat([first["outputs"][step], second["outputs"][step]]), alone["outputs"][step])
        close(torch.cat([first["inward"][step], second["inward"][step]]), alone["inward"][step])
    assert set(first["gradients"]) == set(alone["gradients"])
    for name, gradient in alone["gradients"].items():
        scale = float(gradient.abs().max()) or 1.0
        close((first["gradients"][name] + second["gradients"][name]) / scale, gradient / scale)
    assert list(first["state"]) == list(alone["state"])
    for name, tensor in alone["state"].items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        close(first["state"][name], tensor)


def test_norms_of_one_process_alone_would_see_something_else(shared: list[dict[str, Any]]) -> None:
    lonely = learn(network("plain"), "plain", slice(0, CUT))
    assert float((lonely["outputs"][0] - shared[0]["plain"]["outputs"][0]).abs().max()) > 0.1


def test_in_evaluation_they_are_as_ever(shared: list[dict[str, Any]]) -> None:
    with torch.no_grad():
        expected = network("plain").eval()(batch(0, "plain")[0])
    found = torch.cat([part["evaluation"]["outputs"][0] for part in shared])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", CASES)
def test_one_process_computes_what_it_would_without_to_the_last_bit(case: str) -> None:
    own, plain = (learn(model, case, slice(0, TOTAL)) for model in (synchronised(network(case)), network(case)))
    for kind in ("outputs", "inward"):
        assert all(torch.equal(a, b) for a, b in zip(own[kind], plain[kind], strict=True))
    for kind in ("gradients", "state"):
        assert list(own[kind]) == list(plain[kind])
        assert all(torch.equal(own[kind][name], tensor) for name, tensor in plain[kind].items())


def test_the_given_network_is_untouched() -> None:
    given = network("frozen")
    before, modules = copy.deepcopy(given.state_dict()), list(given.modules())
    made = synchronised(given)
    learn(made, "frozen", slice(0, TOTAL))
    assert list(given.modules()) == modules
    assert [type(module) for module in given][1::3] == [nn.BatchNorm2d] * 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())
    assert all(p.grad is None for p in given.parameters())
    assert not {p.data_ptr() for p in given.parameters()} & {p.data_ptr() for p in made.parameters()}


def test_settings_modes_precision_and_what_is_frozen_stay() -> None:
    given = nn.Sequential(nn.BatchNorm2d(3, eps=0.5, momentum=0.3), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    given[1].eval()
    given[1].weight.requires_grad_(False)
    given[2].double()
    made = synchronised(given)
    for old, new in zip(given, made, strict=True):  # pyright: ignore[reportArgumentType]
        assert isinstance(new, SyncBatchNorm2d)
        assert (new.eps, new.momentum, new.training) == (old.eps, old.momentum, old.training)
        assert [(p.dtype, p.requires_grad) for p in new.parameters()] == [
            (p.dtype, p.requires_grad) for p in old.parameters()
        ]
        assert [b.dtype for b in new.buffers()] == [b.dtype for b in old.buffers()]


class Sharing(nn.Module):
    """One norm under two names of the same parent, and under a third elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.second = self.first
        self.inner = nn.Sequential(nn.ReLU(), self.first, nn.BatchNorm2d(3))


def test_a_shared_norm_stays_one_norm() -> None:
    made = synchronised(Sharing())
    assert isinstance(made, Sharing)
    assert isinstance(made.first, SyncBatchNorm2d)
    assert made.first is made.second is made.inner[1]
    assert isinstance(made.inner[2], SyncBatchNorm2d)
    assert made.inner[2] is not made.first
    assert not any(type(module) is nn.BatchNorm2d for module in made.modules())


def test_a_network_that_is_one_norm_and_other_norms() -> None:
    assert isinstance(synchronised(nn.BatchNorm2d(3)), SyncBatchNorm2d)
    others = synchronised(nn.Sequential(nn.BatchNorm1d(3), nn.GroupNorm(1, 3), SyncBatchNorm2d(3)))
    assert [type(module) for module in others.children()] == [nn.BatchNorm1d, nn.GroupNorm, SyncBatchNorm2d]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
