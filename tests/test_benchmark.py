# SPDX-License-Identifier: Apache-2.0
"""A whole benchmark of a network that doubles, on runtimes that double, and on some that do not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from ghostnets import benchmark
from ghostnets.benchmark import bench, opened, settled
from ghostnets.compiler import NoCompiler
from ghostnets.deploy import contestant, race
from ghostnets.deploy.targets import Target
from ghostnets.errors import GhostnetsError, UserError
from ghostnets.measure import peak
from ghostnets.models.catalog import create_model
from ghostnets.pretrained import save_pretrained
from ghostnets.records import Bench, from_json, to_json
from ghostnets.training.data import load_dataset
from runners import dying, failing, hanging, layered, misshapen, target

SIZE = (3, 4, 5)
MACS = 3 * 4 * 5


class Doubler(nn.Module):
    """It says how it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        nn.init.constant_(self.conv.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3, "three channels are needed"
        return self.conv(x)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "GAP", 0.0)
    monkeypatch.setattr(peak, "SECONDS", 0.001)


def run(*targets: Target, **more: Any) -> Bench:
    given: dict[str, Any] = {"rounds": 2, "seconds": 0.02, **more}
    return bench(Doubler(), SIZE, targets, **given)


def test_the_record_has_the_rows_that_were_promised(tmp_path: Path) -> None:
    notes: list[str] = []
    told: list[tuple[str, int, int]] = []
    wrong = target("wrong", options={"factor": 2.25})
    record = run(
        target("right"), wrong, target("other"), target("absent", needs=("no_such_package",)), target("late", dying, options={"after": 5}),
        target("layered", layered), threads=(1,), layers=True, seed=3, model_name="net", out=tmp_path / "out", command=["ghostnets", "bench"],
        note=notes.append, progress=lambda *words: told.append(words),
    )  # fmt: skip
    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert data == to_json(record)
    assert from_json(Bench, data) == record
    keys = {"target", "threads", "precision", "median_ms", "q1_ms", "q3_ms", "ratio"}
    assert all(keys <= set(row) for row in data["rows"])
    rows = {row.target: row for row in record.rows}
    assert list(rows) == ["right", "wrong", "other", "late", "layered", "right (again)"]
    assert (record.reference, record.model, record.input_size, record.macs, record.seed) == (
        "right",
        "net",
        SIZE,
        MACS,
        3,
    )
    for name in ("right", "other", "right (again)"):
        row = rows[name]
        assert row.median_ms is not None
        assert row.ratio is not None
        assert (row.max_rel, row.failure, row.precision, row.threads) == (0, "", "f32", 1)
    assert rows["right"].ratio == 1
    assert rows["right"].peer in {"other", "layered"}
    found = rows["wrong"]
    assert found.max_rel == pytest.approx(0.125)  # 2.25 in place of 2, wherever the output is largest
    assert (found.ratio, found.speedup, found.failure) == (None, None, "wrong: off by 1.2e-01 of the largest output")
    assert found.median_ms is not None
    assert rows["late"].median_ms is None
    assert "died (signal SIGKILL)" in rows["late"].failure
    assert notes[0] == "absent is left out: no_such_package is not installed (pip install no_such_package)"
    assert any(note.startswith("late with 1 thread: its process died") for note in notes)
    assert list(record.notes) == notes
    assert [(layer.target, layer.name, layer.macs) for layer in record.layers] == [
        ("layered", "first", 600), ("layered", "</script><b>", 0),
    ]  # fmt: skip
    assert record.environment["command"] == ["ghostnets", "bench"]
    assert "threads" not in record.environment
    assert (tmp_path / "out" / "report.html").is_file()
    assert {what for what, _, _ in told} == {"preparing", "opening, 1 thread", "racing, 1 thread"}
    run(target("right"), out=tmp_path / "out")  # our own folder may be used again


def test_every_number_of_threads_has_its_race_and_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "cores", lambda _: None)
    monkeypatch.setattr(benchmark, "compiled", lambda _: "functions")
    monkeypatch.setattr(benchmark, "fp32_peak", lambda _, cores: 10.0 * len(cores))
    record = run(target("slow", options={"slow": 0.01}), threads=(2, 1), rounds=1)
    assert [(row.target, row.threads) for row in record.rows] == [
        ("slow", 2), ("slow (again)", 2), ("slow", 1), ("slow (again)", 1),
    ]  # fmt: skip
    assert record.peak_gflops == {"2": 20.0, "1": 10.0}
    for row in record.rows:
        assert row.median_ms is not None
        assert row.median_ms >= 10
        assert row.peak_share == pytest.approx(2 * MACS / (row.median_ms * 1e-3 * row.threads * 10e9))


def test_without_a_compiler_there_is_a_note_and_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: Path) -> None:
        raise NoCompiler("there is no C compiler (cc)")

    monkeypatch.setattr(benchmark, "compiled", none)
    record = run(target("right"), layers=True)
    assert record.notes == (
        "nothing is said of the machine's peak: there is no C compiler (cc)",
        "none of these targets tells the times of its layers, as c does",
    )
    assert record.peak_gflops == {}
    assert all(row.peak_share is None for row in record.rows)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_with_one_the_peak_is_measured() -> None:
    assert run(target("right"), rounds=1).peak_gflops["1"] > 0


def test_targets_share_a_file_and_one_that_takes_nothing_is_left_out() -> None:
    made: list[Path] = []

    def once(_model: nn.Module, _example: Tensor, folder: Path) -> Path:
        made.append(folder)
        return folder / "file"

    def never(model: nn.Module, _example: Tensor, _folder: Path) -> Path:
        raise UserError(f"{type(model).__name__} has no name\nfor this")

    def broken(_model: nn.Module, _example: Tensor, _folder: Path) -> Path:
        raise KeyError("weight")

    record = run(
        target("a", prepare=once),
        target("b", prepare=once),
        target("c", prepare=never),
        target("d", prepare=broken),
        rounds=1,
    )
    assert len(made) == 1
    assert not made[0].exists()
    assert record.notes == ("c is left out: Doubler has no name", "d is left out: KeyError: 'weight'")
    with pytest.raises(UserError, match="no target can take this network: Doubler has no name"):
        run(target("c", prepare=never))


def test_a_hanging_one_is_named_and_the_others_race_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "PATIENCE", 5.0)  # enough for the other one on a busy machine
    record = run(target("right"), target("stuck", hanging))
    assert record.notes == ("stuck with 1 thread: gave no answer within 5 s",)
    assert [row.target for row in record.rows if row.median_ms is not None] == ["right", "right (again)"]


def test_where_nobody_comes_through_there_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(
        GhostnetsError, match="no target came through: bad with 1 thread: RuntimeError: no such instr"
    ) as e:
        run(target("bad", failing), target("odd", misshapen), out=tmp_path / "out")
    assert not isinstance(e.value, UserError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rounds": 0}, "a race of 0 rounds"),
        ({"seconds": 0.0}, "in 0 seconds"),
        ({"seconds": math.inf}, "in inf seconds"),
        ({"threads": ()}, "give one or more"),
        ({"threads": (1, 1)}, "threads 1, 1"),
        ({"threads": (0,)}, "threads 0"),
        ({"threads": (100_000,)}, "100000 threads were asked"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_raced_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(target("right"), **more)


def test_networks_that_cannot_be_compared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestant.Contestant, "open", lambda _: pytest.fail("nothing must be started"))
    for network, said in (
        (nn.Conv2d(2, 3, 1), "Conv2d does not run on images of 3×4×5: "),
        (nn.Sequential(nn.Conv2d(3, 3, 1), Pair()), "Sequential gives tuple, and only one tensor"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), Nan()), "Sequential gives answers that are not finite"),
    ):
        with pytest.raises(UserError, match=said):
            bench(network, SIZE, [target("right")])
    with pytest.raises(UserError, match="none of the targets is installed: pip install no_such_package other_one"):
        run(target("a", needs=("no_such_package",)), target("b", needs=("other_one", "no_such_package")))
    with pytest.raises(UserError, match="there is no target to race"):
        run()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(UserError, match=r"is not empty and holds no benchmark \(mine\)"):
        run(target("right"), out=tmp_path)
    with pytest.raises(UserError, match="cannot be used as a folder"):
        run(target("right"), out=tmp_path / "mine")


def test_the_network_stays_as_it_was() -> None:
    model = Doubler().train()
    bench(model, SIZE, [target("right")], rounds=1, seconds=0.01)
    assert model.conv.training
    assert torch.equal(model.conv.weight, torch.full((3, 1, 1, 1), 2.0))


def test_untrained_norms_get_the_statistics_of_what_reaches_them() -> None:
    model = create_model("ghostnet_050")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ready = settled(model, (3, 64, 64), seed=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(part.training for part in ready.modules())
    # The second road: what its norms see of the same images, kept by hooks.
    norms = {name: part for name, part in ready.named_modules() if isinstance(part, nn.BatchNorm2d)}
    stated = {name: tensor.clone() for name, tensor in ready.state_dict().items()}
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, inputs: seen.update([(name, inputs[0])])

    torch.manual_seed(5)
    for name, norm in norms.items():
        torch.empty_like(norm.weight).uniform_()  # the draws that come before the images
        torch.empty_like(norm.bias).normal_()
        norm.register_forward_pre_hook(keep(name))
        assert norm.momentum == 0.1
        norm.train()
    with torch.no_grad():
        found = ready(torch.randn(8, 3, 64, 64))
    assert set(seen) == set(norms)
    for name, maps in seen.items():
        torch.testing.assert_close(stated[f"{name}.running_mean"], maps.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(stated[f"{name}.running_var"], maps.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert found.std() > 1e-3


def test_a_trained_network_is_left_as_it_is() -> None:
    model = tiny.build()
    ready = settled(model, (1, 16, 16), seed=0)
    assert ready is not model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), ready.state_dict().values(), strict=True))


def test_networks_are_opened_by_any_name(tmp_path: Path) -> None:
    trained, size = opened("resnet20.digits")
    assert size == (1, 32, 32)
    want = create_model("resnet20.digits", pretrained=True)
    assert torch.equal(trained.state_dict()["conv1.weight"], want.state_dict()["conv1.weight"])
    model, size = opened("resnet20", size=(16, 24))
    assert size == (3, 16, 24)
    again, size = opened("resnet20")
    assert size == (3, 32, 32)
    other, _ = opened("resnet20", seed=1)
    weights = [m.state_dict()["conv1.weight"] for m in (model, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert opened(f"{Path(tiny.__file__)}:build")[1] == (1, 224, 224)
    save_pretrained(want, tmp_path / "saved", dataset=load_dataset("digits"), source="resnet20")
    saved, size = opened(str(tmp_path / "saved"))
    assert size == (1, 32, 32)
    assert torch.equal(saved.state_dict()["conv1.weight"], want.state_dict()["conv1.weight"])
    with pytest.raises(UserError, match="did you mean resnet56"):
        opened("resnet57")


def test_the_first_target_that_can_race_is_the_reference() -> None:
    first = target("first", needs=("no_such_package",))
    record = run(first, target("second"), rounds=1)
    assert record.reference == "second"
    assert [row.target for row in record.rows] == ["second", "second (again)"]
