# SPDX-License-Identifier: Apache-2.0
"""Drawn layers in C give what float64 gives: on every instruction set, in both layouts, by every compiler here."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import drawn
from ghostnets.deploy.c import generation, lower
from ghostnets.deploy.c.choice import sizes_in_lines
from ghostnets.deploy.c.generation import Generated, Options, from_graph
from ghostnets.deploy.c.kernels import convolution, line_winograd, winograd
from ghostnets.deploy.c.program import Program
from ghostnets.deploy.c.schedule import scheduled
from ghostnets.deploy.c.target import Target
from ghostnets.deploy.graph import Activate, Activation, Combine, Conv, Graph, Pool, Shape
from ghostnets.deploy.reference import ACTIVATIONS
from programs import COMPILERS, INSTRUCTIONS, answered, library, needs_compiler, wrong

pytestmark = needs_compiler


def everywhere(graph: Graph, target: Target) -> frozenset[tuple[int, int]]:
    """All maps lie in lines that may."""
    if target.lanes == 1:
        return frozenset()
    return frozenset(step.shape[1:] for step in graph.operations if isinstance(step, Conv))


LAYOUTS = {"chosen": sizes_in_lines, "lines": everywhere, "last": lambda _graph, _target: frozenset()}
"""Which maps lie in lines."""

compilations = partial(
    settings,
    phases=(
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ),  # no shrinking: a compilation each, and what is wrong is named
    suppress_health_check=drawn.UNCHECKED,
)


def check(data: st.DataObject, graph: Graph, target: str) -> None:
    """One program of it, in a drawn way."""
    layout, simplified = data.draw(st.sampled_from(sorted(LAYOUTS)), "layout"), data.draw(st.booleans(), "simplified")
    debug, rings = data.draw(st.booleans(), "debug"), data.draw(st.booleans(), "rings")
    streamed, threads = data.draw(st.booleans(), "streamed"), data.draw(st.sampled_from((1, 2, 3)), "threads")
    tiled = data.draw(st.booleans(), "tiled")
    compiler = data.draw(st.sampled_from(COMPILERS), "compiler")
    wrongs = wrongs_of(
        graph,
        target,
        layout,
        compiler,
        threads,
        simplified=simplified,
        debug=debug,
        rings=rings,
        streamed=streamed,
        tiled=tiled,
    )
    assert not wrongs


def wrongs_of(
    graph: Graph, target: str, layout: str, compiler: str, threads: int = 1, *,
    simplified: bool, debug: bool, rings: bool, streamed: bool = False, tiled: bool = False,
) -> list[str]:  # fmt: skip
    """What the program gets wrong."""
    image = np.random.default_rng(0).normal(size=graph.input_shape).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(lower, "sizes_in_lines", LAYOUTS[layout])
        if not simplified:
            patch.setattr(generation, "steps", lambda _graph: iter(()))
        if rings:
            patch.setattr(generation, "scheduled", partial(scheduled, ring_from=1))
        if streamed:
            patch.setattr(convolution, "STREAMED_FROM", 1)
        if tiled:
            patch.setattr(winograd.Plan, "cycles", lambda *_: 0)
            patch.setattr(line_winograd.Plan, "cycles", lambda *_: 0)
        program = from_graph(graph, Options(target=target, debug=debug))
        path = library(program, Path(folder), compiler)
        return wrong(Program(path, threads=threads), program, image, threads=threads)


targets = pytest.mark.parametrize("target", INSTRUCTIONS)


@targets
@given(data=st.data())
@compilations(max_examples=3)
def test_layers(target: str, data: st.DataObject) -> None:
    check(data, data.draw(drawn.drafts(*drawn.FAMILIES, layers=12)).graph(), target)


@pytest.mark.slow
@targets
@pytest.mark.parametrize("family", drawn.FAMILIES)
@given(data=st.data())
@compilations(max_examples=4)
def test_many_more_layers(family: str, target: str, data: st.DataObject) -> None:
    check(data, data.draw(drawn.drafts(family)).graph(), target)


@targets
@given(data=st.data())
@compilations(max_examples=1)
def test_softmax(target: str, data: st.DataObject) -> None:
    check(data, data.draw(drawn.drafts("softmaxes", layers=4)).graph(), target)


@pytest.mark.parametrize("target", [name for name in INSTRUCTIONS if name != "scalar"])  # which has no lines
def test_several_filters_a_channel_in_lines(target: str) -> None:
    draft = drawn.Draft(drawn.IMAGE, 0)
    made = draft.conv(draft.map(4, 3, 5), 8, (3, 3), padding=(1, 1, 1, 1), groups=4)
    draft.conv(made, 3, (1, 3), padding=(0, 1, 0, 1))
    assert not wrongs_of(draft.graph(), target, "lines", COMPILERS[0], simplified=False, debug=True, rings=False)


def test_a_map_added_to_groups_row_by_row() -> None:
    draft = drawn.Draft(drawn.IMAGE, 0)
    alone = draft.conv(draft.map(18, 8, 25), 34, (2, 1), (2, 2), (2, 2, 2, 2), groups=2)
    shape = draft.shapes[alone]
    draft.add(Combine, draft.map(*shape), alone, shape=shape, kind="add")
    assert not wrongs_of(draft.graph(), "neon", "last", COMPILERS[0], simplified=False, debug=False, rings=True)


LARGE = (
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    0.5,
    -0.5,
    2.9999,
    3.0,
    -3.0,
    5.9999,
    6.0,
    20.0,
    -20.0,
    87.5,
    -87.5,
    89.0,
    -89.0,
    1e4,
    -1e4,
)


def alone(
    operation: type[Activate | Pool], given: Shape, shape: Shape, layout: str, target: str, folder: Path, **fields: Any
) -> tuple[Generated, Program]:
    """Numbers as they are, times one, in five channels, through an operation that stands alone."""
    draft = drawn.Draft(given, 0)
    ones = np.ones((5, 1, 1, 1), np.float32)
    same = draft.add(
        Conv, "image", shape=(5, *given[1:]), weight=ones, bias=np.zeros(5, np.float32), stride=(1, 1),
        padding=drawn.NONE, dilation=(1, 1), groups=1,
    )  # fmt: skip
    made = draft.add(operation, same, shape=shape, **fields)
    graph = Graph(
        name="alone", input="image", input_shape=draft.input_shape, output=made, output_shape=shape,
        operations=tuple(draft.operations),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower, "sizes_in_lines", LAYOUTS[layout])
        patch.setattr(generation, "steps", lambda _graph: iter(()))
        program = from_graph(graph, Options(target=target))
    return program, Program(library(program, folder, COMPILERS[-1]))


@targets
@pytest.mark.parametrize("activation", get_args(Activation))
def test_activations_of_large_numbers_and_of_none(activation: Activation, target: str, tmp_path: Path) -> None:
    layout = "lines" if len(activation) % 2 else "last"
    image = np.array([[*LARGE, np.nan], [np.nan, *LARGE]], np.float32)[None]
    shape = (5, *image.shape[1:])
    generated, program = alone(Activate, image.shape, shape, layout, target, tmp_path, activation=activation)
    expected = ACTIVATIONS[activation](torch.from_numpy(image)).numpy()
    found = answered(program, generated, image)
    for channel in found:
        np.testing.assert_allclose(channel, expected[0], rtol=1e-5, atol=1e-6)  # NaN is where it is in PyTorch


@targets
@pytest.mark.parametrize("layout", ["lines", "last"])
def test_the_greatest_of_what_is_no_number_is_none(layout: str, target: str, tmp_path: Path) -> None:
    """Wherever in a window it stands, as in PyTorch."""
    generated, program = alone(
        Pool, (1, 9, 37), (5, 4, 18), layout, target, tmp_path,
        kind="max", kernel=(3, 3), stride=(2, 2), dilation=(1, 1), padding=drawn.NONE, counted=drawn.NONE,
    )  # fmt: skip
    image = np.random.default_rng(0).normal(size=(1, 9, 37)).astype(np.float32)
    image[0, [0, 1, 5, 8], [0, 7, 22, 36]] = np.nan
    found = answered(program, generated, image)
    expected = torch.max_pool2d(torch.from_numpy(image), 3, 2).numpy()
    assert np.isnan(expected).sum() == 5
    for channel in found:
        np.testing.assert_array_equal(channel, expected[0])
