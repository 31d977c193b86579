# SPDX-License-Identifier: Apache-2.0
"""Whole networks in C give what PyTorch gives, layer by layer and end to end, in every layout, from any thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tiny
from ghostnets.blocks.ghost import ChannelGather, GhostModule
from ghostnets.deploy.c.build import build, compiled
from ghostnets.deploy.c.generation import Generated, Options, from_graph, generated
from ghostnets.deploy.c.program import Program
from ghostnets.deploy.capture import captured
from ghostnets.models.catalog import create_model, list_models
from graphs import lively, truth
from programs import COMPILERS, NEAR, answered, error, library, needs_compiler, wrong

pytestmark = needs_compiler

FAST = {"resnet20", "ghost_resnet20", "ghostnet_050"}
"""Those that compile in a few seconds."""

OTHERS = (
    ("torchvision", "mobilenet_v2"), ("timm", "mobilenetv3_large_100"), ("torchvision", "squeezenet1_1"),
    ("torchvision", "shufflenet_v2_x1_0"), ("timm", "resnet18"), ("timm", "regnetx_002"),
)  # fmt: skip

SIDE = 48
"""Of images for networks that take any: five halvings leave two places, but for rounding up."""


@pytest.fixture(scope="module")
def photographs(request: pytest.FixtureRequest) -> np.ndarray:
    """Some pictures (N, SIDE, SIDE, 3) of bytes: photographs where they are, drawn ones elsewhere."""
    try:
        root: Path = request.getfixturevalue("data_root")
    except pytest.skip.Exception:
        root = Path("nowhere")
    paths = sorted((root / "imagenette" / "val").glob("*/*.JPEG"))[:300:100]
    if not paths:
        return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE))) for path in paths])


def normalised(pictures: np.ndarray, options: Options | None = None) -> np.ndarray:
    """(N, H, W, 3) of bytes as the network takes them: (N, 3, H, W) of float32."""
    options = options or Options()
    values = (pictures / 255.0 - options.mean) / options.std
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2)).astype(np.float32)


def fitted(model: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Pictures of the size that a network takes."""
    side = 32 if getattr(model, "input_size", None) == (32, 32) else SIDE
    return pictures[:, :side, :side]


def check(model: nn.Module, pictures: np.ndarray, folder: Path) -> None:
    """Layer by layer in a debug build, end to end in the other, on every picture."""
    images = normalised(fitted(lively(model), pictures))
    graph = captured(model, torch.from_numpy(images))
    for debug, compiler in ((True, COMPILERS[0]), (False, COMPILERS[-1])):
        made = from_graph(graph, Options(debug=debug))
        program = Program(library(made, folder / str(debug), compiler))
        assert not wrong(program, made, images[0])
        for image in images if not debug else ():
            expected = truth(model, torch.from_numpy(image)[None])
            assert error(answered(program, made, image), expected) <= NEAR


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in list_models()]
)
def test_every_network_of_the_catalogue(name: str, photographs: np.ndarray, tmp_path: Path) -> None:
    check(create_model(name), photographs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name"), OTHERS)
def test_networks_of_others(package: str, name: str, photographs: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    if package == "timm":
        model = pytest.importorskip("timm").create_model(name)
    else:
        model = getattr(pytest.importorskip("torchvision").models, name)(weights=None)
    check(model, np.repeat(photographs, 2, 1).repeat(2, 2)[:, :64, :64], tmp_path)


class Upgraded(nn.Module):
    """As an upgrade leaves a network: Ghost modules whose channels are put in another order, and added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = GhostModule(3, 20, kernel_size=3, ratio=2, relu=True)
        self.gather, self.other = ChannelGather(20), ChannelGather(20)
        self.ghost = GhostModule(20, 20, kernel_size=1, ratio=3, relu=False)
        self.down = nn.Sequential(nn.Conv2d(20, 33, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(33), nn.ReLU())
        self.classifier = nn.Linear(33, 7)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.gather.set_(torch.randperm(20))
            self.other.set_(torch.randperm(20))

    def forward(self, x: Tensor) -> Tensor:
        x = self.gather(self.stem(x))
        return self.classifier(self.down(torch.relu(x + self.other(self.ghost(x)))).mean((2, 3)))


def test_an_upgraded_network_with_gathers(photographs: np.ndarray, tmp_path: Path) -> None:
    check(Upgraded(), photographs, tmp_path)


# Layouts of images


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return lively(Upgraded())


@pytest.mark.parametrize("mean", [Options().mean, (0.5,)])
def test_every_layout_of_the_same_picture_gives_the_same(
    small: nn.Module, photographs: np.ndarray, tmp_path: Path, mean: tuple[float, ...]
) -> None:
    std = Options().std if len(mean) == 3 else (0.25,)
    planes = normalised(photographs, Options(mean=mean, std=std))
    images = {"nchw": planes, "nhwc": np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), "nhwc-uint8": photographs}
    expected = np.stack([truth(small, torch.from_numpy(image)[None]) for image in planes])
    found: dict[str, np.ndarray] = {}
    for layout, own in images.items():
        options = Options(layout=layout, mean=mean, std=std)  # pyright: ignore[reportArgumentType]
        made = generated(small, torch.from_numpy(planes), options)
        program = Program(library(made, tmp_path / layout))
        assert program.input_shape == own.shape[1:]
        assert program.dtype == own.dtype
        found[layout] = program(own)
        assert error(found[layout], expected) <= NEAR
    np.testing.assert_array_equal(found["nchw"], found["nhwc"])


# Calls


@pytest.fixture(scope="module")
def example() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(4, 3, 24, 24)).astype(np.float32))


@pytest.fixture(scope="module")
def made(small: nn.Module, example: Tensor) -> Generated:
    return generated(small, example)


@pytest.fixture(scope="module")
def path(made: Generated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library(made, tmp_path_factory.mktemp("small"))


def test_a_batch_is_its_images_one_after_another(path: Path, small: nn.Module, example: Tensor) -> None:
    program = Program(path)
    together = program(example)
    assert isinstance(together, Tensor)
    assert error(together.numpy(), np.stack([truth(small, image[None]) for image in example])) <= NEAR
    for image, answer in zip(example, together, strict=True):
        assert torch.equal(program(image[None])[0], answer)
    turned = np.asfortranarray(example.numpy())  # in another order in memory
    np.testing.assert_array_equal(program(turned), together.numpy())


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same(path: Path, made: Generated, example: Tensor, threads: int) -> None:
    one, many = Program(path), Program(path, threads=threads)
    for image in example.numpy():
        expected = answered(one, made, image)
        for _ in range(5):
            assert error(answered(many, made, image, threads=threads), expected) <= NEAR


@pytest.mark.parametrize("threads", [1, 2])
def test_two_programs_at_once_do_not_disturb_each_other(path: Path, example: Tensor, threads: int) -> None:
    programs = [Program(path, threads=threads) for _ in range(2)]
    _at_once(programs, example.numpy(), Program(path))


def test_one_program_from_two_threads_takes_turns(path: Path, example: Tensor) -> None:
    program = Program(path)
    _at_once([program, program], example.numpy(), Program(path))


def _at_once(programs: list[Program], images: np.ndarray, alone: Program) -> None:
    expected = alone(images)
    orders = [np.arange(len(images)), np.arange(len(images))[::-1]]
    found: list[list[Any]] = [[], []]

    def call(number: int) -> None:
        for _ in range(50):
            found[number].append(programs[number](images[orders[number]])[orders[number]])

    workers = [threading.Thread(target=call, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found[0]) == len(found[1]) == 50
    for answer in (*found[0], *found[1]):
        assert error(answer, expected) <= NEAR


# Building


def test_what_was_compiled_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, x = tiny.build().eval(), torch.randn(2, 1, 12, 12)
    first = compiled(model, x, Options(target="scalar"))
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    again = compiled(model, x, Options(target="scalar"), threads=2)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == written
    assert first.path == again.path
    with torch.no_grad():
        torch.testing.assert_close(first(x), model(x), rtol=1e-5, atol=1e-4)
    assert compiled(model, torch.randn(1, 1, 12, 13), Options(target="scalar")).path != first.path


@pytest.mark.parametrize("threads", [1, 2])
def test_every_layer_has_a_time(threads: int, tmp_path: Path) -> None:
    model, x = tiny.build().eval(), torch.randn(2, 1, 12, 12)
    program = Program(build(model, x, tmp_path, Options(target="scalar"), profiled=True), threads=threads)
    made = generated(model, x, Options(target="scalar"))
    layers = program.layers(runs=3)
    assert [(layer.name, layer.macs) for layer in layers] == [
        (step.operation.name, step.operation.macs) for stage in made.schedule.stages for step in stage.steps
    ]
    assert sum(layer.macs for layer in layers) == made.graph.macs
    assert all(0 <= layer.ms < 1000 for layer in layers)
