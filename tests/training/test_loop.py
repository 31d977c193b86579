# SPDX-License-Identifier: Apache-2.0
"""The loop against one written out by hand, against itself killed and gone on with, and against itself in two processes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.trainer import make_accelerator
from ghostnets.training.checkpoint import checkpoints, read_checkpoint, save_checkpoint
from ghostnets.training.data import Augment, Images, normalise
from ghostnets.training.draw import generator
from ghostnets.training.feed import MemoryFeed
from ghostnets.training.loop import CHECKPOINTS, Run, Trained, train
from ghostnets.training.recipe import Recipe
from ghostnets.training.source import Source
from ghostnets.training.teacher import Teacher

SCRIPT = Path(__file__).with_name("small_run.py")
PLAIN = Recipe(epochs=3, batch_size=8, lr=0.1, momentum=0.9, weight_decay=0.01, hflip="none", channels_last=False)


def images(count: int, seed: int) -> Images:
    source = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 6, 6), generator=source, dtype=torch.uint8)
    return Images(pixels=pixels, labels=torch.randint(3, (count,), generator=source))


@pytest.fixture
def source() -> Source:
    augment = Augment(padding=0, flip=False)
    return Source(
        name="noise", train=MemoryFeed(images(37, 0), augment), test=MemoryFeed(images(20, 1), augment),
        classes=("a", "b", "c"), input_size=(3, 6, 6), mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))


def go(network: nn.Module, recipe: Recipe, source: Source, out: Path, **options: Any) -> Trained:
    return train(network, recipe, Run(source=source, folder=out, **options), make_accelerator(recipe))


def test_it_does_what_a_loop_by_hand_does(network: nn.Module, source: Source, tmp_path: Path) -> None:
    before = copy.deepcopy(network.state_dict())
    done = go(network, PLAIN, source, tmp_path, seed=5)
    own = copy.deepcopy(network).train()
    vectors = [p for p in own.parameters() if p.ndim == 1]
    matrices = [p for p in own.parameters() if p.ndim > 1]
    optimizer = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.1, momentum=0.9, nesterov=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * 4)
    assert isinstance(source.train, MemoryFeed)
    pixels, labels = source.train.images.pixels, source.train.images.labels
    assert labels is not None
    losses: list[float] = []
    for epoch in range(3):
        order = torch.randperm(37, generator=generator(5, epoch))[:32]
        for index in order.split(8):
            x = normalise(pixels[index], source.mean, source.std)
            loss = F.cross_entropy(own(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(done.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert [row["loss"] for row in done.history] == pytest.approx(
        [sum(losses[4 * k : 4 * k + 4]) / 4 for k in range(3)], rel=1e-5
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert done.epochs == 3


def test_parts_of_a_batch_add_up_to_the_whole(source: Source, tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))  # a norm would see the parts
    whole = go(plain, PLAIN, source, tmp_path / "whole")
    parts = go(plain, replace(PLAIN, grad_accum_steps=4), source, tmp_path / "parts")
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_classifier_learns_alone_for_as_long_as_asked(network: nn.Module, source: Source, tmp_path: Path) -> None:
    done = go(network, replace(PLAIN, epochs=1, head_epochs=1), source, tmp_path)
    after = done.model.state_dict()
    for name, parameter in network.named_parameters():
        assert torch.equal(after[name], parameter) == (not name.startswith("4.")), name


def test_norms_stay_as_they_are_while_the_classifier_learns_alone(
    network: nn.Module, source: Source, tmp_path: Path
) -> None:
    done = go(network, replace(PLAIN, epochs=1, head_epochs=0.5), source, tmp_path / "half", max_steps=2)
    assert all(torch.equal(t, done.model.state_dict()[n]) for n, t in network.state_dict().items() if "1." in n[:2])
    done = go(network, replace(PLAIN, epochs=1, head_epochs=0.5), source, tmp_path / "whole")
    assert not torch.equal(done.model.state_dict()["1.running_mean"], network.state_dict()["1.running_mean"])


def test_layers_learn_the_more_slowly_the_deeper_they_lie(network: nn.Module, source: Source, tmp_path: Path) -> None:
    """One step of plain SGD: how far a layer moves is its rate times its gradient."""
    one = replace(PLAIN, epochs=0.25, momentum=0, weight_decay=0)
    runs = [go(network, replace(one, layer_decay=d), source, tmp_path / str(d)).model.state_dict() for d in (1.0, 0.5)]
    for name, depth in (("4.weight", 0), ("1.bias", 1), ("0.weight", 2)):
        full, slow = (after[name] - network.state_dict()[name] for after in runs)
        torch.testing.assert_close(slow, full * 0.5**depth, rtol=1e-3, atol=1e-6)


def test_a_teacher_alone_is_imitated(source: Source, tmp_path: Path) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    recipe = replace(PLAIN, epochs=150, lr=0.02, weight_decay=0, kd_alpha=1.0, kd_temperature=1.0)
    done = go(small, recipe, source, tmp_path, teacher=teacher)
    assert isinstance(source.train, MemoryFeed)
    x = normalise(source.train.images.pixels, source.mean, source.std)
    with torch.no_grad():
        ours, wanted, start = (net(x).softmax(1) for net in (done.model, teacher, small))
    assert float((ours - wanted).abs().mean()) < 0.1 * float((start - wanted).abs().mean())
    assert not any(p.grad is not None for p in teacher.parameters())


@pytest.mark.parametrize("features", [0.0, 0.3])
def test_a_teacher_that_remembers_teaches_the_same(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: float
) -> None:
    """Against one that is asked every time; four batches of two parts in each of two views of three sizes and mixtures."""
    asked: list[Tensor] = []
    pooled = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))
    teacher = copy.deepcopy(pooled)
    teacher.register_forward_hook(lambda _module, inputs, _output: asked.append(inputs[0]))
    recipe = replace(
        PLAIN, epochs=8, kd_views=2, kd_features=features, mixup=0.5, mixup_off_epoch=6, low_res=0.7, low_res_until=0.5, grad_accum_steps=2
    )  # fmt: skip
    done = [go(pooled, recipe, source, tmp_path / "remembers", teacher=teacher)]
    if features:
        del asked[0]  # the one that shows how wide it is
    assert len(asked) == 4 * 2 * 2 * 3
    monkeypatch.setattr(Teacher, "__call__", lambda self, images, _sight: self.network(images))
    done.append(go(pooled, recipe, source, tmp_path / "asked", teacher=teacher))
    assert len(asked) == 4 * 2 * (2 * 3 + 8) + bool(features)
    same(done[0].model.state_dict(), done[1].model.state_dict())
    assert done[0].history[-1]["loss"] == done[1].history[-1]["loss"]


class Bomb(nn.Module):
    """Gives NaN from its ``fuse``-th training step on."""

    def __init__(self, fuse: int) -> None:
        super().__init__()
        self.linear, self.fuse, self.seen = nn.Linear(108, 3), fuse, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        return self.linear(x.flatten(1)) * (float("nan") if self.seen > self.fuse else 1.0)


def test_a_loss_that_is_no_number_stops_the_run(source: Source, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is nan at step 0 .*lower lr 0\.1.*there is no checkpoint yet"):
        go(Bomb(0), PLAIN, source, tmp_path / "a")
    with pytest.raises(
        UserError, match=r"nan at step 6 \(epoch 1\.50\).*last good checkpoint is .*step-000000006\.ckpt"
    ):
        go(Bomb(6), PLAIN, source, tmp_path / "b", checkpoint_seconds=0)
    assert read_checkpoint(checkpoints(tmp_path / "b" / CHECKPOINTS)[0])["step"] == 6


def test_a_damaged_checkpoint_gives_way_to_the_one_before(network: nn.Module, source: Source, tmp_path: Path) -> None:
    whole = go(network, PLAIN, source, tmp_path / "whole")
    go(network, PLAIN, source, tmp_path / "cut", max_steps=7, checkpoint_seconds=0)
    newest, older = checkpoints(tmp_path / "cut" / CHECKPOINTS)
    newest.write_bytes(newest.read_bytes()[:-9])
    heard: list[dict[str, Any]] = []
    done = go(network, PLAIN, source, tmp_path / "cut", log=heard.append)
    assert f"{newest} is cut off or damaged" in heard[0]["text"]
    assert heard[1] == {"event": "resume", "step": 6}
    assert older.name == "step-000000006.ckpt"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, done.model.state_dict()[name])


def test_a_finished_run_is_not_run_again(network: nn.Module, source: Source, tmp_path: Path) -> None:
    once = go(network, PLAIN, source, tmp_path)
    twice = go(network, PLAIN, source, tmp_path)
    assert twice.history == once.history
    assert all(torch.equal(t, twice.model.state_dict()[n]) for n, t in once.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": replace(PLAIN, lr=0.2)}, r"holds another run \(lr 0\.1, not 0\.2\)"),
        ({"seed": 1}, r"another run \(seed 0, not 1\)"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(108, 3))}, r"another run \(network \w+, not \w+\)"),
    ],
)
def test_another_run_is_not_gone_on_with(
    network: nn.Module, source: Source, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    go(network, PLAIN, source, tmp_path, max_steps=2)
    with pytest.raises(UserError, match=message):
        go(change.get("network", network), change.get("recipe", PLAIN), source, tmp_path, seed=change.get("seed", 0))


@pytest.mark.parametrize(("value", "resumes"), [(0.0, True), (0.1, False)])
def test_a_setting_that_came_later_is_what_it_is_unless_set(
    network: nn.Module, source: Source, tmp_path: Path, value: float, *, resumes: bool
) -> None:
    folder = tmp_path / CHECKPOINTS
    go(network, PLAIN, source, tmp_path, max_steps=2)
    state = read_checkpoint(checkpoints(folder)[0])
    del state["run"]["smoothing"]  # as if the run were older than it
    save_checkpoint(folder, 3, {**state, "step": 3})
    recipe = replace(PLAIN, smoothing=value)
    if resumes:
        assert go(network, recipe, source, tmp_path).finished
    else:
        with pytest.raises(UserError, match=r"smoothing 0\.0, not 0\.1"):
            go(network, recipe, source, tmp_path)


def test_features_are_compared_through_a_layer_that_the_seed_draws(source: Source, tmp_path: Path) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(108, 12), nn.Tanh(), nn.Linear(12, 3))
    small = nn.Sequential(nn.Flatten(), nn.Linear(108, 7), nn.Tanh(), nn.Linear(7, 3))
    recipe = replace(PLAIN, epochs=1, kd_features=1.0)
    states = []
    for k in range(2):
        torch.manual_seed(k)
        go(small, recipe, source, tmp_path / str(k), teacher=teacher)
        states.append(read_checkpoint(checkpoints(tmp_path / str(k) / CHECKPOINTS)[0])["pupil"])
    assert states[0]["adapter.weight"].shape == (12, 7)
    same(states[0], states[1])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"batch_size": 40}, "37 training images do not fill one batch of 40"),
        (
            {"batch_size": 9, "grad_accum_steps": 2},
            "9 cannot be shared by 1 processes in 2 parts each: make it a multiple",
        ),
        ({"amp_dtype": "float16"}, "float16 trains on a GPU alone"),
    ],
)
def test_what_does_not_fit_is_refused(
    network: nn.Module, source: Source, tmp_path: Path, knobs: dict[str, Any], message: str
) -> None:
    if torch.cuda.is_available() and "amp_dtype" in knobs:
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message):
        go(network, replace(PLAIN, **knobs), source, tmp_path)
    assert not list(tmp_path.iterdir())


def test_half_precision_trains(network: nn.Module, source: Source, tmp_path: Path) -> None:
    done = go(network, replace(PLAIN, amp_dtype="bfloat16", epochs=20), source, tmp_path)
    assert done.history[-1]["loss"] < 0.5 * done.history[0]["loss"]
    assert all(p.dtype == torch.float32 for p in done.model.parameters())


# --- in processes of their own


def script(*words: object, processes: int = 1) -> str:
    runner = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    )
    command = [sys.executable, *runner, str(SCRIPT), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, but for what a clock has said."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert set(one) == set(other), where
        for key in one:
            if key not in {"seconds", "images_per_second", "memory_mib"}:
                same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for k, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}[{k}]")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_twenty_times_ends_as_if_it_never_had_been(tmp_path: Path, seed: int) -> None:
    script("whole", tmp_path / "whole")
    hit = int(script("killed", tmp_path / "killed", 20, seed).split()[-1])
    assert hit >= 5  # the others were over before the signal came
    whole, killed = (read_checkpoint(checkpoints(tmp_path / name / CHECKPOINTS)[0]) for name in ("whole", "killed"))
    same(whole, killed)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    ]
    same(rows[0], rows[1])
    assert len(rows[0]) == 9
    assert not list((tmp_path / "killed").rglob(".*"))  # nothing half written is left


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        script("shared", tmp_path / str(processes), "sync", processes=processes)
    one, two = (torch.load(tmp_path / str(n) / "weights-0.pt", weights_only=True) for n in (1, 2))
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-5, atol=1e-5)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_without_it_every_process_has_norms_of_its_own(tmp_path: Path) -> None:
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        script("shared", tmp_path / str(processes), "plain", processes=processes)
    one, two = (torch.load(tmp_path / str(n) / "weights-0.pt", weights_only=True)["weights"] for n in (1, 2))
    assert max(float((one[name] - two[name]).abs().max()) for name in one if "running" in name) > 1e-3
    other = torch.load(tmp_path / "2" / "weights-1.pt", weights_only=True)["weights"]
    same(two, other)  # in the end they all measure the first one's network
