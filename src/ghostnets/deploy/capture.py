# SPDX-License-Identifier: Apache-2.0
"""A user's network as a graph: PyTorch exports it for one image, and every call becomes an operation, or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import logging
import warnings
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ghostnets.deploy.aten.builder import Builder, own_line, site_of
from ghostnets.deploy.aten.moves import DROPPED
from ghostnets.deploy.aten.refusals import PARTS
from ghostnets.deploy.aten.table import translated
from ghostnets.deploy.aten.values import Value
from ghostnets.deploy.graph import Graph
from ghostnets.errors import UserError, first_line
from ghostnets.measure.modes import evaluating

IMAGE = "image"
"""The input of every graph."""

Env = dict[fx.Node, Any]
"""What every node is: a value, a constant, or several."""


def captured(model: nn.Module, example: Tensor) -> Graph:
    """What ``model`` computes in evaluation mode from the first image of ``example`` (N, C, H, W), call by call.

    The model is left as it was. Raises UnsupportedLayer for a call that nothing stands for, and UserError where the
    network is no function from one float32 tensor to one, or where what it does depends on what it sees.
    """
    _check(model, example)
    image = example[:1].contiguous()
    with evaluating(model), torch.no_grad(), _quiet():
        program = _exported(model, image)
    nodes = tuple(program.graph.nodes)
    order = {node: place for place, node in enumerate(nodes)}
    b, env = Builder(), _given(program, image)
    with torch.no_grad():
        for node in nodes:
            if node.op == "call_function" and (node.users or _writes(node)):
                _step(b, env, node, order)
    (returned,) = pytree.tree_leaves(nodes[-1].args)
    return _graph(b, type(model).__name__, image, env[returned])


def _check(model: nn.Module, example: Tensor) -> None:
    name = type(model).__name__
    if example.dim() != 4 or not len(example) or example.dtype != torch.float32:
        shape = " x ".join(map(str, example.shape))
        raise UserError(f"an example of {shape} in {example.dtype} is no float32 images: (N, C, H, W) are needed")
    for own, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(f"{own} of {name} is {tensor.dtype}: call float() on a copy of the network first")
    wanted = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.default is parameter.empty and parameter.kind <= parameter.POSITIONAL_OR_KEYWORD
    ]
    if len(wanted) > 1:
        raise UserError(f"{name} takes {len(wanted)} inputs ({', '.join(wanted)}): it must take one tensor of images")


def _exported(model: nn.Module, image: Tensor) -> ExportedProgram:
    name = type(model).__name__
    try:
        returned = model(image.clone())
    except Exception as error:  # any user code may run here
        shape = " x ".join(map(str, image.shape))
        raise UserError(f"{name} does not run on an image of {shape}: {first_line(error)}") from error
    if not isinstance(returned, Tensor):
        raise UserError(
            f"{name} must return one tensor, not a {type(returned).__name__}: wrap it in a module that does"
        )
    if returned.dim() < 2 or len(returned) != 1:
        raise UserError(
            f"{name} returns a tensor of shape {tuple(returned.shape)} for one image: its first dimension must be the images"
        )
    try:
        return torch.export.export(model, (image,), strict=False)
    except Exception as error:  # and here
        reason = first_line(error).rstrip(".")
        if "data-dependent" in reason:
            line = own_line(str(error))
            reason = f"what it does depends on what a tensor holds{f' ({line})' if line else ''}"
        raise UserError(f"{name} cannot be captured: {reason}; it must do the same for every image") from error


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """PyTorch warns of its own future, and logs and prints what it then raises."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _given(program: ExportedProgram, image: Tensor) -> Env:
    """The image, and copies of the network's tensors, which it may change as it goes."""
    _, channels, height, width = image.shape
    held: Mapping[str, Any] = {**program.state_dict, **program.constants}
    env: Env = {}
    placeholders = (node for node in program.graph.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            env[node] = Value(name=IMAGE, map=(channels, height, width), shape=tuple(image.shape))
        else:
            tensor = held.get(str(spec.target))
            env[node] = tensor.detach().clone() if isinstance(tensor, Tensor) else tensor
    return env


def _step(b: Builder, env: Env, node: fx.Node, order: Mapping[fx.Node, int]) -> None:
    """Translate one call, and let later readers see what it changes in place."""
    b.site = site_of(node)
    args, kwargs = map_arg((node.args, node.kwargs), env.get)
    result = translated(b, node, args, kwargs)
    dtypes = {getattr(value, "dtype", None) for value in pytree.tree_leaves(node.meta.get("val"))}
    if _values(result) and torch.float32 not in dtypes:
        raise b.refused(f"computes in {', '.join(map(str, dtypes))}", "all values are float32")
    schema = getattr(node.target, "_schema", None)
    returns = () if schema is None else schema.returns
    source = _values(args)[:1]
    aliases = b.site.operation in {*DROPPED, "getitem"} or any(own.alias_info is not None for own in returns)
    memory = source[0].memory if source and aliases else None
    env[node] = pytree.tree_map(
        lambda own: dataclasses.replace(own, memory=memory or object()) if isinstance(own, Value) else own, result
    )
    if _writes(node) and _values(result):
        _changed(b, env, node, order)


def _writes(node: fx.Node) -> bool:
    """Whether it changes a tensor in place."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _changed(b: Builder, env: Env, node: fx.Node, order: Mapping[fx.Node, int]) -> None:
    """``node`` wrote into the tensor it read first; refused where someone later reads that memory by another name."""
    target = node.args[0]
    assert isinstance(target, fx.Node)
    old = env[target]
    if not isinstance(old, Value):
        raise b.refused("writes into a constant", PARTS)
    for other, held in env.items():
        if other in {target, node} or not any(order[user] > order[node] for user in other.users):
            continue
        if any(value.memory is old.memory and value.overlaps(old) for value in _values(held)):
            raise b.refused("changes a part of a tensor that is read later", PARTS)
    env[target] = env[node]


def _values(held: Any) -> list[Value]:
    return [leaf for leaf in pytree.tree_leaves(held) if isinstance(leaf, Value)]


def _graph(b: Builder, name: str, image: Tensor, returned: Any) -> Graph:
    if not isinstance(returned, Value):
        raise UserError(f"{name} returns the same for every image: nothing of it depends on the input")
    held = returned if returned.places is None else b.as_map(returned)
    return Graph(
        name=name,
        input=IMAGE,
        input_shape=(image.shape[1], image.shape[2], image.shape[3]),
        output=held.name,
        output_shape=returned.shape[1:],
        operations=b.operations(),
    )
