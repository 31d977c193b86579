# SPDX-License-Identifier: Apache-2.0
"""Weights come in exactly or not at all, whatever file they are in; what does not fit is named."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.models.resnet import cifar_resnet
from ghostnets.models.weights import WEIGHTS, load_weights, read_weights


def network(channels: int = 3) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def refusal(model: nn.Module, path: Path) -> str:
    """The one sentence that refuses the file; the network must be as it was."""
    before = state(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    assert same(state(model), before)
    sentence = str(caught.value)
    assert path.name in sentence
    assert "\n" not in sentence
    assert "weights_only" not in sentence
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return sentence


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth", "th", "pth.tar"])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, ending: str) -> None:
    source, path = network(), tmp_path / f"w.{ending}"
    if ending == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    target = network()
    load_weights(target, path)
    assert same(state(target), state(source))


WRAPPED = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"epoch": 7, "state_dict": s},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "both": lambda s: {"model": {}, "model_ema": {"state_dict": s}},
    "timm's": lambda s: {"epoch": 7, "arch": "x", "state_dict": s, "args": argparse.Namespace(lr=0.1, opt="sgd")},
    "data parallel": lambda s: {f"module.{n}": t for n, t in s.items()},
    "compiled in data parallel": lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()},
    "averaged": lambda s: {"ema": {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in s.items()}}},
    "parameter objects": lambda s: OrderedDict((n, nn.Parameter(t, requires_grad=False)) for n, t in s.items()),
    "old torch": lambda s: {n: t for n, t in s.items() if "num_batches" not in n},
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_are_taken_off(tmp_path: Path, how: str) -> None:
    source, target = network(), network()
    torch.save(WRAPPED[how](source.state_dict()), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(state(target), state(source))


def test_averaged_weights_come_before_raw_ones(tmp_path: Path) -> None:
    raw, averaged, target = network(), network(), network()
    torch.save({"model": raw.state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(state(target), state(averaged))


def test_a_network_whose_own_names_begin_alike_keeps_them(tmp_path: Path) -> None:
    source = nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.Linear(2, 3)})
    target = nn.ModuleDict({"module": nn.Linear(2, 2), "model": nn.Linear(2, 3)})
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(state(target), state(source))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64])
def test_values_are_cast_to_the_networks_dtype(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype) -> None:
    source, target = network().to(stored), network().to(wanted)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    for name, tensor in target.state_dict().items():
        expected = source.state_dict()[name]
        assert tensor.dtype == (wanted if tensor.is_floating_point() else torch.long)
        assert tensor.tolist() == expected.to(tensor.dtype).tolist()


def test_a_value_too_large_for_the_networks_dtype_is_refused(tmp_path: Path) -> None:
    source = network()
    source.state_dict()["3.weight"][0, 0] = 1e6  # beyond float16's 65,504
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert "3.weight holds NaN or infinite" in refusal(network().half(), tmp_path / "w.safetensors")


@given(
    bad=st.sampled_from([float("nan"), float("inf"), float("-inf")]), name=st.sampled_from(["0.bias", "1.running_var"])
)
def test_nan_and_infinite_weights_are_named(tmp_path_factory: pytest.TempPathFactory, bad: float, name: str) -> None:
    path = tmp_path_factory.mktemp("nan") / "w.safetensors"
    source = network()
    source.state_dict()[name][2] = bad
    save_file(source.state_dict(), path)
    assert f"{name} holds NaN or infinite" in refusal(network(), path)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    quantised = {n: (t * 100).to(torch.int8) if n == "0.weight" else t for n, t in network().state_dict().items()}
    save_file(quantised, tmp_path / "w.safetensors")
    assert "0.weight holds torch.int8" in refusal(network(), tmp_path / "w.safetensors")


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = dict(network(channels=1).state_dict())
    del tensors["3.weight"], tensors["1.running_mean"]
    tensors["head.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "w.safetensors")
    sentence = refusal(network(), tmp_path / "w.safetensors")
    assert "2 missing (1.running_mean, 3.weight)" in sentence
    assert "1 unexpected (head.weight)" in sentence
    assert "1 of another shape (0.weight 4×1×3×3 instead of 4×3×3×3)" in sentence


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    deeper, shallower = cifar_resnet(32), cifar_resnet(20)
    save_file(deeper.state_dict(), tmp_path / "w.safetensors")
    sentence = refusal(shallower, tmp_path / "w.safetensors")
    extra = [n for n in deeper.state_dict() if n not in shallower.state_dict() and "num_batches" not in n]
    assert f"{len(extra)} unexpected (" in sentence
    assert f"and {len(extra) - 5} more)" in sentence
    assert sentence.count("layer") == 5
    assert "missing" not in sentence


class Runs:
    """Unpickling this makes a folder: a stand-in for anything worse."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.proof),))


def test_files_that_would_run_code_are_refused_unopened(tmp_path: Path) -> None:
    proof, path = tmp_path / "ran", tmp_path / "w.pt"
    good = network().state_dict()
    writers = [
        lambda: torch.save({"state_dict": good, "config": Runs(proof)}, path),
        lambda: torch.save({"state_dict": good, "x": Runs(proof)}, path, _use_new_zipfile_serialization=False),
        lambda: torch.save(network(), path),
        *(lambda p=p: path.write_bytes(pickle.dumps(Runs(proof), protocol=p)) for p in (2, 4, 5)),
    ]
    for write in writers:
        write()
        sentence = refusal(network(), path)
        assert "could run code" in sentence
        assert "state_dict()" in sentence
        assert not proof.exists()
    torch.save({"state_dict": good, "config": Runs(proof)}, path)
    assert f"({os.mkdir.__module__}.mkdir)" in refusal(network(), path)
    with pytest.raises(FileNotFoundError):  # the files are real: opening one carelessly does run it
        pickle.loads(pickle.dumps(Runs(tmp_path / "no" / "parent")))  # noqa: S301


@pytest.mark.parametrize("legacy", [False, True])
@given(share=st.floats(0, 0.999))
def test_files_cut_short_are_refused(tmp_path_factory: pytest.TempPathFactory, legacy: bool, share: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "w.pt"
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refusal(network(), path)
    tensors = save(network().state_dict())
    other = path.with_suffix(".safetensors")
    other.write_bytes(tensors[: int(len(tensors) * share)])
    assert "cut short" in refusal(network(), other)


@given(junk=st.binary(max_size=200), ending=st.sampled_from(["pt", "safetensors"]))
def test_anything_else_is_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes, ending: str) -> None:
    path = tmp_path_factory.mktemp("junk") / f"w.{ending}"
    path.write_bytes(junk)
    refusal(network(), path)


def test_files_that_are_not_there_or_not_weights_are_refused(tmp_path: Path) -> None:
    assert "do not exist" in refusal(network(), tmp_path / "w.pt")
    (tmp_path / "d.pt").mkdir()
    assert "not a file" in refusal(network(), tmp_path / "d.pt")
    (tmp_path / "w.h5").write_bytes(b"\x89HDF")
    assert "'.h5'" in refusal(network(), tmp_path / "w.h5")
    (tmp_path / "w").touch()
    assert "have no ending" in refusal(network(), tmp_path / "w")
    for value in ({}, [1, 2], torch.zeros(3), {"state_dict": {}}, {"epoch": 3}, {"model": {"lr": 0.1}}):
        torch.save(value, tmp_path / "w.pt")
        assert re.search("holds no weights|does not fit", refusal(network(), tmp_path / "w.pt"))


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may read everything")
def test_files_one_may_not_read_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "w.pt", tmp_path / "w.safetensors"):
        path.write_bytes(b"secret")
        path.chmod(0)
        assert "cannot be read" in refusal(network(), path)


def test_an_independent_authors_file_fits(data_root: Path) -> None:
    path = data_root / "weights" / "resnet56_cifar10.safetensors"
    model = cifar_resnet(56)
    load_weights(model, path)
    tensors = read_weights(path)
    assert {n for n in model.state_dict() if "num_batches" not in n} <= set(tensors)
    assert torch.equal(model.state_dict()["linear.weight"], tensors["linear.weight"].float())


def test_the_packages_own_files_are_the_ones_that_were_measured() -> None:
    for name, row in WEIGHTS.items():
        assert row.path.stat().st_size <= 2 * 2**20
        assert name.startswith(f"{row.architecture}.")
        assert len(row.mean) == len(row.std) == row.in_chans
        assert row.license == "Apache-2.0"
