# SPDX-License-Identifier: Apache-2.0
"""The whole upgrade on a tiny network: its files, its promises, and that it can be stopped anywhere."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ghostnets import pipeline, pretrained, records
from ghostnets.errors import GhostnetsError, MissingExtra, UserError
from ghostnets.inspecting.layers import maps_of
from ghostnets.inspecting.thumbnails import grey
from ghostnets.measure.accuracy import top1
from ghostnets.measure.cost import total_macs, total_params
from ghostnets.measure.latency import torch_latency
from ghostnets.pipeline import upgrade
from ghostnets.pretrained import from_pretrained, load_factory
from ghostnets.records import Budget, Plan, from_json, is_partial, read_json
from ghostnets.training.data import Dataset, load_dataset, normalise

TINY = Path(__file__).with_name("tiny.py")
NAME = f"{TINY}:build"
HALF = Budget(ratio=2)
STEPS = ["original", "plan", "closed form", "blocks", "distil", "save", "onnx", "report"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    digits = load_dataset("digits", size=(16, 16))
    return dataclasses.replace(digits, train=digits.train.subset(slice(0, 300)), test=digits.test.subset(slice(0, 60)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short race, and no ONNX: both have tests of their own."""

    def no_onnx(*_: object) -> None:
        raise MissingExtra("ONNX export", "onnx")

    monkeypatch.setattr(pipeline, "torch_latency", partial(torch_latency, rounds=2, seconds=0.05))
    monkeypatch.setattr(pipeline, "export_onnx", no_onnx)


@pytest.fixture
def network() -> nn.Module:
    return load_factory(TINY, "build")


def run(network: nn.Module, dataset: Dataset, out: Path | None, **asked: Any) -> pipeline.Upgraded:
    usual: dict[str, Any] = {"budget": HALF, "model_name": NAME, "epochs": 2.0, "calibration_images": 24}
    return upgrade(network, dataset=dataset, out=out, **{**usual, **asked})


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_record_is_there_and_they_agree(network: nn.Module, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    heard: list[dict[str, Any]] = []
    done = run(network, dataset, out, command=["ghostnets", "upgrade"], listen=heard.append)
    assert files(out) == {
        "plan.json", "transfer.json", "model.safetensors", "config.json", "tiny.py", "upgrade.json", "report.html", "maps.npz",
        "run.jsonl", "state.json", "steps/closed_form.safetensors", "steps/blocks.safetensors", "steps/distil.safetensors",
    }  # fmt: skip

    record = json.loads((out / "upgrade.json").read_text())
    assert set(record) == {
        "schema", "model", "data", "budget", "seed", "before", "after", "steps", "sites", "environment",
    }  # fmt: skip
    assert (record["schema"], record["model"], record["data"], record["seed"]) == (1, NAME, "digits", 0)
    assert record["budget"] == {"ratio": 2, "kernel": 3}
    for part in ("before", "after"):
        assert set(record[part]) == {"params", "macs", "top1", "latency_ms"}
    assert [step["name"] for step in record["steps"]] == ["closed form", "blocks", "distil"]
    assert [step["epochs"] for step in record["steps"]][::2] == [0.0, 2.0]
    for site in record["sites"]:
        assert set(site) == {"name", "decision", "ratio", "kernel", "reason", "macs_before", "macs_after"}
    assert record["environment"]["command"] == ["ghostnets", "upgrade"]
    assert {"torch", "threads", "cpu", "date"} <= set(record["environment"])

    # Every figure by another road.
    x = normalise(dataset.test.pixels, dataset.mean, dataset.std)
    labels = dataset.test.labels
    assert labels is not None
    again = from_pretrained(out, trust_code=True)
    with torch.no_grad():
        torch.testing.assert_close(again(x), done.model(x), rtol=0, atol=0)
    assert record["after"]["top1"] == record["steps"][-1]["top1"] == pytest.approx(top1(again, [(x, labels)]))
    assert record["before"]["top1"] == pytest.approx(top1(network, [(x, labels)]))
    assert record["after"]["params"] == total_params(again) == done.plan.params_after
    assert record["after"]["macs"] == total_macs(again, x[:1]) == done.plan.macs_after
    assert record["before"]["macs"] == total_macs(network, x[:1]) == done.plan.macs_before
    assert from_json(Plan, read_json(out / "plan.json")) == done.plan
    assert [pairing.name for pairing in done.pairings] == ["conv1", "conv2", "down"]

    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert lines == heard
    assert [line["step"] for line in lines if line["event"] == "end"] == [*STEPS[:-1], "latency", "report"]
    assert {line["step"] for line in lines if line["event"] == "epoch"} == {"blocks", "distil"}
    assert "TinyNet" not in (out / "report.html").read_text()
    assert "conv2" in (out / "report.html").read_text()


def test_the_caller_s_network_and_settings_are_as_before(network: nn.Module, dataset: Dataset) -> None:
    network.train()
    before = copy.deepcopy(network.state_dict())
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    done = run(network, dataset, None, recover="blocks", epochs=0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not any(module.training for module in done.model.modules())


def test_a_plan_that_keeps_all_gives_the_original_bit_for_bit(
    network: nn.Module, dataset: Dataset, tmp_path: Path
) -> None:
    done = run(network, dataset, tmp_path / "out", budget=Budget(macs=1.0))
    assert {site.decision for site in done.record.sites} == {"keep"}
    assert [step.name for step in done.record.steps] == ["closed form"]  # nothing was lost, nothing is won back
    for name, tensor in network.state_dict().items():
        assert torch.equal(done.model.state_dict()[name], tensor), name
    assert done.record.after.top1 == done.record.before.top1


def test_the_same_request_gives_the_same_bytes_and_another_seed_does_not(
    network: nn.Module, dataset: Dataset, tmp_path: Path
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run(network, dataset, tmp_path / name, recover="none", epochs=None, seed=seed)
    for file in ("plan.json", "transfer.json", "config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert weights(tmp_path / "one") != weights(tmp_path / "three")


class Stop(BaseException):
    """A kill that no one can catch and go on from."""


@pytest.fixture(scope="module")
def uninterrupted(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "torch_latency", partial(torch_latency, rounds=2, seconds=0.05))
        patch.setattr(pipeline, "export_onnx", lambda *_: (_ for _ in ()).throw(MissingExtra("x", "onnx")))
        run(load_factory(TINY, "build"), dataset, out)
    return out


def interrupt_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Stop at the ``moment``-th file that is written."""
    count = 0
    real = records.write_bytes

    def write(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == moment:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.0123abcd").write_bytes(data[: len(data) // 2])  # as SIGKILL leaves it
            raise Stop
        real(path, data)

    for module in (records, pretrained):
        patch.setattr(module, "write_bytes", write)


def test_stopped_at_any_file_it_goes_on_to_the_same_bits(
    network: nn.Module, dataset: Dataset, tmp_path: Path, uninterrupted: Path
) -> None:
    out = tmp_path / "out"
    moment = 0
    while True:
        moment += 1
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, moment)
            try:
                run(network, dataset, out, resume=True)
                break
            except Stop:
                pass
        assert moment < 20, "attempts that finish nothing"
    assert moment > 4
    assert not [path for path in out.rglob("*") if is_partial(path)]
    assert files(out) == files(uninterrupted)
    for file in ("plan.json", "transfer.json", "config.json", "model.safetensors", "steps/blocks.safetensors"):
        assert (out / file).read_bytes() == (uninterrupted / file).read_bytes(), file
    one, other = (json.loads((folder / "upgrade.json").read_text()) for folder in (out, uninterrupted))
    assert [(s["name"], s["top1"], s["epochs"]) for s in one["steps"]] == [
        (s["name"], s["top1"], s["epochs"]) for s in other["steps"]
    ]


@pytest.mark.parametrize("step", ["blocks", "distil"])
def test_stopped_within_a_recovery_it_goes_on_to_the_same_bits(
    network: nn.Module, dataset: Dataset, tmp_path: Path, uninterrupted: Path, step: str
) -> None:
    out = tmp_path / "out"

    def stop(what: str, done: int, _total: int) -> None:
        if what == step and done == 2:
            raise Stop

    with pytest.raises(Stop):
        run(network, dataset, out, progress=stop)
    assert not (out / "upgrade.json").exists()
    run(network, dataset, out, resume=True)
    assert weights(out) == weights(uninterrupted)


def test_a_finished_upgrade_is_read_back_and_not_run_again(
    network: nn.Module, dataset: Dataset, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(uninterrupted, out)
    for name in ("plan", "convert", "recover_", "torch_latency", "save_pretrained", "top1"):
        monkeypatch.setattr(pipeline, name, None)
    done = run(network, dataset, out, resume=True)
    assert records.to_json(done.record) == json.loads((out / "upgrade.json").read_text())
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(done.model.state_dict()[name], tensor)


def test_another_request_in_the_same_folder_is_refused_by_the_setting(
    network: nn.Module, dataset: Dataset, uninterrupted: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(uninterrupted, out)
    before = {name: (out / name).read_bytes() for name in files(out)}
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    brighter = dataclasses.replace(dataset, mean=(0.1,))
    cases: list[tuple[nn.Module, Dataset, dict[str, Any], str]] = [
        (network, dataset, {"resume": True, "seed": 3}, r"other settings \(seed 0, not 3\)"),
        (network, dataset, {"resume": True, "epochs": None}, r"\(epochs 2\.0, not unset\)"),
        (
            network,
            dataset,
            {"resume": True, "budget": Budget(macs=0.5)},
            r"budget ratio=2 kernel=3, not macs=0\.5 kernel=3",
        ),
        (network, dataset, {"resume": True, "ignored_layers": ("down",)}, r"ignored layers , not down"),
        (other, dataset, {"resume": True}, "the original's weights differ"),
        (network, brighter, {"resume": True}, "the images differ"),
        (network, dataset, {}, r"holds an upgrade already: go on with resume"),
        (network, dataset, {"seed": 3}, r"holds an upgrade already: choose another folder"),
    ]
    for model, images, asked, message in cases:
        with pytest.raises(UserError, match=message):
            run(model, images, out, **asked)
    assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_a_foreign_folder_is_left_alone(network: nn.Module, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match=r"not empty and holds no upgrade \(thesis\.tex\)"):
            run(network, dataset, tmp_path, resume=resume)
    assert files(tmp_path) == {"thesis.tex"}
    with pytest.raises(UserError, match="cannot be used as a folder"):
        run(network, dataset, tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="cannot be"):
        run(network, dataset, tmp_path / "thesis.tex" / "out")


def test_the_page_shows_the_maps_of_the_upgraded_network(network: nn.Module, dataset: Dataset, tmp_path: Path) -> None:
    done = run(network, dataset, tmp_path, recover="none", epochs=None)
    image = normalise(dataset.train.pixels[:1], dataset.mean, dataset.std)
    page = (tmp_path / "report.html").read_text()
    layers = json.loads(page.split('id="layers">')[1].split("</script>")[0])
    pairings = {one["name"]: one for one in json.loads((tmp_path / "transfer.json").read_text())}
    ghosts = [site.name for site in done.record.sites if site.decision == "ghost"]
    assert ghosts
    assert [one["name"] for one in layers] == [site.name for site in done.record.sites]
    with np.load(tmp_path / "maps.npz") as arrays:
        for name in ghosts:
            kept = arrays[f"layer:{name}#"].tolist()
            assert (arrays[f"layer:{name}"] == grey(maps_of(done.model, name, image)[0, kept])).all()
    events = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    (raced,) = (event for event in events if event["step"] == "latency" and event["event"] == "end")
    assert list(raced["sites"]) == [site.name for site in done.record.sites]
    assert all(took > 0 for site in raced["sites"].values() for took in site.values())
    assert "> time</label>" in page
    for one in (one for one in layers if one["name"] in ghosts):
        pairing = pairings[one["name"]]
        computed = len(pairing["intrinsic"])
        for row in one["maps"]:  # the record says it in the original's channels
            wanted = pairing["source"][row["map"] - computed] if row["map"] >= computed else None
            assert (pairing["order"][row["from"]] if row["from"] >= 0 else None) == wanted


def test_test_images_touch_nothing_but_the_figures(network: nn.Module, dataset: Dataset, tmp_path: Path) -> None:
    black = dataclasses.replace(dataset.test, pixels=torch.zeros_like(dataset.test.pixels))
    run(network, dataset, tmp_path / "one")
    run(network, dataclasses.replace(dataset, test=black), tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_held_out_images_are_a_tenth_and_train_nothing(
    network: nn.Module, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    real = pipeline.recover_

    def watch(*args: Any, **given: Any) -> Any:
        seen.update(images=len(given["images"]), held_out=len(given["held_out"]))
        pixels = {image.numpy().tobytes() for image in given["held_out"].pixels}
        assert not pixels & {image.numpy().tobytes() for image in given["images"].pixels}
        return real(*args, **given)

    monkeypatch.setattr(pipeline, "recover_", watch)
    run(network, dataset, None, recover="blocks", epochs=0.5)
    assert seen == {"images": 270, "held_out": 30}


def test_an_onnx_file_that_disagrees_is_not_left_behind(
    network: nn.Module, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagree(_model: object, path: Path, _images: object) -> None:
        path.unlink()
        raise GhostnetsError("it disagrees")

    monkeypatch.setattr(pipeline, "export_onnx", lambda _model, _example, path: path.write_bytes(b"onnx"))
    monkeypatch.setattr(pipeline, "verify_onnx", disagree)
    heard: list[dict[str, Any]] = []
    run(network, dataset, tmp_path / "out", recover="none", epochs=None, listen=heard.append)
    assert not list((tmp_path / "out").rglob("*.onnx"))
    assert {"step": "onnx", "event": "note", "text": "no model.onnx: it disagrees"}.items() <= next(
        line for line in heard if line["event"] == "note" and line["step"] == "onnx"
    ).items()


def test_a_refused_request_may_be_asked_otherwise_in_the_same_folder(
    network: nn.Module, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="below what is reachable"):
        run(network, dataset, out, budget=Budget(macs=0.01))
    assert not out.exists()
    run(network, dataset, out, recover="none", epochs=None)
    with pytest.raises(UserError, match="holds an upgrade already"):
        run(network, dataset, out, budget=Budget(macs=0.01))
    assert (out / "upgrade.json").is_file()


def test_layers_left_alone_are_logged_with_their_reasons(network: nn.Module, dataset: Dataset, tmp_path: Path) -> None:
    run(network, dataset, tmp_path / "out", recover="none", epochs=None, ignored_layers=("conv2",))
    events = [json.loads(line) for line in (tmp_path / "out" / "run.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "left alone"]
    assert event["layers"]["conv2"] == "ignored by request"


def test_a_norm_without_statistics_is_timed_as_it_is(dataset: Dataset, tmp_path: Path) -> None:
    network = load_factory(TINY, "build")
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    heard: list[dict[str, Any]] = []
    run(network, dataset, tmp_path / "out", model_name=None, recover="none", epochs=None, listen=heard.append)
    assert any("timed with its norms" in event.get("text", "") for event in heard)
    assert (tmp_path / "out" / "upgrade.json").is_file()


def test_too_few_images_for_the_least_squares_are_said(network: nn.Module, dataset: Dataset) -> None:
    small = dataclasses.replace(
        dataset,
        train=dataclasses.replace(dataset.train, pixels=dataset.train.pixels[:, :, :4, :4].contiguous()),
        test=dataclasses.replace(dataset.test, pixels=dataset.test.pixels[:, :, :4, :4].contiguous()),
    )
    heard: list[dict[str, Any]] = []
    run(network, small, None, recover="none", epochs=None, calibration_images=2, listen=heard.append)
    (note,) = [line["text"] for line in heard if line["event"] == "note" and line["step"] == "plan"]
    assert note.startswith("2 calibration images are too few for 3 of 3 layers (down: 8 places for 73 numbers)")


class Broken(nn.Module):
    """A stand-in that answers with whatever it is told to."""

    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(self.conv(x))


def poisoned(value: float) -> nn.Module:
    network = load_factory(TINY, "build")
    with torch.no_grad():
        network.get_submodule("down").weight[0, 0, 0, 0] = value  # pyright: ignore[reportIndexIssue]
    return network


def overflowing() -> nn.Module:
    network = load_factory(TINY, "build")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e12)
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: poisoned(float("nan")), r"down\.weight of the network holds NaN or infinite values"),
        (lambda: poisoned(float("inf")), r"down\.weight of the network holds NaN or infinite values"),
        (overflowing, "NaN or infinite"),
        (lambda: Broken(lambda x: x), r"must return one tensor of logits \(N, classes\)"),
        (lambda: Broken(lambda x: (x, x)), "must return one tensor of logits"),
        (lambda: Broken(lambda x: x.mean((2, 3))), "tells 8 classes apart, and digits has 10"),
        (lambda: Broken(lambda x: x.view(3, 5)), r"does not run on digits's images of 1×16×16: shape '\[3, 5\]'"),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), r"reads 3 channels, which does not fit digits's images of 1×16×16"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            r"nothing to upgrade \(0: the first convolution",
        ),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_before_a_file_is_written(
    make: Callable[[], nn.Module], message: str, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        run(make(), dataset, out, model_name="mine")
    assert not out.exists()  # also where NaN shows on real images alone, a moment later


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"recover": "pray"}, "recover 'pray' must be one of none, blocks, distil"),
        ({"order": "any"}, "order 'any' must be one of own, agreed"),
        ({"epochs": -1.0}, r"epochs -1 must be above 0"),
        ({"minutes": 0.0}, r"minutes 0 must be above 0"),
        ({"epochs": 1.0, "minutes": 2.0}, r"epochs 1 and minutes 2 both say how long .* give one of them"),
        ({"minutes": float("nan")}, r"minutes nan must be above 0"),
        ({"calibration_images": 0}, "calibration images 0 must be at least 1"),
        ({"recover": "none"}, "recover none asks for none"),  # and epochs
        ({"seed": -1}, "seed -1 must be at least 0"),
        ({"seed": 2**64}, "must be at least 0 and below 2"),
        ({"ignored_layers": ("nope",)}, "ignored layer 'nope' does not exist"),
        ({"budget": Budget(macs=0.01)}, r"budget of .* is below what is reachable: the least is .*macs=0\.\d"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    network: nn.Module, dataset: Dataset, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(network, dataset, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()
