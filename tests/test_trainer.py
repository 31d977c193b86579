# SPDX-License-Identifier: Apache-2.0
"""A training run as a function: trackers, options of networks, teachers, folders that are not the run's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import ghostnets
from ghostnets.errors import MissingExtra, UserError
from ghostnets.prediction import load_classifier
from ghostnets.records import read_json
from ghostnets.trainer import TrainRequest, asked, make_accelerator, network, read_request, train
from ghostnets.training.data import load_dataset
from ghostnets.training.recipe import Recipe, load_recipe
from ghostnets.training.source import open_source

RECIPE = Recipe(epochs=0.2, batch_size=64, lr=0.01)
REQUEST = TrainRequest(model="resnet20", data="digits", recipe=RECIPE)


def test_a_request_survives_its_file(tmp_path: Path) -> None:
    asked_for = replace(
        REQUEST, model_kwargs={"drop_rate": 0.1}, mean=(0.25,), std=(0.5,), input_size=(16, 16), hold_out=100, seed=4,
        recipe=load_recipe("cifar10-paper", {"epochs": 0.1, "warmup_epochs": 0.0}),
    )  # fmt: skip
    train(asked_for, tmp_path / "run", max_steps=1)
    assert read_request(tmp_path / "run") == asked_for


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(seed + len(weights))  # what the caller has drawn before makes no difference
        before = torch.random.get_rng_state()
        train(replace(REQUEST, seed=seed), tmp_path / name)
        assert torch.equal(torch.random.get_rng_state(), before)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_the_folder_may_be_called_like_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many processes the first has made it before the others ask what the network's name means."""
    monkeypatch.chdir(tmp_path)
    record = train(REQUEST, "elsewhere")
    Path("resnet20").mkdir()
    again = train(REQUEST, "resnet20")
    assert record is not None
    assert again is not None
    assert again.quality == record.quality
    assert load_classifier("resnet20").classes == tuple("0123456789")  # now it does hold one
    Path("resnet65").mkdir()
    with pytest.raises(UserError, match=r"resnet65/config\.json does not exist"):
        train(replace(REQUEST, model="resnet65"), "other")


def test_drawn_weights_may_begin_at_the_shortcuts_and_given_ones_stay() -> None:
    shallow = replace(REQUEST, recipe=replace(RECIPE, zero_init_last=True))
    source = open_source(asked(REQUEST))
    plain, own = network(REQUEST, source).state_dict(), network(shallow, source).state_dict()
    zeroed = {name for name in plain if not torch.equal(plain[name], own[name])}
    padded = {"layer2.0.bn2.weight", "layer3.0.bn2.weight"}  # by zeros: a branch of zeros would be dead there
    assert zeroed == {f"layer{stage}.{block}.bn2.weight" for stage in (1, 2, 3) for block in range(3)} - padded
    assert not any(own[name].any() for name in zeroed)
    given = network(replace(shallow, weights="pretrained"), source).state_dict()
    assert all(given[name].all() for name in zeroed)


def test_options_of_the_network_are_kept(tmp_path: Path) -> None:
    request = replace(REQUEST, model="ghost_resnet20", model_kwargs={"ratio": 4, "cheap_size": 1})
    train(request, tmp_path / "run")
    again = ghostnets.from_pretrained(tmp_path / "run")
    wanted = ghostnets.create_model("ghost_resnet20", in_chans=1, ratio=4, cheap_size=1)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in wanted.state_dict().items()}


def test_a_tracker_hears_every_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = train(replace(REQUEST, recipe=replace(RECIPE, epochs=2)), tmp_path / "run", tracker="tensorboard")
    assert record is not None
    file = min((tmp_path / "run").rglob("events.out.*"), key=lambda path: len(path.parts))  # a deeper one has the knobs
    events = EventAccumulator(str(file.parent)).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in record.history])
    assert events.Scalars("test/top1")[0].value == pytest.approx(record.quality.top1)


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate.tracking

    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
    with pytest.raises(MissingExtra, match=r"pip install 'ghostnets\[wandb\]'"):
        make_accelerator(RECIPE, "wandb", tmp_path)


def test_the_average_is_what_is_kept(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=0.5, model_ema_decay=1.0)  # never forgets more than the early warm-up lets it
    train(replace(REQUEST, recipe=recipe), tmp_path / "run")
    from ghostnets.training.checkpoint import checkpoints, read_checkpoint

    state = read_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[0])
    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in state["average"].items())
    assert any(not torch.equal(kept[n.removeprefix("network.")], t) for n, t in state["pupil"].items())


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(4):
            (folder / name / f"{k}.png").write_bytes(b"")
    request = TrainRequest(
        model="resnet20", data=str(folder), recipe=replace(RECIPE, batch_size=2, kd_model="resnet20.digits")
    )
    with pytest.raises(UserError, match="tells 10 classes apart, and the images have 2"):
        train(request, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_may_come_from_a_file_and_must_fit(tmp_path: Path) -> None:
    teacher = f"{Path(__file__).with_name('tiny.py')}:build"
    request = replace(REQUEST, recipe=replace(RECIPE, kd_model=teacher, kd_features=0.5))
    assert train(request, tmp_path / "run") is not None
    with pytest.raises(UserError, match="does not take images of 32×32 with 3 channels"):
        train(replace(request, in_chans=3), tmp_path / "other")


class Particular(nn.Module):
    """Takes images of 32×32 or 24×24 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] not in {24, 32}:
            raise ValueError(f"no {x.shape[2]}")
        return self.linear(x[:, :, :2, :2].flatten(1))


@pytest.mark.parametrize("who", ["network", "teacher"])
@pytest.mark.parametrize(("share", "grows", "size"), [(0.5, True, 16), (0.75, True, 28), (0.75, False, None)])
def test_images_too_small_for_the_network_are_refused(
    tmp_path: Path, who: str, share: float, size: int | None, *, grows: bool
) -> None:
    """Growing, three quarters become seven eighths."""
    file = f"{Path(__file__)}:Particular"
    recipe = replace(RECIPE, epochs=2, low_res=share, low_res_until=1.0, low_res_grows=grows)
    request = replace(REQUEST, model=file) if who == "network" else REQUEST
    request = replace(request, recipe=replace(recipe, kd_model=None if who == "network" else file))
    if size is None:
        assert train(request, tmp_path / "run", max_steps=1) is None
        return
    message = (
        f"low_res {share} makes images of {size}×{size}, and the {who} does not take them: no {size}: write low_res 1"
    )
    with pytest.raises(UserError, match=message):
        train(request, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_views_without_a_teacher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kd_views 3 without a teacher only repeats itself: name a kd_model"):
        train(replace(REQUEST, recipe=replace(RECIPE, kd_views=3)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch's compiler
def test_a_compiled_run_comes_to_the_same_network(tmp_path: Path) -> None:
    compiled, plain = (
        train(replace(REQUEST, recipe=replace(RECIPE, compile=c, momentum=0.0)), tmp_path / str(c))
        for c in (True, False)
    )
    assert compiled is not None
    assert plain is not None
    assert compiled.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-3)
    names = load_file(tmp_path / "True" / "model.safetensors").keys()
    assert names == load_file(tmp_path / "False" / "model.safetensors").keys()


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(REQUEST, tmp_path / "run", max_steps=1)
    with pytest.raises(UserError, match="holds a run already: go on with --resume"):
        train(REQUEST, tmp_path / "run")
    with pytest.raises(UserError, match="holds a run with another seed: go on with"):
        train(replace(REQUEST, seed=9), tmp_path / "run", resume=True)


@pytest.mark.parametrize("change", [{"workers": -1}, {"max_bad": -1}, {"hold_out": -1}, {"seed": 2**32}])
def test_figures_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=str(next(iter(change.values())))):
        replace(REQUEST, **change)


def test_what_the_log_says_is_json_with_times(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    train(replace(REQUEST, recipe=replace(RECIPE, epochs=1)), tmp_path / "run", log=heard.append)
    lines = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps(heard))
    assert [line["event"] for line in lines] == ["epoch", "end"]
    assert all("time" in line for line in lines)


def test_images_are_asked_for_as_the_request_says() -> None:
    source = open_source(asked(replace(REQUEST, input_size=(16, 16), mean=(0.5,), std=(0.5,), hold_out=37)))
    assert (source.input_size, source.mean, source.std) == ((1, 16, 16), (0.5,), (0.5,))
    assert len(source.test) == 37


def test_to_stop_at_the_last_step_is_to_finish(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=0.5)
    steps = round(0.5 * (1437 // 64))
    assert train(replace(REQUEST, recipe=recipe), tmp_path / "a", max_steps=steps - 1) is None
    assert not (tmp_path / "a" / "train.json").exists()
    record = train(replace(REQUEST, recipe=recipe), tmp_path / "b", max_steps=steps)
    assert record is not None
    assert record.history[-1]["step"] == steps


# --- a network that has learned already


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network that comes with the package, half of its layers Ghost modules, some with a gather behind them."""
    out = tmp_path_factory.mktemp("upgraded")
    digits = load_dataset("digits", size=(16, 16))
    small = replace(digits, train=digits.train.subset(slice(0, 200)), test=digits.test.subset(slice(0, 60)))
    ghostnets.upgrade(
        ghostnets.create_model("resnet20.digits", pretrained=True), dataset=small, budget=ghostnets.Budget(macs=0.6),
        recover="none", calibration_images=50, model_name="resnet20.digits", out=out,
    )  # fmt: skip
    return out


def test_an_upgraded_network_learns_on(upgraded: Path, tmp_path: Path) -> None:
    before = ghostnets.from_pretrained(upgraded)
    still = replace(REQUEST, model=str(upgraded), recipe=replace(RECIPE, lr=0.0, weight_decay=0.0))
    train(still, tmp_path / "still")
    same = ghostnets.from_pretrained(tmp_path / "still")
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, dict(same.named_parameters())[name]), name
    train(replace(still, recipe=RECIPE), tmp_path / "on")
    learned = ghostnets.from_pretrained(tmp_path / "on")
    assert list(learned.state_dict()) == list(before.state_dict())
    assert not torch.equal(next(learned.parameters()), next(before.parameters()))
    config = read_json(tmp_path / "on" / "config.json")
    wanted = read_json(upgraded / "config.json")
    assert config["edits"] == wanted["edits"]
    assert config["mean"] == wanted["mean"]
    again = ghostnets.from_pretrained(tmp_path / "on")
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), learned.eval()(x))


def test_what_it_was_trained_with_is_asked_of_the_images_too(upgraded: Path) -> None:
    wanted = read_json(upgraded / "config.json")
    assert list(asked(replace(REQUEST, model=str(upgraded))).mean or ()) == wanted["mean"]
    assert asked(replace(REQUEST, model=str(upgraded), mean=(0.5,))).mean == (0.5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "pretrained"}, "leave out --weights, --model-kwargs and --drop"),
        ({"model_kwargs": {"ratio": 4}}, "leave out --weights"),
        ({"recipe": replace(RECIPE, drop=0.1)}, "leave out --weights"),
    ],
)
def test_what_it_has_already_is_not_given_again(
    upgraded: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(replace(REQUEST, model=str(upgraded), **change), tmp_path / "out")


def test_other_classes_than_it_knows_are_refused(upgraded: Path, tmp_path: Path) -> None:
    other = tmp_path / "set"
    for name in "ab":
        (other / name).mkdir(parents=True)
        for k in range(40):
            Image.new("L", (32, 32), k).save(other / name / f"{k}.png")
    with pytest.raises(UserError, match=r"gives \(1, 10\) for one image, and the images have 2 classes"):
        train(replace(REQUEST, model=str(upgraded), data=str(other)), tmp_path / "out")
