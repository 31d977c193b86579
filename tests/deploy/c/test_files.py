# SPDX-License-Identifier: Apache-2.0
"""What is written, compiles everywhere, says what it is, and refuses every file that is not its own."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ghostnets.deploy.c.generation import FILES, HEADER, Generated, Options, checksum, export, generated
from ghostnets.deploy.c.program import Program
from ghostnets.errors import GhostnetsError, UserError
from graphs import lively
from programs import COMPILERS, library, needs_compiler, run

SIZE = (12, 20)
CLASSES = 17


def network(classes: int = CLASSES, channels: int = 3) -> nn.Module:
    """Answers that depend on the picture, in which no two classes are alike."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        classifier = nn.Linear(24, classes)
        model = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 24, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier,
        )  # fmt: skip
        nn.init.normal_(classifier.weight, std=3.0)
        return lively(model)


def program(layout: str = "nchw", **options: object) -> Generated:
    return generated(network(), torch.zeros(1, 3, *SIZE), replace(Options(), layout=layout, **options))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled library with its weights; not to be changed."""
    return library(program(), tmp_path_factory.mktemp("built"))


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """The same to be changed."""
    for name in ("model.so", "model.weights"):
        shutil.copy(built.with_name(name), tmp_path / name)
    return tmp_path / "model.so"


# The text


def test_the_same_network_is_the_same_program() -> None:
    one, two = program(), program()
    assert one.files == two.files
    assert one.key == two.key
    assert program("nhwc").key != one.key
    assert program(target="scalar").key != one.key
    other = generated(network(CLASSES + 1), torch.zeros(1, 3, *SIZE))
    assert other.source.key != one.source.key


def test_no_field_of_a_template_is_left_and_nothing_of_this_machine_stands_there() -> None:
    for name, contents in program().files.items():
        if name != "model.weights":
            text = contents.decode()
            assert not [word for word in text.split("@")[1::2] if word.isupper() and word.isidentifier()], name
            assert str(Path(__file__).parents[3]) not in text


def test_the_weights_are_those_of_the_header() -> None:
    made = program()
    data = made.files["model.weights"]
    assert data[:8] == b"GHOSTNET"
    key, count, total = struct.unpack("<QQQ", data[8:32])
    assert (key, count) == (made.source.key, (len(data) - HEADER) // 4)
    assert total == checksum(data[HEADER:]) == word_by_word(data[HEADER:])


def word_by_word(data: bytes) -> int:
    """The checksum by Python's own integers, with the two numbers of FNV's hash of 64 bits."""
    total = 0xCBF29CE484222325
    for at in range(0, len(data), 8):
        total = (total * 0x100000001B3 + int.from_bytes(data[at : at + 8], "little")) % 2**64
    return total


@given(st.integers(0, 3 * 2**19), st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_the_checksum_sees_every_change_of_a_byte(size: int, seed: int) -> None:
    data = np.random.default_rng(seed).bytes(size)
    found = checksum(data)
    assert found == word_by_word(data)
    for at in {0, size // 2, size - 1} if size else ():
        assert checksum(data[:at] + bytes([data[at] ^ 1 << seed % 8]) + data[at + 1 :]) != found


def test_every_layer_has_a_comment_with_its_name_and_multiply_adds() -> None:
    made = program()
    text = made.files["model.c"].decode()
    for operation in made.graph.operations:
        comment = f"/* {operation.name}: {type(operation).__name__} -> "
        line = next(line for line in text.splitlines() if comment in line)
        assert not operation.macs or f"{operation.macs:,} MACs" in line


def test_every_pass_is_explained() -> None:
    made = program()
    lines = list(made.explained())
    heads = [line for line in lines if line.startswith("== ")]
    for (name, graph), head in zip(made.graphs, heads, strict=False):
        assert head == f"== {name}: {len(graph.operations)} operations, {graph.macs:,} MACs"
    assert [head.split()[1].rstrip(":") for head in heads[len(made.graphs) :]] == ["schedule", "C"]
    assert f"arena of {made.schedule.floats * 4 / 2**20:.2f} MiB" in heads[-2]
    for name in made.schedule.buffers:
        assert any(line.startswith(f"{name}: ") for line in lines)


def test_options_that_are_none_are_refused() -> None:
    for wrong, sentence in (
        ({"layout": "hwcn"}, "hwcn is no layout of images: choose nchw, nhwc, nhwc-uint8"),
        ({"target": "mmx"}, "mmx is not an instruction set: choose native, avx512"),
        ({"std": (0.2, 0.0, 0.2)}, "deviation of 0.0 cannot be divided by"),
    ):
        with pytest.raises(UserError, match=sentence):
            Options(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="2 means or deviations do not fit 3 channels"):
        len(program("nhwc-uint8", mean=(0.5, 0.5)).files)


# Folders


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds something else \(notes.txt\): give a new folder"):
        export(network(), torch.zeros(1, 3, *SIZE), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"notes.txt holds something else \(a file\)"):
        export(network(), torch.zeros(1, 3, *SIZE), tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_program_is_written_over_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    export(network(CLASSES + 1), torch.zeros(1, 3, *SIZE), folder)
    made = export(network(), torch.zeros(1, 3, *SIZE), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made.files
    assert set(made.files) == set(FILES)


def test_nothing_is_left_half_written_where_saving_fails(tmp_path: Path) -> None:
    (tmp_path / "out" / "model.weights").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model.weights cannot be written"):
        export(network(), torch.zeros(1, 3, *SIZE), tmp_path / "out")
    files = program().files
    for path in (tmp_path / "out").iterdir():
        assert path.name == "model.weights" or path.read_bytes() == files[path.name]


def test_a_network_that_cannot_be_captured_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        export(network(), torch.zeros(1, 5, *SIZE), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        export(network(), torch.zeros(1, 3, *SIZE), tmp_path / "file" / "out")


# Weights


@needs_compiler
def test_weights_that_are_cut_off_are_refused(copied: Path) -> None:
    weights = copied.with_name("model.weights")
    whole = weights.read_bytes()
    for length in (0, 1, 8, 31, 63, 64, 65, HEADER + 4, len(whole) // 2, len(whole) - 4, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(
            GhostnetsError, match=r"model.weights: (the weights are not complete|this is no file of weights)"
        ):
            Program(copied)
    weights.write_bytes(whole + b"\0")
    with pytest.raises(GhostnetsError, match="this is no file of weights"):
        Program(copied)
    weights.write_bytes(whole)
    Program(copied)


@needs_compiler
def test_one_flipped_bit_is_noticed_wherever_it_is(copied: Path) -> None:
    weights = copied.with_name("model.weights")
    whole = weights.read_bytes()
    random = np.random.default_rng(0)
    places = {
        0: "no file of weights",
        7: "no file of weights",
        8: "another network",
        16: "another network",
        24: "damaged",
        31: "damaged",
    }
    places |= dict.fromkeys([HEADER, len(whole) - 1, *random.integers(HEADER, len(whole), 40).tolist()], "damaged")
    for place, message in places.items():
        broken = bytearray(whole)
        broken[place] ^= 1 << int(random.integers(8))
        weights.write_bytes(bytes(broken))
        with pytest.raises(GhostnetsError, match=message):
            Program(copied)


@needs_compiler
def test_weights_of_another_network_are_refused(copied: Path) -> None:
    other = generated(network(CLASSES + 1), torch.zeros(1, 3, *SIZE))
    copied.with_name("model.weights").write_bytes(other.files["model.weights"])
    with pytest.raises(GhostnetsError, match="these weights belong to another network"):
        Program(copied)


@needs_compiler
def test_what_is_no_file_is_refused(copied: Path, tmp_path: Path) -> None:
    weights = copied.with_name("model.weights")
    weights.unlink()
    with pytest.raises(GhostnetsError, match=r"the weights cannot be read: is model.weights there\?"):
        Program(copied)
    weights.mkdir()
    with pytest.raises(GhostnetsError, match="the weights cannot be read"):
        Program(copied)
    for path in (tmp_path / "none.so", weights):
        with pytest.raises(GhostnetsError, match="is no program of ghostnets for this machine"):
            Program(path)
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(GhostnetsError, match="is no program of ghostnets"):
        Program(tmp_path / "text.so")


@needs_compiler
@pytest.mark.parametrize("threads", [-1, 0, 65])
def test_threads_that_cannot_be(built: Path, threads: int) -> None:
    with pytest.raises(UserError, match=f"{threads} threads cannot run a program: give 1 to 64"):
        Program(built, threads=threads)
    functions = ctypes.CDLL(str(built))
    functions.model_message.restype = ctypes.c_char_p
    model = (ctypes.c_char * 256)()
    code = functions.model_init(model, str(built.with_name("model.weights")).encode(), threads)
    assert functions.model_message(code).startswith(b"give at least 1 thread")
    assert not any(bytes(model))
    functions.model_free(model)  # of what was never begun


@needs_compiler
def test_a_script_that_ends_with_a_program_says_nothing(tmp_path: Path) -> None:
    """Python takes modules apart before what they hold."""
    (tmp_path / "script.py").write_text(
        "import ghostnets, torch\nfast = ghostnets.compile(torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))\n"
    )
    done = run([sys.executable, "script.py"], tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_compiler
def test_images_that_do_not_fit_are_refused(built: Path) -> None:
    run_ = Program(built)
    for images in (
        np.zeros((1, 3, 20, 12), np.float32),
        np.zeros((3, *SIZE), np.float32),
        np.zeros((1, 3, *SIZE), np.uint8),
    ):
        with pytest.raises(UserError, match=r"do not fit: give N x 3 x 12 x 20 in float32"):
            run_(images)
    assert run_(np.zeros((0, 3, *SIZE), np.float32)).shape == (0, CLASSES)


# The command line program


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ./model in it."""
    folder = tmp_path_factory.mktemp("made")
    program().save(folder)
    done = run(["make", "CFLAGS=-O1 -Wall -Wextra -Werror", f"CC={COMPILERS[0]}"], folder)
    assert not done.returncode, done.stderr
    return folder


@needs_compiler
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("goal", [["model"], ["embedded"], ["library"], ["model", "THREADS="], ["library", "THREADS="]])
def test_everything_compiles_without_a_warning(compiler: str, goal: list[str], tmp_path: Path) -> None:
    program("nhwc-uint8").save(tmp_path)
    done = run(["make", *goal, f"CC={compiler}", "CFLAGS=-O1 -Wall -Wextra -Werror"], tmp_path)
    assert not done.returncode, done.stderr
    assert not done.stderr.strip()
    name = {"model": "model", "embedded": "model-embedded", "library": "libmodel.so"}[goal[0]]
    assert (tmp_path / name).is_file()
    if goal[0] == "embedded":  # it is one file
        (tmp_path / "model.weights").unlink()
        (tmp_path / "values.raw").write_bytes(bytes(3 * SIZE[0] * SIZE[1]))
        assert not run(["./model-embedded", "values.raw"], tmp_path).returncode
    assert not run(["make", "clean"], tmp_path).returncode
    assert not (tmp_path / name).exists()


def ppm(picture: np.ndarray, comment: str = "") -> bytes:
    """A binary PPM of (H, W, 3) bytes."""
    height, width, _ = picture.shape
    return f"P6\n{comment}{width} {height}\n255\n".encode() + picture.tobytes()


def covered(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of (H, W, 3) in these proportions, each place the mean of the pixels from where it begins to where the
    next one does."""
    scale = min(picture.shape[1] / width, picture.shape[0] / height)

    def parts(whole: int, count: int) -> list[slice]:
        starts = ((whole - scale * count) / 2 + scale * np.arange(count + 1)).astype(int)
        return [slice(min(a, whole - 1), max(b, min(a, whole - 1) + 1)) for a, b in itertools.pairwise(starts)]

    rows, columns = parts(picture.shape[0], height), parts(picture.shape[1], width)
    return np.array([[picture[row, column].mean((0, 1)) for column in columns] for row in rows])


def top(said: str) -> list[tuple[float, int]]:
    return [(float(line.split()[0]), int(line.split()[1])) for line in said.splitlines()]


@needs_compiler
@pytest.mark.parametrize("size", [(12, 20), (37, 41), (60, 25), (5, 7), (100, 101)])
def test_a_picture_is_classified_as_by_the_library(
    made: Path, built: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    picture = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)
    (tmp_path / "picture.ppm").write_bytes(ppm(picture, "# a comment\n# 7 7 255\n"))
    done = run(["./model", tmp_path / "picture.ppm"], made)
    assert not done.returncode, done.stderr
    values = (covered(picture, *SIZE) / 255 - Options().mean) / Options().std
    answer = Program(built)(values.transpose(2, 0, 1)[None].astype(np.float32))[0]
    assert [index for _, index in top(done.stdout)] == np.argsort(-answer)[:5].tolist()
    np.testing.assert_allclose([value for value, _ in top(done.stdout)], np.sort(answer)[::-1][:5], atol=1e-3)


@needs_compiler
def test_values_are_taken_as_they_are_and_classes_have_names(made: Path, built: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(size=(3, *SIZE)).astype(np.float32)
    (tmp_path / "values.raw").write_bytes(values.tobytes())
    shutil.copy(made / "model.weights", tmp_path)
    (tmp_path / "labels.txt").write_text("".join(f"class number {i}\n" for i in range(CLASSES)))
    done = run([made / "model", "values.raw", "3", "2"], tmp_path)
    first, *lines = done.stdout.splitlines()
    assert first.startswith("fastest of 3 runs: ")
    answer = Program(built)(values[None])[0]
    assert [line.split(maxsplit=1)[1] for line in lines] == [f"{i} class number {i}" for i in np.argsort(-answer)[:5]]


@needs_compiler
def test_files_that_are_no_pictures_are_refused(made: Path, tmp_path: Path) -> None:
    whole = ppm(np.zeros((9, 9, 3), np.uint8))
    for contents, sentence in (
        (None, "cannot be opened"),
        (b"", "is neither a binary PPM (P6) nor the values of one image"),
        (b"P3\n1 1\n255\n0 0 0\n", "is neither a binary PPM (P6) nor the values of one image"),
        (bytes(4 * 3 * SIZE[0] * SIZE[1] + 1), "is neither a binary PPM (P6) nor the values of one image"),
        (bytes(4 * 3 * SIZE[0] * SIZE[1] - 1), "is neither a binary PPM (P6) nor the values of one image"),
        (b"P6", "is no binary PPM with 8 bits a channel"),
        (b"P6\n-3 9\n255\n", "is no binary PPM with 8 bits a channel"),
        (b"P6\n0 9\n255\n", "is no binary PPM with 8 bits a channel"),
        (b"P6\n1 1\n65535\n\0\0\0\0\0\0", "is no binary PPM with 8 bits a channel"),
        (b"P6\n# no end", "is no binary PPM with 8 bits a channel"),
        (whole[:-1], "ends too early"),
        (b"P6\n99999 99999\n255\n", "ends too early|there is not enough memory"),
    ):
        path = tmp_path / "picture"
        path.unlink(missing_ok=True)
        if contents is not None:
            path.write_bytes(contents)
        done = run(["./model", path], made)
        assert done.returncode == 1, contents
        assert any(done.stderr == f"{path}: {each}\n" for each in sentence.split("|")), done.stderr
        assert not done.stdout


@needs_compiler
def test_the_program_says_how_it_is_called_and_what_it_misses(made: Path, tmp_path: Path) -> None:
    done = run(["./model"], made)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ./model picture.ppm|values.raw")
    shutil.copy(made / "model", tmp_path)
    done = run(["./model", "x"], tmp_path)
    assert (done.returncode, done.stderr) == (1, "model: the weights cannot be read: is model.weights there?\n")
    for threads in ("0", "65", "many"):
        done = run(["./model", "x", "1", threads], made)
        assert done.returncode == 1
        assert done.stderr.startswith("model: give at least 1 thread")
