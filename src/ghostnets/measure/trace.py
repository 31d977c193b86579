# SPDX-License-Identifier: Apache-2.0
"""Follow a network call by call: its graph, the size of every tensor, and where every channel goes.

The graph is recorded once, with torch.fx, from the original; because it names submodules instead of holding
them, the same graph also runs a copy in which some of them have been replaced.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghostnets.errors import UserError

Env = dict[fx.Node, Any]
"""The value of every node computed so far."""

_OUT_OF_PLACE = {
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

    Raises UserError where the forward branches on values, calls one convolution twice, or returns more than a tensor.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # any user code may run here
        raise UserError(
            f"{type(model).__name__} cannot be traced: {error}; its forward must not branch on tensor values"
        ) from error
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
        if node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            node.target = node.target[:-1]
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
    nodes = tuple(graph.nodes)
    if sum(node.op == "placeholder" for node in nodes) != 1 or not isinstance(nodes[-1].args[0], fx.Node):
        raise UserError(f"{type(model).__name__} must take one tensor and return one tensor")
    modules = dict(model.named_modules())
    recorded = Trace(graph, nodes, {}, modules, example)
    env = run(recorded, model, example)
    shapes = {node: value.shape for node, value in env.items() if isinstance(value, Tensor)}
    return Trace(graph, nodes, shapes, modules, example)


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
    args = fx.node.map_arg(node.args, lambda n: env[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
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
