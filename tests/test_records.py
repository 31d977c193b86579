# SPDX-License-Identifier: Apache-2.0
"""Records through JSON and back, what is refused by name, and files that are written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostnets.errors import GhostnetsError, MissingExtra, UserError
from ghostnets.records import (
    Budget,
    Cost,
    Decision,
    Pairing,
    Plan,
    Site,
    Step,
    UpgradeRecord,
    from_json,
    read_json,
    to_json,
    write_json,
    write_text,
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 10**12)
words = st.text(max_size=12)
indices = st.lists(st.integers(0, 99), max_size=6).map(tuple)
budgets = st.one_of(
    st.builds(Budget, macs=st.floats(1e-6, 1e12)),
    st.builds(Budget, ratio=st.integers(2, 16), kernel=st.sampled_from([1, 3, 5, 7])),
)
decisions = st.builds(
    Decision, name=words, decision=st.sampled_from(["ghost", "keep"]), ratio=counts, kernel=counts,
    order=st.sampled_from(["folded", "agreed", "gather", "none"]), reason=words, macs_before=counts, macs_after=counts,
    params_before=counts, params_after=counts, gathered=counts, divergence=st.none() | numbers,
)  # fmt: skip
plans = st.builds(
    Plan, budget=budgets, decisions=st.lists(decisions, max_size=3).map(tuple), macs_before=counts, macs_after=counts,
    params_before=counts, params_after=counts, seed=counts, calibration_images=counts,
)  # fmt: skip
outcomes = decisions.map(Decision.outcome)
costs = st.builds(Cost, params=counts, macs=counts, top1=numbers, latency_ms=numbers)
steps = st.builds(
    Step, name=st.sampled_from(["closed form", "blocks", "distil"]), top1=numbers, seconds=numbers, epochs=numbers
)
upgrades = st.builds(
    UpgradeRecord, model=words, data=words, budget=budgets.map(Budget.as_dict), seed=counts, before=costs, after=costs,
    steps=st.lists(steps, max_size=3).map(tuple), sites=st.lists(outcomes, max_size=2).map(tuple),
    environment=st.dictionaries(words, st.none() | st.booleans() | numbers | words | st.lists(words, max_size=2), max_size=3),
)  # fmt: skip
pairs = st.tuples(st.integers(1, 9), st.integers(1, 9))
sites = st.builds(
    Site, name=words, norm=st.none() | words, act=st.none() | words, relu=st.booleans(), in_channels=counts,
    out_channels=counts, kernel_size=pairs, stride=pairs, out_size=pairs, macs=counts, params=counts, stream=counts,
    foldable=st.booleans(),
)  # fmt: skip
pairings = st.builds(
    Pairing, name=words, intrinsic=indices, source=indices, order=indices, primary_error=numbers, ghost_error=numbers
)


@settings(max_examples=60)
@given(st.one_of(plans, upgrades, sites, pairings))
def test_a_record_comes_back_from_json_as_it_was(record: Any) -> None:
    assert from_json(type(record), json.loads(json.dumps(to_json(record)))) == record


PLAN = Plan(
    budget=Budget(macs=0.5),
    decisions=(
        Decision(
            name="conv", decision="ghost", ratio=2, kernel=3, order="folded", reason="", macs_before=4, macs_after=2,
            params_before=4, params_after=2,
        ),
    ),
    macs_before=4, macs_after=2, params_before=4, params_after=2, seed=0, calibration_images=8,
)  # fmt: skip


def _edited(where: str, value: Any) -> dict[str, Any]:
    """The plan's JSON with one value replaced; ``where`` is a path like decisions.0.ratio."""
    data = to_json(PLAN)
    *path, last = where.split(".")
    inner: Any = data
    for key in path:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("seed", "0", 'Plan.seed should be a whole number, not "0"'),
        ("seed", True, "Plan.seed should be a whole number, not true"),
        ("seed", 1.0, "Plan.seed should be a whole number, not 1.0"),
        ("seed", None, "Plan.seed should be a whole number, not null"),
        ("budget", 3, "Plan.budget should be an object, not int"),
        ("budget.macs", "half", 'Plan.budget.macs should be a number or null, not "half"'),
        ("budget.macs", True, "Plan.budget.macs should be a number or null, not true"),
        ("budget.kernel", 2, "kernel 2 must be odd and positive"),
        ("decisions", {}, "Plan.decisions should be a list, not {}"),
        ("decisions.0.name", 7, "Plan.decisions[0].name should be a string, not 7"),
        ("decisions.0.decision", "drop", "Plan.decisions[0].decision should be one of 'ghost', 'keep', not \"drop\""),
        ("decisions.0.divergence", [0.1], "Plan.decisions[0].divergence should be a number or null, not [0.1]"),
        ("decisions.0.colour", "red", "Plan.decisions[0] has unknown fields ['colour'] and lacks []"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(where: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_json(Plan, _edited(where, value))
    assert str(caught.value) == message


def test_missing_fields_are_named_all_at_once() -> None:
    data = to_json(PLAN)
    del data["seed"], data["macs_after"]
    with pytest.raises(UserError, match=r"unknown fields \[\] and lacks \['macs_after', 'seed'\]"):
        from_json(Plan, data)


def test_pairs_of_the_wrong_length_and_truths_that_are_numbers_are_refused() -> None:
    site = Site(
        name="c", norm=None, act=None, relu=True, in_channels=8, out_channels=8, kernel_size=(3, 3), stride=(1, 1),
        out_size=(4, 4), macs=1, params=1, stream=0, foldable=True,
    )  # fmt: skip
    for size in ([3], [3, 3, 3]):
        with pytest.raises(UserError, match=rf"Site.kernel_size should have 2 values, not {len(size)}"):
            from_json(Site, {**to_json(site), "kernel_size": size})
    with pytest.raises(UserError, match=r"Site.relu should be true or false, not 1"):
        from_json(Site, {**to_json(site), "relu": 1})
    with pytest.raises(UserError, match=r"Site.stride\[1\] should be a whole number"):
        from_json(Site, {**to_json(site), "stride": [1, None]})


def test_a_whole_number_serves_as_a_float_and_becomes_one() -> None:
    cost = from_json(Cost, {"params": 1, "macs": 2, "top1": 93, "latency_ms": 4})
    assert cost == Cost(params=1, macs=2, top1=93.0, latency_ms=4.0)
    assert type(cost.top1) is float
    assert from_json(Budget, {"macs": 1}) == Budget(macs=1.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Budget, "a budget names either macs or ratio, not both and not neither"),
        (lambda: Budget(macs=0.5, ratio=2), "a budget names either macs or ratio, not both and not neither"),
        (lambda: Budget(macs=0), "budget macs=0 must be above 0 and finite"),
        (lambda: Budget(macs=-1.5), "budget macs=-1.5 must be above 0 and finite"),
        (lambda: Budget(macs=float("inf")), "budget macs=inf must be above 0 and finite"),
        (lambda: Budget(macs=float("nan")), "budget macs=nan must be above 0 and finite"),
        (lambda: Budget(ratio=1), "ratio 1 must be at least 2: a ratio of 1 leaves a convolution as it is"),
        (lambda: Budget(ratio=2, kernel=0), "kernel 0 must be odd and positive"),
        (lambda: Budget(ratio=2, kernel=4), "kernel 4 must be odd and positive"),
    ],
)
def test_a_budget_that_means_nothing_is_refused_in_a_sentence(build: Callable[[], Budget], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert str(caught.value) == message


def test_a_budget_shows_only_what_was_asked() -> None:
    assert Budget(macs=0.5).as_dict() == {"macs": 0.5}
    assert Budget(ratio=4, kernel=5).as_dict() == {"ratio": 4, "kernel": 5}


def test_files_are_written_whole_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plan.json"
    write_json(path, PLAN)
    assert from_json(Plan, read_json(path)) == PLAN
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert list(path.parent.iterdir()) == [path]
    beside = path.parent / "by-hand"
    beside.write_text("")
    assert path.stat().st_mode == beside.stat().st_mode  # not the 0600 of a temporary file


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = tmp_path / "run.json"
    write_text(path, "old")

    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(error):
        write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert path.read_text() == "old"


def test_text_that_cannot_be_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "page", "a" * 100_000 + "\ud800")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/plan.json cannot be written: "):
        write_text(tmp_path / "file" / "plan.json", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder cannot be written: "):
        write_text(tmp_path / "folder", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_what_is_no_json_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"gone.json does not exist"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=r"bad.json cannot be read as JSON: "):
        read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(tmp_path)


def test_every_error_is_one_of_ours_and_a_missing_extra_says_how_to_get_it() -> None:
    error = MissingExtra("the ONNX file", "onnx")
    assert isinstance(error, UserError)
    assert issubclass(UserError, GhostnetsError)
    assert str(error) == "the ONNX file needs the extra 'onnx': pip install 'ghostnets[onnx]'"
