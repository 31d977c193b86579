# SPDX-License-Identifier: Apache-2.0
"""Recipes against PyYAML's own reading of their files, through YAML and back, and as flags of the real command line."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from ghostnets.cli.app import app
from ghostnets.cli.knobs import Knobs, said_of_knobs, turned
from ghostnets.errors import UserError
from ghostnets.training import recipe as source
from ghostnets.training.recipe import FOLDER, Recipe, as_yaml, load_recipe, recipe_names

KNOBS = [field.name for field in dataclasses.fields(Recipe) if field.name != "expected"]
HINTS = get_type_hints(Recipe)


def refusal(name: str | Path, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(str(name), overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "own.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_these_recipes_come_with_the_package() -> None:
    assert set(recipe_names()) >= {
        "cifar10-fast", "cifar10-full", "cifar10-paper", "finetune", "imagenet-modern", "imagenet-paper",
    }  # fmt: skip


@pytest.mark.parametrize("name", recipe_names())
def test_a_named_recipe_says_what_its_file_says_and_comes_back_from_its_own_words(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    plain = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert "expected" in plain
    for knob, value in plain.items():
        read = getattr(recipe, knob)
        if isinstance(read, tuple):
            assert read == tuple(value), knob
        else:
            assert read == (float(value) if isinstance(read, float) else value), knob  # PyYAML leaves 5e-4 a word
    for knob in set(KNOBS) - set(plain):
        assert getattr(recipe, knob) == getattr(Recipe(), knob)
    assert load_recipe(str(written(tmp_path, as_yaml(recipe)))) == recipe


floats = st.floats(0, 1e6)
words = st.text(st.characters(codec="utf-8", exclude_characters="\x85"))  # PyYAML reads this one as a line feed
recipes = st.builds(
    Recipe, expected=words, epochs=st.floats(10, 1e6), batch_size=st.integers(1, 10**7),
    opt=st.sampled_from(["sgd", "adamw", "lamb"]), lr=floats, min_lr=floats, weight_decay=floats, momentum=st.floats(0, 0.99),
    clip_grad=st.none() | st.floats(1e-6, 1e6), warmup_epochs=st.floats(0, 10), sched=st.sampled_from(["cosine", "step"]),
    decay_milestones=st.lists(floats, min_size=1, max_size=4).map(tuple), drop=st.none() | st.floats(0, 0.9), reflect=st.booleans(),
    scale=st.none() | st.tuples(st.floats(1e-9, 0.5), st.floats(0.5, 1)), padding=st.none() | st.integers(0, 512),
    hflip=st.none() | st.sampled_from(["none", "random", "alternate"]), aa=st.none() | words, kd_model=st.none() | words,
    compile=st.booleans(), model_ema_decay=st.none() | st.floats(0, 1),
)  # fmt: skip


@settings(max_examples=60)
@given(recipes)
@example(Recipe(kd_model="0E0"))
def test_any_recipe_comes_back_from_its_own_words(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(as_yaml(recipe).encode())
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+5e-4", "1.e-3", "2.5e-2", "0.001", "1e3", "12E+2", "1.0e-3", "3"])
def test_numbers_are_written_as_everybody_writes_them(text: str, tmp_path: Path) -> None:
    assert load_recipe(str(written(tmp_path, f"lr: {text}\n"))).lr == float(text)


def test_words_with_an_exponent_inside_stay_words_and_pyyaml_stays_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, "expected: 1e-3 or so\nkd_model: '1e3'\naa: rand-m9-n2\n")
    recipe = load_recipe(str(path))
    assert (recipe.expected, recipe.kd_model, recipe.aa) == ("1e-3 or so", "1e3", "rand-m9-n2")
    assert yaml.safe_load("1e-3") == "1e-3"


def test_knobs_are_turned_beside_the_file(tmp_path: Path) -> None:
    changes = {"lr": 0.3, "decay_milestones": (1.0, 2.0), "hflip": None, "batch_size": 7, "reflect": True}
    assert load_recipe("cifar10-paper", changes) == dataclasses.replace(load_recipe("cifar10-paper"), **changes)
    assert load_recipe("cifar10-paper", {}) == load_recipe("cifar10-paper")
    assert load_recipe(str(written(tmp_path, "lr: 0.2\n")), {"lr": 1}) == Recipe(lr=1.0)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("cifar-fast", ["'cifar-fast'", "(did you mean cifar10-fast?)", "imagenet-paper, or name a .yaml file"]),
        ("zzz", ["there is no recipe 'zzz': choose cifar10-fast, "]),
        ("", ["there is no recipe ''"]),
        ("x" * 300, ["there is no recipe 'xxx"]),
        ("nowhere/own.yaml", ["nowhere/own.yaml cannot be read: No such file"]),
        ("x" * 300 + ".yml", ["cannot be read: File name too long"]),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(name: str, parts: list[str]) -> None:
    text = refusal(name)
    assert all(part in text for part in parts), text


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").mkdir()
    assert "own.yaml cannot be read: Is a directory" in refusal(tmp_path / "own.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [0.1", "own.yaml is no YAML: while parsing a flow sequence"),
        (b"lr: \xff\xfe", "own.yaml is no YAML: 'utf-8' codec can't decode byte 0xff"),
        ("expected: 2024-13-01", "own.yaml is no YAML: month must be in 1..12"),
        ("lr: !!int fast", "own.yaml is no YAML: invalid literal for int()"),
        ("lr: !!python/name:os.system", "own.yaml is no YAML: could not determine a constructor"),
        ("[" * 3000, "own.yaml is no YAML: "),
        ("- lr\n- 0.1\n", "own.yaml should hold knobs and their values, not list"),
        ("", "own.yaml should hold knobs and their values, not NoneType"),
        ("weigth_decay: 1e-4", "own.yaml has an unknown knob 'weigth_decay' (did you mean weight_decay?)"),
        ("zzzz: 1", "own.yaml has an unknown knob 'zzzz'"),
        ("3: 1", "own.yaml has an unknown knob 3"),
        ("opt: adam", "Recipe.opt should be one of 'sgd', 'adamw', 'lamb', 'muon', not \"adam\""),
        ("hflip: true", "Recipe.hflip should be one of 'none', 'random', 'alternate', not true"),
        ("lr: fast", 'Recipe.lr should be a number, not "fast"'),
        ("lr: null", "Recipe.lr should be a number, not null"),
        ("batch_size: 1e2", "Recipe.batch_size should be a whole number, not 100.0"),
        ("reflect: 1", "Recipe.reflect should be true or false, not 1"),
        ("scale: [0.1]", "Recipe.scale should have 2 values, not 1"),
        ("decay_milestones: 3", "Recipe.decay_milestones should be a list, not 3"),
        ("decay_milestones: [1, x]", 'Recipe.decay_milestones[1] should be a number, not "x"'),
        ("clip_grad: much", 'Recipe.clip_grad should be a number or null, not "much"'),
        (f"batch_size: {'9' * 400}", "own.yaml holds a number that is too large"),
        (f"lr: {'9' * 400}", "own.yaml holds a number that is too large"),
    ],
)
def test_a_file_that_makes_no_recipe_is_refused_in_one_sentence(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    assert message in refusal(written(tmp_path, text))


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        ("epochs", 0.0, "epochs 0 must lie between 1e-06 and 1e+06"),
        ("batch_size", 0, "batch_size 0 must lie between 1 and 1e+07"),
        ("grad_accum_steps", -1, "grad_accum_steps -1 must lie"),
        ("lr", -0.1, "lr -0.1 must lie between 0"),
        ("lr", float("nan"), "lr nan must lie"),
        ("min_lr", float("inf"), "min_lr inf must lie"),
        ("momentum", 1.0, "momentum 1 must lie between 0 and 0.9999"),
        ("smoothing", 1.0, "smoothing 1 must lie between 0 and 0.999"),
        ("drop", 1.0, "drop 1 must lie"),
        ("reprob", 1.5, "reprob 1.5 must lie between 0 and 1"),
        ("kd_temperature", 0.0, "kd_temperature 0 must lie"),
        ("kd_views", -1, "kd_views -1 must lie"),
        ("kd_alpha", -1.0, "kd_alpha -1 must lie"),
        ("clip_grad", 0.0, "clip_grad 0 must lie"),
        ("model_ema_decay", 1.1, "model_ema_decay 1.1 must lie"),
        ("layer_decay", 0.0, "layer_decay 0 must lie between 0.001 and 1"),
        ("padding", 513, "padding 513 must lie between 0 and 512"),
        ("mixup_off_epoch", -1.0, "mixup_off_epoch -1 must lie"),
        ("scale", (0.0, 1.0), "scale 0,1 must be two shares of an area, in order"),
        ("scale", (0.9, 0.1), "scale 0.9,0.1 must be"),
        ("scale", (0.5, 1.5), "scale 0.5,1.5 must be"),
        ("scale", (float("nan"), 1.0), "scale nan,1 must be"),
        ("warmup_epochs", 201.0, "warmup_epochs 201 must not be more than epochs 200"),
        ("sched", "step", "sched step needs decay_milestones, such as 82 123"),
        ("decay_milestones", (10.0, -1.0), "decay_milestones 10,-1 must be epochs, from 0 on"),
        ("decay_milestones", (float("nan"),), "decay_milestones nan must be"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(knob: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^recipe: {re.escape(message)}"):
        Recipe(**{knob: value})
    path = written(tmp_path, "expected: x\n")
    assert f"recipe: {message}" in refusal(path, {knob: value})


def test_the_ends_of_a_range_are_inside() -> None:
    widest = Recipe(
        epochs=1, warmup_epochs=1, batch_size=1, lr=0, reprob=1, kd_alpha=1, model_ema_decay=1, scale=(1, 1), layer_decay=1,
        padding=512, drop=0,
    )  # fmt: skip
    assert widest.scale == (1, 1)


def test_an_unknown_knob_that_is_turned_gets_a_hint_too() -> None:
    assert "has an unknown knob 'kd_alhpa' (did you mean kd_alpha?)" in refusal("finetune", {"kd_alhpa": 0.5})


# --- flags of the command line


def sample(kind: Any) -> tuple[list[str], Any]:
    """Words for a flag, and what they mean, by the kind of value."""
    options = [option for option in get_args(kind) if option is not type(None)]
    if len(options) < len(get_args(kind)):
        (kind,) = options
    if get_origin(kind) is Literal:
        last = get_args(kind)[-1]
        return [last], last
    if get_origin(kind) is tuple:
        return ["0.25", "0.5"], (0.25, 0.5)
    return {float: (["0.25"], 0.25), int: (["3"], 3), str: (["word"], "word"), bool: ([], True)}[kind]


def parsed(*words: str) -> dict[str, Any]:
    _, bound, _ = app.parse_args(["train", *words])
    return turned(bound.arguments.get("knobs"))


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_a_flag(knob: str) -> None:
    words, value = sample(HINTS[knob])
    flag = f"--{knob.replace('_', '-')}"
    assert parsed("resnet20", flag, *words, "--out", "x") == {knob: value}
    if HINTS[knob] is bool:
        assert parsed(f"--no-{flag[2:]}") == {knob: False}


def test_what_it_reaches_is_no_flag() -> None:
    assert {field.name for field in dataclasses.fields(Knobs)} == set(KNOBS)
    with pytest.raises(Exception, match="--expected"):
        parsed("--expected", "99")


def test_every_flag_has_the_words_that_stand_in_the_source() -> None:
    text = Path(source.__file__).read_text(encoding="utf-8")
    found = re.findall(r'^    (\w+): [^\n]*= [^\n]*\n    """(.+?)"""$', text, flags=re.MULTILINE | re.DOTALL)
    in_source = {name: re.sub(r"\s+", " ", words).rstrip(".").replace("``", "") for name, words in found}
    said = said_of_knobs()
    assert list(said) == ["expected", *KNOBS]
    assert {name: words.lower() for name, words in in_source.items()} == {n: w.lower() for n, w in said.items()}
    assert all(words and (words[0].islower() or not words[0].isalpha()) for words in said.values())
    page = io.StringIO()
    app.help_print(["train"], console=Console(file=page, width=400))
    shown = " ".join(page.getvalue().split())
    for knob in KNOBS:
        assert f"--{knob.replace('_', '-')}" in shown
        assert said[knob] in shown


def test_only_given_knobs_are_turned() -> None:
    assert turned(None) == {}
    assert turned(Knobs()) == {}
    assert turned(Knobs(lr=0.0, reflect=False, decay_milestones=())) == {
        "lr": 0.0, "reflect": False, "decay_milestones": (),
    }  # fmt: skip
    knobs = turned(Knobs(lr=0.5, opt="adamw"))
    assert load_recipe("finetune", knobs) == dataclasses.replace(load_recipe("finetune"), lr=0.5, opt="adamw")
