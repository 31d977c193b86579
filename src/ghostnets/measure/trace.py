# SPDX-License-Identifier: Apache-2.0
"""Follow a network call by call: its graph, the size of every tensor, and where every channel goes.

The graph is recorded once, with torch.fx, from the original; because it names submodules instead of holding
them, the same graph also runs a copy in which some of them have been replaced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ghostnets.errors import UserError

Env = dict[fx.Node, Any]
"""The value of every node computed so far."""

_OUT_OF_PLACE: dict[object, Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    F.relu_: F.relu, torch.relu_: torch.relu,
}  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """A recorded network: the graph, its nodes in the order they run, and the shape of every tensor."""

    graph: fx.Graph
    nodes: tuple[fx.Node, ...]
    shapes: Mapping[fx.Node, torch.Size]
    modules: Mapping[str, nn.Module]
    example: Tensor

    @property
    def output(self) -> fx.Node:
        """The node whose value the network returns."""
        (value,) = self.nodes[-1].args
        assert isinstance(value, fx.Node)
        return value

    @property
    def input(self) -> fx.Node:
        """The network's input."""
        return self.nodes[0]

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The submodule that this node calls, if it calls one."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Record how ``model``, which must be in eval mode, treats ``example`` (N, C, H, W).

    Raises UserError where the forward cannot be followed: it branches on values, takes or returns more than one
    tensor, changes part of a tensor in place, or does not fit the example.
    """
    name = type(model).__name__
    if any(module.training for module in model.modules()):
        raise UserError(f"{name} must be in eval mode to be followed: call eval() on it first")
    graph = _record(model)
    nodes = tuple(graph.nodes)
    if sum(node.op == "placeholder" for node in nodes) != 1 or not isinstance(nodes[-1].args[0], fx.Node):
        raise UserError(f"{name} must take one tensor and return one tensor")
    modules = dict(model.named_modules())
    recorded = Trace(graph, nodes, {}, modules, example)
    with torch.no_grad():
        try:
            expected = model(example.clone())
        except Exception as error:  # any user code may run here
            shape = " × ".join(map(str, example.shape))
            raise UserError(f"{name} does not run on an input of {shape}: {_sentence(error)}") from error
    if not isinstance(expected, Tensor):
        raise UserError(f"{name} must take one tensor and return one tensor, not a {type(expected).__name__}")
    try:
        env = run(recorded, model, example)
    except Exception as error:  # what fx recorded wrongly may fail in any way
        raise UserError(f"{name} cannot be followed: {_sentence(error)}") from error
    if bool(torch.isfinite(expected).all()) and not _same(env[recorded.output], expected):
        raise UserError(
            f"{name} cannot be followed: replayed call by call it gives another output; "
            "does its forward change part of a tensor in place, or draw random numbers?"
        )
    shapes = {node: value.shape for node, value in env.items() if isinstance(value, Tensor)}
    return Trace(graph, nodes, shapes, modules, example)


def _same(value: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding, which a library may do otherwise at another place in memory."""
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return value.shape == expected.shape and torch.allclose(value, expected, rtol=0, atol=1e-4 * scale)


def _record(model: nn.Module) -> fx.Graph:
    """The model's graph, in which nothing happens in place; the model gets back what tracing hung on it."""
    before = set(vars(model))
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # any user code may run here
        raise UserError(
            f"{type(model).__name__} cannot be traced: {_sentence(error)}; its forward must not branch on tensor values"
        ) from error
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) not in before and hasattr(model, str(node.target)):
            constant = getattr(model, str(node.target))
            if str(node.target).startswith("_tensor_constant"):  # fx keeps a forward's own tensors on the model
                node.op, node.target = "call_function", partial(_itself, constant)
    for hung_on in set(vars(model)) - before:
        delattr(model, hung_on)
    _out_of_place_(graph, dict(model.named_modules()))
    return graph


def _itself(constant: Tensor) -> Tensor:
    return constant


def _out_of_place_(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Let every in-place call make a new value, which whoever comes later reads instead of the changed one."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        in_place = bool(node.kwargs.get("inplace"))
        if in_place:
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_function" and node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
            in_place = True
        method = str(node.target) if node.op == "call_method" else ""
        if method.endswith("_") and not method.endswith("__"):
            node.target = method[:-1]
            in_place = True
        if node.op == "call_module":
            in_place = in_place or bool(getattr(modules.get(str(node.target)), "inplace", False))
        if in_place and node.args and isinstance(node.args[0], fx.Node):
            for reader in [n for n in node.args[0].users if position[n] > position[node]]:
                reader.replace_input_with(node.args[0], node)


def _sentence(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def run(recorded: Trace, model: nn.Module, x: Tensor) -> Env:
    """The value of every node when ``model`` is given ``x``."""
    env: Env = {recorded.input: x}
    step(model, recorded.nodes[1:], env)
    return env


@torch.no_grad()
def step(model: nn.Module, nodes: Iterable[fx.Node], env: Env) -> None:
    """Compute these nodes in their order, adding their values to ``env``."""
    for node in nodes:
        env[node] = compute(model, node, env)


def compute(model: nn.Module, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    """One node's value from those of its arguments. Nothing is changed in place."""
    args: Any = map_arg(node.args, lambda n: env[n])
    kwargs: Any = map_arg(node.kwargs, lambda n: env[n])
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if getattr(module, "inplace", False):
            args = (args[0].clone(), *args[1:])
        return module(*args, **kwargs)
    if node.op == "call_function":
        assert callable(node.target)
        return node.target(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(model)
    assert node.op == "output", node.op
    return args[0]


def depends_on(recorded: Trace, start: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes whose value changes with that of ``start``, in the order they run, ``start`` left out."""
    changed = {start}
    for node in recorded.nodes:
        if any(argument in changed for argument in node.all_input_nodes):
            changed.add(node)
    return tuple(node for node in recorded.nodes if node in changed and node is not start)
