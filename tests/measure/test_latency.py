# SPDX-License-Identifier: Apache-2.0
"""A race is fair and its figures are right: held against a clock of our own, never against real time."""

from __future__ import annotations

import gc
import getpass
import itertools
import json
import platform
import statistics
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostnets.errors import UserError
from ghostnets.measure import latency
from ghostnets.measure.latency import environment, race, torch_latency


class Clock:
    """A clock that moves only when a contestant says so; it writes down who ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def runner(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.ran.append(name)
            self.now += seconds()

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def turns(ran: list[str]) -> list[str]:
    return [name for name, _ in itertools.groupby(ran)]


def test_figures_are_those_of_the_clock(clock: Clock) -> None:
    fast = itertools.cycle([0.001, 0.002, 0.003, 0.004])
    result = race(
        {"slow": clock.runner("slow", lambda: 0.008), "fast": clock.runner("fast", lambda: next(fast))},
        rounds=8,
        seconds=0.5,
        warmup=4,
    )
    assert result["slow"].median_ms == pytest.approx(8)
    assert result["slow"].lower_ms == pytest.approx(8)
    assert (result["slow"].ratio, result["slow"].ratio_lower, result["slow"].ratio_upper) == (1, 1, 1)
    figures = result["fast"]
    assert 1 - 1e-9 <= figures.lower_ms <= figures.median_ms <= figures.upper_ms <= 4 + 1e-9
    assert figures.ratio_lower <= figures.ratio <= figures.ratio_upper <= 0.5 + 1e-9
    assert figures.ratio == pytest.approx(2.5 / 8, abs=0.13)


def test_quartiles_equal_those_of_the_standard_library(clock: Clock) -> None:
    seconds = torch.rand(100, generator=torch.Generator().manual_seed(1)).tolist()
    given_times = iter([1.0, *seconds])  # one warm-up run
    result = race({"a": clock.runner("a", lambda: next(given_times))}, rounds=5, seconds=10.5, warmup=1)["a"]
    counted = [time for index, time in enumerate(seconds[: len(clock.ran) - 1]) if index % (result.n // 5 + 1)]
    assert len(counted) == result.n
    expected = statistics.quantiles([1e3 * time for time in counted], n=4, method="inclusive")
    assert [result.lower_ms, result.median_ms, result.upper_ms] == pytest.approx(expected)


def test_a_drifting_machine_leaves_the_ratio_alone(clock: Clock) -> None:
    speed = 1.0

    def drifting(base: float) -> Callable[[], float]:
        def seconds() -> float:
            nonlocal speed
            speed *= 1.01
            return base * speed

        return seconds

    contestants = {"a": clock.runner("a", drifting(0.01)), "b": clock.runner("b", drifting(0.005))}
    result = race(contestants, rounds=20, seconds=1e-6, warmup=1)
    assert result["b"].ratio == pytest.approx(0.5, rel=0.05)
    assert result["a"].upper_ms > 1.2 * result["a"].lower_ms  # while the machine did change


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_everyone_has_every_place_equally_often(clock: Clock, count: int) -> None:
    names = [f"c{i}" for i in range(count)]
    race({n: clock.runner(n, lambda: 0.001) for n in names}, rounds=2 * count, seconds=1e-6, warmup=1)
    assert clock.ran[:count] == names  # warm-up
    rounds = [clock.ran[count:][i : i + 2 * count : 2] for i in range(0, len(clock.ran) - count, 2 * count)]
    assert len(rounds) == 2 * count
    places = Counter((place, name) for order in rounds for place, name in enumerate(order))
    assert set(places.values()) == {2}
    assert len(places) == count**2


def test_the_seed_decides_who_begins_and_nothing_else_is_random(clock: Clock) -> None:
    def beginners(seed: int) -> list[str]:
        clock.ran.clear()
        race({n: clock.runner(n, lambda: 0.001) for n in "abcd"}, rounds=3, seconds=0.1, warmup=1, seed=seed)
        return turns(clock.ran)[4:]

    assert beginners(0) == beginners(0)
    assert len({tuple(beginners(seed)) for seed in range(12)}) > 1


@given(rounds=st.integers(1, 30), seconds=st.floats(0.01, 20), each=st.floats(1e-4, 1e-1))
def test_the_time_asked_for_is_the_time_taken(rounds: int, seconds: float, each: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        contestants = {n: clock.runner(n, lambda: each) for n in "ab"}
        result = race(contestants, rounds=rounds, seconds=seconds, warmup=2)
    raced = clock.now - 4 * each
    assert raced <= max(seconds, rounds * 2 * 2 * each) * 1.001
    assert raced >= min(seconds, rounds * 2 * 2 * each) - rounds * 2 * each * 1.001
    assert {figures.n % rounds for figures in result.values()} == {0}


def test_garbage_is_not_collected_in_between_and_again_afterwards() -> None:
    seen: set[bool] = set()
    race({"a": lambda: seen.add(gc.isenabled())}, rounds=2, seconds=1e-6, warmup=0)
    assert False in seen
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        race({"a": lambda: 1 / len(seen - {True, False})}, rounds=2, seconds=1e-6)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("keywords", "words"),
    [({"rounds": 0}, "0 rounds"), ({"seconds": 0}, "0 seconds"), ({"seconds": float("nan")}, "nan"), ({"warmup": -1}, "-1 warm")],
)  # fmt: skip
def test_races_that_cannot_be_run_are_refused(keywords: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        race({"a": lambda: None}, **keywords)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="at least one contestant"):
        race({})


class Watcher(nn.Module):
    """Writes down how it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout()
        self.seen: set[tuple[bool, bool, bool, int, int]] = set()

    def forward(self, x: Tensor) -> Tensor:
        inference = torch.is_inference_mode_enabled()
        self.seen.add((self.training, self.dropout.training, inference, torch.get_num_threads(), len(x)))
        return self.dropout(self.norm(x))


def test_networks_run_in_evaluation_and_come_back_as_they_were() -> None:
    model = Watcher()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    result = torch_latency({"a": model}, torch.randn(1, 3, 4, 4), rounds=2, seconds=1e-3)
    assert model.seen == {(False, False, True, 1, 1)}
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert result["a"].median_ms > 0
    with pytest.raises(RuntimeError):
        torch_latency({"a": model}, torch.randn(1, 2, 4, 4), threads=threads + 1)
    assert (model.training, model.norm.training, torch.get_num_threads()) == (True, False, threads)
    with pytest.raises(UserError, match="0 threads"):
        torch_latency({"a": model}, torch.randn(1, 3, 4, 4), threads=0)


def test_the_environment_says_what_matters_and_no_names() -> None:
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert found["threads"] == torch.get_num_threads()
    age = datetime.now(timezone.utc) - datetime.fromisoformat(found["date"])
    assert abs(age.total_seconds()) < 60
    text = json.dumps(found)
    assert json.loads(text) == found
    for secret in (platform.node(), getpass.getuser(), str(Path.home())):
        assert len(secret) < 3 or secret not in text  # a name of one letter is in any text


X86 = "processor\t: 0\nmodel name\t: Some Processor @ 2.0GHz\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_tile\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n"


def test_processors_are_read_as_linux_describes_them(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(2 * X86)
    assert latency._processor(path) == ("Some Processor @ 2.0GHz", ["AVX2", "AVX-512", "AVX-512 VNNI", "AMX"])
    path.write_text(ARM)
    assert latency._processor(path)[1] == ["NEON", "NEON dot product"]
    assert latency._processor(tmp_path / "no such file")[0]


@pytest.mark.parametrize(("capability", "label"), [("AVX2", "AVX2"), ("AVX512", "AVX-512")])
def test_the_instructions_agree_with_pytorch(capability: str, label: str) -> None:
    if torch.backends.cpu.get_cpu_capability() != capability:
        pytest.skip(f"this processor is not {capability}")
    assert label in environment()["instructions"]
